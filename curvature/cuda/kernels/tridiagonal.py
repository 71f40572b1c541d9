"""Eigenpairs from the wanted end of a small symmetric tridiagonal matrix, inside a kernel: what Lanczos asks of T.

Values by multisection with Sturm counts (Givens 1954; Barth, Martin, Wilkinson 1967): every lane counts the eigenvalues
below a shift of its own, so that a sweep over the matrix divides a bracket by the number of lanes plus one.  Vectors by
the twisted factorization ``T - theta I = N D N'`` (Parlett, Dhillon 1997): started where its pivot ``gamma`` is
smallest, the recurrences in both directions give a vector with residual ``|gamma| / |z|``; a Rayleigh correction
follows.  All in float64.  Cost: ``k * (sweeps + 5)`` dependent steps, each about one division, in one program.
Where two values agree to rounding the second vector is taken from another start and made orthogonal to the first;
residuals are those of the vectors that are returned, whatever became of them.
"""

from __future__ import annotations

from typing import no_type_check

import triton  # type: ignore
import triton.language as tl  # type: ignore

MAGNITUDE, LARGEST, SMALLEST = 0, 1, 2
ENDS = {"magnitude": MAGNITUDE, "largest": LARGEST, "smallest": SMALLEST}
"""What ``WHICH`` is for ``EigenSolver.which``."""

SCRATCH = 6
"""float64 numbers of scratch per unit of ``KMAX``."""


@triton.jit
@no_type_check
def _bisect(alpha, beta, k, low, high, WHICH: tl.constexpr, LANES: tl.constexpr, SWEEPS: tl.constexpr, tiny):
    """The two largest (rows 0, 1) and, for the modulus, the two smallest (rows 2, 3) eigenvalues."""
    ROWS: tl.constexpr = 4 if WHICH == 0 else 2
    row = tl.arange(0, ROWS)
    index = tl.where(row < 2, k - 1 - row, row - 2)  # of the eigenvalue, ascending
    if WHICH == 2:
        index = row
    index = tl.minimum(tl.maximum(index, 0), k - 1)
    lo = tl.zeros([ROWS], tl.float64) + low
    width = tl.zeros([ROWS], tl.float64) + (high - low)
    steps = (tl.arange(0, LANES) + 1).to(tl.float64)
    for _ in tl.static_range(SWEEPS):
        part = width / (LANES + 1)
        x = lo[:, None] + part[:, None] * steps[None, :]
        q = tl.zeros([ROWS, LANES], tl.float64) + 1.0
        below = tl.zeros([ROWS, LANES], tl.int32)
        square = low * 0.0
        for i in range(k):
            q = (tl.load(alpha + i) - x) - square / q
            q = tl.where(tl.abs(q) < tiny, -tiny, q)
            below += (q < 0).to(tl.int32)
            b = tl.load(beta + i)
            square = b * b
        passed = tl.sum((below <= index[:, None]).to(tl.int32), axis=1)
        lo += part * passed.to(tl.float64)
        width = part
    return lo + 0.5 * width


@triton.jit
@no_type_check
def _pick(values, j, ROWS: tl.constexpr):
    """Entry j of a short vector."""
    return tl.sum(tl.where(tl.arange(0, ROWS) == j, values, values * 0.0), axis=0)


