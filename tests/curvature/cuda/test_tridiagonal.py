"""Eigenpairs of a tridiagonal matrix in a kernel, against LAPACK."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.linalg import eigh_tridiagonal

pytestmark = pytest.mark.usefixtures("_triton")
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Found:
    """What the kernel says."""

    theta: Array
    residuals: Array
    scale: float
    vectors: Array


def ritz(alpha: Array, beta: Array, which: str, device: torch.device, *, second: bool = True, sweeps: int = 8) -> Found:
    """The kernel on T; memory that it should not read is nan."""
    from spectral_run.curvature.cuda.kernels.tridiagonal import ENDS, SCRATCH, ritz_kernel

    k = len(alpha)
    width = max(2, 1 << (k - 1).bit_length()) * 2
    memory = torch.full((2 + SCRATCH, width), float("nan"), dtype=torch.float64, device=device)
    memory[0, :k], memory[1, :k] = torch.from_numpy(alpha), torch.from_numpy(beta)
    out = torch.zeros(5, dtype=torch.float64, device=device)
    settings = {"WHICH": ENDS[which], "KMAX": width, "LANES": 64, "SWEEPS": sweeps, "SECOND": second}
    ritz_kernel[(1,)](memory[0], memory[1], memory[2:], out, k, **settings)
    numbers = out.cpu().numpy()
    return Found(numbers[:3:2], numbers[1:4:2], float(numbers[4]), memory[2:4, :k].cpu().numpy())


def ordered(values: Array, which: str) -> Array:
    keys = {"magnitude": np.abs(values), "largest": values, "smallest": -values}
    return values[np.argsort(-keys[which], kind="stable")]


def check(alpha: Array, beta: Array, which: str, device: torch.device, tolerance: float = 3e-14) -> Found:
    """Values against LAPACK, residuals against their definition, vectors orthonormal."""
    found, k = ritz(alpha, beta, which, device), len(alpha)
    values = ordered(eigh_tridiagonal(alpha, beta[:-1], eigvals_only=True), which)
    norm = float(np.abs(values).max())
    small = np.diag(alpha) + np.diag(beta[:-1], 1) + np.diag(beta[:-1], -1)
    assert norm * (1 - 1e-12) <= found.scale <= 3 * norm
    for i in range(min(2, k)):
        theta, s = found.theta[i], found.vectors[i]
        want = values[i] if which != "magnitude" else np.sign(theta) * abs(values[i])
        assert abs(theta - want) <= tolerance * norm
        assert abs(np.linalg.norm(s) - 1) < 1e-13
        error = np.linalg.norm(small @ s - theta * s)
        assert error <= tolerance * norm
        assert found.residuals[i] == pytest.approx(np.hypot(error, beta[-1] * s[-1]), rel=1e-6, abs=3e-15 * norm)
    if k > 1:
        assert abs(found.vectors[0] @ found.vectors[1]) < 1e-8
    else:
        assert np.isnan(found.theta[1])
        assert np.isnan(found.residuals[1])
    return found


def random(k: int, seed: int = 0) -> tuple[Array, Array]:
    numbers = np.random.default_rng(seed)
    return numbers.normal(size=k), numbers.random(k)


@pytest.mark.parametrize("which", ["magnitude", "largest", "smallest"])
@pytest.mark.parametrize("k", [1, 2, 3, 13])
def test_random(k: int, which: str, device: torch.device) -> None:
    check(*random(k), which, device)


def test_as_long_as_a_basis(device: torch.device) -> None:
    check(*random(48), "magnitude", device)


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_scales(scale: float, device: torch.device) -> None:
    alpha, beta = random(6)
    check(scale * alpha, scale * beta, "magnitude", device)


_WILKINSON = np.abs(np.arange(-7.0, 8.0)), np.ones(15)  # pairs that agree to many digits
_TWICE = np.tile(random(4)[0], 2), np.tile([0.5, 0.3, 0.7, 0.0], 2)  # a block, and an uncoupled copy of it
_NEARLY = _TWICE[0], np.where(_TWICE[1] == 0, 1e-13, _TWICE[1])


@pytest.mark.parametrize("which", ["magnitude", "largest", "smallest"])
@pytest.mark.parametrize("matrix", [_WILKINSON, _TWICE, _NEARLY], ids=["wilkinson", "twice", "nearly"])
def test_repeated_values(matrix: tuple[Array, Array], which: str, device: torch.device) -> None:
    check(*matrix, which, device, tolerance=1e-13)  # the second vector starts where the first is small


@pytest.mark.parametrize(
    ("alpha", "beta"),
    [
        (np.zeros(4), np.zeros(4)),
        (np.ones(5), np.zeros(5)),
        (np.array([0.0, 0.0]), np.array([1.0, 0.5])),
        (np.array([1.0, 1.0]), np.array([1e-17, 0.1])),
        (np.array([2.0, -2.0, 2.0]), np.zeros(3)),
        (10.0 ** -np.arange(12), 0.5 * 10.0 ** -np.arange(12)),
    ],
    ids=["zero", "identity", "opposite", "coupled by rounding", "diagonal", "graded"],
)
def test_awkward(alpha: Array, beta: Array, device: torch.device) -> None:
    check(alpha, beta, "magnitude", device)


def test_of_opposite_values_the_positive_one(device: torch.device) -> None:
    found = ritz(np.array([-3.0, 3.0, 1.0]), np.zeros(3), "magnitude", device)
    assert found.theta.tolist() == [3.0, -3.0]


def test_the_first_alone(device: torch.device) -> None:
    alpha, beta = random(7)
    both, one = ritz(alpha, beta, "magnitude", device), ritz(alpha, beta, "magnitude", device, second=False)
    assert (both.theta[0], both.residuals[0]) == (one.theta[0], one.residuals[0])
    assert one.theta[1] == pytest.approx(both.theta[1], rel=1e-13)
    assert np.isnan(one.residuals[1])
    assert np.isnan(one.vectors[1]).all()  # not written


def test_an_early_end_of_the_search_shows_in_the_residual(device: torch.device) -> None:
    """Two sweeps leave four digits, the correction doubles them; the residual says what is left."""
    alpha, beta = random(9)
    beta[-1] = 0.0
    rough = ritz(alpha, beta, "largest", device, sweeps=1)
    exact = eigh_tridiagonal(alpha, beta[:-1], eigvals_only=True)[-1]
    assert abs(rough.theta[0] - exact) <= rough.residuals[0] + 1e-14
    assert rough.residuals[0] > 1e-9


@pytest.mark.filterwarnings("ignore:.*:RuntimeWarning")  # the interpreter computes with numpy
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_makes_all_nan(bad: float, device: torch.device) -> None:
    alpha, beta = random(4)
    alpha[2] = bad
    found = ritz(alpha, beta, "magnitude", device)
    assert np.isnan([*found.theta, *found.residuals, found.scale]).all()
