"""Several eigenpairs by every solver: prescribed spectra with repeated, opposite and zero eigenvalues."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from spectral_run.curvature.deflation import deflated, eigenpairs
from spectral_run.curvature.lanczos import Lanczos
from spectral_run.curvature.lobpcg import LOBPCG
from spectral_run.curvature.power import PowerIteration
from spectral_run.curvature.solver import EigenPairs
from spectral_run.curvature.solvers import solver

SPECTRA = {
    "simple": [5.0, -3.0, 2.0, 1.0, 0.5, 0.1, 0.0],
    "repeated top": [4.0, 4.0, 4.0, 4.0, 1.0, 0.5, 0.0],
    "repeated inside": [5.0, 3.0, 3.0, 3.0, 1.0, 0.2, -0.5],
    "zero but two": [2.0, -1.0, 0.0, 0.0, 0.0, 0.0],
    "identity": [1.0] * 5,
    "one by one": [-2.5],
    "clustered": [1.0, 1.0 - 1e-6, 1.0 - 2e-6, *[0.5 - 0.01 * i for i in range(30)]],
}
OPPOSITE = [3.0, -3.0, 3.0, -3.0, 1.0, 0.1]
SCORE = {"magnitude": abs, "largest": lambda x: x, "smallest": lambda x: -x}


def matrix(spectrum: list[float], seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    n = len(spectrum)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    return q @ torch.diag(torch.tensor(spectrum, dtype=torch.float64)) @ q.T


def find(a: Tensor, name: str, k: int, rows: int = 1, **settings: Any) -> tuple[EigenPairs, int]:
    calls = 0

    def product(v: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return a @ v

    generator = torch.Generator().manual_seed(2)
    starts = torch.randn(rows, len(a), generator=generator, dtype=torch.float64)
    chosen = solver(name, **({"eps": 1e-8, "relative": True, "cap": 5000} | settings))
    return eigenpairs(chosen, product, starts, k, generator), calls


def check_honest(pairs: EigenPairs, a: Tensor, calls: int) -> None:
    scale = float(torch.linalg.matrix_norm(a, 2))
    k = len(pairs.values)
    assert pairs.products == calls
    assert pairs.vectors.shape == (k, len(a))
    assert float((pairs.vectors @ pairs.vectors.T - torch.eye(k, dtype=torch.float64)).abs().max()) < 1e-6
    residuals = (pairs.vectors @ a - pairs.values[:, None] * pairs.vectors).norm(dim=1)
    assert bool((residuals <= pairs.residuals + 1e-7 * scale).all())


@pytest.mark.parametrize("which", ["magnitude", "largest", "smallest"])
@pytest.mark.parametrize("name", ["lanczos", "lobpcg"])
@pytest.mark.parametrize("case", [*SPECTRA, "opposite"])
def test_prescribed_spectrum(case: str, name: str, which: Any) -> None:
    spectrum = OPPOSITE if case == "opposite" else SPECTRA[case]
    a = matrix(spectrum)
    want = sorted(spectrum, key=SCORE[which], reverse=True)
    for k in {1, min(3, len(spectrum)), len(spectrum)} if case != "clustered" else {1, 4}:
        pairs, calls = find(a, name, k, which=which)
        assert pairs.converged
        got = pairs.values.tolist()
        if case == "opposite" and which == "magnitude":  # which of two equal moduli comes first is chance
            got, expected = [abs(x) for x in got], [abs(x) for x in want]
        else:
            expected = want
        assert got == pytest.approx(expected[:k], abs=1e-7 * max(map(abs, spectrum)))
        check_honest(pairs, a, calls)


@pytest.mark.parametrize("case", [case for case in SPECTRA if case != "clustered"])
def test_power_with_deflation(case: str) -> None:
    a = matrix(SPECTRA[case])
    k = min(4, len(a))
    pairs, calls = find(a, "power", k)
    assert pairs.converged
    want = sorted(SPECTRA[case], key=abs, reverse=True)[:k]
    assert pairs.values.tolist() == pytest.approx(want, abs=1e-7)
    check_honest(pairs, a, calls)


@pytest.mark.parametrize("name", ["power", "lanczos", "lobpcg"])
def test_zero_matrix(name: str) -> None:
    pairs, _ = find(torch.zeros(4, 4, dtype=torch.float64), name, 3)
    assert pairs.values.tolist() == [0.0, 0.0, 0.0]
    assert pairs.converged


def test_a_single_krylov_space_alone_would_miss_the_copies() -> None:
    a = matrix(SPECTRA["repeated top"])
    start = torch.ones(1, len(a), dtype=torch.float64)
    alone = Lanczos(eps=1e-8).several(lambda v: v @ a, start.expand(3, -1), start[:0])
    assert alone.values.tolist() == pytest.approx([4.0, 1.0, 0.5])
    pairs, _ = find(a, "lanczos", 3)
    assert pairs.values.tolist() == pytest.approx([4.0, 4.0, 4.0])


def test_a_warm_start_at_the_pairs_costs_little_and_a_wrong_one_misleads_nobody() -> None:
    a = matrix([10.0, 8.0, 6.0, *[0.05 * i for i in range(60)]])
    cold, _ = find(a, "lobpcg", 3)
    generator = torch.Generator().manual_seed(9)
    settings = LOBPCG(eps=1e-6, cap=500)
    warm = eigenpairs(settings, lambda v: a @ v, cold.vectors, 3, generator)
    assert warm.products < 0.6 * cold.products  # the rest is the check that none was missed
    # An eigenvector that is not wanted has no residual to go on: the check that nothing was missed puts it right.
    wrong = eigenpairs(PowerIteration(eps=1e-6), lambda v: a @ v, cold.vectors[2:], 1, generator)
    assert wrong.values.tolist() == pytest.approx([10.0])
    many = eigenpairs(Lanczos(eps=1e-8), lambda v: a @ v, cold.vectors, 2, generator)  # more starts than pairs
    assert many.values.tolist() == pytest.approx([10.0, 8.0])


def test_block_products_are_used_where_given() -> None:
    a = matrix([5.0, 4.0, 3.0, 0.1, 0.0])
    rows = []

    def block(v: Tensor) -> Tensor:
        rows.append(len(v))
        return v @ a

    generator = torch.Generator().manual_seed(0)
    pairs = eigenpairs(
        LOBPCG(eps=1e-8), lambda v: pytest.fail("one by one"), torch.eye(3, 5, dtype=torch.float64), 3, generator,
        block_product=block,
    )  # fmt: skip
    assert pairs.products == sum(rows)
    assert max(rows) == 3


@pytest.mark.parametrize("name", ["power", "lanczos", "lobpcg"])
def test_cap_is_kept_over_all_solves(name: str) -> None:
    a = matrix([1.0 + 0.001 * i for i in range(100)])
    pairs, calls = find(a, name, 4, eps=1e-10, cap=37)
    assert pairs.reason == "cap"
    assert calls <= 37
    check_honest(pairs, a, calls)
    enough, _ = find(matrix(SPECTRA["simple"]), name, 2, eps=1e-3, cap=5)
    assert not enough.converged  # found, perhaps, but nothing shows that none was missed


@pytest.mark.parametrize("name", ["power", "lanczos", "lobpcg"])
def test_nan_is_reported(name: str) -> None:
    pairs = eigenpairs(
        solver(name, eps=1e-6, relative=True, cap=10), lambda v: v * math.nan, torch.ones(1, 4), 2, torch.Generator()
    )
    assert pairs.reason == "nan"
    assert not pairs.converged


def test_same_generator_same_pairs() -> None:
    a = matrix(SPECTRA["repeated top"])
    (one, _), (other, _) = find(a, "lanczos", 3), find(a, "lanczos", 3)
    assert torch.equal(one.vectors, other.vectors)


def test_deflated_matrix_is_the_matrix_without_those_pairs() -> None:
    a = matrix(SPECTRA["simple"])
    values, vectors = torch.linalg.eigh(a)
    without = deflated(lambda v: v @ a, vectors.T[:2])
    left = torch.stack([without(row) for row in torch.eye(7, dtype=torch.float64)])
    want = (vectors[:, 2:] * values[2:]) @ vectors[:, 2:].T
    torch.testing.assert_close(left, want, rtol=0, atol=1e-13)
    torch.testing.assert_close(without(torch.eye(7, dtype=torch.float64)), want, rtol=0, atol=1e-13)


def test_refuses_more_pairs_than_there_are() -> None:
    with pytest.raises(ValueError, match=r"eigenpairs: k must be in \[1, n\] with n = 3, got 4"):
        find(torch.eye(3, dtype=torch.float64), "lanczos", 4)
