"""Seconds per training step with 1, 2, ... threads, interleaved: why ``threads`` is 1 by default.

usage: python benchmarks/threads.py [steps]      needs no data: random inputs of the data sets' shapes
"""

from __future__ import annotations

import os
import statistics
import sys
import time

import torch
import torch.nn.functional as F

from spectral_run.curvature.backends import choose_backend
from spectral_run.curvature.exact_layers import swap_norms
from spectral_run.curvature.objective import Objective
from spectral_run.models.mlp import MLP
from spectral_run.models.resnet import ResNet
from spectral_run.models.usps_cnn import USPSCNN
from spectral_run.regularizers.base import Regularizer, Step
from spectral_run.regularizers.spectral_radius import SpectralRadius
from spectral_run.regularizers.unregularized import Unregularized

CASES = {
    "digits, mlp": (lambda: MLP(input_shape=(1, 8, 8), classes=10, widths=[64, 32]), (32, 1, 8, 8)),
    "covtype, mlp": (lambda: MLP(input_shape=(54,), classes=7, widths=[20, 20, 20]), (128, 54)),
    "usps, cnn": (lambda: USPSCNN(input_shape=(1, 16, 16), classes=10), (128, 1, 16, 16)),
    "cifar10, resnet": (lambda: ResNet(input_shape=(3, 32, 32), classes=10), (128, 3, 32, 32)),
}
PENALTIES: dict[str, Regularizer] = {"none": Unregularized(), "spectral_radius": SpectralRadius(mu=0.005, K=0.0)}


def seconds(
    objective: Objective, regularizer: Regularizer, inputs: torch.Tensor, targets: torch.Tensor, n: int
) -> float:
    backend = choose_backend("autograd", objective, inputs)
    began = time.perf_counter()
    for number in range(n):
        step = Step(number, torch.Generator().manual_seed(number))
        regularizer.gradient(backend(objective, inputs, targets), step)
    return (time.perf_counter() - began) / n


def main() -> None:
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    threads = [1, *[n for n in (2, 4, 8) if n <= (os.cpu_count() or 1)]]
    print(f"{'network':<18}{'penalty':<18}" + "".join(f"{f'{n} thread' + 's' * (n > 1):>14}" for n in threads))
    for name, (build, shape) in CASES.items():
        torch.manual_seed(0)
        objective = Objective(swap_norms(build()), F.cross_entropy)
        inputs, targets = torch.rand(shape), torch.randint(7, (shape[0],))
        for penalty, regularizer in PENALTIES.items():
            n = max(1, steps // (20 if "resnet" in name else 1))
            times: dict[int, list[float]] = {count: [] for count in threads}
            for _ in range(5):
                for count in threads:
                    torch.set_num_threads(count)
                    times[count].append(seconds(objective, regularizer, inputs, targets, n))
            base = statistics.median(times[1])
            ratios = "".join(f"{statistics.median(times[count]) / base:>14.2f}" for count in threads)
            print(f"{name:<18}{penalty:<18}{ratios}   (1 thread: {1e3 * base:.2f} ms)")


if __name__ == "__main__":
    main()
