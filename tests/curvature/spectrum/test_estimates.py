"""Estimates against known traces, diagonals and norms; their standard errors against the spread of 200 repeats."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from scipy.stats import t as student
from torch import Tensor

from spectral_run.curvature.solver import BlockProduct
from spectral_run.curvature.spectrum import estimates
from spectral_run.curvature.spectrum.estimates import Estimate, diagonal, frobenius_norm, moments, trace

LIKE = torch.zeros(0, dtype=torch.float64)
REPEATS = 200
SPECTRA = {
    "positive": [5.0, 3.0, 1.0, 0.5, 0.1, *[0.01 * i for i in range(30)]],
    "indefinite": [-4.0, -1.0, -0.3, *[0.1 * i for i in range(20)], 3.9],
    "repeated": [2.0] * 10 + [-1.0] * 15,
    "rank 3": [7.0, -2.0, 1.0, *[0.0] * 37],
    "one by one": [-2.5],
    "zero": [0.0] * 8,
    "tiny": [1e-13, -1e-12, *[0.0] * 20],
    "huge": [1e13, 1e12, *[1.0] * 20],
}
TRACES: dict[str, Callable[..., Estimate]] = {
    "hutchinson": trace,
    "gaussian": lambda *args, **more: trace(*args, distribution="gaussian", **more),
    "hutch++": lambda *args, **more: trace(*args, method="hutch++", **more),
    "gaussian hutch++": lambda *args, **more: trace(*args, method="hutch++", distribution="gaussian", **more),
}


def matrix(spectrum: list[float], seed: int = 0) -> Tensor:
    n = len(spectrum)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=seeded(seed), dtype=torch.float64))
    return q @ torch.diag(torch.tensor(spectrum, dtype=torch.float64)) @ q.T


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def counted(a: Tensor) -> tuple[list[int], BlockProduct]:
    rows: list[int] = []

    def matvecs(v: Tensor) -> Tensor:
        rows.append(len(v))
        return v @ a

    return rows, matvecs


def decaying(n: int = 100) -> Tensor:
    return matrix([i**-2.0 for i in range(1, n + 1)])


def within(estimate: Estimate, truth: float, scale: float) -> bool:
    return abs(estimate.value - truth) <= 3 * estimate.standard_error + 1e-12 * scale


@pytest.mark.parametrize("case", SPECTRA)
@pytest.mark.parametrize("name", TRACES)
def test_trace_within_three_standard_errors(name: str, case: str) -> None:
    a = matrix(SPECTRA[case])
    rows, matvecs = counted(a)
    found = TRACES[name](matvecs, len(a), seeded(1), probes=24, like=LIKE)
    assert within(found, sum(SPECTRA[case]), float(torch.linalg.matrix_norm(a)))
    assert found.products == sum(rows) <= 24


@pytest.mark.parametrize("case", SPECTRA)
def test_moments_within_three_standard_errors(case: str) -> None:
    a = matrix(SPECTRA[case])
    norm = float(torch.linalg.matrix_norm(a))
    rows, matvecs = counted(a)
    found = moments(matvecs, len(a), seeded(4), probes=24, like=LIKE)
    assert within(found.trace, sum(SPECTRA[case]), norm)
    assert within(found.frobenius_norm, norm, norm)
    off = (found.diagonal.values - a.diagonal()).abs() - 1e-12 * norm
    # Of n entries, each beyond 3 errors with probability .006 (Student, 23 degrees): one or two may be.
    assert int((off > 3 * found.diagonal.standard_errors).sum()) <= 2
    assert bool((off <= 5 * found.diagonal.standard_errors).all())
    assert found.products == found.trace.products == found.frobenius_norm.products == sum(rows) == 24
    assert set(rows) == {estimates.CHUNK}


def check_spread(values: Tensor, errors: Tensor, truth: float, freedom: int, band: float = 0.33) -> None:
    """Mean right, standard errors right on average, and as many within two of them as Student's t says."""
    assert abs(float(values.mean()) - truth) < 3 * float(values.std()) / math.sqrt(REPEATS)
    # A variance from 200 numbers is off by sqrt(2 / 199) = 10% (one sigma; less for the mean of the squared errors).
    assert float(errors.square().mean() / values.var()) == pytest.approx(1.0, abs=band)
    covered = float(((values - truth).abs() <= 2 * errors).double().mean())
    expected = 2 * float(student.cdf(2, freedom)) - 1  # 0.945 at 29
    assert covered == pytest.approx(expected, abs=3 * math.sqrt(expected * (1 - expected) / REPEATS))


