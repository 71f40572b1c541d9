"""K-FAC: Kronecker factors of the generalized Gauss-Newton matrix (for usual losses also the Fisher matrix) of a batch.

Source: Martens and Grosse 2015 for linear layers; Grosse and Martens 2016 for convolutions, whose positions are taken
for independent ("expand" in Eschenhagen et al. 2023); a linear layer over sequences likewise.  For a layer with inputs
a (a 1 appended for the bias) at N rows and T positions, and derivatives g of the model's outputs at its own outputs:
``A = sum a a' / (N T)``, ``G = sum g S S' g' / N`` over rows and positions, ``S S'`` the Hessian of a row's loss with
respect to the model's outputs.  The block ``A (x) G`` is the GGN's block where a is constant over rows or S and g are.
Kinds: ``exact`` takes every column of S: C backward passes for C outputs; ``sampled`` one random sign combination of
the columns, S e, of the same mean: one backward pass; ``empirical`` the gradient of the loss itself in place of S,
which is no curvature, but often used.
First-order autograd only.  Needs a loss that is a mean over rows of convex functions of the outputs (rows, C).
Cost of an update: one forward pass, the backward passes, and the factors' decompositions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import functional_call

from spectral_run.curvature.kronecker import Block, KroneckerFactors, Layer, layers_of
from spectral_run.curvature.objective import Objective
from spectral_run.curvature.problem import BatchProblem


@final
@dataclass(frozen=True)
class Moments:
    """A batch's factors before any decomposition: (A, G) for every layer, and the backward passes they took."""

    layers: tuple[Layer, ...]
    factors: tuple[tuple[Tensor, Tensor], ...]
    passes: int


@final
@dataclass(frozen=True, kw_only=True)
class KFAC:
    """Settings of the factorization.

    ``damping``: what the inverse adds to every eigenvalue, in units of the curvature.  ``decay``: how much of the older
    factors stays at an update (Martens and Grosse: .95; 0 keeps the last batch's alone).
    """

    kind: Literal["exact", "sampled", "empirical"] = "sampled"
    damping: float = 1e-3
    decay: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in ("exact", "sampled", "empirical"):
            raise ValueError(f"KFAC: kind must be exact, sampled or empirical, got {self.kind!r}.")
        if not (math.isfinite(self.damping) and self.damping > 0):
            raise ValueError(f"KFAC: damping must be positive, got {self.damping}.")
        if not 0 <= self.decay < 1:
            raise ValueError(f"KFAC: decay must be in [0, 1), got {self.decay}.")

    def update(
        self, problem: BatchProblem, generator: torch.Generator, older: KroneckerFactors | None = None
    ) -> KroneckerFactors:
        """Factors at the problem's parameters, averaged with the older ones.

        Draws and refuses as ``moments`` does.
        """
        moments = self.moments(problem, generator)
        pairs = zip(moments.layers, moments.factors, strict=True)
        factors = KroneckerFactors(tuple(Block.of(layer, a, g) for layer, (a, g) in pairs))
        return factors if older is None else factors.averaged(older, self.decay)

    def moments(self, problem: BatchProblem, generator: torch.Generator) -> Moments:
        """This batch's factors as they are: neither decomposed nor averaged.

        Draws from the generator (on the CPU) for ``sampled``. Dropout draws masks of its own; global random state and
        running statistics stay as they are. Raises ``ValueError`` for a network that it has no factors for.
        """
        if not hasattr(problem, "objective") or not hasattr(problem, "inputs"):
            raise ValueError(f"KFAC: {type(problem).__name__} is no batch of a network with its inputs and targets.")
        objective, inputs, targets = problem.objective, problem.inputs, problem.targets
        layers = layers_of(objective)
        outputs, recorded = _forward(objective, inputs, problem.params, layers)
        if outputs.dim() != 2:
            raise ValueError(f"KFAC: the model's outputs must be of shape (rows, C), got {tuple(outputs.shape)}.")
        edges = [edge for _, edge in recorded]
        moments: list[Tensor | None] = [None] * len(layers)
        passes = 0
        for cotangent in self._cotangents(objective, outputs.detach(), targets, generator):
            gradients = torch.autograd.grad(outputs, edges, cotangent, retain_graph=True)
            passes += 1
            for i, gradient in enumerate(gradients):
                g = _rows(gradient, layers[i].module)
                previous = moments[i]
                moments[i] = g.T @ g if previous is None else torch.addmm(previous, g.T, g)
        factors = []
        for layer, (a, _), moment in zip(layers, recorded, moments, strict=True):
            assert moment is not None
            a = _patches(a, layer)
            factors.append((a.T @ a / len(a), moment))
        return Moments(layers, tuple(factors), passes)

    def _cotangents(
        self, objective: Objective, outputs: Float[Tensor, "rows C"], targets: Tensor, generator: torch.Generator
    ) -> Iterator[Float[Tensor, "rows C"]]:
        """What to send backwards from the outputs: the sum of their outer products is S S' / N, row by row."""
        if self.kind == "empirical":
            z = outputs.requires_grad_()
            with torch.enable_grad():
                (gradient,) = torch.autograd.grad(objective.loss(z, targets), z)
            yield gradient * len(z) ** 0.5
            return
        root = _root(objective, outputs, targets)
        if self.kind == "exact":
            yield from root.unbind(2)
            return
        signs = torch.randint(2, outputs.shape, generator=generator).to(outputs) * 2 - 1
        yield (root @ signs[:, :, None])[:, :, 0]


