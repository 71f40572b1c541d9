"""Compiles every kernel of this folder for the GPUs named on the command line (80, 90), which need not be here."""

from __future__ import annotations

import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from spectral_run.curvature.cuda.kernels import fused, step, tridiagonal

DOUBLES = ("alpha", "beta", "scratch", "numbers", "eps", "rounding", "turn", "out", "coefficients", "norm")
STEP = {"WHICH": 0, "RELATIVE": True, "CLUSTER": 2, "KMAX": 64, "LANES": 64, "SWEEPS": 8}
RITZ = {"WHICH": 1, "KMAX": 64, "LANES": 64, "SWEEPS": 8, "SECOND": True}
BLOCKS = {"ROWS": 16, "BLOCK": 128}
KERNELS: list[tuple[Any, dict[str, Any], tuple[str, ...]]] = [
    (tridiagonal.ritz_kernel, RITZ, DOUBLES),
    (step.step_kernel, STEP, DOUBLES),
    (step.restart_kernel, {"KMAX": 64, "CLUSTER": 1}, DOUBLES),
    (fused.backward1_kernel, {"BLOCK": 1024}, ()),
    (fused.forward2_kernel, {"BLOCK": 1024, "X2": True}, ()),
    (fused.backward2_kernel, {"BLOCK": 1024, "X2": True}, ()),
    (fused.cotangent1_kernel, {"ROWS": 64, "CLASSES": 16}, ()),
    (fused.project_kernel, {"SUBTRACT": True, "PROJECT": True, **BLOCKS}, ("coefficients", "partials", "squares")),
]


def main() -> None:
    for kernel, constants, doubles in KERNELS:
        kinds = {"k": "i32", "n": "i32", "rows": "i32", "classes": "i32", "room": "i32", "cap": "i32", "dump": "i32"}
        kinds |= {"state": "*i64", **dict.fromkeys(constants, "constexpr"), **dict.fromkeys(doubles, "*fp64")}
        signature = {name: kinds.get(name, "*fp32") for name in kernel.arg_names}
        for capability in map(int, sys.argv[1:]):
            source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
            compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
            print(kernel.__name__, capability, compiled.metadata.shared, len(compiled.asm["cubin"]))


if __name__ == "__main__":
    main()
