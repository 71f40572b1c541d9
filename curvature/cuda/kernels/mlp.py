"""Sweeps of a multilayer perceptron inside one program: what those of ``mlp_primal`` and ``mlp_product`` share.

One program carries a tile of ``BM`` rows through all layers, forwards and backwards.  What it keeps lies in scratch in
global memory, which at these sizes stays in the multiprocessor's own cache; a barrier stands between what threads write
and what others read.  Notation and formulas as in docs/curvature.md: layer l is ``z = W x + b``, ``y = s(z)``, g is the
cotangent of z.  All that order 1 and 2 need of s follows from y: with ``c = s''/s'`` and ``d = s'''/s'``,

    y1 = s' z1                      y2 = s' (z2 + c z1^2)
    g1 = s' h1 + c g z1             g2 = s' (h2 + 2 c z1 h1) + c g z2 + d g z1^2        (h the cotangent of y)

so that the primal pass keeps y and g alone.

``NET`` describes the network, a tuple of: widths (input first), strides of a row, offsets in scratch, offsets of
weights and of biases in the flat vector (-1: none), functions and their settings (numbered in ``mlp_network.py``; the
loss too), sizes of blocks across a width and along a contracted one, the largest stride, all layers' part of scratch.
Scratch of the primal pass: y of every layer, g of every layer, the loss's p.  Scratch of a product: y1, z1 (with y2, z2
at order 2), then two buffers per order for g1 (and g2), which layers take in turn.
"""

from __future__ import annotations

from typing import no_type_check

import triton  # type: ignore
import triton.language as tl  # type: ignore

WIDTHS: tl.constexpr = tl.constexpr(0)
STRIDES: tl.constexpr = tl.constexpr(1)
OFFSETS: tl.constexpr = tl.constexpr(2)
WEIGHTS: tl.constexpr = tl.constexpr(3)
BIASES: tl.constexpr = tl.constexpr(4)
ACTIVATIONS: tl.constexpr = tl.constexpr(5)
SETTINGS: tl.constexpr = tl.constexpr(6)
BLOCKS: tl.constexpr = tl.constexpr(7)
DEPTHS: tl.constexpr = tl.constexpr(8)
WIDEST: tl.constexpr = tl.constexpr(9)
TOTAL: tl.constexpr = tl.constexpr(10)


@triton.jit
@no_type_check
def function(z, ACTIVATION: tl.constexpr, SETTING: tl.constexpr):
    """``s(z)``; written so that nan stays nan."""
    y = z
    if ACTIVATION == 1:
        y = tl.where(z <= 0, 0.0, z)
    elif ACTIVATION == 2:
        y = tl.where(z <= 0, z * SETTING, z)
    elif ACTIVATION == 3:
        e = tl.exp(-2.0 * tl.abs(z))
        y = (1.0 - e) / (1.0 + e)
        y = tl.where(z < 0, -y, y)
    elif ACTIVATION == 4:
        e = tl.exp(-tl.abs(z))
        y = tl.where(z < 0, e, 1.0) / (1.0 + e)
    elif ACTIVATION == 5:
        u = z * SETTING
        y = tl.where(u > 20.0, z, (tl.where(u < 0, 0.0, u) + tl.log(1.0 + tl.exp(-tl.abs(u)))) / SETTING)
    elif ACTIVATION == 6:
        y = tl.where(z > 0, z, SETTING * (tl.exp(tl.where(z > 0, 0.0, z)) - 1.0))
    return y


@triton.jit
@no_type_check
def slope_of(y, ACTIVATION: tl.constexpr, SETTING: tl.constexpr):
    """``s'`` from y."""
    slope = tl.full(y.shape, 1.0, y.dtype)
    if ACTIVATION == 1:
        slope = tl.where(y > 0, 1.0, y * 0.0)
    elif ACTIVATION == 2:
        slope = tl.where(y > 0, 1.0, y * 0.0 + SETTING)
    elif ACTIVATION == 3:
        slope = 1.0 - y * y
    elif ACTIVATION == 4:
        slope = y * (1.0 - y)
    elif ACTIVATION == 5:
        slope = tl.where(y * SETTING > 20.0, 1.0, 1.0 - tl.exp(-y * SETTING))
    elif ACTIVATION == 6:
        slope = tl.where(y > 0, 1.0, y + SETTING)
    return slope


@triton.jit
@no_type_check
def bend_of(y, slope, ACTIVATION: tl.constexpr, SETTING: tl.constexpr):
    """``s'' / s'`` from y."""
    bend = tl.full(y.shape, 0.0, y.dtype)
    if ACTIVATION == 3:
        bend = -2.0 * y
    elif ACTIVATION == 4:
        bend = 1.0 - 2.0 * y
    elif ACTIVATION == 5:
        bend = SETTING * (1.0 - slope)
    elif ACTIVATION == 6:
        bend = tl.where(y > 0, 0.0, y * 0.0 + 1.0)
    return bend


@triton.jit
@no_type_check
def third_of(y, slope, ACTIVATION: tl.constexpr, SETTING: tl.constexpr):
    """``s''' / s'`` from y."""
    third = tl.full(y.shape, 0.0, y.dtype)
    if ACTIVATION == 3:
        third = 6.0 * y * y - 2.0
    elif ACTIVATION == 4:
        third = 1.0 - 6.0 * slope
    elif ACTIVATION == 5:
        third = SETTING * SETTING * (1.0 - slope) * (1.0 - 2.0 * slope)
    elif ACTIVATION == 6:
        third = tl.where(y > 0, 0.0, y * 0.0 + 1.0)
    return third


