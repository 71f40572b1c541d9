"""Every solver against matrices whose spectrum was prescribed, the awkward ones included."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spectral_run.curvature.lanczos import Lanczos
from spectral_run.curvature.lobpcg import LOBPCG
from spectral_run.curvature.power import PowerIteration
from spectral_run.curvature.solver import EigenResult
from spectral_run.curvature.solvers import solver

NAMES = ("power", "lanczos", "lobpcg")
SPECTRA = {
    "positive": [5.0, 3.0, 1.0, 0.5, 0.1, 0.0],
    "negative top": [-5.0, 3.0, 1.0, 0.5, 0.1, 0.0],
    "one by one": [2.5],
    "negative one by one": [-2.5],
    "repeated top": [4.0, 4.0, 4.0, 1.0, 0.0],
    "tiny": [1e-12, 1e-13, 0.0],
    "huge": [1e12, -1e11, 1.0],
    "long tail": [10.0, *[0.1 * i for i in range(40)]],
}


def matrix(spectrum: list[float], seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    n = len(spectrum)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    return q @ torch.diag(torch.tensor(spectrum, dtype=torch.float64)) @ q.T


def start(n: int, seed: int = 1) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def counted(a: Tensor) -> tuple[list[int], object]:
    calls = [0]

    def product(v: Tensor) -> Tensor:
        calls[0] += 1
        return a @ v

    return calls, product


def check_honest(result: EigenResult, a: Tensor, calls: list[int]) -> None:
    """What a result says of itself is true."""
    assert result.products == calls[0]
    assert float(result.vector.norm()) == pytest.approx(1.0, abs=1e-12)
    true = float((a @ result.vector - result.value * result.vector).norm())
    scale = float(torch.linalg.matrix_norm(a, 2))
    assert result.residual == pytest.approx(true, rel=1e-6, abs=1e-13 * scale)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", SPECTRA)
def test_prescribed_spectrum(name: str, case: str) -> None:
    a = matrix(SPECTRA[case])
    calls, product = counted(a)
    result = solver(name, eps=1e-7, relative=True, cap=2000).solve(product, start(len(a)))
    top = max(SPECTRA[case], key=abs)
    assert result.converged
    assert result.value == pytest.approx(top, rel=1e-10)
    check_honest(result, a, calls)


@pytest.mark.parametrize("name", NAMES)
def test_zero_matrix(name: str) -> None:
    result = solver(name, eps=1e-6, relative=True, cap=10).solve(torch.zeros_like, start(5))
    assert (result.value, result.residual, result.products, result.reason) == (0.0, 0.0, 1, "zero")


@pytest.mark.parametrize("name", NAMES)
def test_nan_is_reported(name: str) -> None:
    result = solver(name, eps=1e-6, relative=True, cap=10).solve(lambda v: v * math.nan, start(5))
    assert result.reason == "nan"
    assert not result.converged


def test_power_reports_that_opposite_eigenvalues_do_not_converge_and_lanczos_finds_one() -> None:
    a = matrix([3.0, -3.0, 1.0])
    calls, product = counted(a)
    result = solver("power", eps=1e-6, relative=True, cap=50).solve(product, start(3))
    assert (result.reason, result.products) == ("cap", 50)
    assert result.residual > 0.1
    check_honest(result, a, calls)
    assert solver("lanczos", eps=1e-6, relative=True, cap=50).solve(lambda v: a @ v, start(3)).rho == pytest.approx(3)


@pytest.mark.parametrize("name", NAMES)
def test_cap_is_kept_and_reported(name: str) -> None:
    a = matrix([1.0 + 0.001 * i for i in range(200)])
    calls, product = counted(a)
    result = solver(name, eps=1e-10, relative=True, cap=7).solve(product, start(200))
    assert (result.products, result.reason) == (7, "cap")
    check_honest(result, a, calls)


@pytest.mark.parametrize("name", NAMES)
def test_absolute_tolerance_is_met(name: str) -> None:
    a = matrix([100.0, 60.0, 5.0, 1.0])
    loose = solver(name, eps=1.0, relative=False, cap=100).solve(lambda v: a @ v, start(4))
    tight = solver(name, eps=1e-6, relative=False, cap=100).solve(lambda v: a @ v, start(4))
    assert loose.residual <= 1.0
    assert tight.residual <= 1e-6
    assert loose.products <= tight.products


@pytest.mark.parametrize("name", NAMES)
def test_warm_start_at_the_eigenvector_costs_one_product(name: str) -> None:
    a = matrix(SPECTRA["positive"])
    values, vectors = torch.linalg.eigh(a)
    result = solver(name, eps=1e-6, relative=True, cap=50).solve(
        lambda v: a @ v, 3.0 * vectors[:, values.abs().argmax()]
    )
    assert (result.products, result.reason) == (1, "residual")


@pytest.mark.parametrize("name", NAMES)
@given(spectrum=st.lists(st.floats(-10, 10), min_size=2, max_size=8), scale=st.floats(0.01, 100))
@settings(max_examples=25, deadline=None)
def test_value_scales_with_the_matrix(name: str, spectrum: list[float], scale: float) -> None:
    spectrum = [12.0, *spectrum]  # a gap, so that every solver converges
    a = matrix(spectrum)
    one = solver(name, eps=1e-6, relative=True, cap=500).solve(lambda v: a @ v, start(len(a)))
    other = solver(name, eps=1e-6, relative=True, cap=500).solve(lambda v: scale * (a @ v), start(len(a)))
    assert one.value == pytest.approx(12.0, rel=1e-9)
    assert other.value == pytest.approx(scale * one.value, rel=1e-9)


def test_lanczos_restarts_and_still_finds_the_top() -> None:
    spectrum = [1.0 + i / 300 for i in range(300)]  # clustered: needs far more steps than the basis holds
    a = matrix(spectrum)
    calls, product = counted(a)
    result = Lanczos(eps=1e-6, cap=3000, basis=16, keep=4).solve(product, start(300))
    assert result.converged
    assert result.products > 16
    assert result.value == pytest.approx(spectrum[-1], rel=1e-10)
    check_honest(result, a, calls)


def test_lanczos_needs_fewer_products_than_power() -> None:
    a = matrix([1.0 - 0.02 * i for i in range(50)])
    counts = {}
    for name in NAMES:
        counts[name] = solver(name, eps=1e-3, relative=True, cap=5000).solve(lambda v: a @ v, start(50)).products
    assert counts["lanczos"] <= counts["lobpcg"] < counts["power"]


@pytest.mark.parametrize("name", ["lanczos", "lobpcg"])
@pytest.mark.parametrize("case", SPECTRA)
def test_both_ends_with_their_sign(name: str, case: str) -> None:
    a = matrix(SPECTRA[case])
    scale = max(map(abs, SPECTRA[case]))
    for which, true in (("largest", max(SPECTRA[case])), ("smallest", min(SPECTRA[case]))):
        calls, product = counted(a)
        settings = {"eps": 1e-7 * scale, "relative": False, "cap": 2000}
        result = solver(name, which=which, **settings).solve(product, start(len(a)))
        assert result.converged
        assert result.value == pytest.approx(true, rel=1e-9, abs=1e-9 * scale)
        check_honest(result, a, calls)


def test_lanczos_keeps_its_basis_orthogonal_with_single_passes_left_out() -> None:
    # In single precision and over many steps, the estimated residual is the true one: orthogonality is not lost.
    diagonal = torch.linspace(0, 1, 2000, dtype=torch.float32)
    diagonal[-1] = 1.05
    begin = start(2000).float()
    for cap in (20, 40, 60):
        result = Lanczos(eps=1e-12, cap=cap).solve(lambda v: diagonal * v, begin)
        v = result.vector.double()
        true = float((diagonal.double() * v - result.value * v).norm())
        assert result.residual == pytest.approx(true, rel=0.02, abs=4e-7)


def test_lanczos_knows_the_gap() -> None:
    for spectrum in ([5.0, 4.0, -1.0, 0.2], [5.0, -4.0, 1.0, 0.2]):
        a = matrix(spectrum)
        assert Lanczos(eps=1e-12).solve(lambda v, a=a: a @ v, start(4)).gap == pytest.approx(0.2, rel=1e-9)
    a = matrix([5.0, -7.0, 4.0, 0.2])
    assert Lanczos(eps=1e-12, which="largest").solve(lambda v: a @ v, start(4)).gap == pytest.approx(0.2, rel=1e-9)
    assert math.isnan(Lanczos().solve(lambda v: 2 * v, start(4)).gap)
    assert math.isnan(PowerIteration().solve(lambda v: a @ v, start(4)).gap)


@pytest.mark.parametrize("second", [1.0, 1.0 - 1e-9, 0.999, -0.999, -1.0])
def test_lanczos_from_two_vectors_returns_all_that_its_tolerance_cannot_tell_apart(second: float) -> None:
    a = matrix([1.0, second, *[0.5 - 0.01 * i for i in range(40)]])
    values, vectors = torch.linalg.eigh(a)
    true = vectors[:, values.abs() > 0.95]
    calls, product = counted(a)
    both = torch.stack([start(len(a), 1), start(len(a), 4)])
    result = Lanczos(eps=1e-2, cluster=3, cap=500).solve(product, both)
    check_honest(result, a, calls)
    assert result.gap < 1e-2
    ((value, vector),) = result.near
    found = torch.stack([result.vector, vector])
    assert float((found @ found.T - torch.eye(2, dtype=torch.float64)).norm()) < 1e-10
    assert float((a @ vector - value * vector).norm()) <= 1e-2 * abs(value)
    assert float((found @ true).norm() ** 2) == pytest.approx(2.0, abs=0.05)  # the same plane
    again = Lanczos(eps=1e-2, cluster=3, cap=500).solve(lambda v: a @ v, found)
    assert again.products <= 3
    # From one vector the second value comes up when the first has converged to about their distance, no sooner.
    if second == 0.999:
        assert Lanczos(eps=1e-2, cluster=3).solve(lambda v: a @ v, both[0]).near == ()
        assert Lanczos(eps=1e-5).solve(lambda v: a @ v, both[0]).gap == pytest.approx(1e-3, rel=0.1)


def test_lanczos_from_several_vectors_restarts() -> None:
    spectrum = [2.0, 2.0, *[1.0 + i / 300 for i in range(299)]]
    a = matrix(spectrum)
    calls, product = counted(a)
    starts = torch.randn(3, 301, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    result = Lanczos(eps=1e-8, cap=3000, basis=16, keep=5, cluster=3).solve(product, starts)
    assert result.converged
    assert result.products > 40
    assert [value for value, _ in result.near] == pytest.approx([2.0])
    check_honest(result, a, calls)


def test_lanczos_starting_inside_a_cluster_still_sees_it() -> None:
    a = matrix([1.0, 0.999, *[0.5 - 0.01 * i for i in range(40)]])
    values, vectors = torch.linalg.eigh(a)
    inside = vectors[:, values > 0.9].sum(1)
    assert Lanczos(eps=1e-2).solve(lambda v: a @ v, inside).products == 1
    result = Lanczos(eps=1e-2, cluster=2).solve(lambda v: a @ v, inside)
    assert len(result.near) == 1
    assert result.products == 2


def test_lobpcg_takes_a_preconditioner() -> None:
    # For the top of the spectrum a preconditioner must amplify the top: T = (sigma - A)^-1 with sigma just above it.
    a = matrix([1.0 - 0.01 * i for i in range(60)])
    inverse = torch.linalg.inv(1.001 * torch.eye(60, dtype=torch.float64) - a)
    plain = LOBPCG(eps=1e-6, cap=500).solve(lambda v: a @ v, start(60))
    helped = LOBPCG(eps=1e-6, cap=500).solve(lambda v: a @ v, start(60), preconditioner=lambda r: inverse @ r)
    assert helped.value == pytest.approx(1.0, rel=1e-9)
    assert helped.products < plain.products / 2


@pytest.mark.parametrize("name", ["power", "lanczos"])
def test_others_refuse_a_preconditioner(name: str) -> None:
    with pytest.raises(ValueError, match="takes no preconditioner"):
        solver(name, eps=1e-3, relative=True, cap=5).solve(lambda v: v, start(3), preconditioner=lambda r: r)


@pytest.mark.parametrize("bad", [torch.zeros(3), torch.tensor([1.0, math.nan])])
def test_refuses_a_start_that_is_no_direction(bad: Tensor) -> None:
    with pytest.raises(ValueError, match="start vector must be finite and not zero"):
        PowerIteration().solve(lambda v: v, bad)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"eps": 0.0}, "eps must be positive, got 0.0"),
        ({"eps": math.nan}, "eps must be positive"),
        ({"cap": 0}, "cap must be at least 1 product, got 0"),
    ],
)
def test_refuses_settings(settings: dict[str, float], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        PowerIteration(**settings)


def test_refuses_another_solvers_setting() -> None:
    with pytest.raises(ValueError, match="solver power has no setting 'shift'; it has eps, relative, cap, which"):
        solver("power", eps=1e-3, relative=True, cap=5, shift=2.0)
    with pytest.raises(ValueError, match="PowerIteration: which must be one of magnitude, got 'smallest'"):
        solver("power", eps=1e-3, relative=True, cap=5, which="smallest")
    with pytest.raises(ValueError, match=r"Lanczos: cluster must be in \[1, keep\], got cluster=9, keep=8"):
        Lanczos(cluster=9)


def test_refuses_an_unknown_name() -> None:
    with pytest.raises(ValueError, match="solver must be one of power, lanczos, lobpcg, lobpcg_paper; got 'qr'"):
        solver("qr", eps=1e-3, relative=True, cap=5)
