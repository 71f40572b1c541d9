"""Backend ``cuda``: the sweeps of backend ``rop`` as CUDA graphs, one set per shape of batch.

Source: Pearlmutter 1994; Sandler, Klabjan, Luo, section 3 and appendix A; the rules are those of ``curvature/rop``.
On a GPU a small network's product is a hundred kernels of two microseconds each, for which the host takes ten times as
long to launch them; a graph is launched in one go.  A solve by Lanczos or power iteration stays on the device whole.
Exact as ``rop`` is, unless another precision is asked for; then the error of a product against the exact one is
measured once per plan.  A plan that does not agree with the rules is refused.
Cost in gradients, as ``rop``: primal 1, product 1 to 2, ``hvp_and_quadratic_grad`` 2 to 4.  Memory: what a product
needs is allocated for good, for each of the last 8 shapes.
On the CPU the same code runs over the recordings' stand-in, for tests: see ``capture``.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spectral_run.curvature.cuda.decide import triton_runs
from spectral_run.curvature.cuda.fused_rules import replacements
from spectral_run.curvature.cuda.lanczos import DeviceLanczos, DevicePower
from spectral_run.curvature.cuda.plan import PRECISIONS, Plan
from spectral_run.curvature.cuda.program import Replacements, draws_of, trial_batch
from spectral_run.curvature.lanczos import Lanczos
from spectral_run.curvature.objective import Objective
from spectral_run.curvature.power import PowerIteration
from spectral_run.curvature.problem import BatchProblem
from spectral_run.curvature.rop.jacobian import RopJacobian
from spectral_run.curvature.rop.trace import Program, trace
from spectral_run.curvature.solver import EigenResult, EigenSolver, Product

_PLANS = 8  # shapes of batches whose tensors and graphs stay
_SOLVES = 2  # solvers' settings whose bases stay, for each


@final
class CudaNetwork:
    """A traced network and its plans, for all its batches.

    ``precision``: of products and only of them; ``exact`` is float32 or float64 as the parameters are, ``tf32`` lets
    the tensor cores round factors to 10 bits, ``bf16`` carries out the sweep in bfloat16 and rounds everything to 7.
    ``fused``: kernels of our own for elementwise rules, cross-entropy and orthogonalization, in the place of torch's.
    """

    def __init__(
        self,
        objective: Objective,
        *,
        program: Program | None = None,
        precision: str = "exact",
        fused: bool = False,
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"CudaNetwork: precision must be one of {', '.join(PRECISIONS)}, got {precision!r}.")
        self.objective = objective
        self.program = trace(objective) if program is None else program
        self.precision, self.fused = precision, fused
        self.replacements: Replacements = {}
        if fused:
            device = self.point().device
            if not triton_runs(device):
                raise ValueError(f"CudaNetwork: fused needs Triton, which does not run on this device ({device}).")
            self.replacements = replacements()
        self.error: float | None = None  # of a product, at the first plan
        self._modules = tuple(objective.model.modules())
        self._plans: OrderedDict[Any, Plan] = OrderedDict()

    def point(self) -> Float[Tensor, " n"]:
        """The parameters as they are now, in one vector."""
        return torch.cat([p.detach().reshape(-1) for p in self.objective.parameters])

    def trial(self, inputs: Tensor, weight_decay: float) -> None:
        """Make a plan for inputs of this shape, on random numbers: raises what would be raised at the first batch.

        Leaves the network, its statistics and all random states as they are.
        """
        inputs, targets = trial_batch(self.program, inputs)
        with torch.random.fork_rng([inputs.device] if inputs.device.type == "cuda" else []):
            CudaProblem(self, self.objective, inputs, targets, weight_decay=weight_decay, params=self.point()).grad()

    def plan(self, inputs: Tensor, targets: Tensor, point: Tensor, draws: dict[int, Any], weight_decay: float) -> Plan:
        """The plan for batches like this one. Cost: the first time a few products and primal passes."""
        graph = self.program.graph()
        batch = tuple((t.shape, t.dtype, t.device) for t in (inputs, targets, point))
        drawn = tuple((slot, getattr(mask, "shape", None)) for slot, mask in draws.items())
        key = (*batch, drawn, id(graph), self._fixed(), weight_decay)
        if key not in self._plans:
            make = partial(
                Plan,
                self.program,
                inputs,
                targets,
                point,
                draws,
                weight_decay=weight_decay,
                precision=self.precision,
                replacements=self.replacements,
            )
            try:
                plan = make()
            except torch.OutOfMemoryError:
                self._plans.clear()  # other shapes' memory, as far as no problem holds on to it
                torch.cuda.empty_cache()
                plan = make()
            self._plans[key] = plan
            if self.error is None:
                self.error = plan.error
            if len(self._plans) > _PLANS:
                self._plans.popitem(last=False)
        self._plans.move_to_end(key)
        return self._plans[key]

    def _fixed(self) -> tuple[int, ...]:
        """Where the numbers are that a recording reads from the network itself: buffers and frozen parameters."""
        tensors: list[Tensor | None] = [t for m in self._modules for t in m._buffers.values()]
        frozen = [p for m in self._modules for p in m._parameters.values() if p is not None and not p.requires_grad]
        return tuple(t.data_ptr() for t in (*tensors, *frozen) if t is not None)


@final
class CudaProblem(BatchProblem):
    """One batch, at the parameters of its first use.

    Problems of the same shape share a plan: going back to an earlier one repeats its primal pass.
    """

    def __init__(
        self,
        network: CudaNetwork,
        objective: Objective,
        inputs: Tensor,
        targets: Tensor,
        *,
        weight_decay: float = 0.0,
        params: Float[Tensor, " n"] | None = None,
        draws: dict[int, Any] | None = None,
    ) -> None:
        if network.objective is not objective and network.objective != objective:
            raise ValueError("CudaProblem: network must be of this objective, got one of another.")
        self.network, self.objective = network, objective
        self.inputs, self.targets = inputs, targets
        self.graph = network.program.graph()
        self.n = self.graph.n
        self.products = 0
        self._weight_decay = weight_decay
        self._point = None if params is None else params.detach()
        self._moves_statistics = params is None
        self._draws = draws
        self._loss: Tensor | None = None
        self._gradient: Tensor | None = None
        self._taken: Plan | None = None

    @property
    def params(self) -> Float[Tensor, " n"]:
        """The point, as one vector (a copy)."""
        return self.network.point() if self._point is None else self._point.clone()

    def loss(self) -> Float[Tensor, ""]:
        """Mean loss over the batch; the gradient comes along."""
        self.linearize()
        assert self._loss is not None
        return self._loss

    def grad(self) -> Float[Tensor, " n"]:
        """Gradient of the mean loss; products need nothing beyond what it leaves behind."""
        self.linearize()
        assert self._gradient is not None
        return self._gradient

    def linearize(self) -> None:
        """The primal pass: a replay, or the plan's recording the first time that a batch has this shape."""
        if self._gradient is None:
            self._load()

    def hvp(self, v: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """``H v``: a replay."""
        plan = self._ready(v)
        return plan.multiply().clone()

    def hvp_and_quadratic_grad(self, v: Float[Tensor, " n"]) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """``H v`` and the gradient of ``v'Hv``: a replay."""
        first, second = self._ready(v).multiply_both()
        return first.clone(), second.clone()

    def eigenpair(
        self, solver: EigenSolver, start: Float[Tensor, "*p n"], *, preconditioner: Product | None = None
    ) -> EigenResult:
        """The solver's eigenpair; Lanczos and power iteration from one start vector stay on the device to the end."""
        plan = self._load() if self._gradient is None or self._plan().owner is not self else self._plan()
        if preconditioner is None and start.dim() == 1:
            found: DeviceLanczos | DevicePower | None = plan.solves.get(solver)
            if found is None and isinstance(solver, Lanczos) and DeviceLanczos.takes(solver, start.device):
                found = DeviceLanczos(solver, plan, fused=self.network.fused)
            elif found is None and isinstance(solver, PowerIteration):
                found = DevicePower(solver, plan)
            if found is not None:
                plan.solves[solver] = found
                plan.solves.move_to_end(solver)
                if len(plan.solves) > _SOLVES:
                    plan.solves.popitem(last=False)
                result = found.solve(start)
                self.products += result.products
                return result
        return solver.solve(self.hvp, start, preconditioner=preconditioner)

    def at(self, params: Float[Tensor, " n"]) -> CudaProblem:
        """The same batch at other parameters, with the same dropout masks; the network stays as it is."""
        return CudaProblem(
            self.network,
            self.objective,
            self.inputs,
            self.targets,
            weight_decay=self._weight_decay,
            params=params.detach().clone(),
            draws=self._masks(),
        )

    def jacobian(self) -> RopJacobian:
        """Of the outputs, at this problem's point and with its dropout masks: by the rules, not recorded."""
        return RopJacobian(self.graph, self.inputs, self._pieces(), self._masks())

    def _pieces(self) -> list[Tensor]:
        """The point in the parameters' shapes."""
        like: list[nn.Parameter] = list(self.graph.parameters)
        pieces = torch.split(self._stay(), [p.numel() for p in like])
        return [piece.view_as(p) for piece, p in zip(pieces, like, strict=True)]

    def _stay(self) -> Tensor:
        """The point; from now on this problem stays there, also when the parameters move."""
        if self._point is None:
            self._point = self.network.point()
        return self._point

    def _masks(self) -> dict[int, Any]:
        if self._draws is None:
            self._draws = draws_of(self.graph, self.inputs, self._pieces()) if self.graph.draws else {}
        return self._draws

    def _plan(self) -> Plan:
        if self._taken is None:
            masks, decay = self._masks(), self._weight_decay
            self._taken = self.network.plan(self.inputs, self.targets, self._stay(), masks, decay)
        return self._taken

    def _load(self) -> Plan:
        """The plan with this problem's primal pass in it."""
        plan = self._plan()
        plan.load(self.inputs, self.targets, self._stay(), self._masks())
        plan.owner = self
        if self._gradient is None:
            self._loss, self._gradient = plan.loss.clone(), plan.gradient.clone()
            if self._moves_statistics:
                for moments in plan.moments:
                    moments.move()
        return plan

    def _ready(self, v: Tensor) -> Plan:
        """The plan with the direction in it; one product is counted."""
        if self._gradient is None or self._plan().owner is not self:
            self._load()
        plan = self._plan()
        self.products += 1
        plan.direction.copy_(v)
        return plan
