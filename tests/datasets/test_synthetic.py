from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from spectral_run.datasets.base import Data, DataHome
from spectral_run.datasets.synthetic import Synthetic

# equal moduli, clustered, zero, one-by-one, square, wide range
SPECTRA = [[4.0, 2.0, 1.0], [3.0, 3.0, 1.0], [1.0, 1.0 - 1e-9, 0.5], [2.0, 0.0], [0.0], [5.0], [1e6, 1.0, 1e-6]]


def load(dataset: Synthetic) -> Data:
    return dataset.load(DataHome(Path("nowhere"), download=False))


def dense_hessian(data: Data) -> torch.Tensor:
    """Of mean((X w - y)^2) by autograd, at a point that is not the minimum."""
    X, y = data.train.inputs, data.train.targets
    w = torch.linspace(-1, 1, X.shape[1], dtype=torch.float64)
    return torch.autograd.functional.hessian(lambda w: ((X @ w[:, None] - y) ** 2).mean(), w)


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("rows", [3, 50])
def test_hessian_is_exact(spectrum: Sequence[float], rows: int) -> None:
    dataset = Synthetic(spectrum=spectrum, rows=rows, seed=1)
    dense = dense_hessian(load(dataset))
    scale = max(spectrum)
    torch.testing.assert_close(dense, dataset.hessian(), rtol=0, atol=1e-13 * scale)
    expected = torch.tensor(sorted(spectrum), dtype=torch.float64)
    torch.testing.assert_close(torch.linalg.eigvalsh(dense), expected, rtol=0, atol=1e-13 * scale)


def test_shapes() -> None:
    data = load(Synthetic(spectrum=[2, 1], rows=10))
    assert data.train.inputs.shape == (10, 2)
    assert data.train.targets.shape == (10, 1)
    assert data.train.inputs.dtype == data.train.targets.dtype == torch.float64
    assert data.rows == {"train": 10, "validation": 2, "test": 2}


def test_targets_are_linear_without_noise() -> None:
    data = load(Synthetic(spectrum=[2.0, 1.0, 0.5], rows=10, noise=0.0))
    solution = torch.linalg.lstsq(data.train.inputs, data.train.targets).solution
    for split in (data.train, data.validation, data.test):
        torch.testing.assert_close(split.inputs @ solution, split.targets, rtol=0, atol=1e-12)


def test_noise_has_its_deviation() -> None:
    noise = 0.3
    quiet, noisy = (load(Synthetic(spectrum=[1.0], rows=4000, noise=size)) for size in (0.0, noise))
    found = (noisy.train.targets - quiet.train.targets).std().item()
    assert abs(found - noise) < 3 * noise / (2 * 4000) ** 0.5  # three standard errors of a deviation


def test_seed_decides() -> None:
    first, again, other = (load(Synthetic(spectrum=[2.0, 1.0], seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(first.train.inputs, again.train.inputs)
    assert first.sha256 == again.sha256 != other.sha256


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"spectrum": []}, r"spectrum must be one or more finite numbers >= 0, got \(\)"),
        ({"spectrum": [1.0, -1.0]}, r"spectrum must be .* got \(1\.0, -1\.0\)"),
        ({"spectrum": [float("nan")]}, "spectrum must be"),
        ({"spectrum": [1.0, 1.0], "rows": 1}, "rows must be an integer >= 2, got 1"),
        ({"spectrum": [1.0], "noise": -1.0}, "noise must be finite and >= 0, got -1"),
        ({"spectrum": [1.0], "seed": -1}, "seed must be an integer"),
    ],
)
def test_refusals(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"Synthetic: {message}"):
        Synthetic(**settings)
