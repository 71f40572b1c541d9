"""Algorithm 2 against its listing written out, and that it says so where it stops short."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from spectral_run.curvature.lobpcg_paper import PaperLOBPCG


def matrix(spectrum: list[float], seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(len(spectrum), len(spectrum), generator=generator, dtype=torch.float64))
    return q @ torch.diag(torch.tensor(spectrum, dtype=torch.float64)) @ q.T


def start(n: int) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("shift", [0.0, 2.0])
@pytest.mark.parametrize("preconditioned", [False, True])
def test_is_the_listing(shift: float, preconditioned: bool) -> None:
    a = matrix([3.0, 2.0, 1.0, 0.5, -0.5])
    t = torch.linalg.inv(matrix([3.0, 2.0, 1.0, 0.5, 0.5]) + torch.eye(5)) if preconditioned else torch.eye(5).double()
    v = start(5) / start(5).norm()
    for j in range(4):
        u = a @ v
        r = u - (u @ v) * v
        w = v + math.exp(-4 * j - shift) * (t @ r)
        v = w / w.norm()
    preconditioner = (lambda r: t @ r) if preconditioned else None
    got = PaperLOBPCG(eps=1e-12, cap=5, shift=shift).solve(lambda x: a @ x, start(5), preconditioner=preconditioner)
    assert got.products == 5
    torch.testing.assert_close(got.vector, v, rtol=1e-12, atol=1e-14)
    assert got.value == pytest.approx(float(v @ a @ v), rel=1e-12)
    assert got.residual == pytest.approx(float((a @ v - (v @ a @ v) * v).norm()), rel=1e-10)


def test_stalls_short_of_the_eigenvector_and_says_so() -> None:
    a = matrix([3.0, 2.0, 1.0, 0.5, 0.0])
    result = PaperLOBPCG(eps=1e-6, cap=1000).solve(lambda v: a @ v, start(5))
    assert (result.reason, result.converged) == ("stalled", False)
    assert result.products < 15
    assert result.residual > 0.1
    assert result.value < 2.99


def test_climbs_to_the_largest_and_not_to_a_negative_one_of_larger_modulus() -> None:
    a = matrix([-5.0, 1.0, 0.1])
    begin = start(3)
    result = PaperLOBPCG(eps=1e-6).solve(lambda v: a @ v, begin)
    assert result.value > float(begin @ a @ begin / (begin @ begin))
    values, vectors = torch.linalg.eigh(a)
    at_it = PaperLOBPCG(eps=1e-6).solve(lambda v: a @ v, vectors[:, 0])
    assert (at_it.reason, at_it.products) == ("residual", 1)
    assert at_it.value == pytest.approx(float(values[0]))


def test_zero_nan_and_cap() -> None:
    assert PaperLOBPCG().solve(torch.zeros_like, start(3)).reason == "zero"
    assert PaperLOBPCG().solve(lambda v: v * math.nan, start(3)).reason == "nan"
    a = matrix([3.0, 2.0, 1.0])
    assert PaperLOBPCG().solve(lambda v: a @ v, start(3), preconditioner=lambda r: r / 0).reason == "nan"
    capped = PaperLOBPCG(eps=1e-12, cap=2).solve(lambda v: a @ v, start(3))
    assert (capped.products, capped.reason) == (2, "cap")


def test_refuses_settings() -> None:
    with pytest.raises(ValueError, match="PaperLOBPCG: shift must be finite, got nan"):
        PaperLOBPCG(shift=math.nan)
    with pytest.raises(ValueError, match="which must be one of magnitude, largest, got 'smallest'"):
        PaperLOBPCG(which="smallest")