@triton.jit
@no_type_check
def _vector(alpha, beta, work, s, other, k, theta, tiny, avoid, KMAX: tl.constexpr):
    """A vector for theta into ``s``; its Rayleigh quotient and residual.

    ``avoid``: 0, or 1 for one orthogonal to the vector in ``other``, 2 if their values agree besides.

    ``work`` takes the pivots of both directions, ``2 KMAX`` numbers.
    """
    lane = tl.arange(0, KMAX)
    inside = lane < k
    zero = theta * 0.0
    square = zero
    d = zero + 1.0
    for i in range(k):  # from the top
        d = (tl.load(alpha + i) - theta) - square / d
        d = tl.where(tl.abs(d) < tiny, tiny, d)
        tl.store(work + i, d)
        b = tl.load(beta + i)
        square = b * b
    square = zero
    d = zero + 1.0
    for j in range(k):  # from the bottom
        i = k - 1 - j
        d = (tl.load(alpha + i) - theta) - square / d
        d = tl.where(tl.abs(d) < tiny, tiny, d)
        tl.store(work + KMAX + i, d)
        b = tl.load(beta + i - 1, mask=i > 0, other=0.0)
        square = b * b
    tl.debug_barrier()
    up = tl.load(work + lane, mask=inside, other=0.0)
    down = tl.load(work + KMAX + lane, mask=inside, other=0.0)
    diagonal = tl.load(alpha + lane, mask=inside, other=0.0)
    against = inside & (tl.zeros([KMAX], tl.float64) + avoid > 0.5)
    first = tl.load(other + lane, mask=against, other=0.0)
    gamma = tl.abs(up + down - (diagonal - theta))
    # Where the first vector is large the pivot may be small on its account.
    taken = tl.where(avoid > 1.5, first * first, tl.zeros([KMAX], tl.float64))
    most = tl.max(taken, axis=0)
    taken = tl.where(most > 0, taken / tl.where(most > 0, most, most + 1.0), taken)
    key = (gamma + tiny * 1e14) * (1.0 + 1e6 * taken)
    key = tl.where(inside, key, tl.max(tl.where(inside, key, key * 0.0), axis=0) * 2.0 + 1.0)
    least = tl.min(key, axis=0)
    start = tl.min(tl.where(inside & (key <= least), lane, KMAX), axis=0)
    start = tl.minimum(start, k - 1)
    tl.store(s + start, zero + 1.0)
    z = zero + 1.0
    for j in range(start):  # upwards
        i = start - 1 - j
        z = -tl.load(beta + i) * z / tl.load(work + i)
        tl.store(s + i, z)
    z = zero + 1.0
    for i in range(start + 1, k):  # downwards
        z = -tl.load(beta + i - 1) * z / tl.load(work + KMAX + i)
        tl.store(s + i, z)
    tl.debug_barrier()
    v = tl.load(s + lane, mask=inside, other=0.0)
    v = tl.where(tl.abs(v) < float("inf"), v, tl.zeros([KMAX], tl.float64))
    v = v / tl.max(tl.abs(v), axis=0)
    v = v / tl.sqrt(tl.sum(v * v, axis=0))
    for _ in tl.static_range(2):
        v = v - first * tl.sum(first * v, axis=0)
        norm = tl.sqrt(tl.sum(v * v, axis=0))
        v = v / tl.where(norm > 0, norm, norm + 1.0)
    tl.debug_barrier()
    tl.store(s + lane, v, mask=inside)
    tl.debug_barrier()
    image = diagonal * v
    above = tl.load(beta + lane - 1, mask=inside & (lane > 0), other=0.0)
    below = tl.load(beta + lane, mask=lane < k - 1, other=0.0)
    image += above * tl.load(s + lane - 1, mask=inside & (lane > 0), other=0.0)
    image += below * tl.load(s + lane + 1, mask=lane < k - 1, other=0.0)
    value = tl.sum(image * v, axis=0)
    error = tl.where(inside, image - value * v, v * 0.0)
    last = tl.sum(tl.where(lane == k - 1, v, v * 0.0), axis=0)
    out = tl.load(beta + k - 1) * last
    return value, tl.sqrt(tl.sum(error * error, axis=0) + out * out)


@triton.jit
@no_type_check
def second_vector(alpha, beta, scratch, k, first, second, scale, KMAX: tl.constexpr):
    """s2 for the value ``second``, where s for ``first`` is in ``scratch``; its Rayleigh quotient and residual."""
    tiny = tl.maximum(scale * 1e-30, scale * 0.0 + 1e-290)
    near = tl.where(tl.abs(first - second) <= scale * 1e-4, scale * 0.0 + 2.0, scale * 0.0 + 1.0)
    return _vector(alpha, beta, scratch + 2 * KMAX, scratch + KMAX, scratch, k, second, tiny, near, KMAX)