@pytest.mark.parametrize("name", TRACES)
def test_standard_errors_of_the_trace(name: str) -> None:
    a = decaying(120) if "hutch++" in name else matrix([0.1 * i - 1 for i in range(60)])
    generator = seeded(2)
    probes, freedom = (90, 29) if "hutch++" in name else (30, 29)
    found = [TRACES[name](lambda v: v @ a, len(a), generator, probes=probes, like=LIKE) for _ in range(REPEATS)]
    assert {e.freedom for e in found} == {freedom}
    values, errors = torch.tensor([(e.value, e.standard_error) for e in found], dtype=torch.float64).T
    check_spread(values, errors, float(a.trace()), freedom)
    inside = [low <= float(a.trace()) <= high for low, high in (e.interval() for e in found)]
    assert sum(inside) / REPEATS == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / REPEATS))


def test_standard_errors_of_moments() -> None:
    a = matrix([0.1 * i - 1 for i in range(60)])
    generator = seeded(3)
    places = torch.arange(7, 19)
    found = [moments(lambda v: v @ a, 60, generator, probes=30, like=LIKE, blocks=[places]) for _ in range(REPEATS)]
    truth = {"trace": a.trace(), "block": a.diagonal()[places].sum(), "square": a.square().sum()}
    parts = {
        "trace": [m.trace for m in found],
        "block": [m.blocks[0] for m in found],
        "square": [m.frobenius_norm for m in found],
    }
    for name, several in parts.items():
        values, errors = torch.tensor([(e.value, e.standard_error) for e in several], dtype=torch.float64).T
        if name == "square":  # the norm's own bias is looked at below; its square has none
            values, errors = values.square(), 2 * values * errors
        check_spread(values, errors, float(truth[name]), 29)
    norms = torch.tensor([m.frobenius_norm.value for m in found], dtype=torch.float64)
    low = float(truth["square"]) ** 0.5 - float(norms.mean())
    bias = float(norms.var()) / (2 * float(truth["square"]) ** 0.5)
    assert low == pytest.approx(bias, abs=3 * float(norms.std()) / math.sqrt(REPEATS))
    values = torch.stack([m.diagonal.values for m in found])
    errors = torch.stack([m.diagonal.standard_errors for m in found])
    variances = (a.square().sum(1) - a.diagonal().square()) / 30  # exact: only the diagonal's own term is missing
    assert bool(((values.mean(0) - a.diagonal()).abs() < 4 * (variances / REPEATS).sqrt()).all())
    # 60 entries share the products, which still leaves many independent numbers: a few percent.
    assert float((errors.square().mean(0) / variances).mean()) == pytest.approx(1.0, abs=0.05)
    assert float((values.var(0) / variances).mean()) == pytest.approx(1.0, abs=0.1)
    assert float(((values - a.diagonal()).abs() <= 2 * errors).double().mean()) == pytest.approx(0.945, abs=0.02)


def test_variances_are_those_of_the_theory() -> None:
    """2 |A|_F^2 for Gaussian probes, less the diagonal for Rademacher ones."""
    a = matrix([3.0, -1.0, 0.5, 2.0])
    a = a + torch.diag(torch.tensor([4.0, 0.0, 0.0, 0.0], dtype=torch.float64))
    whole, own = float(a.square().sum()), float(a.diagonal().square().sum())
    gaussian = trace(lambda v: v @ a, 4, seeded(5), probes=4000, like=LIKE, distribution="gaussian", chunk=500)
    rademacher = trace(lambda v: v @ a, 4, seeded(5), probes=4000, like=LIKE, chunk=500)
    assert gaussian.standard_error**2 * 4000 == pytest.approx(2 * whole, rel=0.15)
    assert rademacher.standard_error**2 * 4000 == pytest.approx(2 * (whole - own), rel=0.15)


def test_hutchpp_beats_hutchinson_on_a_decaying_spectrum() -> None:
    a, generator = decaying(), seeded(6)

    def squared_error(method: estimates.Method) -> float:
        found = [trace(lambda v: v @ a, 100, generator, probes=30, like=LIKE, method=method) for _ in range(30)]
        return sum((e.value - float(a.trace())) ** 2 for e in found)

    assert squared_error("hutch++") < 0.05 * squared_error("hutchinson")


@pytest.mark.parametrize("method", ["hutchinson", "hutch++"])
def test_diagonal_matrix_is_exact(method: estimates.Method) -> None:
    entries = torch.tensor([3.0, -2.0, 0.0, 7.0, 1.0], dtype=torch.float64)
    found = trace(lambda v: v * entries, 5, seeded(0), probes=6, like=LIKE, method=method, chunk=3)
    assert (found.value, found.standard_error) == (9.0, 0.0)
    assert found.interval() == (9.0, 9.0)
    parts = moments(lambda v: v * entries, 5, seeded(0), probes=4, like=LIKE, blocks=[torch.tensor([0, 3])])
    assert (parts.trace.value, parts.trace.standard_error) == (9.0, 0.0)
    assert (parts.blocks[0].value, parts.blocks[0].standard_error) == (10.0, 0.0)
    assert torch.equal(parts.diagonal.values, entries)
    assert not parts.diagonal.standard_errors.any()
    norm = parts.frobenius_norm
    assert (norm.value, norm.standard_error) == (pytest.approx(63**0.5, rel=1e-14), pytest.approx(0.0, abs=1e-13))


