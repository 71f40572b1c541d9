"""Lanczos and power iteration that never make the host wait: vectors, T, counters and the verdict stay on the device.

As ``curvature/lanczos.py`` (Lanczos 1950) from one start vector, with both passes of orthogonalization in every step,
since nobody is there to decide.  A step is two graphs: the product, and the rest, where the next vector goes back into
the product's static tensor.  The host is a step ahead of the device (``AHEAD`` under way at most), and looks at a copy
of the flag that comes over without its waiting; steps launched after the end change nothing and are not counted.
When the basis is full the two best Ritz vectors are kept, where the host's solver keeps ``keep`` of them: beyond
``basis`` products it may need more than that one.
Cost beside the product: ``4 n k`` numbers read a step, and T's eigenpairs; memory ``n * (basis + 1)`` numbers, which a
plan keeps for the next solve.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, cast, final

import torch
from jaxtyping import Float
from torch import Tensor

from spectral_run.curvature.cuda.capture import Captured, launch
from spectral_run.curvature.cuda.decide import SmallProblem, triton_runs
from spectral_run.curvature.lanczos import Lanczos
from spectral_run.curvature.power import PowerIteration
from spectral_run.curvature.solver import EigenResult, Reason, unit

AHEAD = 2  # steps under way at most: one that runs, and one that waits for it; more would be for nothing at the end
_FIRST_ROWS = 16  # a step's graph works on so many rows of the basis, then on twice as many
_KEPT = 2
_REASONS: dict[int, Reason] = {1: "residual", 2: "zero", 3: "cap", 4: "nan"}
_BAD_START = 5


class DeviceOperator(ABC):
    """A symmetric matrix that multiplies ``direction`` into ``product``, two tensors that stay where they are."""

    direction: Tensor

    @property
    @abstractmethod
    def product(self) -> Float[Tensor, " n"]:
        """What ``multiply`` fills."""

    @abstractmethod
    def multiply(self) -> Float[Tensor, " n"]:
        """Launch a product, without waiting for it."""


class _DeviceSolve:
    """What both solvers share: launching ahead, and one transfer at the end."""

    state: Tensor  # int64; see kernels/step.py
    numbers: Tensor  # float64
    cap: int
    launched: int = 0  # steps launched in the last solve; those after the end were for nothing

    def _allocate(self, numbers: int, state: int, device: torch.device) -> None:
        self.numbers = torch.zeros(numbers, dtype=torch.float64, device=device)
        self.state = torch.zeros(state, dtype=torch.int64, device=device)
        self._both = torch.zeros(numbers + state, dtype=torch.float64, device=device)  # what the host gets a copy of
        on_device, cuda = device.type == "cuda", cast(Any, torch.cuda)  # its events are not annotated
        self._ring = [torch.zeros(numbers + state, dtype=torch.float64, pin_memory=on_device) for _ in range(AHEAD)]
        self._events: list[Any] = [cuda.Event() for _ in range(AHEAD)] if on_device else []

    def _run(self, advance: Callable[[], None]) -> tuple[list[float], list[int]]:
        """Launch steps until the flag says that the solve is over, ``cap`` at most; the numbers and the state then."""
        pending: deque[int] = deque()
        self.launched, over, slot = 0, False, 0
        while not over:
            if self.launched < self.cap:
                advance()
                slot = self.launched % AHEAD
                self._ring[slot].copy_(self._both, non_blocking=True)
                if self._events:
                    self._events[slot].record()
                pending.append(slot)
                self.launched += 1
            while pending and not over:
                slot = pending[0]
                if self._events and not self._events[slot].query():
                    if len(pending) < AHEAD and self.launched < self.cap:
                        break
                    time.sleep(0)  # the host is ahead far enough
                    continue
                pending.popleft()
                over = bool(self._ring[slot][len(self.numbers) + 1])
        values: list[float] = self._ring[slot].tolist()
        return values[: len(self.numbers)], [int(value) for value in values[len(self.numbers) :]]

    def _tell(self) -> None:
        """The last thing that a step does."""
        torch.cat([self.numbers, self.state.double()], out=self._both)

    def _begin(self, start: Tensor, direction: Tensor) -> None:
        """The start vector at norm 1 into the product's tensor; a bad one is found out on the device."""
        norm = torch.linalg.vector_norm(start)
        direction.copy_(start / norm)
        good = torch.isfinite(norm) & (norm > 0)
        self.numbers.zero_()
        self.state.zero_()
        self.state[1:2] = torch.where(good, 0, _BAD_START)


