"""A batch whose rows are dealt out to several processes: every number is the mean over all rows, in one all-reduce.

``f(w) = sum_r s_r f_r(w)`` over processes r, s_r the share of the rows that r holds; so are gradient, ``Hv`` and
``grad v'Hv``.  A rank that takes part must call the same methods in the same order with the same vectors: the sum of
products with different ones belongs to no vector (each rank iterating by itself would find its own rows' eigenvector).
So every message carries a checksum of v, and differing ones are an error in all processes at once.
What is relied upon: an all-reduce leaves the same bits in every process (gloo and NCCL add each number up in one place
and copy the sum), and equal processors compute the same from the same bits; so the solver's decisions are the same.
Exact to rounding where the loss is a mean over rows.  Not the same as in one process: dropout (each process draws its
masks) and train-mode BatchNorm (each normalizes its own rows: ghost batch norm, Hoffer, Hubara, Soudry 2017).
Cost: per value the products of a rank's own rows, and one message of its numbers, a flag, and a checksum per process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, final

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from spectral_run.curvature.backends import Backend
from spectral_run.curvature.exact_layers import ExactBatchNorm, ExactInstanceNorm
from spectral_run.curvature.objective import Objective, flatten
from spectral_run.curvature.problem import BatchProblem

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class ProcessesDifferError(RuntimeError):
    """Processes that must hold the same vector hold different ones."""


@final
class Processes:
    """The processes of a ``torch.distributed`` group, this one among them; ``messages`` counts their all-reduces.

    ``flag`` rides along: once any process has set it, ``raised`` is true in all of them from the same message on.
    """

    def __init__(self, group: Any = None) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError("Processes: torch.distributed must be initialized first (init_process_group).")
        self._group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.messages = 0
        self.flag = self.raised = False

    def rows(self, count: int) -> slice:
        """This process's piece of so many rows: contiguous, and as even as can be; empty where there are too few."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def sum(self, *parts: Tensor, weight: float = 1.0, same: Tensor | None = None) -> list[Tensor]:
        """Each tensor's weighted sum over the processes: one all-reduce for all of them.

        Raises ``ProcessesDifferError`` where ``same`` is not the same tensor in every process, to the bit.
        What came along is read at once, which on a GPU is a wait; so are a solver's own decisions.
        """
        sizes = [part.numel() for part in parts]
        message = parts[0].new_empty(sum(sizes) + 1 + self.size)
        *pieces, along = torch.split(message, [*sizes, 1 + self.size])
        for piece, part in zip(pieces, parts, strict=True):
            torch.mul(part.reshape(-1), weight, out=piece)
        along.zero_()
        if self.flag:
            along[0] = 1
        if same is not None:
            along[1 + self.rank] = _checksum(same, message.dtype)
        dist.all_reduce(message, group=self._group)
        self.messages += 1
        flag, *sums = along.tolist()
        self.raised |= flag > 0
        if len(set(sums)) > 1:
            raise ProcessesDifferError(
                "Processes: vectors that must be the same in every process differ. Either a random number was not "
                "drawn from a shared seed, or the processors differ and round differently."
            )
        return [piece.view(part.shape) for piece, part in zip(pieces, parts, strict=True)]