def test_hutchpp_is_exact_where_it_can_be() -> None:
    a = matrix(SPECTRA["indefinite"])
    n = len(a)
    rows, matvecs = counted(a)
    found = trace(matvecs, n, seeded(0), probes=n, like=LIKE, method="hutch++")  # all of it is affordable
    assert found.value == pytest.approx(float(a.trace()), rel=1e-12)
    assert (found.standard_error, found.products) == (0.0, n)
    assert sum(rows) == n
    low_rank = matrix(SPECTRA["rank 3"])  # the sketch spans all there is
    found = trace(lambda v: v @ low_rank, 40, seeded(0), probes=12, like=LIKE, method="hutch++")
    assert found.value == pytest.approx(6.0, rel=1e-12)
    assert found.standard_error < 1e-12


def test_hutchpp_takes_its_sketch() -> None:
    a = decaying()
    rows, matvecs = counted(a)
    found = trace(matvecs, 100, seeded(0), probes=30, like=LIKE, method="hutch++", sketch=3)
    assert (found.products, found.freedom, sum(rows)) == (30, 23, 30)


def test_moments_after_a_sketch() -> None:
    """All that a sketch takes out is exact; what is left is unbiased, with right standard errors."""
    a = matrix([30.0, -20.0, 10.0, *[0.05 * i - 1 for i in range(57)]])
    norm, generator, places = float(torch.linalg.matrix_norm(a)), seeded(3), torch.arange(7, 19)
    rows, matvecs = counted(a)
    moments(matvecs, 60, seeded(0), probes=30, sketch=6, like=LIKE)
    assert sum(rows) == 42
    found = [
        moments(lambda v: v @ a, 60, generator, probes=30, sketch=6, like=LIKE, blocks=[places]) for _ in range(REPEATS)
    ]
    assert {m.products for m in found} == {m.trace.products for m in found} == {42}
    plain = moments(lambda v: v @ a, 60, generator, probes=42, like=LIKE)
    # The sketch differs from repeat to repeat, and with it the true spread: two standard errors still cover 94.5%.
    for name, truth in (("trace", float(a.trace())), ("block", float(a.diagonal()[places].sum())), ("norm", norm)):
        parts = [{"trace": m.trace, "block": m.blocks[0], "norm": m.frobenius_norm}[name] for m in found]
        values, errors = torch.tensor([(e.value, e.standard_error) for e in parts], dtype=torch.float64).T
        # A sketch that misses one of the three costs the norm much: its kurtosis is 17, where a normal law has 3, and
        # three sigma of a variance from 200 numbers are 3 sqrt(16 / 200) = 0.85.
        check_spread(values, errors, truth, 29, 0.85 if name == "norm" else 0.33)
        if name == "trace":
            assert float(errors.mean()) < 0.2 * plain.trace.standard_error
    values = torch.stack([m.diagonal.values for m in found])
    errors = torch.stack([m.diagonal.standard_errors for m in found])
    assert bool(((values.mean(0) - a.diagonal()).abs() < 4 * values.std(0) / math.sqrt(REPEATS)).all())
    assert float(((values - a.diagonal()).abs() <= 2 * errors).double().mean()) == pytest.approx(0.945, abs=0.02)
    low_rank = matrix(SPECTRA["rank 3"])  # nothing is left: exact
    exact = moments(lambda v: v @ low_rank, 40, seeded(0), probes=3, sketch=5, like=LIKE, blocks=[places])
    assert exact.products == 5 + 3 + 3
    torch.testing.assert_close(exact.diagonal.values, low_rank.diagonal(), rtol=1e-11, atol=1e-12)
    assert exact.frobenius_norm.value == pytest.approx(54**0.5, rel=1e-12)
    assert exact.blocks[0].value == pytest.approx(float(low_rank.diagonal()[places].sum()), rel=1e-11)
    assert max(exact.trace.standard_error, float(exact.diagonal.standard_errors.max())) < 1e-12
    with pytest.raises(ValueError, match="moments: sketch must be at least 0, got -1"):
        moments(lambda v: v, 5, seeded(0), probes=3, sketch=-1, like=LIKE)


