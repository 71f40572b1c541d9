"""Kernels that do in one pass over memory what the sweeps and Lanczos do in several torch operations.

Elementwise functions, order 1 backwards and order 2 both ways; cross-entropy's order 1; orthogonalization against a
basis, twice, in three readings of it where matrix-vector products take four.  Each is bound by memory: its gain is at
most the ratio of what is read and written, and launches saved.  Sums across programs are in float64.
Takes tensors of one type and, where they are elementwise, of one layout without gaps.
"""

from __future__ import annotations

from functools import partial
from typing import no_type_check

import torch
import triton  # type: ignore
import triton.language as tl  # type: ignore
from torch import Tensor

from spectral_run.curvature.cuda.capture import launch

_BLOCK = 1024
_TILE = 8192  # numbers of the basis in a program's registers


@triton.jit
@no_type_check
def backward1_kernel(slope, g1, bend, x1, out, n, BLOCK: tl.constexpr):
    """``s' g1 + s'' g0 x1``."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = i < n
    first = tl.load(slope + i, mask=there) * tl.load(g1 + i, mask=there)
    tl.store(out + i, first + tl.load(bend + i, mask=there) * tl.load(x1 + i, mask=there), mask=there)


@triton.jit
@no_type_check
def forward2_kernel(slope, second, x1, x2, bent, out, n, X2: tl.constexpr, BLOCK: tl.constexpr):
    """``s'' x1`` to ``bent``, ``s'' x1^2 + s' x2`` to ``out``; without the second term where ``X2`` is False."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = i < n
    x = tl.load(x1 + i, mask=there)
    b = tl.load(second + i, mask=there) * x
    tl.store(bent + i, b, mask=there)
    y = b * x
    if X2:
        y += tl.load(slope + i, mask=there) * tl.load(x2 + i, mask=there)
    tl.store(out + i, y, mask=there)


@triton.jit
@no_type_check
def backward2_kernel(slope, third, g0, bent, bend, x1, x2, g1, g2, out, n, X2: tl.constexpr, BLOCK: tl.constexpr):
    """``s''' g0 x1^2 + s' g2 + 2 s'' x1 g1 + s'' g0 x2``; without the last where ``X2`` is False."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = i < n
    x = tl.load(x1 + i, mask=there)
    y = tl.load(third + i, mask=there) * tl.load(g0 + i, mask=there) * x * x
    y += tl.load(slope + i, mask=there) * tl.load(g2 + i, mask=there)
    y += 2 * tl.load(bent + i, mask=there) * tl.load(g1 + i, mask=there)
    if X2:
        y += tl.load(bend + i, mask=there) * tl.load(x2 + i, mask=there)
    tl.store(out + i, y, mask=there)


@triton.jit
@no_type_check
def cotangent1_kernel(p, q, z1, out, rows, classes, ROWS: tl.constexpr, CLASSES: tl.constexpr):
    """``q z1 - p sum(q z1)`` for every row."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, CLASSES)
    at = row[:, None].to(tl.int64) * classes + column[None, :]
    there = (row[:, None] < rows) & (column[None, :] < classes)
    weighted = tl.load(q + at, mask=there, other=0.0) * tl.load(z1 + at, mask=there, other=0.0)
    total = tl.sum(weighted, axis=1)
    tl.store(out + at, weighted - tl.load(p + at, mask=there, other=0.0) * total[:, None], mask=there)


