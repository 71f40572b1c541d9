"""Loss and gradient of a multilayer perceptron inside one program: what the primal pass keeps, and its launch."""

from __future__ import annotations

from typing import no_type_check

import triton  # type: ignore
import triton.language as tl  # type: ignore

from spectral_run.curvature.cuda.kernels.mlp import (
    ACTIVATIONS,
    BLOCKS,
    OFFSETS,
    SETTINGS,
    STRIDES,
    TOTAL,
    WIDTHS,
    add_backward,
    add_forward,
    add_outer,
    bias_of,
    function,
    slope_of,
    store_bias,
    store_weight,
)


@triton.jit
@no_type_check
def _primal_forward(w, x, kept, LAYER: tl.constexpr, NET: tl.constexpr, BM: tl.constexpr, PRECISION: tl.constexpr):
    """y of layer l."""
    N: tl.constexpr = NET[WIDTHS][LAYER + 1]
    BN: tl.constexpr = NET[BLOCKS][LAYER + 1]
    y = kept + NET[OFFSETS][LAYER + 1]
    for n0 in range(0, N, BN):
        z = add_forward(bias_of(w, n0, LAYER, NET, BM), x, w, n0, LAYER, NET, BM, PRECISION)
        n = n0 + tl.arange(0, BN)[None, :]
        at = tl.arange(0, BM)[:, None] * NET[STRIDES][LAYER + 1] + n
        tl.store(y + at, function(z, NET[ACTIVATIONS][LAYER], NET[SETTINGS][LAYER]), mask=n < N)
    tl.debug_barrier()


@triton.jit
@no_type_check
def _primal_loss(kept, targets, rows, row0, L: tl.constexpr, LOSS: tl.constexpr, NET: tl.constexpr, BM: tl.constexpr):
    """The tile's part of the mean loss (float64); g of the last layer and p go to scratch. Padding weighs nothing."""
    C: tl.constexpr = NET[WIDTHS][L]
    BC: tl.constexpr = NET[BLOCKS][L]
    TYPE: tl.constexpr = kept.dtype.element_ty
    r, c = tl.arange(0, BM), tl.arange(0, BC)
    at, inside = r[:, None] * NET[STRIDES][L] + c[None, :], (c < C)[None, :]
    there = row0 + r < rows
    mean = tl.full((), 1.0, tl.float64) / rows
    y = tl.load(kept + NET[OFFSETS][L] + at, mask=inside, other=0.0)
    if LOSS == 0:
        target = tl.load(targets + row0 + r, mask=there, other=0)
        known = (target >= 0) & (target < C)
        logits = tl.where(inside, y, float("-inf"))
        most = tl.max(logits, axis=1)
        e = tl.exp(logits - most[:, None])
        sum_e = tl.sum(e, axis=1)
        p = e / sum_e[:, None]
        hit = target[:, None] == c[None, :]
        loss = most + tl.log(sum_e) - tl.sum(tl.where(hit, y, 0.0), axis=1)
        loss = tl.where(known, loss, float("nan")).to(tl.float64)  # a class that does not exist
        h = tl.where(known[:, None], tl.where(hit, p - 1.0, p), float("nan")) * mean.to(TYPE)
        tl.store(kept + 2 * NET[TOTAL] + at, tl.where(there[:, None], p, 0.0), mask=inside)
    else:
        mean = mean / C
        there_too = there[:, None] & inside
        off = y - tl.load(targets + (row0 + r)[:, None] * C + c[None, :], mask=there_too, other=0.0)
        loss = tl.sum(tl.where(there_too, off * off, 0.0).to(tl.float64), axis=1)
        h = off * (2.0 * mean).to(TYPE)
    h = tl.where(there[:, None], h, 0.0)
    g = h * slope_of(y, NET[ACTIVATIONS][L - 1], NET[SETTINGS][L - 1])
    tl.store(kept + NET[TOTAL] + NET[OFFSETS][L] + at, g, mask=inside)
    tl.debug_barrier()
    return tl.sum(tl.where(there, loss, 0.0), axis=0) * mean


@triton.jit
@no_type_check
def _primal_backward(
    w, x, kept, out, LAYER: tl.constexpr, NET: tl.constexpr, BM: tl.constexpr, PRECISION: tl.constexpr
):
    """Gradients of layer l's parameters, and g of the layer below."""
    g = kept + NET[TOTAL] + NET[OFFSETS][LAYER + 1]
    for m0 in range(0, NET[WIDTHS][LAYER + 1], NET[BLOCKS][LAYER + 1]):
        for n0 in range(0, NET[WIDTHS][LAYER], NET[BLOCKS][LAYER]):
            block = tl.full([NET[BLOCKS][LAYER + 1], NET[BLOCKS][LAYER]], 0.0, w.dtype.element_ty)
            store_weight(out, add_outer(block, g, x, m0, n0, LAYER, NET, BM, PRECISION), m0, n0, LAYER, NET)
    store_bias(out, g, LAYER, NET, BM)
    if LAYER > 0:
        N: tl.constexpr = NET[WIDTHS][LAYER]
        BN: tl.constexpr = NET[BLOCKS][LAYER]
        for n0 in range(0, N, BN):
            h = tl.full([BM, BN], 0.0, w.dtype.element_ty)
            h = add_backward(h, g, w, n0, LAYER, NET, BM, PRECISION)
            n = n0 + tl.arange(0, BN)[None, :]
            at = NET[OFFSETS][LAYER] + tl.arange(0, BM)[:, None] * NET[STRIDES][LAYER] + n
            y = tl.load(kept + at, mask=n < N, other=0.0)
            slope = slope_of(y, NET[ACTIVATIONS][LAYER - 1], NET[SETTINGS][LAYER - 1])
            tl.store(kept + NET[TOTAL] + at, h * slope, mask=n < N)
        tl.debug_barrier()


@triton.jit
@no_type_check
def primal(
    w,
    x,
    targets,
    rows,
    row0,
    kept,
    out,
    L: tl.constexpr,
    LOSS: tl.constexpr,
    NET: tl.constexpr,
    BM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The tile's part of the loss (float64); its part of the gradient goes to ``out``. ``x`` begins at the tile."""
    for LAYER in tl.static_range(L):
        source = x if LAYER == 0 else kept + NET[OFFSETS][LAYER]
        _primal_forward(w, source, kept, LAYER, NET, BM, PRECISION)
    loss = _primal_loss(kept, targets, rows, row0, L, LOSS, NET, BM)
    for i in tl.static_range(L):
        source = x if i == L - 1 else kept + NET[OFFSETS][L - 1 - i]
        _primal_backward(w, source, kept, out, L - 1 - i, NET, BM, PRECISION)
    return loss


@triton.jit
@no_type_check
def primal_kernel(
    w,
    x,
    targets,
    rows,
    kept,
    losses,
    out,
    L: tl.constexpr,
    LOSS: tl.constexpr,
    NET: tl.constexpr,
    N: tl.constexpr,
    KEPT: tl.constexpr,
    BM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Loss and gradient; a program per tile of rows, which writes its own part of both."""
    tile = tl.program_id(0)
    at = x + tile * BM * NET[WIDTHS][0]
    loss = primal(w, at, targets, rows, tile * BM, kept + tile * KEPT, out + tile * N, L, LOSS, NET, BM, PRECISION)
    tl.store(losses + tile, loss)
