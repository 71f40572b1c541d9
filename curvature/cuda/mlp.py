"""Multilayer perceptrons on a GPU: sweeps, and whole Lanczos solves, as single kernels.

A product with a small network's Hessian is some dozens of matrix products of about a microsecond, which launches and
the host outweigh many times.  Here one program, on one multiprocessor, carries a tile of rows through the network and
back (``kernels/mlp.py``), and a solve is one launch in which the host has no part (``kernels/mlp_solve.py``).
``mlp_network.py`` says which networks and batches it takes; products of larger batches are a launch each.
Cost: as ``native``, on one multiprocessor per vector and tile.  Exact to rounding unless another ``precision`` is asked
for.  ``check`` tells how far a problem is from the ``rop`` backend's.
Fails where a target is no class of the network's: loss and products are then nan.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from spectral_run.curvature.cuda.mlp_network import CAPACITY as CAPACITY
from spectral_run.curvature.cuda.mlp_network import MOST_ROWS, MLPNetwork, Precision, power_of_2
from spectral_run.curvature.cuda.mlp_network import mlp_network as mlp_network
from spectral_run.curvature.cuda.program import trial_batch
from spectral_run.curvature.lanczos import Lanczos
from spectral_run.curvature.objective import Objective
from spectral_run.curvature.problem import BatchProblem
from spectral_run.curvature.rop.base import UnsupportedError
from spectral_run.curvature.rop.problem import RopProblem
from spectral_run.curvature.rop.trace import trace
from spectral_run.curvature.solver import EigenResult, EigenSolver, Product

_WARPS = 8
_TRUSTED = 1e-3


@final
class MLPProblem(BatchProblem):
    """One batch, at the parameters of its first use."""

    def __init__(
        self,
        network: MLPNetwork,
        objective: Objective,
        inputs: Tensor,
        targets: Tensor,
        *,
        weight_decay: float = 0.0,
        params: Float[Tensor, " n"] | None = None,
    ) -> None:
        self.objective, self.inputs, self.targets = objective, inputs, targets
        self.n = network.n
        self.products = 0
        self._network, self._weight_decay, self._point = network, weight_decay, params
        self._rows = len(inputs)
        self._tile = network.tile(self._rows)
        self._tiles = -(-self._rows // self._tile)
        self._settings: dict[str, Any] = {
            "L": network.layers,
            "LOSS": network.loss,
            "NET": network.net(self._tile),
            "N": network.n,
            "KEPT": network.kept(self._tile),
            "BM": self._tile,
            "PRECISION": "ieee" if network.precision == "exact" else network.precision,
            "num_warps": _WARPS,
        }
        self._gradient: Tensor | None = None
        self._refuse()

    @property
    def params(self) -> Float[Tensor, " n"]:
        """The point, as one vector (a copy)."""
        return self._network.point() if self._point is None else self._point.clone()

    def loss(self) -> Float[Tensor, ""]:
        """Mean loss over the batch; one pass forwards and back."""
        self.linearize()
        return self._value

    def grad(self) -> Float[Tensor, " n"]:
        """Gradient of the mean loss."""
        self.linearize()
        assert self._gradient is not None
        return self._gradient

    def linearize(self) -> None:
        """The gradient's pass: what all products share. One launch."""
        if self._gradient is not None:
            return
        if self._point is None:  # from now on this problem stays there, also when the parameters move
            self._point = self._network.point()
        self._point = self._point.contiguous()
        inputs = self.inputs.detach().reshape(self._rows, -1)
        padding = self._tiles * self._tile - self._rows
        self._inputs = F.pad(inputs, (0, 0, 0, padding)) if padding else inputs.contiguous()
        self._kept = self._new(self._tiles, self._settings["KEPT"])
        parts, losses = self._new(self._tiles, self.n), self._new(self._tiles, dtype=torch.float64)
        with self._device():
            _kernels("mlp_primal").primal_kernel[(self._tiles,)](
                self._point,
                self._inputs,
                self.targets.contiguous(),
                self._rows,
                self._kept,
                losses,
                parts,
                **self._settings,
            )
        self._value = losses.sum().to(self._point.dtype)
        self._gradient = parts.sum(0) if self._tiles > 1 else parts[0]

    def hvp(self, v: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """``H v``: one launch."""
        return self._shifted(self._product(v[None], 1)[0], v[None])[0]

    def hvps(self, vectors: Float[Tensor, "k n"]) -> Float[Tensor, "k n"]:
        """``H v`` for every row: one launch, on k multiprocessors."""
        return self._shifted(self._product(vectors, 1)[0], vectors)

    def hvp_and_quadratic_grad(self, v: Float[Tensor, " n"]) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """``H v`` and the gradient of ``v'Hv``: one launch."""
        first, second = self._product(v[None], 2)
        return self._shifted(first, v[None])[0], second[0]

    def eigenpair(
        self, solver: EigenSolver, start: Float[Tensor, "*p n"], *, preconditioner: Product | None = None
    ) -> EigenResult:
        """By Lanczos from one vector: one launch, then one transfer. Otherwise the solver's own way.

        In the kernel a full basis starts again from its best Ritz vector alone: ``keep`` is not used.  Up to eight
        products the residual is looked at after every one, from there on after every second.
        """
        if not isinstance(solver, Lanczos) or solver.cluster > 1 or preconditioner is not None:
            return super().eigenpair(solver, start, preconditioner=preconditioner)
        if start.dim() > 1 or self._rows > MOST_ROWS:
            return super().eigenpair(solver, start)
        vector, result = self._solve(solver, start)
        value, residual, second, products, reason, _ = result.tolist()  # the one transfer
        self.products += int(products)
        why = _kernels("mlp_solve").REASONS[int(reason)]
        if why == "start":
            raise ValueError("EigenSolver: the start vector must be finite and not zero.")
        gap = (solver.score(value) - solver.score(second)) / abs(value) if value else math.nan
        return EigenResult(value, vector, residual, int(products), why, gap)

    def at(self, params: Float[Tensor, " n"]) -> MLPProblem:
        """The same batch at other parameters."""
        return MLPProblem(
            self._network,
            self.objective,
            self.inputs,
            self.targets,
            weight_decay=self._weight_decay,
            params=params.detach().clone(),
        )

    def _product(self, vectors: Tensor, order: int) -> tuple[Tensor, Tensor]:
        self.linearize()
        count = len(vectors)
        self.products += count
        size = self._network.jets(self._tile, order)
        outs = self._new(order, count, self._tiles, self.n)
        with self._device():
            _kernels("mlp_product").product_kernel[(count, self._tiles)](
                self._point,
                vectors.detach().to(self._network.dtype).contiguous(),
                self._inputs,
                self._rows,
                self._kept,
                self._new(count * self._tiles, size),
                outs[0],
                outs[-1],
                self._tiles,
                ORDER=order,
                JETS=size,
                **self._settings,
            )
        sums = outs.sum(2) if self._tiles > 1 else outs[:, :, 0]
        return sums[0], sums[-1]

    def _solve(self, solver: Lanczos, start: Tensor) -> tuple[Tensor, Tensor]:
        """The vector, and the kernel's numbers, both still on the device."""
        self.linearize()
        kernels = _kernels("mlp_solve")
        dtype = self._network.dtype
        size = min(max(solver.basis, 10), self.n)
        stride, kmax = -(-self.n // 4) * 4, max(2, power_of_2(size))
        vector, result = self._new(self.n), self._new(kernels.RESULTS, dtype=torch.float64)
        with self._device():
            kernels.solve_kernel[(1,)](
                self._point,
                start.detach().to(dtype).contiguous(),
                self._inputs,
                self._rows,
                self._kept,
                self._new(self._network.jets(self._tile, 1)),
                self._new(self._tiles, self.n),
                self._new(size + 1, stride),
                self._new(8 * kmax, dtype=torch.float64),
                vector,
                result,
                solver.eps,
                solver.cap,
                TILES=self._tiles,
                STRIDE=stride,
                SIZE=size,
                KMAX=kmax,
                ROWS=16,
                CHUNK=min(power_of_2(self.n), 512),
                SWEEPS=5 if dtype == torch.float32 else 8,
                WHICH=kernels.ENDS[solver.which],
                RELATIVE=solver.relative,
                DECAY=self._weight_decay,
                ROUNDING=torch.finfo(dtype).eps,
                **self._settings,
            )
        return vector, result

    def _shifted(self, products: Tensor, vectors: Tensor) -> Tensor:
        return products.add_(vectors, alpha=self._weight_decay) if self._weight_decay else products

    def _new(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.empty(shape, dtype=dtype or self._network.dtype, device=self.inputs.device)

    def _device(self) -> AbstractContextManager[Any]:
        return torch.cuda.device(self.inputs.device) if self.inputs.is_cuda else nullcontext()

    def _refuse(self) -> None:
        """Raise for targets that the kernels would misread."""
        outputs = self._network.widths[-1]
        if self._network.loss == 0:
            if self.targets.shape != (self._rows,) or self.targets.dtype != torch.int64:
                got = f"{tuple(self.targets.shape)} of {self.targets.dtype}"
                raise UnsupportedError(f"MLPProblem: targets must be class numbers ({self._rows},) of int64, got {got}")
        elif self.targets.shape != (self._rows, outputs) or self.targets.dtype != self._network.dtype:
            got = f"{tuple(self.targets.shape)} of {self.targets.dtype}"
            raise UnsupportedError(
                f"MLPProblem: targets must be ({self._rows}, {outputs}) of {self._network.dtype}, got {got}"
            )


def trusted(
    objective: Objective, inputs: Tensor, *, weight_decay: float = 0.0, precision: Precision = "exact"
) -> tuple[MLPNetwork, float]:
    """The network for inputs of this shape, and ``check`` of it on random ones. Raises ``UnsupportedError``.

    A float32 product at a trained point is some 1e-5 from a float64 one by any backend, so 1e-3 is a wrong kernel.
    """
    network = mlp_network(objective, inputs, precision=precision)
    errors: Any = import_module("triton.errors")
    try:
        batch = trial_batch(trace(objective), inputs)
        error = check(MLPProblem(network, objective, *batch, weight_decay=weight_decay))
    except (RuntimeError, errors.TritonError) as failure:  # a compiler's or the driver's
        raise UnsupportedError(
            f"its kernels failed: {type(failure).__name__}: {failure}".partition("\n")[0]
        ) from failure
    if not (error <= _TRUSTED or (precision != "exact" and math.isfinite(error))):
        raise UnsupportedError(f"its kernels' Hv differs from the rules by {error:.1e} (relative)")
    return network, error


def check(problem: MLPProblem) -> float:
    """The largest relative difference of ``Hv`` from the ``rop`` backend's on the same batch, over four directions.

    For whoever is about to rely on the kernels: they have not run on every GPU.  Cost: four products of either kind.
    """
    generator = torch.Generator().manual_seed(0)
    point = problem.params
    vectors = torch.randn(4, problem.n, generator=generator, dtype=torch.float64).to(point)
    expected = RopProblem(problem.objective, problem.inputs, problem.targets, params=point).hvps(vectors)
    plain = MLPProblem(problem._network, problem.objective, problem.inputs, problem.targets, params=point)
    off = torch.linalg.vector_norm(plain.hvps(vectors) - expected, dim=1)
    scale = torch.linalg.vector_norm(expected, dim=1)
    return float((off / scale.clamp_min(torch.finfo(point.dtype).tiny)).max())


def _kernels(name: str) -> Any:
    """A module of kernels: imported on first use, since it needs triton."""
    return import_module(f"spectral_run.curvature.cuda.kernels.{name}")