@triton.jit
@no_type_check
def _add_product(
    total,
    a,
    b,
    m0,
    n0,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    A_M: tl.constexpr,
    A_K: tl.constexpr,
    B_K: tl.constexpr,
    B_N: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``total + A B`` for the block at (m0, n0) of an (M, N) product contracted over K; strides transpose."""
    m, n = m0 + tl.arange(0, BM), n0 + tl.arange(0, BN)
    for k0 in range(0, K, BK):
        k = k0 + tl.arange(0, BK)
        at_a, at_b = a + m[:, None] * A_M + k[None, :] * A_K, b + k[:, None] * B_K + n[None, :] * B_N
        if M % BM == 0 and K % BK == 0:
            left = tl.load(at_a)
        else:
            left = tl.load(at_a, mask=(m[:, None] < M) & (k[None, :] < K), other=0.0)
        if N % BN == 0 and K % BK == 0:
            right = tl.load(at_b)
        else:
            right = tl.load(at_b, mask=(k[:, None] < K) & (n[None, :] < N), other=0.0)
        total = tl.dot(left, right, total, input_precision=PRECISION, out_dtype=total.dtype)
    return total


@triton.jit
@no_type_check
def add_forward(total, x, w, n0, LAYER: tl.constexpr, NET: tl.constexpr, BM: tl.constexpr, PRECISION: tl.constexpr):
    """``total + x W'`` of layer l, for the outputs from n0."""
    K: tl.constexpr = NET[WIDTHS][LAYER]
    return _add_product(
        total,
        x,
        w + NET[WEIGHTS][LAYER],
        0,
        n0,
        BM,
        NET[WIDTHS][LAYER + 1],
        K,
        NET[STRIDES][LAYER],
        1,
        1,
        K,
        BM,
        NET[BLOCKS][LAYER + 1],
        NET[DEPTHS][LAYER],
        PRECISION,
    )


@triton.jit
@no_type_check
def add_backward(total, g, w, n0, LAYER: tl.constexpr, NET: tl.constexpr, BM: tl.constexpr, PRECISION: tl.constexpr):
    """``total + g W`` of layer l, for the inputs from n0."""
    N: tl.constexpr = NET[WIDTHS][LAYER]
    return _add_product(
        total,
        g,
        w + NET[WEIGHTS][LAYER],
        0,
        n0,
        BM,
        N,
        NET[WIDTHS][LAYER + 1],
        NET[STRIDES][LAYER + 1],
        1,
        N,
        1,
        BM,
        NET[BLOCKS][LAYER],
        NET[DEPTHS][LAYER + 1],
        PRECISION,
    )


@triton.jit
@no_type_check
def add_outer(total, g, x, m0, n0, LAYER: tl.constexpr, NET: tl.constexpr, BM: tl.constexpr, PRECISION: tl.constexpr):
    """``total + g' x`` of layer l, for the block of its weight at (m0, n0)."""
    return _add_product(
        total,
        g,
        x,
        m0,
        n0,
        NET[WIDTHS][LAYER + 1],
        NET[WIDTHS][LAYER],
        BM,
        1,
        NET[STRIDES][LAYER + 1],
        NET[STRIDES][LAYER],
        1,
        NET[BLOCKS][LAYER + 1],
        NET[BLOCKS][LAYER],
        32 if BM > 32 else BM,
        PRECISION,
    )


@triton.jit
@no_type_check
def store_weight(out, block, m0, n0, LAYER: tl.constexpr, NET: tl.constexpr):
    """A block of the gradient of layer l's weight."""
    M: tl.constexpr = NET[WIDTHS][LAYER + 1]
    N: tl.constexpr = NET[WIDTHS][LAYER]
    m, n = m0 + tl.arange(0, NET[BLOCKS][LAYER + 1])[:, None], n0 + tl.arange(0, NET[BLOCKS][LAYER])[None, :]
    tl.store(out + NET[WEIGHTS][LAYER] + m * N + n, block, mask=(m < M) & (n < N))


@triton.jit
@no_type_check
def store_bias(out, g, LAYER: tl.constexpr, NET: tl.constexpr, BM: tl.constexpr):
    """The gradient of layer l's bias: g summed over rows."""
    if NET[BIASES][LAYER] >= 0:
        N: tl.constexpr = NET[WIDTHS][LAYER + 1]
        BN: tl.constexpr = NET[BLOCKS][LAYER + 1]
        for n0 in range(0, N, BN):
            n = n0 + tl.arange(0, BN)
            at = tl.arange(0, BM)[:, None] * NET[STRIDES][LAYER + 1] + n[None, :]
            tl.store(
                out + NET[BIASES][LAYER] + n,
                tl.sum(tl.load(g + at, mask=n[None, :] < N, other=0.0), axis=0),
                mask=n < N,
            )


@triton.jit
@no_type_check
def bias_of(w, n0, LAYER: tl.constexpr, NET: tl.constexpr, BM: tl.constexpr):
    """The bias of layer l in every row, or zeros: where a forward product starts."""
    BN: tl.constexpr = NET[BLOCKS][LAYER + 1]
    total = tl.full([BM, BN], 0.0, w.dtype.element_ty)
    if NET[BIASES][LAYER] >= 0:
        n = n0 + tl.arange(0, BN)
        total += tl.load(w + NET[BIASES][LAYER] + n, mask=n < NET[WIDTHS][LAYER + 1], other=0.0)[None, :]
    return total