@final
class DeviceLanczos(_DeviceSolve):
    """A solver's settings and a plan's tensors, recorded once."""

    def __init__(self, solver: Lanczos, operator: DeviceOperator, *, fused: bool = False) -> None:
        like = operator.direction
        n, device = len(like), like.device
        self.solver, self.operator, self.cap = solver, operator, solver.cap
        self.room = n
        size = min(max(solver.basis, 10), solver.cap + 1, n)
        self.full = size if size in (n, solver.cap + 1) else size - 1  # vectors done when there is no more room
        self.rows = size
        self.basis = like.new_zeros(size + 1, n)  # the last row takes what is not wanted
        self._allocate(8, 8, device)
        eps = torch.finfo(like.dtype).eps
        self.small = SmallProblem(solver, self.numbers, self.state, rows=size, room=n, eps=eps)
        self._steps: dict[int, Captured[None]] = {}
        self._restart: Captured[None] | None = None
        self._fused = fused
        self._done = 0

    @staticmethod
    def takes(solver: Lanczos, device: torch.device) -> bool:
        """Whether this solver and device are served: clusters of up to two, and a GPU needs Triton."""
        return solver.cluster <= 2 and (device.type != "cuda" or triton_runs(device))

    def solve(self, start: Float[Tensor, " n"]) -> EigenResult:
        """From the start vector to the result, which is what the host then waits for."""
        operator, self._done = self.operator, 0
        self._record()
        self._begin(start, operator.direction)
        self.basis.zero_()
        self.basis[0] = operator.direction
        first = operator.direction.clone()
        self.small.turn.zero_()
        numbers, state = self._run(self._advance)
        vectors = self._vectors()
        value, residual, second = numbers[:3]
        if state[1] == _BAD_START:
            unit(start)  # says what is wrong with it
        reason = _REASONS[state[1]]
        if reason == "nan":
            return EigenResult(math.nan, first, math.nan, state[2], "nan")
        gap = math.nan
        if not math.isnan(second) and value:
            gap = (self.solver.score(value) - self.solver.score(second)) / abs(value)
        near = ((second, vectors[1]),) if state[4] == 2 else ()
        return EigenResult(value, vectors[0], residual, state[2], reason, gap, near)

    def _advance(self) -> None:
        """One step; which graph it takes follows from how many steps there have been, as do restarts."""
        if self._done == self.full < self.room and self._restart is not None:
            self._restart.replay()
            self._done = _KEPT
        self.operator.multiply()
        self._steps[self._bucket(self._done)].replay()
        self._done += 1

    def _bucket(self, done: int) -> int:
        """How many rows the step with so many vectors done works on."""
        rows = _FIRST_ROWS
        while rows < done + 1:
            rows *= 2
        return min(rows, self.rows)

    def _record(self) -> None:
        """All graphs that a solve may need; the first time, as steps of a solve that is over, which change nothing."""
        if self._steps:
            return
        device = self.operator.direction.device
        self.state.zero_()
        self.state[1:2].fill_(1)
        for rows in sorted({self._bucket(done) for done in range(self.full)}):
            self._steps[rows] = Captured(partial(self._step, rows), device)
        if self.full < min(self.room, self.cap):
            self._restart = Captured(self._turn_basis, device)

    def _step(self, rows: int) -> None:
        """Orthogonalize the product, decide, and put the next vector where it belongs."""
        basis, w = self.basis[:rows], self.operator.product
        if self._fused and self.small.triton:
            from spectral_run.curvature.cuda.kernels.fused import orthogonalize

            w, coefficients, norm = orthogonalize(basis, w)
        else:
            once = torch.mv(basis, w)
            w = torch.addmv(w, basis.t(), once, alpha=-1)
            again = torch.mv(basis, w)
            w = torch.addmv(w, basis.t(), again, alpha=-1)
            coefficients, norm = once + again, torch.linalg.vector_norm(w)
        launch(partial(self.small.step, coefficients, norm))
        self.operator.direction.copy_(w * self.numbers[6].to(w.dtype))
        self.basis.index_copy_(0, self.state[3:4], self.operator.direction[None])
        self._tell()

    def _turn_basis(self) -> None:
        """Where the solve goes on: two vectors, and the next one after them."""
        launch(self.small.restart)
        basis = self.basis
        kept = self.small.turn[:, : self.rows].to(basis.dtype) @ basis[: self.rows]
        onwards = self.state[1] == 0
        following = basis[self.full].clone()
        basis[_KEPT:] = torch.where(onwards, 0.0, basis[_KEPT:])
        basis[:_KEPT] = torch.where(onwards, kept, basis[:_KEPT])
        basis[_KEPT] = torch.where(onwards, following, basis[_KEPT])

    def _vectors(self) -> Tensor:
        """The first two Ritz vectors, as rows of norm 1; the second of no meaning where there is none."""
        small = self.small
        done = torch.arange(small.width, device=small.alpha.device) < self.state[0]
        coefficients = torch.where(done, small.scratch[: 2 * small.width].view(2, small.width), 0.0)
        ritz = coefficients[:, : self.rows].to(self.basis.dtype) @ self.basis[: self.rows]
        norms: Tensor = torch.linalg.vector_norm(ritz, dim=1, keepdim=True)
        return ritz / norms


