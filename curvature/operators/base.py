"""A curvature operator: a symmetric matrix over the trainable parameters, known by its products.

Dimension letters: ``n`` parameters, ``k`` vectors.  Operators can be added, subtracted, multiplied by a number, cut
down to the principal submatrix of some parameters, and handed to scipy.  None of it makes the matrix; ``dense`` does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from spectral_run.curvature.objective import Objective

_CHUNK = 64  # rows of the identity that ``dense`` multiplies at once


@final
@dataclass(frozen=True)
class Layout:
    """Which parameter's numbers lie where in the flat vector: names and sizes, in order."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]

    @staticmethod
    def of(objective: Objective) -> Layout:
        """The trainable parameters of a network, as ``model.named_parameters()`` has them."""
        named = [(name, p.numel()) for name, p in objective.model.named_parameters() if p.requires_grad]
        return Layout(tuple(name for name, _ in named), tuple(size for _, size in named))

    @property
    def n(self) -> int:
        """Length of the flat vector."""
        return sum(self.sizes)

    def take(self, names: Sequence[str]) -> tuple[Layout, Tensor]:
        """The layout of these parameters alone, in the order that they have here, and their places here."""
        unknown = [name for name in names if name not in self.names]
        if unknown or not names:
            got = f"got {unknown[0]!r}" if unknown else "got none"
            raise ValueError(f"block: names must be of {', '.join(self.names)}; {got}.")
        places = torch.split(torch.arange(self.n), list(self.sizes))
        chosen = [i for i, name in enumerate(self.names) if name in names]
        layout = Layout(tuple(self.names[i] for i in chosen), tuple(self.sizes[i] for i in chosen))
        return layout, torch.cat([places[i] for i in chosen])

    def layers(self) -> dict[str, list[str]]:
        """Names of the parameters of each module that owns some directly, by the module's name."""
        groups: dict[str, list[str]] = {}
        for name in self.names:
            groups.setdefault(name.rpartition(".")[0], []).append(name)
        return groups


