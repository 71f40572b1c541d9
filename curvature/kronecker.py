"""A curvature matrix made of Kronecker products, one block per layer: products, inverses and averages of it.

Source: Martens and Grosse 2015 (K-FAC).  The block of a layer with weights W (out x in, the bias as one more column) is
``F = A (x) G``: ``F vec(X) = G X A``, with A the second moment of the layer's inputs (a homogeneous 1 appended where it
has a bias) and G that of the derivatives at its outputs.  Factors are held as eigenvalues and eigenvectors, so that any
function of F costs the same: ``f(F) vec(X) = Q_G (f(g a') * (Q_G' X Q_A)) Q_A'``.
Parameters outside any block (weights and biases of norms, layers of other kinds) are given the mean of the blocks'
diagonals as their curvature: a multiple of the identity.
Cost: two small matrix multiplications per layer and side; decomposing, ``O(in^3 + out^3)`` per layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spectral_run.curvature.objective import Objective
from spectral_run.curvature.solver import Product

PREFIX = "kfac"
_PARTS = ("input_values", "input_vectors", "output_values", "output_vectors")


@final
@dataclass(frozen=True)
class Layer:
    """A layer with Kronecker structure, and where its parameters lie in the flat vector."""

    name: str
    module: nn.Linear | nn.Conv2d
    weight: slice
    bias: slice | None

    def matrix(self, flat: Float[Tensor, " n"]) -> Float[Tensor, "out in"]:
        """The layer's part of a flat vector, the bias as last column."""
        weight = flat[self.weight].view(self.module.weight.shape[0], -1)
        return weight if self.bias is None else torch.cat([weight, flat[self.bias][:, None]], 1)

    def put(self, matrix: Float[Tensor, "out in"], flat: Float[Tensor, " n"]) -> None:
        """Write such a matrix back to its places in the flat vector."""
        if self.bias is not None:
            flat[self.bias] = matrix[:, -1]
            matrix = matrix[:, :-1]
        flat[self.weight] = matrix.reshape(-1)


def layers_of(objective: Objective) -> tuple[Layer, ...]:
    """Every Linear and Conv2d layer with trainable weights, in the order of the parameters.

    Raises ``ValueError`` naming a layer that K-FAC has no factors for: grouped convolutions and shared weights.
    """
    places, begin = {}, 0
    for parameter in objective.parameters:
        places[id(parameter)] = slice(begin, begin + parameter.numel())
        begin += parameter.numel()
    layers: list[Layer] = []
    taken: dict[int, str] = {}
    for name, module in objective.model.named_modules():
        if type(module) not in (nn.Linear, nn.Conv2d) or id(module.weight) not in places:
            continue
        assert isinstance(module, nn.Linear | nn.Conv2d)
        if isinstance(module, nn.Conv2d) and module.groups != 1:
            raise ValueError(
                f"KFAC: layer {name!r} is a convolution in {module.groups} groups; only 1 has factors here."
            )
        bias = places.get(id(module.bias)) if module.bias is not None else None
        for part, trained, tensor in (("weight", True, module.weight), ("bias", bias is not None, module.bias)):
            if trained and id(tensor) in taken:
                raise ValueError(f"KFAC: layers {taken[id(tensor)]!r} and {name!r} share their {part}.")
            if trained:
                taken[id(tensor)] = name
        layers.append(Layer(name, module, places[id(module.weight)], bias))
    if not layers:
        raise ValueError(f"KFAC: {type(objective.model).__name__} has no trainable Linear or Conv2d layer.")
    return tuple(layers)


@final
@dataclass(frozen=True)
class Block:
    """The eigendecompositions of one layer's factors A and G."""

    layer: Layer
    input_values: Float[Tensor, " in"]
    input_vectors: Float[Tensor, "in in"]
    output_values: Float[Tensor, " out"]
    output_vectors: Float[Tensor, "out out"]

    @staticmethod
    def of(layer: Layer, inputs: Float[Tensor, "in in"], outputs: Float[Tensor, "out out"]) -> Block:
        """Decompose two factors."""
        return Block(layer, *_decomposed(inputs), *_decomposed(outputs))

    @property
    def factors(self) -> tuple[Float[Tensor, "in in"], Float[Tensor, "out out"]]:
        """A and G, multiplied out."""
        return (
            (self.input_vectors * self.input_values) @ self.input_vectors.T,
            (self.output_vectors * self.output_values) @ self.output_vectors.T,
        )

    @property
    def values(self) -> Float[Tensor, "out in"]:
        """The eigenvalues of the block."""
        return self.output_values[:, None] * self.input_values

    def damped_values(self, damping: float) -> Float[Tensor, "out in"]:
        """Those of ``(A + pi d) (x) (G + d / pi)``, ``d^2 = damping``, pi^2 the ratio of the mean eigenvalues."""
        ratio = self.input_values.mean() / self.output_values.mean()
        pi = torch.where(torch.isfinite(ratio) & (ratio > 0), ratio, torch.ones_like(ratio)).sqrt()
        root = damping**0.5
        values: Tensor = (self.output_values + root / pi)[:, None] * (self.input_values + root * pi)
        return values

    def apply(self, multiplier: Float[Tensor, "out in"], v: Float[Tensor, " n"], out: Float[Tensor, " n"]) -> None:
        """Write to the layer's places in ``out`` what ``multiplier`` in the eigenbasis makes of those in ``v``."""
        inner = self.output_vectors.T @ self.layer.matrix(v) @ self.input_vectors
        self.layer.put(self.output_vectors @ (multiplier * inner) @ self.input_vectors.T, out)


