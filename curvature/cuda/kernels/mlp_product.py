"""``H v`` and ``grad v'Hv`` of a multilayer perceptron inside one program, and their launch. Formulas: ``mlp.py``."""

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
    WIDEST,
    WIDTHS,
    add_backward,
    add_forward,
    add_outer,
    bend_of,
    bias_of,
    slope_of,
    store_bias,
    store_weight,
    third_of,
)


@triton.jit
@no_type_check
def _product_forward(
    w,
    v,
    x,
    kept,
    jets,
    LAYER: tl.constexpr,
    ORDER: tl.constexpr,
    NET: tl.constexpr,
    BM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """y1 and z1 (and y2, z2) of layer l."""
    N: tl.constexpr = NET[WIDTHS][LAYER + 1]
    BN: tl.constexpr = NET[BLOCKS][LAYER + 1]
    ACTIVATION: tl.constexpr = NET[ACTIVATIONS][LAYER]
    SETTING: tl.constexpr = NET[SETTINGS][LAYER]
    for n0 in range(0, N, BN):
        n = n0 + tl.arange(0, BN)[None, :]
        at = NET[OFFSETS][LAYER + 1] + tl.arange(0, BM)[:, None] * NET[STRIDES][LAYER + 1] + n
        z1 = add_forward(bias_of(v, n0, LAYER, NET, BM), x, v, n0, LAYER, NET, BM, PRECISION)
        z2 = tl.full([BM, BN], 0.0, w.dtype.element_ty)
        if LAYER > 0:
            z1 = add_forward(z1, jets + NET[OFFSETS][LAYER], w, n0, LAYER, NET, BM, PRECISION)
            if ORDER == 2:
                z2 = 2.0 * add_forward(z2, jets + NET[OFFSETS][LAYER], v, n0, LAYER, NET, BM, PRECISION)
                z2 = add_forward(z2, jets + 2 * NET[TOTAL] + NET[OFFSETS][LAYER], w, n0, LAYER, NET, BM, PRECISION)
        y = tl.load(kept + at, mask=n < N, other=0.0)
        slope = slope_of(y, ACTIVATION, SETTING)
        tl.store(jets + at, slope * z1, mask=n < N)
        if ACTIVATION > 2:
            tl.store(jets + NET[TOTAL] + at, z1, mask=n < N)
        if ORDER == 2:
            bend = bend_of(y, slope, ACTIVATION, SETTING)
            tl.store(jets + 2 * NET[TOTAL] + at, slope * (z2 + bend * z1 * z1), mask=n < N)
            if ACTIVATION > 2:
                tl.store(jets + 3 * NET[TOTAL] + at, z2, mask=n < N)
    tl.debug_barrier()


@triton.jit
@no_type_check
def _through(
    h1,
    h2,
    kept,
    jets,
    n,
    LAYER: tl.constexpr,
    ORDER: tl.constexpr,
    NET: tl.constexpr,
    BM: tl.constexpr,
):
    """From the cotangents of y to g1 (and g2) of layer l, into scratch, for the outputs n."""
    N: tl.constexpr = NET[WIDTHS][LAYER + 1]
    ACTIVATION: tl.constexpr = NET[ACTIVATIONS][LAYER]
    SETTING: tl.constexpr = NET[SETTINGS][LAYER]
    inside = n[None, :] < N
    place = tl.arange(0, BM)[:, None] * NET[STRIDES][LAYER + 1] + n[None, :]
    at = NET[OFFSETS][LAYER + 1] + place
    y = tl.load(kept + at, mask=inside, other=0.0)
    slope = slope_of(y, ACTIVATION, SETTING)
    g1 = slope * h1
    g2 = slope * h2
    if ACTIVATION > 2:
        bend = bend_of(y, slope, ACTIVATION, SETTING)
        g = tl.load(kept + NET[TOTAL] + at, mask=inside, other=0.0)
        z1 = tl.load(jets + NET[TOTAL] + at, mask=inside, other=0.0)
        g1 += bend * g * z1
        if ORDER == 2:
            z2 = tl.load(jets + 3 * NET[TOTAL] + at, mask=inside, other=0.0)
            g2 += 2.0 * bend * slope * z1 * h1 + bend * g * z2
            g2 += third_of(y, slope, ACTIVATION, SETTING) * g * z1 * z1
    cotangents = jets + 2 * ORDER * NET[TOTAL] + (LAYER % 2) * BM * NET[WIDEST]
    tl.store(cotangents + place, g1, mask=inside)
    if ORDER == 2:
        tl.store(cotangents + 2 * BM * NET[WIDEST] + place, g2, mask=inside)


@triton.jit
@no_type_check
def _product_loss(
    kept,
    jets,
    rows,
    row0,
    L: tl.constexpr,
    LOSS: tl.constexpr,
    ORDER: tl.constexpr,
    NET: tl.constexpr,
    BM: tl.constexpr,
):
    """g1 (and g2) of the last layer."""
    C: tl.constexpr = NET[WIDTHS][L]
    BC: tl.constexpr = NET[BLOCKS][L]
    r, c = tl.arange(0, BM), tl.arange(0, BC)
    place, inside = r[:, None] * NET[STRIDES][L] + c[None, :], (c < C)[None, :]
    at = NET[OFFSETS][L] + place
    y1 = tl.load(jets + at, mask=inside, other=0.0)
    y2 = tl.full([BM, BC], 0.0, kept.dtype.element_ty)
    if ORDER == 2:
        y2 = tl.load(jets + 2 * NET[TOTAL] + at, mask=inside, other=0.0)
    mean = tl.full((), 1.0, tl.float64) / rows
    if LOSS == 0:
        p = tl.load(kept + 2 * NET[TOTAL] + place, mask=inside, other=0.0)
        u = y1 - tl.sum(p * y1, axis=1)[:, None]
        q = p * mean.to(kept.dtype.element_ty)
        h1 = q * u
        y2 += u * u
        h2 = q * (y2 - tl.sum(p * y2, axis=1)[:, None])
    else:
        scale = tl.where(row0 + r < rows, 2.0, 0.0).to(kept.dtype.element_ty) * (mean / C).to(kept.dtype.element_ty)
        h1 = scale[:, None] * y1
        h2 = scale[:, None] * y2
    _through(h1, h2, kept, jets, c, L - 1, ORDER, NET, BM)
    tl.debug_barrier()


@triton.jit
@no_type_check
def _product_backward(
    w,
    v,
    x,
    kept,
    jets,
    out1,
    out2,
    LAYER: tl.constexpr,
    ORDER: tl.constexpr,
    NET: tl.constexpr,
    BM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Order 1 (and 2) of the gradients of layer l's parameters, and g1 (and g2) of the layer below."""
    g = kept + NET[TOTAL] + NET[OFFSETS][LAYER + 1]
    g1 = jets + 2 * ORDER * NET[TOTAL] + (LAYER % 2) * BM * NET[WIDEST]
    g2 = g1 + 2 * BM * NET[WIDEST]
    x1 = jets + NET[OFFSETS][LAYER]
    x2 = x1 + 2 * NET[TOTAL]
    for m0 in range(0, NET[WIDTHS][LAYER + 1], NET[BLOCKS][LAYER + 1]):
        for n0 in range(0, NET[WIDTHS][LAYER], NET[BLOCKS][LAYER]):
            zero = tl.full([NET[BLOCKS][LAYER + 1], NET[BLOCKS][LAYER]], 0.0, w.dtype.element_ty)
            block = add_outer(zero, g1, x, m0, n0, LAYER, NET, BM, PRECISION)
            if LAYER > 0:
                block = add_outer(block, g, x1, m0, n0, LAYER, NET, BM, PRECISION)
            store_weight(out1, block, m0, n0, LAYER, NET)
            if ORDER == 2:
                block = zero
                if LAYER > 0:
                    block = 2.0 * add_outer(block, g1, x1, m0, n0, LAYER, NET, BM, PRECISION)
                    block = add_outer(block, g, x2, m0, n0, LAYER, NET, BM, PRECISION)
                store_weight(out2, add_outer(block, g2, x, m0, n0, LAYER, NET, BM, PRECISION), m0, n0, LAYER, NET)
    store_bias(out1, g1, LAYER, NET, BM)
    if ORDER == 2:
        store_bias(out2, g2, LAYER, NET, BM)
    if LAYER > 0:
        BN: tl.constexpr = NET[BLOCKS][LAYER]
        for n0 in range(0, NET[WIDTHS][LAYER], BN):
            h1 = tl.full([BM, BN], 0.0, w.dtype.element_ty)
            h2 = h1
            h1 = add_backward(h1, g1, w, n0, LAYER, NET, BM, PRECISION)
            h1 = add_backward(h1, g, v, n0, LAYER, NET, BM, PRECISION)
            if ORDER == 2:
                h2 = 2.0 * add_backward(h2, g1, v, n0, LAYER, NET, BM, PRECISION)
                h2 = add_backward(h2, g2, w, n0, LAYER, NET, BM, PRECISION)
            _through(h1, h2, kept, jets, n0 + tl.arange(0, BN), LAYER - 1, ORDER, NET, BM)
    tl.debug_barrier()


@triton.jit
@no_type_check
def product(
    w,
    v,
    x,
    rows,
    row0,
    kept,
    jets,
    out1,
    out2,
    L: tl.constexpr,
    LOSS: tl.constexpr,
    ORDER: tl.constexpr,
    NET: tl.constexpr,
    BM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The tile's part of ``H v`` into ``out1``, at ``ORDER`` 2 of ``grad v'Hv`` into ``out2``; ends in a barrier."""
    for LAYER in tl.static_range(L):
        source = x if LAYER == 0 else kept + NET[OFFSETS][LAYER]
        _product_forward(w, v, source, kept, jets, LAYER, ORDER, NET, BM, PRECISION)
    _product_loss(kept, jets, rows, row0, L, LOSS, ORDER, NET, BM)
    for i in tl.static_range(L):
        source = x if i == L - 1 else kept + NET[OFFSETS][L - 1 - i]
        _product_backward(w, v, source, kept, jets, out1, out2, L - 1 - i, ORDER, NET, BM, PRECISION)


@triton.jit
@no_type_check
def product_kernel(
    w,
    v,
    x,
    rows,
    kept,
    jets,
    out1,
    out2,
    tiles,
    L: tl.constexpr,
    LOSS: tl.constexpr,
    ORDER: tl.constexpr,
    NET: tl.constexpr,
    N: tl.constexpr,
    KEPT: tl.constexpr,
    JETS: tl.constexpr,
    BM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Products with the rows of v; a program per vector and tile of rows, which writes its own part."""
    vector, tile = tl.program_id(0), tl.program_id(1)
    program = vector * tiles + tile
    product(
        w,
        v + vector * N,
        x + tile * BM * NET[WIDTHS][0],
        rows,
        tile * BM,
        kept + tile * KEPT,
        jets + program * JETS,
        out1 + program * N,
        out2 + program * N,
        L,
        LOSS,
        ORDER,
        NET,
        BM,
        PRECISION,
    )
