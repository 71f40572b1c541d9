"""One library in a process of its own: reads requests as JSON lines, answers with JSON lines. Started by curvature.py.

``load``     take over a network and a batch
``prepare``  make a quantity's variants, run each (all compilation happens here), compare results with the reference
``time``     call one variant for a while: seconds per call
``first``    seconds until a first result
``memory``   peak memory of one gradient or one short solve, in a process that has done nothing else
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import importlib.metadata
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from peers.base import Call, Peer, Penalized, Solution, UnsupportedError, Variants

LIBRARIES = {
    "native": ("peers.ours", "Ours", ("native",)),
    "rop": ("peers.ours", "Ours", ("rop",)),
    "autograd": ("peers.ours", "Ours", ("autograd",)),
    "kept graph": ("peers.kept_graph", "KeptGraph", ()),
    "curvlinops": ("peers.curvlinops", "Curvlinops", ()),
    "hessian-eigenthings": ("peers.hessian_eigenthings", "HessianEigenthings", ()),
    "jax": ("peers.jax", "Jax", ()),
}
"""Library: module, class, arguments. The first three are this project's backends."""

LONG = 0.1
"""Seconds of a call that is not repeated to learn how long it takes."""

OURS = ("native", "rop", "autograd")


class Worker:
    def __init__(self, library: str) -> None:
        module, name, arguments = LIBRARIES[library]
        self.peer: Peer = getattr(importlib.import_module(module), name)(*arguments)
        self.data: dict[str, np.ndarray] = {}
        self.variants: dict[str, Variants] = {}
        self.seconds: dict[tuple[str, str], float] = {}

    def hello(self) -> dict[str, Any]:
        return {"versions": {package: importlib.metadata.version(package) for package in self.peer.packages}}

    def load(self, network: dict[str, Any], file: str) -> dict[str, Any]:
        self.variants.clear()
        self.seconds.clear()
        with np.load(file) as stored:
            self.data = dict(stored)
        self.peer.load(network, self.data)
        return {}

    def prepare(self, quantity: str) -> dict[str, Any]:
        self.variants[quantity] = self.peer.variants(quantity, self.data)
        report = {}
        for name, call in self.variants[quantity].items():
            result = call()
            once = _seconds(call, 1)
            self.seconds[quantity, name] = once if once > LONG else min(_seconds(call, 1) for _ in range(3))
            report[name] = {"seconds": self.seconds[quantity, name]} | self.check(quantity, result)
        return {"variants": report}

    def check(self, quantity: str, result: Any) -> dict[str, float | int]:
        """Relative errors against the float64 reference.

        For an eigenpair its true residual, and which it is: 0 for the largest modulus. A small residual can belong to
        another eigenpair; ``error`` is then the distance to that one.
        """
        kind = quantity.partition(" ")[0]
        if kind == "primal":
            return {}
        if isinstance(result, Solution):
            v = self.peer.array(result.vector)
            residual = np.linalg.norm(self.peer.array(self.peer.multiply(v.astype(np.float32))) - result.value * v)
            errors = abs(result.value - self.data["values"]) / abs(self.data["values"])
            found = int(errors.argmin())
            about = {"products": result.products, "residual": float(residual / abs(result.value)), "eigenpair": found}
            return about | {"error": float(errors[found])}
        reference = self.data[f"reference {kind}"]
        if isinstance(result, Penalized):
            vector = self.peer.array(result.gradient)
            errors = np.linalg.norm(vector - reference, axis=1) / np.linalg.norm(reference, axis=1)
            found = int(errors.argmin())
            return {"products": result.products, "eigenpair": found, "error": float(errors[found])}
        error = np.linalg.norm(self.peer.array(result) - reference) / np.linalg.norm(reference)
        return {"error": float(error)}

    def time(self, quantity: str, variant: str, seconds: float) -> dict[str, Any]:
        call = self.variants[quantity][variant]
        calls = max(1, int(seconds / self.seconds[quantity, variant]))
        cpu = time.process_time()
        wall = _seconds(call, calls)
        return {"calls": calls, "wall": wall, "cpu": (time.process_time() - cpu) / calls}

    def first(self, quantity: str, variant: str) -> dict[str, Any]:
        """Seconds until the first result, with all that is done once."""
        began = time.perf_counter()
        self.peer.variants(quantity, self.data)[variant]()
        return {"seconds": time.perf_counter() - began}

    def memory(self, network: dict[str, Any], small: str, file: str, what: str) -> dict[str, Any]:
        """MiB above what the process held before, at the peak. Everything lazy is done first, on two rows."""
        for stored in (small, file):
            self.load(network, stored)
            call = self.peer.plain_gradient() if what == "gradient" else self.peer.short_solve(self.data["start"])
            if stored == small:
                call()
        self.variants.clear()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
        before = _status("VmRSS")
        result = call()
        peak = (_status("VmHWM") - before) / 1024
        return {"peak": peak} | (self.check(what, result) if what == "gradient" else {})


def _seconds(call: Call, calls: int) -> float:
    began = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - began) / calls


def _status(field: str) -> int:
    """A field of /proc/self/status in KiB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1])


def main() -> None:
    library, core = sys.argv[1], int(sys.argv[2])
    if core >= 0:
        os.sched_setaffinity(0, {core})
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not end up among the answers
    worker: Worker | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if worker is None:
                worker = Worker(library)
                if "torch" in sys.modules:
                    sys.modules["torch"].set_num_threads(1)
            answer = getattr(worker, request.pop("do"))(**request)
        except UnsupportedError as error:
            answer = {"unsupported": str(error)}
        except ImportError as error:
            answer = {"missing": str(error)}
        except Exception as error:  # the parent reports it and goes on with the other libraries
            answer = {"failed": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