@final
@dataclass(frozen=True)
class KroneckerFactors:
    """The blocks of all layers, as one symmetric positive semi-definite matrix F over the flat vector."""

    blocks: tuple[Block, ...]

    def product(self) -> Product:
        """``v -> F v``."""
        return self.function(lambda values: values)

    def function(self, function: Callable[[Tensor], Tensor]) -> Product:
        """``v -> f(F) v`` for a function of the eigenvalues, elementwise: ``1 / (x + damping)``, say."""
        return self._product([function(block.values) for block in self.blocks], function(self.mean_diagonal))

    def inverse(self, damping: float) -> Product:
        """``v -> (F + damping)^-1 v`` with damping split between the factors (Martens and Grosse 2015, section 6.3).

        Its cross terms make it smaller than the exact ``function(lambda x: 1 / (x + damping))``.
        """
        if not damping > 0:
            raise ValueError(f"KFAC: damping must be positive, got {damping}.")
        return self._product(
            [1 / block.damped_values(damping) for block in self.blocks], 1 / (self.mean_diagonal + damping)
        )

    @property
    def mean_diagonal(self) -> Float[Tensor, ""]:
        """Mean of the blocks' diagonals: the curvature of a parameter outside the blocks."""
        total = sum(block.values.sum() for block in self.blocks)
        assert isinstance(total, Tensor)
        return total / sum(block.values.numel() for block in self.blocks)

    def averaged(self, older: KroneckerFactors, decay: float) -> KroneckerFactors:
        """Exponential average of the factors: ``decay`` of the older, the rest of these."""
        if not decay:
            return self
        blocks = []
        for new, old in zip(self.blocks, older.blocks, strict=True):
            inputs, outputs = (
                torch.lerp(a, b, decay) for a, b in zip(new.factors, old.factors, strict=True)
            )  # fmt: skip
            blocks.append(Block.of(new.layer, inputs, outputs))
        return KroneckerFactors(tuple(blocks))

    def tensors(self) -> dict[str, Tensor]:
        """All there is to keep, for a checkpoint: ``from_tensors`` gives the same numbers, bit by bit."""
        return {f"{PREFIX}.{i}.{part}": getattr(block, part) for i, block in enumerate(self.blocks) for part in _PARTS}

    @staticmethod
    def from_tensors(objective: Objective, tensors: Mapping[str, Tensor]) -> KroneckerFactors | None:
        """What ``tensors`` gave, found among others; None where there is none."""
        blocks = []
        for i, layer in enumerate(layers_of(objective)):
            names = [f"{PREFIX}.{i}.{part}" for part in _PARTS]
            if not all(name in tensors for name in names):
                return None
            blocks.append(Block(layer, *(tensors[name] for name in names)))
        return KroneckerFactors(tuple(blocks))

    def _product(self, multipliers: list[Tensor], elsewhere: Tensor) -> Product:
        def product(v: Tensor) -> Tensor:
            out = elsewhere * v
            for block, multiplier in zip(self.blocks, multipliers, strict=True):
                block.apply(multiplier, v, out)
            return out

        return product


def _decomposed(factor: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, none below 0, and eigenvectors as columns; all NaN where the factor is not finite."""
    if not bool(torch.isfinite(factor).all()):
        nan = torch.full_like(factor, torch.nan)
        return nan[0], nan
    try:
        values, vectors = torch.linalg.eigh(factor)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # float32 over zeros: 3x3 convolutions of a pixel
        values, vectors = (part.to(factor.dtype) for part in torch.linalg.eigh(factor.double()))
    return values.clamp_min(0.0), vectors.contiguous()