def _checksum(v: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor's bits, added up as integers and brought into the range that ``dtype`` holds exactly."""
    bits = v.detach().contiguous().view(_INTEGERS[v.element_size()])
    return bits.sum(dtype=torch.int64).remainder(round(1 / torch.finfo(dtype).eps) - 1)


@final
class ParallelProblem(BatchProblem):
    """This process's ``local`` problem as part of a whole over all processes; ``share``: its rows over all rows.

    ``local`` is None, and the share 0, in a process without rows.  ``products`` counts as in one process;
    ``collectives`` counts this problem's all-reduces: one per product, and one for loss and gradient together.
    K-FAC needs the whole batch in every process, as ``split`` leaves it there; not with dropout, whose masks differ.
    """

    def __init__(
        self,
        processes: Processes,
        objective: Objective,
        local: BatchProblem | None,
        share: float,
        *,
        params: Float[Tensor, " n"] | None = None,
    ) -> None:
        if not 0 <= share <= 1 or (local is None) != (share == 0):
            raise ValueError(f"ParallelProblem: share must be in [0, 1], and 0 only without local rows, got {share}.")
        self.objective = objective
        self.n = objective.n
        self.products = self.collectives = 0
        self.share = share
        self._processes, self._local, self._params = processes, local, params
        self._loss: Tensor | None = None
        self._gradient: Tensor | None = None

    @staticmethod
    def split(
        processes: Processes,
        backend: Backend,
        objective: Objective,
        inputs: Tensor,
        targets: Tensor,
        params: Float[Tensor, " n"] | None = None,
    ) -> ParallelProblem:
        """The problem of a batch that every process holds whole, and of which each works on its piece."""
        rows = processes.rows(len(inputs))
        count = rows.stop - rows.start
        local = backend(objective, inputs[rows], targets[rows], params) if count else None
        problem = ParallelProblem(processes, objective, local, count / len(inputs), params=params)
        if not objective.random:
            problem.inputs, problem.targets = inputs, targets
        return problem

    @property
    def params(self) -> Float[Tensor, " n"]:
        """The point, as one vector (a copy)."""
        if self._local is not None:
            return self._local.params
        own = self.objective.parameters if self._params is None else [self._params]
        return flatten([p.detach() for p in own])

    def forward(self) -> None:
        """The forward pass over this process's rows, and no message: what comes after has it done."""
        if self._local is not None:
            self._local.loss()

    def loss(self) -> Float[Tensor, ""]:
        """Mean loss over all rows. One message, unless it came with the gradient."""
        if self._loss is None:
            (self._loss,) = self._sum(lambda local: [local.loss()], [()])
        return self._loss

    def grad(self) -> Float[Tensor, " n"]:
        """Gradient of the mean loss; the loss comes in the same message."""
        if self._gradient is None:
            both = self._sum(lambda local: [local.grad(), local.loss()], [(self.n,), ()])
            self._gradient, self._loss = both
        return self._gradient

    def linearize(self) -> None:
        """What all products share, and the message of gradient and loss."""
        if self._local is not None:
            self._local.linearize()
        self.grad()

    def hvp(self, v: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """``H v``: one message of n numbers."""
        self.products += 1
        return self._sum(lambda local: [local.hvp(v)], [(self.n,)], v)[0]

    def hvps(self, vectors: Float[Tensor, "k n"]) -> Float[Tensor, "k n"]:
        """``H v`` for every row: k products in one message."""
        self.products += len(vectors)
        return self._sum(lambda local: [local.hvps(vectors)], [tuple(vectors.shape)], vectors)[0]

    def hvp_and_quadratic_grad(self, v: Float[Tensor, " n"]) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """``H v`` and the gradient of ``v'Hv``: one product, one message."""
        self.products += 1
        product, quadratic = self._sum(lambda local: local.hvp_and_quadratic_grad(v), [(self.n,), (self.n,)], v)
        return product, quadratic

    def quadratic_grad(self, v: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The gradient of ``v'Hv`` alone: one message of n numbers."""
        self.products += 1
        return self._sum(lambda local: [local.quadratic_grad(v)], [(self.n,)], v)[0]

    def at(self, params: Float[Tensor, " n"]) -> ParallelProblem:
        """The same rows in every process, with the same dropout masks, at other parameters."""
        local = None if self._local is None else self._local.at(params)
        there = ParallelProblem(self._processes, self.objective, local, self.share, params=params)
        if hasattr(self, "inputs"):
            there.inputs, there.targets = self.inputs, self.targets
        return there

    def _sum(
        self,
        value: Callable[[BatchProblem], Sequence[Tensor]],
        shapes: Sequence[tuple[int, ...]],
        same: Tensor | None = None,
    ) -> list[Tensor]:
        """The mean over the processes of what each has from its rows, in one message; without rows it adds zeros."""
        parts: Sequence[Tensor]
        if self._local is not None:
            parts = value(self._local)
        else:
            like = self.objective.parameters[0]
            parts = [torch.zeros(shape, dtype=like.dtype, device=like.device) for shape in shapes]
        self.collectives += 1
        return self._processes.sum(*parts, weight=self.share, same=same)


def average_statistics(model: nn.Module, processes: Processes, share: float) -> None:
    """Running statistics, after a pass in which each process moved its own: their mean, weighted by rows.

    Mean and variance within a process's rows, as ghost batch norm has them; the variance between processes is not in
    it. Cost: one message of all the statistics, for a model that has some.
    """
    layers = [m for m in model.modules() if isinstance(m, ExactBatchNorm | ExactInstanceNorm)]
    buffers = [buffer for layer in layers for buffer in layer.buffers(recurse=False)]
    if not buffers:
        return
    like = next(buffer for buffer in buffers if buffer.is_floating_point())
    means = processes.sum(*(buffer.to(like.dtype) for buffer in buffers), weight=share)
    for buffer, mean in zip(buffers, means, strict=True):  # the counter of batches is an integer
        buffer.copy_(mean if buffer.is_floating_point() else mean.round())
