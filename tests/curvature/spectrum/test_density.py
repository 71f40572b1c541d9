"""Stochastic Lanczos quadrature against prescribed spectra and the laws of random matrices."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spectral_run.curvature.spectrum.density import SpectralDensity, spectral_density
from spectral_run.curvature.spectrum.probes import Distribution, draw
from spectral_run.curvature.spectrum.tridiagonal import tridiagonalize

LIKE = torch.zeros(0, dtype=torch.float64)
STEPS = 8
SPECTRA = {
    "spread": [-1.0 + 0.05 * i for i in range(40)],
    "clustered": [1.0 + 1e-6 * i for i in range(20)] + [0.3 + 1e-9 * i for i in range(15)] + [-0.5] * 3,
    "negative": [-0.1 * i - 0.1 for i in range(30)],
    "mostly zero": [3.0, 1.0, -0.2, *[0.0] * 50, *[0.01 * i for i in range(12)]],
    "repeated": [4.0] * 5 + [1.0] * 20 + [-1.0] * 2,
    "rank 3": [5.0, -3.0, 1.0, *[0.0] * 297],
    "zero": [0.0] * 30,
    "one by one": [2.5],
    "fewer than the steps": [3.0, 1.0, -2.0, 0.5],
    "as many as the steps": [0.5 * i - 1 for i in range(STEPS)],
    "tiny": [1e-12 * i for i in range(30)],
    "huge": [1e11 * i for i in range(30)],
}
ENDED = ("repeated", "rank 3", "zero", "one by one", "fewer than the steps", "as many as the steps")
"""Few different eigenvalues: the Krylov spaces end."""


def matrix(spectrum: list[float] | Tensor, seed: int = 0) -> Tensor:
    n = len(spectrum)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=seeded(seed), dtype=torch.float64))
    return q @ torch.diag(torch.as_tensor(spectrum, dtype=torch.float64)) @ q.T


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def of(a: Tensor, probes: int = 4, steps: int = STEPS, seed: int = 1, **more: object) -> SpectralDensity:
    return spectral_density(lambda v: v @ a, len(a), seeded(seed), probes=probes, steps=steps, like=LIKE, **more)


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
@pytest.mark.parametrize("case", SPECTRA)
def test_moments_of_every_probe_are_exact_to_order_2m_less_1(case: str, distribution: Distribution) -> None:
    a = matrix(SPECTRA[case])
    a = a / (float(torch.linalg.matrix_norm(a, 2)) or 1.0) * (torch.tensor(SPECTRA[case]).abs().max() or 1.0)
    density = of(a, distribution=distribution)
    starts = draw(seeded(1), 4, len(a), distribution=distribution, like=LIKE)
    power, squares = starts, starts.square().sum(1)
    for order in range(2 * STEPS):
        exact = (starts * power).sum(1) / squares
        found = (density.weights * density.nodes**order).sum(1)
        torch.testing.assert_close(found, exact, rtol=1e-8, atol=0.0)
        if order <= density.degree:
            assert density.moment(order).value == pytest.approx(float(exact.mean()), rel=1e-8)
        power = power @ a
    assert (density.degree == math.inf) == (case in ENDED)
    if case == "spread":  # and not one order further
        exact = (starts * power).sum(1) / squares
        found = (density.weights * density.nodes ** (2 * STEPS)).sum(1)
        assert bool(((found / exact - 1).abs() > 1e-6).all())
        with pytest.raises(ValueError, match=r"order must be in \[0, 15\], got 16"):
            density.moment(2 * STEPS)


@pytest.mark.parametrize("case", SPECTRA)
def test_what_a_density_says_of_itself(case: str) -> None:
    spectrum = torch.tensor(SPECTRA[case], dtype=torch.float64)
    density = of(matrix(SPECTRA[case]), probes=8)
    scale = float(spectrum.abs().max())
    assert density.nodes.dtype == density.weights.dtype == density.residuals.dtype == torch.float64
    assert bool((density.nodes.diff(dim=1) >= 0).all())
    torch.testing.assert_close(density.weights.sum(1), torch.ones(8, dtype=torch.float64), rtol=1e-12, atol=0.0)
    assert density.moment(0).value == pytest.approx(1.0, rel=1e-12)
    if density.degree >= 2:
        whole = [(density.trace, spectrum.sum()), (density.frobenius_norm, spectrum.norm())]
        for found, truth in whole:
            assert abs(found.value - float(truth)) <= 3 * found.standard_error + 1e-10 * scale * len(spectrum)
    for ritz in (density.largest, density.smallest):
        assert float((spectrum - ritz.value).abs().min()) <= ritz.residual
    assert density.largest.value <= float(spectrum.max()) + 1e-12 * scale
    assert density.smallest.value >= float(spectrum.min()) - 1e-12 * scale


@pytest.mark.parametrize(
    ("case", "distinct"),
    [("rank 3", 4), ("repeated", 3), ("zero", 1), ("one by one", 1), ("fewer than the steps", 4)],
)
def test_krylov_spaces_that_end(case: str, distinct: int) -> None:
    calls = []
    a = matrix(SPECTRA[case])

    def matvecs(v: Tensor) -> Tensor:
        calls.append(len(v))
        return v @ a

    density = spectral_density(matvecs, len(a), seeded(1), probes=5, steps=STEPS, like=LIKE)
    assert density.nodes.shape == (5, distinct)
    assert calls == [5] * distinct
    assert density.products == 5 * distinct
    assert not density.residuals.any()
    expected = torch.tensor(sorted(set(SPECTRA[case])), dtype=torch.float64).expand(5, -1)
    torch.testing.assert_close(density.nodes, expected, rtol=1e-12, atol=1e-12)


def test_a_probe_that_ends_leaves_the_others_alone() -> None:
    a = matrix(SPECTRA["spread"])
    vectors = torch.linalg.eigh(a).eigenvectors.T
    start = torch.randn(1, 40, generator=seeded(0), dtype=torch.float64)
    ended = torch.stack([vectors[3], vectors[0] + 2 * vectors[7]])
    calls = []

    def matvecs(v: Tensor) -> Tensor:
        calls.append(len(v))
        return v @ a

    together, alone = tridiagonalize(matvecs, torch.cat([ended, start]), 6), tridiagonalize(lambda v: v @ a, start, 6)
    assert together.sizes == (1, 2, 6)
    assert calls == [3, 2, 1, 1, 1, 1]
    assert together.products == sum(calls)
    for one, other in zip(together.ritz(2), alone.ritz(0), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    nodes, weights, _ = together.ritz(1)
    torch.testing.assert_close(weights, torch.tensor([0.2, 0.8], dtype=torch.float64), rtol=1e-12, atol=0.0)
    torch.testing.assert_close(nodes, torch.tensor([-1.0, -0.65], dtype=torch.float64), rtol=1e-12, atol=0.0)


def test_basis_is_orthogonal_on_a_hard_spectrum() -> None:
    """Eigenvalues over 12 decades: the outer ones converge at once, and without reorthogonalization all is lost."""
    far = torch.tensor([1e3, 2e3, 2e3 + 1e-6, -500.0, -500.0, 1e4, 1e4, 1e4, -1e-3, 0.0], dtype=torch.float64)
    a = matrix(torch.cat([torch.logspace(-8, 2, 290, dtype=torch.float64), far]))
    starts = torch.randn(3, 300, generator=seeded(0), dtype=torch.float64)
    found = tridiagonalize(lambda v: v @ a, starts, 100)
    for probe, basis in enumerate(found.basis):
        torch.testing.assert_close(basis @ basis.T, torch.eye(100, dtype=torch.float64), rtol=0.0, atol=1e-8)
        small = torch.diag(found.alphas[probe]) + torch.diag(found.betas[probe, :-1], 1)
        small = small + torch.diag(found.betas[probe, :-1], -1)
        torch.testing.assert_close(basis @ a @ basis.T, small, rtol=0.0, atol=1e-8)
        nodes, _, residuals = found.ritz(probe)
        vectors = torch.linalg.eigh(small).eigenvectors.T @ basis
        true = (vectors @ a - nodes[:, None] * vectors).norm(dim=1)
        torch.testing.assert_close(residuals, true, rtol=1e-6, atol=1e-9)


def test_wigner_is_a_semicircle() -> None:
    n = 600
    a = torch.randn(n, n, generator=seeded(3), dtype=torch.float64)
    density = of((a + a.T) / math.sqrt(2 * n), steps=60)
    assert density.largest.value == pytest.approx(2.0, rel=0.03)
    assert density.smallest.value == pytest.approx(-2.0, rel=0.03)
    x = torch.linspace(-2, 2, 201, dtype=torch.float64)
    law = 0.5 + x * (4 - x * x).clamp(min=0).sqrt() / (4 * math.pi) + (x / 2).clamp(-1, 1).asin() / math.pi
    shares = torch.tensor([density.mass(-math.inf, float(p)).value for p in x], dtype=torch.float64)
    assert float((shares - law).abs().max()) < 0.08
    for order, moment in ((2, 1.0), (4, 2.0), (6, 5.0)):  # Catalan's numbers, up to 1/n
        found = density.moment(order)
        assert abs(found.value - moment) < 3 * found.standard_error + 10 * moment / n
    curve = density.density(x, 0.15)
    inner = (x.abs() < 1.6).nonzero()[:, 0]
    semicircle = (4 - x[inner].square()).sqrt() / (2 * math.pi)
    assert float((curve.heights[inner] - semicircle).abs().max()) < 0.05


@pytest.mark.parametrize("ratio", [0.5, 2.0])
def test_marchenko_pastur(ratio: float) -> None:
    n = 600
    x = torch.randn(n, int(n / ratio), generator=seeded(4), dtype=torch.float64)
    density = of(x @ x.T / x.shape[1], steps=60)
    low, high = (1 - ratio**0.5) ** 2, (1 + ratio**0.5) ** 2
    assert density.largest.value == pytest.approx(high, rel=0.06)
    if ratio < 1:
        assert density.smallest.value == pytest.approx(low, rel=0.06)
    else:  # half of the eigenvalues are zero
        zero = density.mass(-1e-8, 1e-8)
        assert zero.value == pytest.approx(0.5, abs=0.07)
        # The spread of one probe's weight on a subspace of a fraction f: sqrt(2 f (1 - f) / (n + 2)).
        assert zero.standard_error < 3 * math.sqrt(0.5 / (n + 2)) / 2
        assert density.mass(1e-8, 0.9 * low).value < 1e-6
    trace = density.moment(1)
    assert abs(trace.value - 1.0) < 3 * trace.standard_error + 0.01
    second = density.moment(2)
    assert abs(second.value - (1 + ratio)) < 3 * second.standard_error + 0.03


def test_standard_errors_over_repeats() -> None:
    """Of the trace, against the exact variance for a direction uniform on the sphere: 2 / (n + 2) Var(lambda)."""
    spectrum = torch.tensor(SPECTRA["spread"], dtype=torch.float64)
    a = matrix(SPECTRA["spread"])
    found = [of(a, probes=20, steps=2, seed=seed).moment(1) for seed in range(200)]
    values, errors = torch.tensor([(e.value, e.standard_error) for e in found], dtype=torch.float64).T
    variance = 2 / 42 * float(spectrum.var(correction=0)) / 20
    assert float(values.mean()) == pytest.approx(float(spectrum.mean()), abs=3 * math.sqrt(variance / 200))
    assert float(values.var()) == pytest.approx(variance, rel=0.3)  # three times sqrt(2 / 199)
    assert float(errors.square().mean()) == pytest.approx(variance, rel=0.08)  # three times sqrt(2 / (19 * 200))
    covered = float(((values - spectrum.mean()).abs() <= 2 * errors).double().mean())
    assert covered == pytest.approx(0.94, abs=0.05)  # Student, 19 degrees; three sigma


def test_functions_of_the_matrix() -> None:
    a = matrix([0.5 + 0.02 * i for i in range(60)])
    density = of(a, probes=20, steps=20)
    exact = torch.logdet(a) / 60
    found = density.function(torch.log)
    assert abs(found.value - float(exact)) < 3 * found.standard_error
    padded = of(matrix([2.0] * 6 + [0.0] * 4), steps=6)
    assert math.isfinite(padded.function(lambda x: 1 / (x + 1)).value)


@pytest.mark.parametrize("scale", [None, 0.05])
def test_smoothed_density(scale: float | None) -> None:
    density = of(matrix(SPECTRA["mostly zero"]), steps=12)
    u = torch.linspace(-12, 12, 8001, dtype=torch.float64)
    grid = u if scale is None else scale * torch.sinh(u)
    curve = density.density(grid, scale=scale)
    assert curve.width == density.default_width(scale)
    assert float(torch.trapezoid(curve.heights, grid)) == pytest.approx(1.0, rel=1e-4)
    assert bool((curve.heights >= 0).all())
    assert bool((curve.standard_errors >= 0).all())
    if scale is None:
        by_hand = torch.distributions.Normal(density.nodes[..., None], curve.width).log_prob(grid).exp()
        torch.testing.assert_close(curve.heights, (density.weights[..., None] * by_hand).sum(1).mean(0))
        spread = (density.weights[..., None] * by_hand).sum(1).std(0) / 2
        torch.testing.assert_close(curve.standard_errors, spread)


def test_a_single_probe_has_no_standard_error() -> None:
    density = of(matrix(SPECTRA["spread"]), probes=1)
    assert math.isnan(density.moment(1).standard_error)
    assert bool(density.density(torch.linspace(-1, 1, 5)).standard_errors.isnan().all())


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 2**31), st.floats(-3, 3))
def test_shift_and_sign(n: int, steps: int, seed: int, shift: float) -> None:
    """Of ``shift - A``, from the same starts, the nodes are ``shift - theta``: nothing new of the other end."""
    a = matrix(torch.randn(n, generator=seeded(seed), dtype=torch.float64), seed)
    one = of(a, steps=steps, seed=seed)
    other = of(shift * torch.eye(n, dtype=torch.float64) - a, steps=steps, seed=seed)
    torch.testing.assert_close(other.nodes, (shift - one.nodes).flip(1), rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("chunk", [1, 3, None])
def test_chunks_make_no_difference(chunk: int | None) -> None:
    a = matrix(SPECTRA["mostly zero"])
    one, other = of(a, probes=5, chunk=5), of(a, probes=5, chunk=chunk)
    assert one.products == other.products
    torch.testing.assert_close(one.nodes, other.nodes, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(one.weights, other.weights, rtol=1e-9, atol=1e-9)


def test_same_seed_same_numbers_and_no_global_state() -> None:
    a = matrix(SPECTRA["spread"])
    before = torch.get_rng_state()
    one, other, third = of(a, seed=0), of(a, seed=0), of(a, seed=2)
    assert torch.equal(one.nodes, other.nodes)
    assert torch.equal(one.weights, other.weights)
    assert not torch.equal(one.nodes, third.nodes)
    assert torch.equal(before, torch.get_rng_state())


def test_single_precision() -> None:
    a = matrix(SPECTRA["spread"])
    exact = of(a)
    found = spectral_density(lambda v: v @ a.float(), 40, seeded(1), probes=4, steps=STEPS, like=torch.zeros(0))
    assert found.nodes.dtype == torch.float64
    torch.testing.assert_close(found.nodes, exact.nodes, rtol=0.0, atol=1e-4)
    assert found.moment(2).value == pytest.approx(exact.moment(2).value, rel=1e-5)
    low_rank = matrix(SPECTRA["rank 3"]).float()
    ended = spectral_density(lambda v: v @ low_rank, 300, seeded(1), probes=4, steps=20, like=torch.zeros(0))
    assert ended.nodes.shape[1] <= 4
    assert ended.largest.value == pytest.approx(5.0, rel=1e-5)
    assert abs(ended.largest.value - 5.0) <= ended.largest.residual < 1e-3  # though the Krylov space is invariant


def test_nan_is_passed_on() -> None:
    calls = []

    def matvecs(v: Tensor) -> Tensor:
        calls.append(len(v))
        return v * math.nan if len(calls) == 3 else v * torch.arange(1.0, 9, dtype=torch.float64)

    density = spectral_density(matvecs, 8, seeded(0), probes=2, steps=6, like=LIKE)
    assert calls == [2, 2, 2]
    assert math.isnan(density.moment(1).value)
    assert math.isnan(density.mass(0.0, 1.0).value)
    assert math.isnan(density.largest.value)
    assert math.isnan(density.smallest.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"probes": 0}, "spectral_density: probes must be at least 1, got 0"),
        ({"steps": 0}, "spectral_density: steps must be at least 1, got 0"),
        ({"n": 0}, "n must be at least 1, got 0"),
        ({"chunk": 0}, "chunk must be at least 1, got 0"),
        ({"like": torch.zeros(0, dtype=torch.bfloat16)}, "got torch.bfloat16"),
        ({"matvecs": lambda v: v[:1]}, r"matvecs must keep the shape \(3, 5\), got \(1, 5\)"),
    ],
)
def test_refusals(settings: dict[str, object], message: str) -> None:
    given = {"matvecs": lambda v: v, "n": 5, "generator": seeded(0), "probes": 3, "steps": 2, "like": LIKE} | settings
    with pytest.raises(ValueError, match=message):
        spectral_density(**given)


def test_refusals_of_what_a_density_is_asked() -> None:
    density = of(matrix(SPECTRA["spread"]), steps=1)
    grid = torch.linspace(-1, 1, 5)
    with pytest.raises(ValueError, match=r"order must be in \[0, 1\], got 2"):
        _ = density.frobenius_norm  # one step knows no second moment
    with pytest.raises(ValueError, match=r"low must be at most high, got 1\.0 and 0\.0"):
        density.mass(1.0, 0.0)
    with pytest.raises(ValueError, match="width must be positive, got 0"):
        density.density(grid, 0.0)
    with pytest.raises(ValueError, match="scale must be positive, got -1"):
        density.density(grid, 0.1, -1.0)
    with pytest.raises(ValueError, match="starts must be finite and not zero"):
        tridiagonalize(lambda v: v, torch.zeros(2, 3), 2)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        tridiagonalize(lambda v: v, torch.ones(2, 3), 0)
