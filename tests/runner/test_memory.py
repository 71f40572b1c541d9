"""Memory stays flat over thousands of regularized steps: no graph outlives its step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from spectral_run.curvature.backends import BACKENDS, choose_backend
from spectral_run.curvature.objective import Objective
from spectral_run.models.usps_cnn import USPSCNN
from spectral_run.regularizers.base import Step
from spectral_run.regularizers.spectral_radius import SpectralRadius

STATM = Path("/proc/self/statm")


def resident() -> int:
    """Pages in memory now: the process's peak would be that of other tests."""
    return int(STATM.read_text().split()[1])


@pytest.mark.skipif(not STATM.exists(), reason="no /proc to read memory from")
@pytest.mark.parametrize("name", [name for name in BACKENDS[1:] if name != "cuda"])  # on the processor
def test_peak_memory_is_flat(name: str) -> None:
    torch.manual_seed(0)
    model = USPSCNN(input_shape=(1, 16, 16), classes=10)
    objective = Objective(model, torch.nn.functional.cross_entropy)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    regularizer = SpectralRadius(mu=0.005, K=0.0)
    inputs, targets = torch.rand(32, 1, 16, 16), torch.randint(10, (32,))
    backend = choose_backend(name, objective, inputs)
    state = {}

    def peak(numbers: range) -> int:
        nonlocal state
        most = 0
        for number in numbers:
            step = Step(number, torch.Generator().manual_seed(number), state)
            result = regularizer.gradient(backend(objective, inputs, targets), step)
            state = result.state
            for parameter, gradient in zip(model.parameters(), objective.split(result.gradient), strict=True):
                parameter.grad = gradient
            optimizer.step()
            most = max(most, resident())
        return most

    peak(range(100))
    early = peak(range(100, 300))
    assert peak(range(300, 700)) <= 1.02 * early  # 2,100 were measured by hand: docs/defaults.md