class CurvatureOperator(ABC):
    """A symmetric matrix over the trainable parameters, known by its products.

    ``products`` counts the matrix-vector products done so far.  A subclass says how k rows are multiplied.
    """

    def __init__(self, layout: Layout, dtype: torch.dtype, device: torch.device) -> None:
        self.layout, self.dtype, self.device = layout, dtype, device
        self.n = layout.n
        self.products = 0

    @abstractmethod
    def multiply(self, vectors: Float[Tensor, "k n"]) -> Float[Tensor, "k n"]:
        """The matrix times every row, uncounted and unchecked. Shares between rows what can be shared."""

    @final
    def matvec(self, v: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The matrix times a vector: one product."""
        return self.matvecs(v[None])[0]

    @final
    def matvecs(self, vectors: Float[Tensor, "k n"]) -> Float[Tensor, "k n"]:
        """The matrix times every row: k products that share their primal passes."""
        if vectors.shape[1:] != (self.n,) or vectors.dtype != self.dtype or vectors.device != self.device:
            shape, n = tuple(vectors.shape), self.n
            raise ValueError(
                f"{type(self).__name__}: vectors must have {n} numbers of {self.dtype} on {self.device}, "
                f"got shape {shape} of {vectors.dtype} on {vectors.device}."
            )
        if not len(vectors):
            return torch.zeros_like(vectors)
        self.products += len(vectors)
        return self.multiply(vectors)

    @final
    def block(self, names: Sequence[str]) -> CurvatureOperator:
        """The principal submatrix of these parameters, in the flat vector's order. Costs what a whole product does."""
        return Block(self, names)

    @final
    def blocks(self) -> dict[str, CurvatureOperator]:
        """A block per layer (a module that owns parameters: its weight and bias together), in order."""
        return {layer: Block(self, names) for layer, names in self.layout.layers().items()}

    @final
    def dense(self) -> Float[Tensor, "n n"]:
        """The matrix itself, by n products: row i is the product with the i-th unit vector. For small n."""
        identity = torch.eye(self.n, dtype=self.dtype, device=self.device)
        return torch.cat([self.matvecs(rows) for rows in torch.split(identity, _CHUNK)])

    @final
    def to_scipy(self) -> LinearOperator:
        """The operator for ``scipy.sparse.linalg``, with numpy vectors of the same precision."""
        try:
            dtype = torch.empty(0, dtype=self.dtype).numpy().dtype
        except TypeError as error:
            raise ValueError(f"{type(self).__name__}: numpy has no {self.dtype}.") from error

        def rows(vectors: npt.NDArray[Any]) -> npt.NDArray[Any]:
            given = torch.from_numpy(np.ascontiguousarray(vectors, dtype=dtype)).to(self.device)
            product: npt.NDArray[Any] = self.matvecs(given).cpu().numpy()
            return product

        def matvec(v: npt.NDArray[Any]) -> npt.NDArray[Any]:
            product: npt.NDArray[Any] = rows(v.reshape(1, -1))[0]
            return product

        def matmat(columns: npt.NDArray[Any]) -> npt.NDArray[Any]:
            return rows(columns.T).T

        operator: LinearOperator = LinearOperator(
            shape=(self.n, self.n), dtype=dtype, matvec=matvec, rmatvec=matvec, matmat=matmat, rmatmat=matmat
        )
        return operator

    @final
    def __add__(self, other: CurvatureOperator) -> CurvatureOperator:
        return Combination(((1.0, self), (1.0, other)))

    @final
    def __sub__(self, other: CurvatureOperator) -> CurvatureOperator:
        return Combination(((1.0, self), (-1.0, other)))

    @final
    def __neg__(self) -> CurvatureOperator:
        return Combination(((-1.0, self),))

    @final
    def __mul__(self, factor: int | float) -> CurvatureOperator:
        return Combination(((float(factor), self),))

    __rmul__ = __mul__


@final
class Matrix(CurvatureOperator):
    """A known symmetric matrix: for tests, and to see what an estimator makes of a given spectrum."""

    def __init__(self, matrix: Float[Tensor, "n n"], layout: Layout | None = None) -> None:
        super().__init__(layout or Layout(("matrix",), (len(matrix),)), matrix.dtype, matrix.device)
        if self.n != len(matrix):
            raise ValueError(f"Matrix: the layout must have {len(matrix)} numbers, got {self.n}.")
        if not torch.equal(matrix, matrix.T):
            raise ValueError("Matrix: the matrix must be symmetric.")
        self.matrix = matrix

    def multiply(self, vectors: Float[Tensor, "k n"]) -> Float[Tensor, "k n"]:
        """``V M``."""
        return vectors @ self.matrix


@final
class Combination(CurvatureOperator):
    """``sum_i a_i A_i``; a product costs one of each term."""

    def __init__(self, terms: Sequence[tuple[float, CurvatureOperator]]) -> None:
        first = terms[0][1]
        for _, other in terms[1:]:
            if (other.layout, other.dtype, other.device) != (first.layout, first.dtype, first.device):
                raise ValueError("Combination: operators must be over the same parameters, dtype and device.")
        super().__init__(first.layout, first.dtype, first.device)
        self.terms = tuple(terms)

    def multiply(self, vectors: Float[Tensor, "k n"]) -> Float[Tensor, "k n"]:
        """The terms' products, summed."""
        total = torch.zeros_like(vectors)
        for factor, operator in self.terms:
            total.add_(operator.matvecs(vectors), alpha=factor)
        return total


@final
class Block(CurvatureOperator):
    """The principal submatrix of some parameters: a product of the whole with zeros elsewhere."""

    def __init__(self, whole: CurvatureOperator, names: Sequence[str]) -> None:
        layout, places = whole.layout.take(names)
        super().__init__(layout, whole.dtype, whole.device)
        self.whole, self.places = whole, places.to(whole.device)

    def multiply(self, vectors: Float[Tensor, "k n"]) -> Float[Tensor, "k n"]:
        """Rows spread out, multiplied, and cut down."""
        spread = vectors.new_zeros(len(vectors), self.whole.n)
        spread[:, self.places] = vectors
        return self.whole.matvecs(spread)[:, self.places]