def _forward(
    objective: Objective, inputs: Tensor, params: Tensor, layers: tuple[Layer, ...]
) -> tuple[Tensor, list[tuple[Tensor, GradientEdge]]]:
    """The model's outputs, and for each layer its input and the place of its output in the graph."""
    seen: dict[str, tuple[Tensor, GradientEdge]] = {}
    handles = []
    for layer in layers:

        def record(module: nn.Module, arguments: Any, output: Tensor, name: str = layer.name) -> None:
            if name in seen:
                raise ValueError(f"KFAC: layer {name!r} is used twice in a forward pass.")
            seen[name] = (arguments[0].detach(), get_gradient_edge(output))

        handles.append(layer.module.register_forward_hook(record))
    names = [name for name, p in objective.model.named_parameters() if p.requires_grad]
    pieces = [piece.requires_grad_() for piece in objective.split(params)]
    try:
        with torch.enable_grad(), torch.random.fork_rng([inputs.device] if inputs.is_cuda else []):
            outputs = functional_call(objective.model, dict(zip(names, pieces, strict=True)), (inputs,))
    finally:
        for handle in handles:
            handle.remove()
    for layer in layers:
        if layer.name not in seen:
            raise ValueError(f"KFAC: layer {layer.name!r} took no part in the forward pass.")
    return outputs, [seen[layer.name] for layer in layers]


def _root(objective: Objective, outputs: Tensor, targets: Tensor) -> Float[Tensor, "rows C C"]:
    """S / sqrt(N) of every row: a square root of the loss's Hessian with respect to the outputs."""
    if objective.loss is F.cross_entropy and not targets.is_floating_point() and bool((targets >= 0).all()):
        p = outputs.softmax(1)
        q = p.sqrt()
        closed: Tensor = (torch.diag_embed(q) - p[:, :, None] * q[:, None, :]) * len(p) ** -0.5
        return closed
    z = outputs.requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(objective.loss(z, targets), z, create_graph=True)
        if not gradient.requires_grad:
            raise ValueError("KFAC: the loss has no second derivative with respect to the model's outputs.")
        rows = [torch.autograd.grad(g.sum(), z, retain_graph=True)[0] for g in gradient.unbind(1)]
    hessian = torch.stack(rows, 1)
    values, vectors = torch.linalg.eigh((hessian + hessian.mT) / 2)
    if bool((values < -1e-3 * values.abs().amax()).any()):
        raise ValueError("KFAC: the loss is not convex in the model's outputs, so it has no Gauss-Newton matrix.")
    root: Tensor = vectors * values.clamp_min(0.0).sqrt()[:, None, :]
    return root


def _rows(outputs: Tensor, module: nn.Module) -> Float[Tensor, "positions out"]:
    """A layer's outputs (or derivatives there), one row per batch row and position."""
    if isinstance(module, nn.Conv2d):
        outputs = outputs.movedim(1, -1)
    return outputs.reshape(-1, outputs.shape[-1])


def _patches(inputs: Tensor, layer: Layer) -> Float[Tensor, "positions in"]:
    """What a layer multiplies its weights with, one row per batch row and position, a 1 appended for the bias."""
    module = layer.module
    if isinstance(module, nn.Conv2d):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        inputs = F.pad(inputs, module._reversed_padding_repeated_twice, mode)
        unfolded = F.unfold(inputs, module.kernel_size, module.dilation, 0, module.stride)
        a = unfolded.transpose(1, 2).reshape(-1, unfolded.shape[1])
    else:
        a = inputs.reshape(-1, inputs.shape[-1])
    return a if layer.bias is None else torch.cat([a, a.new_ones(len(a), 1)], 1)