@triton.jit
@no_type_check
def project_kernel(
    basis,
    w,
    coefficients,
    left,
    partials,
    squares,
    rows,
    n,
    SUBTRACT: tl.constexpr,
    PROJECT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``left = w - basis' coefficients``, and this program's part of ``basis left`` or of ``left' left``."""
    here = tl.program_id(0)
    row, j = tl.arange(0, ROWS), here.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = j < n
    at = row[:, None].to(tl.int64) * n + j[None, :]
    tile = tl.load(basis + at, mask=(row[:, None] < rows) & there[None, :], other=0.0)
    x = tl.load(w + j, mask=there, other=0.0)
    if SUBTRACT:
        c = tl.load(coefficients + row, mask=row < rows, other=0.0).to(x.dtype)
        x -= tl.sum(tile * c[:, None], axis=0)
        tl.store(left + j, x, mask=there)
    if PROJECT:
        tl.store(partials + here * ROWS + row, tl.sum(tile * x[None, :], axis=1).to(tl.float64))
    else:
        tl.store(squares + here, tl.sum(x * x, axis=0).to(tl.float64))


def flat_alike(*tensors: Tensor) -> bool:
    """Whether a kernel may go through all of them by one index: same shape, type and strides, no gaps."""
    first = tensors[0]
    alike = all(t.shape == first.shape and t.stride() == first.stride() and t.dtype == first.dtype for t in tensors[1:])
    return alike and torch.ops.aten.is_non_overlapping_and_dense.default(first)


def backward1(slope: Tensor, g1: Tensor, bend: Tensor, x1: Tensor) -> Tensor:
    """``s' g1 + s'' g0 x1``, where ``bend = s'' g0``."""
    out = torch.empty_like(g1)
    n = out.numel()
    launch(partial(backward1_kernel[(_programs(n),)], slope, g1, bend, x1, out, n, BLOCK=_BLOCK))
    return out


def forward2(slope: Tensor, second: Tensor, x1: Tensor, x2: Tensor | None) -> tuple[Tensor, Tensor]:
    """``s'' x1`` and ``s'' x1^2 + s' x2``."""
    bent, out = torch.empty_like(x1), torch.empty_like(x1)
    n, given = out.numel(), x2 is not None
    x2 = x1 if x2 is None else x2
    launch(partial(forward2_kernel[(_programs(n),)], slope, second, x1, x2, bent, out, n, X2=given, BLOCK=_BLOCK))
    return bent, out


def backward2(
    slope: Tensor,
    third: Tensor,
    g0: Tensor,
    bent: Tensor,
    bend: Tensor,
    x1: Tensor,
    x2: Tensor | None,
    g1: Tensor,
    g2: Tensor,
) -> Tensor:
    """``s''' g0 x1^2 + s' g2 + 2 s'' x1 g1 + s'' g0 x2``, where ``bent = s'' x1`` and ``bend = s'' g0``."""
    out = torch.empty_like(g2)
    n, given = out.numel(), x2 is not None
    tensors = slope, third, g0, bent, bend, x1, x1 if x2 is None else x2, g1, g2
    launch(partial(backward2_kernel[(_programs(n),)], *tensors, out, n, X2=given, BLOCK=_BLOCK))
    return out


def cotangent1(p: Tensor, q: Tensor, z1: Tensor) -> Tensor:
    """Cross-entropy's ``q (z1 - <p, z1>)`` with ``q`` a multiple of p in every row; contiguous, classes last."""
    rows, classes = z1.shape
    out = torch.empty_like(z1)
    width = triton.next_power_of_2(classes)
    height = max(1, _BLOCK // width)
    grid = (triton.cdiv(rows, height),)
    launch(partial(cotangent1_kernel[grid], p, q, z1, out, rows, classes, ROWS=height, CLASSES=width))
    return out


def orthogonalize(basis: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``w`` less its components along orthonormal rows, twice; the components (float64); the norm of what is left."""
    rows, n = basis.shape
    height = max(2, triton.next_power_of_2(rows))
    block = max(16, min(_BLOCK, _TILE // height))
    programs = triton.cdiv(n, block)
    partials = torch.empty(programs, height, dtype=torch.float64, device=w.device)
    again = torch.empty_like(partials)
    squares = torch.empty(programs, dtype=torch.float64, device=w.device)
    left, twice = torch.empty_like(w), torch.empty_like(w)
    run = partial(project_kernel[(programs,)], rows=rows, n=n, ROWS=height, BLOCK=block)
    launch(partial(run, basis, w, partials, left, partials, squares, SUBTRACT=False, PROJECT=True))
    first = partials.sum(0)
    launch(partial(run, basis, w, first, left, again, squares, SUBTRACT=True, PROJECT=True))
    second = again.sum(0)
    launch(partial(run, basis, left, second, twice, partials, squares, SUBTRACT=True, PROJECT=False))
    return twice, (first + second)[:rows], squares.sum().sqrt()


def _programs(n: int) -> int:
    return max(1, -(-n // _BLOCK))
