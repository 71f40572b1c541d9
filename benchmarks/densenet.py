"""DenseNet-121 at full size on the CPU: time of gradient, Hv and grad v'Hv, and how far they are from differences.

usage: python benchmarks/densenet.py [pixels] [rows]      224 pixels, 4 rows: a minute and some 6 GB
Timed as torchvision has it, in float32. Compared in float64 with smooth functions for ReLU and max pooling, against
central differences of first-order gradients by autograd, with one step of Richardson's extrapolation.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from spectral_run.curvature.autograd import AutogradProblem
from spectral_run.curvature.backends import choose_backend
from spectral_run.curvature.exact_layers import swap_norms
from spectral_run.curvature.objective import Objective


def densenet(*, smooth: bool, dtype: torch.dtype) -> Objective:
    torch.manual_seed(0)
    model = torchvision.models.densenet121(num_classes=14)
    if smooth:
        for name, module in list(model.named_modules()):
            parent, _, leaf = name.rpartition(".")
            if isinstance(module, nn.ReLU | nn.MaxPool2d):
                replacement = nn.Tanh() if isinstance(module, nn.ReLU) else nn.AvgPool2d(2)
                setattr(model.get_submodule(parent), leaf, replacement)
        model.forward = lambda x: model.classifier(F.silu(model.features(x)).mean((2, 3)))  # its own has F.relu
    return Objective(swap_norms(model).to(dtype).train(), F.binary_cross_entropy_with_logits)


def batch(pixels: int, rows: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, 3, pixels, pixels, dtype=dtype), torch.rand(rows, 14, dtype=dtype)


def seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def times(pixels: int, rows: int) -> None:
    objective = densenet(smooth=False, dtype=torch.float32)
    inputs, targets = batch(pixels, rows, torch.float32)
    backend = choose_backend("auto", objective, inputs)
    problem = backend(objective, inputs, targets)
    v = torch.randn(problem.n)
    print(f"backend {backend.name}: {backend.why}; {problem.n} parameters")
    plain = AutogradProblem(objective, inputs, targets)
    print(f"gradient by autograd {seconds(plain.grad):.2f} s, primal pass {seconds(problem.linearize):.2f} s")
    print(f"Hv {min(seconds(lambda: problem.hvp(v)) for _ in range(3)):.2f} s")
    print(f"Hv and grad v'Hv {min(seconds(lambda: problem.hvp_and_quadratic_grad(v)) for _ in range(2)):.2f} s")


def errors(pixels: int, rows: int) -> None:
    objective = densenet(smooth=True, dtype=torch.float64)
    inputs, targets = batch(pixels, rows, torch.float64)
    problem = choose_backend("auto", objective, inputs)(objective, inputs, targets)
    w, v = problem.params, torch.randn(problem.n, dtype=torch.float64)
    v /= v.norm()
    product, quadratic = problem.hvp_and_quadratic_grad(v)

    def gradient(t: float) -> Tensor:
        return AutogradProblem(objective, inputs, targets, params=w + t * v).grad()

    here = gradient(0.0)

    def differences(h: float) -> tuple[Tensor, Tensor]:
        ahead, behind = gradient(h), gradient(-h)
        return (ahead - behind) / (2 * h), (ahead - 2 * here + behind) / h**2

    coarse, fine = differences(8e-3), differences(4e-3)
    first, second = ((4 * b - a) / 3 for a, b in zip(coarse, fine, strict=True))
    for name, got, want in (
        ("gradient", problem.grad(), here),
        ("Hv", product, first),
        ("grad v'Hv", quadratic, second),
    ):
        print(f"relative error of {name}: {float((got - want).norm() / want.norm()):.1e}")


def main() -> None:
    pixels, rows = (int(sys.argv[i]) if len(sys.argv) > i else default for i, default in ((1, 224), (2, 4)))
    torch.set_num_threads(1)
    times(pixels, rows)
    errors(pixels, rows)


if __name__ == "__main__":
    main()
