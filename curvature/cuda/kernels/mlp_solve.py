"""A whole Lanczos solve of a multilayer perceptron's Hessian in one program, without the host.

Lanczos 1950 with full reorthogonalization, always twice (Giraud, Langou, Rozloznik 2005: twice is enough), and the
stopping rules of curvature/lanczos.py: the residual is ``beta |s_k|`` of the small problem's wanted eigenpair.  A full
basis starts again from its Ritz vector.  Vectors are in the problem's type; coefficients, norms and the small problem
in float64.  Up to eight vectors the small problem is solved at every step, then at every other one and whenever the
iteration has to end: a check costs as much as a good part of a product.
"""

from __future__ import annotations

from typing import no_type_check

import triton  # type: ignore
import triton.language as tl  # type: ignore

from spectral_run.curvature.cuda.kernels.mlp import WIDTHS
from spectral_run.curvature.cuda.kernels.mlp_product import product
from spectral_run.curvature.cuda.kernels.tridiagonal import ENDS as ENDS
from spectral_run.curvature.cuda.kernels.tridiagonal import ritz

REASONS = ("residual", "zero", "cap", "nan", "start")
"""What the reason's number stands for; ``start``: the start vector is zero or not finite."""

RESULTS = 6
"""Numbers in ``result``: value, residual, next value, products, reason, size of the last basis."""

_EVERY: tl.constexpr = tl.constexpr(8)  # so many steps are checked one by one


@triton.jit
@no_type_check
def _combine(sums, parts, vector, DECAY: tl.constexpr, TILES: tl.constexpr, N: tl.constexpr, CHUNK: tl.constexpr):
    """``sums = sum of the tiles' parts + DECAY vector``."""
    for start in range(0, N, CHUNK):
        at = start + tl.arange(0, CHUNK)
        inside = at < N
        total = tl.load(parts + at, mask=inside, other=0.0)
        for tile in tl.static_range(1, TILES):
            total += tl.load(parts + tile * N + at, mask=inside, other=0.0)
        if DECAY != 0.0:
            total += DECAY * tl.load(vector + at, mask=inside, other=0.0)
        tl.store(sums + at, total, mask=inside)
    tl.debug_barrier()


@triton.jit
@no_type_check
def _remove(vector, basis, count, N: tl.constexpr, STRIDE: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr):
    """Take from the vector its components along ``count`` orthonormal rows; the last row's component."""
    last = tl.full((), 0.0, tl.float64)
    for first in range(0, count, ROWS):
        row = first + tl.arange(0, ROWS)
        total = tl.full([ROWS, CHUNK], 0.0, tl.float64)
        for start in range(0, N, CHUNK):
            at = start + tl.arange(0, CHUNK)
            both = (row[:, None] < count) & (at[None, :] < N)
            rows = tl.load(basis + row[:, None] * STRIDE + at[None, :], mask=both, other=0.0)
            total += rows.to(tl.float64) * tl.load(vector + at, mask=at < N, other=0.0).to(tl.float64)[None, :]
        components = tl.sum(total, axis=1)
        last += tl.sum(tl.where(row == count - 1, components, 0.0), axis=0)
        tl.debug_barrier()
        for start in range(0, N, CHUNK):
            at = start + tl.arange(0, CHUNK)
            both = (row[:, None] < count) & (at[None, :] < N)
            rows = tl.load(basis + row[:, None] * STRIDE + at[None, :], mask=both, other=0.0).to(tl.float64)
            left = tl.load(vector + at, mask=at < N, other=0.0).to(tl.float64)
            left -= tl.sum(rows * components[:, None], axis=0)
            tl.store(vector + at, left.to(vector.dtype.element_ty), mask=at < N)
        tl.debug_barrier()
    return last


@triton.jit
@no_type_check
def _squared_norm(vector, N: tl.constexpr, CHUNK: tl.constexpr):
    """``|vector|^2`` in float64."""
    total = tl.full([CHUNK], 0.0, tl.float64)
    for start in range(0, N, CHUNK):
        at = start + tl.arange(0, CHUNK)
        part = tl.load(vector + at, mask=at < N, other=0.0).to(tl.float64)
        total += part * part
    return tl.sum(total, axis=0)


@triton.jit
@no_type_check
def _scale(out, vector, factor, N: tl.constexpr, CHUNK: tl.constexpr):
    """``out = factor vector``; they may be the same."""
    for start in range(0, N, CHUNK):
        at = start + tl.arange(0, CHUNK)
        part = tl.load(vector + at, mask=at < N, other=0.0).to(tl.float64) * factor
        tl.store(out + at, part.to(out.dtype.element_ty), mask=at < N)
    tl.debug_barrier()


@triton.jit
@no_type_check
def _ritz_vector(out, basis, s, count, N: tl.constexpr, STRIDE: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr):
    """The combination of the basis with the coefficients s, of norm 1."""
    for start in range(0, N, CHUNK):
        at = start + tl.arange(0, CHUNK)
        total = tl.full([CHUNK], 0.0, tl.float64)
        for first in range(0, count, ROWS):
            row = first + tl.arange(0, ROWS)
            both = (row[:, None] < count) & (at[None, :] < N)
            rows = tl.load(basis + row[:, None] * STRIDE + at[None, :], mask=both, other=0.0).to(tl.float64)
            total += tl.sum(rows * tl.load(s + row, mask=row < count, other=0.0)[:, None], axis=0)
        tl.store(out + at, total.to(out.dtype.element_ty), mask=at < N)
    tl.debug_barrier()
    factor = 1.0 / tl.sqrt(_squared_norm(out, N, CHUNK))
    tl.debug_barrier()
    _scale(out, out, factor, N, CHUNK)