@triton.jit
@no_type_check
def ritz(
    alpha,
    beta,
    scratch,
    k,
    WHICH: tl.constexpr,
    KMAX: tl.constexpr,
    LANES: tl.constexpr = 64,
    SWEEPS: tl.constexpr = 8,
    SECOND: tl.constexpr = True,
):
    """``(theta, residual, theta2, residual2, scale)``, all float64 scalars; the coefficient vectors go to ``scratch``.

    ``alpha``, ``beta``: float64 pointers, k numbers each; beta[j] couples j and j + 1, beta[k - 1] the next vector.
    ``k``: at least 1, at most ``KMAX``, a power of 2.  ``WHICH``: 0 for the largest modulus (of equal ones the
    positive), 1 largest, 2 smallest.  ``scratch``: ``6 KMAX`` float64; s at 0, s2 at ``KMAX``, norm 1 each.
    ``theta2`` is the next value in the same order, with copies; nan, like ``residual2``, for k = 1.  Without ``SECOND``
    it is the value alone, as far as the search got: ``residual2`` is nan, and s2 not touched.
    A residual is ``hypot(|T s - theta s|, beta[k - 1] s[k - 1])``: that of the Ritz pair.
    ``scale`` is a bound on |T|.  Anything not finite in T makes all of them nan.
    What other threads wrote to alpha and beta must have been followed by a barrier; one is passed before the return.
    """
    ROWS: tl.constexpr = 4 if WHICH == 0 else 2
    lane = tl.arange(0, KMAX)
    inside = lane < k
    a = tl.load(alpha + lane, mask=inside, other=0.0)
    b = tl.load(beta + lane, mask=lane < k - 1, other=0.0)
    c = tl.load(beta + lane - 1, mask=inside & (lane > 0), other=0.0)
    radius = tl.abs(b) + tl.abs(c)
    scale = tl.max(tl.where(inside, tl.abs(a) + radius, radius), axis=0)
    poison = tl.sum(tl.abs(a) + radius, axis=0)
    poison = poison - poison  # 0, or nan
    high = tl.max(tl.where(inside, a + radius, radius * 0.0 - scale), axis=0)
    low = tl.min(tl.where(inside, a - radius, radius * 0.0 + scale), axis=0)
    tiny = scale * 1e-30
    tiny = tl.where(tiny > 1e-290, tiny, tiny * 0.0 + 1e-290)
    margin = scale * 1e-14
    values = _bisect(alpha, beta, k, low - margin, high + margin, WHICH, LANES, SWEEPS, tiny)
    top = _pick(values, 0, ROWS)
    next = _pick(values, 1, ROWS)
    first = top
    second = next
    if WHICH == 0:
        bottom = _pick(values, 2, ROWS)
        after = _pick(values, 3, ROWS)
        up = top + bottom >= 0
        first = tl.where(up, top, bottom)
        other = tl.where(up, bottom, top)
        same = tl.where(up, next, after)  # the second from the same end
        second = tl.where(up, tl.where(same + other >= 0, same, other), tl.where(other + same >= 0, other, same))
    zero = scale * 0.0
    work = scratch + 2 * KMAX
    theta, residual = _vector(alpha, beta, work, scratch, scratch, k, first, tiny, zero, KMAX)
    theta2 = second
    residual2 = zero
    if SECOND:  # noqa: SIM102  (the one is known when the kernel is compiled)
        if k > 1:
            theta2, residual2 = second_vector(alpha, beta, scratch, k, first, second, scale, KMAX)
    missing = tl.where(k > 1, poison, zero + float("nan"))
    unknown = missing if SECOND else zero + float("nan")
    tl.debug_barrier()
    return theta + poison, residual + poison, theta2 + missing, residual2 + unknown, scale + poison


@triton.jit
@no_type_check
def ritz_kernel(
    alpha,
    beta,
    scratch,
    out,
    k,
    WHICH: tl.constexpr,
    KMAX: tl.constexpr,
    LANES: tl.constexpr,
    SWEEPS: tl.constexpr,
    SECOND: tl.constexpr,
):
    """``ritz`` by itself: its five numbers go to ``out``."""
    theta, residual, theta2, residual2, scale = ritz(
        alpha, beta, scratch, k, WHICH, KMAX, LANES=LANES, SWEEPS=SWEEPS, SECOND=SECOND
    )
    tl.store(out, theta)
    tl.store(out + 1, residual)
    tl.store(out + 2, theta2)
    tl.store(out + 3, residual2)
    tl.store(out + 4, scale)