@pytest.mark.parametrize("chunk", [1, 5, 64])
def test_chunks_make_no_difference(chunk: int) -> None:
    a = matrix(SPECTRA["indefinite"])
    for name, one in TRACES.items():
        reference = one(lambda v: v @ a, len(a), seeded(8), probes=20, like=LIKE, chunk=8)
        found = one(lambda v: v @ a, len(a), seeded(8), probes=20, like=LIKE, chunk=chunk)
        assert found.value == pytest.approx(reference.value, rel=1e-12), name
        assert found.standard_error == pytest.approx(reference.standard_error, rel=1e-9), name
    one, other = (moments(lambda v: v @ a, len(a), seeded(8), probes=20, like=LIKE, chunk=c) for c in (8, chunk))
    torch.testing.assert_close(one.diagonal.values, other.diagonal.values, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(one.diagonal.standard_errors, other.diagonal.standard_errors, rtol=1e-12, atol=1e-13)
    assert one.frobenius_norm.value == pytest.approx(other.frobenius_norm.value, rel=1e-13)


def test_parts_agree_with_moments() -> None:
    a = matrix(SPECTRA["indefinite"])
    whole = moments(lambda v: v @ a, len(a), seeded(9), probes=10, like=LIKE)
    assert whole.trace == trace(lambda v: v @ a, len(a), seeded(9), probes=10, like=LIKE)
    assert whole.frobenius_norm == frobenius_norm(lambda v: v @ a, len(a), seeded(9), probes=10, like=LIKE)
    alone = diagonal(lambda v: v @ a, len(a), seeded(9), probes=10, like=LIKE)
    assert torch.equal(alone.values, whole.diagonal.values)
    assert float(alone.values.sum()) == pytest.approx(whole.trace.value, rel=1e-12)


def test_same_seed_same_numbers_and_no_global_state() -> None:
    a = matrix(SPECTRA["positive"])
    before = torch.get_rng_state()
    one, other, third = (trace(lambda v: v @ a, len(a), seeded(s), probes=6, like=LIKE) for s in (0, 0, 1))
    assert one == other
    assert one.value != third.value
    assert torch.equal(before, torch.get_rng_state())


def test_single_precision() -> None:
    a = matrix(SPECTRA["indefinite"])
    like = torch.zeros(0)
    for name, one in TRACES.items():
        exact = one(lambda v: v @ a, len(a), seeded(1), probes=12, like=LIKE)
        found = one(lambda v: v @ a.float(), len(a), seeded(1), probes=12, like=like)
        assert found.value == pytest.approx(exact.value, rel=1e-5), name
    found = moments(lambda v: v @ a.float(), len(a), seeded(1), probes=12, like=like)
    assert found.diagonal.values.dtype == torch.float32
    huge = frobenius_norm(lambda v: 1e25 * v, 6, seeded(1), probes=3, like=like)  # the squares are beyond float32
    assert huge.value == pytest.approx(1e25 * 6**0.5, rel=1e-6)


def test_nan_is_passed_on() -> None:
    found = moments(lambda v: v * math.nan, 5, seeded(0), probes=3, like=LIKE)
    assert math.isnan(found.trace.value)
    assert math.isnan(found.frobenius_norm.value)
    for one in TRACES.values():
        assert math.isnan(one(lambda v: v * math.nan, 50, seeded(0), probes=8, like=LIKE).value)


def test_interval() -> None:
    assert Estimate(1.0, 0.5, 10).interval() == (pytest.approx(1 - 0.98, abs=1e-3), pytest.approx(1.98, abs=1e-3))
    low, high = Estimate(1.0, 0.5, 10, freedom=4.0).interval(0.9)
    reach = 0.5 * float(student.ppf(0.95, 4))
    assert (low, high) == (pytest.approx(1 - reach), pytest.approx(1 + reach))
    assert Estimate(4.0, 0.4, 10, 9.0).root() == Estimate(2.0, 0.1, 10, 9.0)
    assert Estimate(4.0, 0.4, 10, 9.0).scaled(-2.0) == Estimate(-8.0, 0.8, 10, 9.0)
    with pytest.raises(ValueError, match=r"level must be in \(0, 1\), got 1"):
        Estimate(1.0, 0.5, 10).interval(1.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"probes": 1}, "trace: probes must be at least 2, got 1"),
        ({"n": 0}, "trace: n must be at least 1, got 0"),
        ({"chunk": 0}, "trace: chunk must be at least 1, got 0"),
        ({"like": torch.zeros(0, dtype=torch.float16)}, "float32 or float64, got torch.float16"),
        ({"method": "hutch++", "probes": 3}, "a sketch of at least 1 and 2 probes more"),
        ({"method": "hutch++", "sketch": 5}, "got 10 and 5"),
        ({"sketch": 5}, "only hutch"),
        ({"matvecs": lambda v: v[:, :2]}, r"matvecs must keep the shape \(8, 5\), got \(8, 2\)"),
    ],
)
def test_refusals(settings: dict[str, object], message: str) -> None:
    given = {"matvecs": lambda v: v, "n": 5, "generator": seeded(0), "probes": 10, "like": LIKE} | settings
    with pytest.raises(ValueError, match=message):
        trace(**given)