@triton.jit
@no_type_check
def solve_kernel(
    w,
    start,
    x,
    rows,
    kept,
    jets,
    parts,
    basis,
    small,
    vector,
    result,
    eps,
    cap,
    L: tl.constexpr,
    LOSS: tl.constexpr,
    NET: tl.constexpr,
    N: tl.constexpr,
    KEPT: tl.constexpr,
    BM: tl.constexpr,
    TILES: tl.constexpr,
    STRIDE: tl.constexpr,
    SIZE: tl.constexpr,
    KMAX: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    SWEEPS: tl.constexpr,
    WHICH: tl.constexpr,
    RELATIVE: tl.constexpr,
    DECAY: tl.constexpr,
    ROUNDING: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The eigenpair at the wanted end, from ``start``; one program.

    ``basis``: ``SIZE + 1`` rows of ``STRIDE`` numbers.  ``small``: ``8 KMAX`` float64: alpha, beta, ``ritz``.
    ``vector``: the Ritz vector, of norm 1.  ``result``: see ``RESULTS``.  ``ROUNDING``: the type's machine epsilon.
    """
    alphas, betas, s = small, small + KMAX, small + 2 * KMAX
    norm = _squared_norm(start, N, CHUNK)
    reason = tl.where((norm > 0) & (norm < float("inf")), -1, 4)
    _scale(basis, start, 1.0 / tl.sqrt(tl.where(reason < 0, norm, 1.0)), N, CHUNK)
    theta = tl.full((), float("nan"), tl.float64)
    residual = tl.full((), float("nan"), tl.float64)
    scale = tl.full((), 0.0, tl.float64)  # a bound on |T| so far
    floor = tl.full((), 0.0, tl.float64)
    before = tl.full((), 0.0, tl.float64)  # the beta of the step before
    done = tl.full((), 0, tl.int32)
    used = tl.full((), 0, tl.int32)
    products = tl.full((), 0, tl.int32)
    while reason < 0:
        this = basis + done * STRIDE
        next = this + STRIDE
        for tile in range(TILES):
            product(
                w,
                this,
                x + tile * BM * NET[WIDTHS][0],
                rows,
                tile * BM,
                kept + tile * KEPT,
                jets,
                parts + tile * N,
                parts,
                L,
                LOSS,
                1,
                NET,
                BM,
                PRECISION,
            )
        _combine(next, parts, this, DECAY, TILES, N, CHUNK)
        done += 1
        products += 1
        alpha = _remove(next, basis, done, N, STRIDE, ROWS, CHUNK)
        alpha += _remove(next, basis, done, N, STRIDE, ROWS, CHUNK)
        beta = tl.sqrt(_squared_norm(next, N, CHUNK))
        scale = tl.maximum(scale, tl.abs(alpha) + before + beta)
        before = beta
        tl.store(alphas + done - 1, alpha)
        tl.store(betas + done - 1, beta)
        tl.debug_barrier()
        finite = tl.abs(alpha) + beta < float("inf")
        exhausted = (beta <= ROUNDING * scale) | (done == N)
        ends = exhausted | (products >= cap) | (done == SIZE)
        if finite:
            if (done <= _EVERY) | (done % 2 == 0) | ends:
                theta, residual, _, _, _ = ritz(
                    alphas, betas, s, done, WHICH=WHICH, KMAX=KMAX, LANES=64, SWEEPS=SWEEPS, SECOND=False
                )
                used = done
                floor = tl.maximum(floor, 100 * ROUNDING * tl.abs(theta))
                tolerance = eps * tl.abs(theta) if RELATIVE else theta * 0.0 + eps
                reason = tl.where(products >= cap, 2, reason)
                reason = tl.where((residual <= tolerance) | exhausted, 0, reason)
                reason = tl.where(tl.maximum(tl.abs(theta), residual) <= floor, 1, reason)
                reason = tl.where(tl.abs(theta) + residual < float("inf"), reason, 3)
        else:
            reason = tl.where(finite, reason, 3)
        if reason < 0:
            if done == SIZE:
                _ritz_vector(vector, basis, s, done, N, STRIDE, ROWS, CHUNK)
                _scale(basis, vector, 1.0, N, CHUNK)
                done = done * 0
                before = before * 0.0
            else:
                _scale(next, next, 1.0 / beta, N, CHUNK)
    theta2 = theta * float("nan")
    if reason < 3:
        theta, residual, theta2, _, _ = ritz(
            alphas, betas, s, used, WHICH=WHICH, KMAX=KMAX, LANES=64, SWEEPS=8, SECOND=True
        )
        _ritz_vector(vector, basis, s, used, N, STRIDE, ROWS, CHUNK)
    else:
        _scale(vector, basis, 1.0, N, CHUNK)
    tl.store(result, theta)
    tl.store(result + 1, residual)
    tl.store(result + 2, theta2)
    tl.store(result + 3, products.to(tl.float64))
    tl.store(result + 4, reason.to(tl.float64))
    tl.store(result + 5, used.to(tl.float64))