@final
class DevicePower(_DeviceSolve):
    """Power iteration over a plan's tensors: residual and verdict are a dozen operations on single numbers."""

    def __init__(self, solver: PowerIteration, operator: DeviceOperator) -> None:
        self.solver, self.operator, self.cap = solver, operator, solver.cap
        device = operator.direction.device
        self._allocate(2, 3, device)
        self._vector = torch.zeros_like(operator.direction)
        self._recorded: Captured[None] | None = None

    def solve(self, start: Float[Tensor, " n"]) -> EigenResult:
        """From the start vector to the result, which is what the host then waits for."""
        if self._recorded is None:
            self._recorded = Captured(self._step, self.operator.direction.device)
        self._begin(start, self.operator.direction)
        self._vector.copy_(self.operator.direction)
        (value, residual), state = self._run(self._advance)
        vector = self._vector.clone()
        if state[1] == _BAD_START:
            unit(start)  # says what is wrong with it
        return EigenResult(value, vector, residual, state[2], _REASONS[state[1]])

    def _advance(self) -> None:
        self.operator.multiply()
        assert self._recorded is not None
        self._recorded.replay()

    def _step(self) -> None:
        image, v = self.operator.product, self._vector
        scale = torch.dot(image, v)
        value, residual = scale.double(), torch.linalg.vector_norm(image - scale * v).double()
        tolerance = self.solver.eps * value.abs() if self.solver.relative else torch.full_like(value, self.solver.eps)
        going = self.state[1] == 0
        products = self.state[2] + going
        code = torch.where(residual <= tolerance, 1, 0)
        code = torch.where(torch.maximum(value.abs(), residual) <= 0, 2, code)
        code = torch.where(torch.isfinite(value) & torch.isfinite(residual), code, 4)
        code = torch.where((code == 0) & (products >= self.cap), 3, code)
        onwards = going & (code == 0)
        self.numbers.copy_(torch.where(going, torch.stack((value, residual)), self.numbers))
        self.state[1] = torch.where(going, code, self.state[1])
        self.state[2] = products
        v.copy_(torch.where(onwards, image / torch.linalg.vector_norm(image), v))
        self.operator.direction.copy_(v)
        self._tell()
