"""The small end of a Lanczos solve on the device: T, its eigenpairs, and whether to go on.

Decided by Triton's kernels (``kernels/step.py``), or on a CPU without Triton by the same in Python, with LAPACK.
"""

from __future__ import annotations

import importlib.util
import math
import os
from typing import ClassVar, final

import numpy as np
import torch
from torch import Tensor

from spectral_run.curvature.lanczos import Lanczos

_CODES = {None: 0, "residual": 1, "zero": 2, "cap": 3, "nan": 4, "stalled": 4}


def triton_runs(device: torch.device) -> bool:
    """Whether Triton's kernels run there: on a GPU, or in its interpreter."""
    if importlib.util.find_spec("triton") is None:
        return False
    return device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"


@final
class SmallProblem:
    """T as ``alpha`` and ``beta``, and what is known of it; all of it stays on the device.

    ``rows``: of the basis, and the number of one more that takes what is not wanted; ``room``: the dimension.
    ``numbers`` and ``state`` belong to the solve; what is in them is in ``kernels/step.py``.
    """

    LANES: ClassVar[int] = 64
    SWEEPS: ClassVar[int] = 8

    def __init__(self, solver: Lanczos, numbers: Tensor, state: Tensor, *, rows: int, room: int, eps: float) -> None:
        self.solver, self.numbers, self.state, self.rows, self.room = solver, numbers, state, rows, room
        self.width = max(2, 1 << (rows - 1).bit_length())  # of the tensors that the kernels work on

        def doubles(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=numbers.device)

        self.alpha, self.beta = doubles(self.width), doubles(self.width)
        self.scratch, self.turn = doubles(6 * self.width), doubles(2, self.width)
        self.eps, self.rounding = doubles(1) + solver.eps, doubles(1) + eps
        self.triton = triton_runs(numbers.device)

    def step(self, coefficients: Tensor, norm: Tensor) -> None:
        """After a product: take alpha and beta, look at T's pairs, and say whether to go on."""
        if not self.triton:
            self._step(float(coefficients[int(self.state[0])]), float(norm))
            return
        from spectral_run.curvature.cuda.kernels.step import step_kernel
        from spectral_run.curvature.cuda.kernels.tridiagonal import ENDS

        tensors = self.alpha, self.beta, self.scratch, self.numbers, self.state, self.eps, self.rounding
        step_kernel[(1,)](
            coefficients,
            norm,
            *tensors,
            self.room,
            self.solver.cap,
            self.rows,
            WHICH=ENDS[self.solver.which],
            RELATIVE=self.solver.relative,
            CLUSTER=self.solver.cluster,
            KMAX=self.width,
            LANES=self.LANES,
            SWEEPS=self.SWEEPS,
        )

    def restart(self) -> None:
        """New alpha, beta and number of vectors; the two new vectors' coefficients in the old basis go to ``turn``."""
        if not self.triton:
            self._restart()
            return
        from spectral_run.curvature.cuda.kernels.step import restart_kernel

        tensors = self.alpha, self.beta, self.scratch, self.numbers, self.state, self.turn
        restart_kernel[(1,)](*tensors, CLUSTER=self.solver.cluster, KMAX=self.width)

    def _step(self, coefficient: float, norm: float) -> None:
        numbers, state, solver = self.numbers.numpy(), self.state.numpy(), self.solver
        if state[1]:
            numbers[6], state[3] = 0.0, self.rows
            return
        k = int(state[0])
        alpha, beta = self.alpha.numpy(), self.beta.numpy()
        alpha[k], beta[k] = coefficient, norm
        k, products = k + 1, int(state[2]) + 1
        values, residuals, scale = self._ritz(k)
        rounding = float(self.rounding)
        floor = max(float(numbers[5]), 100 * rounding * scale)
        exhausted = k >= self.room or beta[k - 1] <= rounding * scale
        first = solver.verdict(values[0], residuals[0], floor)
        second = solver.verdict(values[1], residuals[1], floor) if k > 1 else None
        reason, near = first, 1
        if solver.cluster == 2 and first != "nan":
            least = solver.score(values[0]) - solver.tolerance(values[0])
            close = k > 1 and solver.score(values[1]) >= least
            near = 2 if close and second is not None else 1
            unsettled = second is None if close else k == 1 or solver.score(values[1]) + residuals[1] >= least
            if unsettled and not exhausted:
                reason = None
        if exhausted and first is None:
            reason = "residual"
        if reason is None and products >= solver.cap:
            reason = first or "cap"
        numbers[:6] = values[0], residuals[0], values[1], residuals[1], scale, floor
        numbers[6] = 1 / beta[k - 1] if reason is None else 0.0
        state[:5] = k, _CODES[reason], products, k if reason is None else self.rows, near

    def _restart(self) -> None:
        numbers, state = self.numbers.numpy(), self.state.numpy()
        if state[1]:
            return
        k, width = int(state[0]), self.width
        alpha, beta, turn = self.alpha.numpy(), self.beta.numpy(), self.turn.numpy()
        s1, s2 = self.scratch.numpy()[: 2 * width].reshape(2, width)[:, :k]
        b1, b2 = beta[k - 1] * s1[-1], beta[k - 1] * s2[-1]
        length = math.hypot(b1, b2)
        c, s = (b1 / length, b2 / length) if length else (1.0, 0.0)
        turn[:] = 0.0
        turn[0, :k], turn[1, :k] = c * s2 - s * s1, c * s1 + s * s2
        one, two = numbers[0], numbers[2]
        alpha[:2] = s * s * one + c * c * two, c * c * one + s * s * two
        beta[:2] = c * s * (two - one), length
        state[0] = 2

    def _ritz(self, k: int) -> tuple[list[float], list[float], float]:
        """The first two values with their residuals (nan where there is one only), and T's largest modulus known."""
        alpha, beta = self.alpha.numpy()[:k], self.beta.numpy()[:k]
        if not (np.isfinite(alpha).all() and np.isfinite(beta).all()):
            return [math.nan] * 2, [math.nan] * 2, math.nan
        small = np.diag(alpha) + np.diag(beta[:-1], 1) + np.diag(beta[:-1], -1)
        values, vectors = np.linalg.eigh(small)
        scratch = self.scratch.numpy().reshape(6, self.width)
        chosen, residuals = [math.nan] * 2, [math.nan] * 2
        for row, i in enumerate(self.solver.ranking(values.tolist(), 2)):
            scratch[row, :k] = vectors[:, i]
            error = float(np.linalg.norm(small @ vectors[:, i] - values[i] * vectors[:, i]))
            chosen[row], residuals[row] = float(values[i]), math.hypot(error, beta[-1] * vectors[-1, i])
        return chosen, residuals, float(max(abs(values[0]), abs(values[-1])))
