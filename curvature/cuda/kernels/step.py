"""The decisions of a Lanczos step, in one program on the device: what ``curvature/lanczos.py`` does on the host.

``step``: take alpha and beta, look at T's eigenpairs (``tridiagonal.ritz``), and say whether to go on.
``restart``: from a full basis to the two best Ritz vectors, turned so that T stays tridiagonal: with the couplings
``b_i = beta s_i[k - 1]`` of the two to the next vector, only ``u2 = (b1 y1 + b2 y2) / |b|`` is coupled to it, and
``u1 = (b1 y2 - b2 y1) / |b|`` to u2 alone.  That is thick restart (Wu, Simon 2000) with two vectors kept.

``numbers`` (float64): theta, residual, theta2, residual2, scale, floor, factor of the next vector, |T|'s bound.
``state`` (int64): vectors done, reason (0: go on), products, row of the next vector, pairs near the first.
"""

from __future__ import annotations

from typing import no_type_check

import triton  # type: ignore
import triton.language as tl  # type: ignore

from spectral_run.curvature.cuda.kernels.tridiagonal import ritz, second_vector

NUMBERS, STATE = 8, 8
"""Lengths of the two."""


@triton.jit
@no_type_check
def _score(value, WHICH: tl.constexpr):
    if WHICH == 0:
        result = tl.abs(value)
    elif WHICH == 1:
        result = value
    else:
        result = -value
    return result


@triton.jit
@no_type_check
def _verdict(value, residual, tolerance, floor):
    """1 residual, 2 zero, 4 nan, 0 go on."""
    code = tl.where(residual <= tolerance, 1, 0)
    code = tl.where(tl.maximum(tl.abs(value), residual) <= floor, 2, code)
    sane = (tl.abs(value) < float("inf")) & (residual < float("inf"))
    return tl.where(sane, code, 4)


@triton.jit
@no_type_check
def step_kernel(
    coefficients,
    norm,
    alpha,
    beta,
    scratch,
    numbers,
    state,
    eps,
    rounding,
    room,
    cap,
    dump,
    WHICH: tl.constexpr,
    RELATIVE: tl.constexpr,
    CLUSTER: tl.constexpr,
    KMAX: tl.constexpr,
    LANES: tl.constexpr,
    SWEEPS: tl.constexpr,
):
    """After a product: ``coefficients`` along the basis, ``norm`` of what is left.

    ``eps`` and ``rounding`` (of the vectors' type) point to float64; ``room`` is the dimension, ``dump`` a spare row.
    """
    if tl.load(state + 1) == 0:
        k = tl.load(state).to(tl.int32)
        a = tl.load(coefficients + k).to(tl.float64)
        b = tl.load(norm).to(tl.float64)
        tl.store(alpha + k, a)
        tl.store(beta + k, b)
        tl.debug_barrier()
        k = k + 1
        products = tl.load(state + 2) + 1
        theta, residual, theta2, residual2, scale = ritz(
            alpha, beta, scratch, k, WHICH, KMAX, LANES=LANES, SWEEPS=SWEEPS, SECOND=CLUSTER == 2
        )
        tl.store(numbers + 7, scale)
        tolerance = tl.load(eps)
        tolerance2 = tolerance
        if RELATIVE:
            tolerance2 = tolerance * tl.abs(theta2)
            tolerance = tolerance * tl.abs(theta)
        small = tl.load(rounding)
        if WHICH == 0:
            scale = tl.abs(theta)
        floor = tl.maximum(tl.load(numbers + 5), 100.0 * small * scale)
        exhausted = (k >= room) | (b <= small * scale)
        first = _verdict(theta, residual, tolerance, floor)
        reason = first
        near = 1
        if CLUSTER == 2:
            least = _score(theta, WHICH) - tolerance
            close = (k > 1) & (_score(theta2, WHICH) >= least)
            near = tl.where(close, 2, 1)
            second = _verdict(theta2, residual2, tolerance2, floor)
            unsettled = tl.where(
                close, (second == 0) | (second == 4), (k == 1) | (_score(theta2, WHICH) + residual2 >= least)
            )
            reason = tl.where(unsettled & (first != 4), 0, reason)
            reason = tl.where(exhausted, first, reason)
        reason = tl.where(exhausted & (first == 0), 1, reason)
        reason = tl.where((reason == 0) & (products >= cap), tl.where(first != 0, first, 3), reason)
        if CLUSTER == 2:  # the cap may come before the second has converged
            near = tl.where((near == 2) & (second == 0), 1, near)
        onwards = reason == 0
        tl.store(numbers, theta)
        tl.store(numbers + 1, residual)
        tl.store(numbers + 2, theta2)
        tl.store(numbers + 3, residual2)
        tl.store(numbers + 4, scale)
        tl.store(numbers + 5, floor)
        tl.store(numbers + 6, tl.where(onwards, 1.0 / tl.where(b > 0, b, b + 1.0), b * 0.0))
        tl.store(state, k.to(tl.int64))
        tl.store(state + 1, reason.to(tl.int64))
        tl.store(state + 2, products)
        tl.store(state + 3, tl.where(onwards, k, dump).to(tl.int64))
        if CLUSTER == 2:
            tl.store(state + 4, near.to(tl.int64))
        else:
            tl.store(state + 4, tl.load(state + 4) * 0 + 1)
    else:
        tl.store(numbers + 6, tl.load(numbers + 6) * 0.0)
        tl.store(state + 3, tl.load(state + 3) * 0 + dump)


@triton.jit
@no_type_check
def restart_kernel(alpha, beta, scratch, numbers, state, turn, CLUSTER: tl.constexpr, KMAX: tl.constexpr):
    """New alpha, beta and number of vectors; the two new vectors' coefficients in the old basis go to ``turn``.

    ``turn`` is float64, two rows of ``KMAX``, zero beyond.  Nothing where the solve is over.
    """
    if tl.load(state + 1) == 0:
        k = tl.load(state).to(tl.int32)
        theta1 = tl.load(numbers)
        theta2 = tl.load(numbers + 2)
        if CLUSTER == 1:  # no step has needed this vector
            theta2, _ = second_vector(alpha, beta, scratch, k, theta1, theta2, tl.load(numbers + 7), KMAX)
            tl.debug_barrier()
        lane = tl.arange(0, KMAX)
        inside = lane < k
        s1 = tl.load(scratch + lane, mask=inside, other=0.0)
        s2 = tl.load(scratch + KMAX + lane, mask=inside, other=0.0)
        coupling = tl.load(beta + k - 1)
        b1 = coupling * tl.sum(tl.where(lane == k - 1, s1, s1 * 0.0), axis=0)
        b2 = coupling * tl.sum(tl.where(lane == k - 1, s2, s2 * 0.0), axis=0)
        length = tl.sqrt(b1 * b1 + b2 * b2)
        safe = tl.where(length > 0, length, length + 1.0)
        c = tl.where(length > 0, b1 / safe, b1 * 0.0 + 1.0)
        s = b2 / safe
        tl.store(turn + lane, c * s2 - s * s1)
        tl.store(turn + KMAX + lane, c * s1 + s * s2)
        tl.debug_barrier()
        tl.store(alpha, s * s * theta1 + c * c * theta2)
        tl.store(alpha + 1, c * c * theta1 + s * s * theta2)
        tl.store(beta, c * s * (theta2 - theta1))
        tl.store(beta + 1, length)
        tl.store(state, tl.load(state) * 0 + 2)
