"""What acts on a batch's outputs in ``J' M J``: the loss's second derivative, or second moments of its rows' scores.

A score is the gradient of a row's own loss with respect to that row's outputs.  Dimension letters: ``C`` outputs, ``k``
vectors, ``S`` labels per row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeAlias, final

import torch
from jaxtyping import Float
from torch import Tensor

from spectral_run.curvature.objective import LossFunction
from spectral_run.curvature.operators.likelihoods import Likelihood
from spectral_run.curvature.rop.base import UnsupportedError
from spectral_run.curvature.rop.registry import registry

Action: TypeAlias = Callable[[Tensor], Tensor]
"""``U -> M U`` for k of the outputs' shape: (k, rows, ...)."""


class OutputMatrix(ABC):
    """M, symmetric, its batches' parts of the mean over all rows included."""

    @abstractmethod
    def on(self, outputs: Float[Tensor, "b ..."], rows: slice) -> Action:
        """Of the batch of these rows."""


@final
class LossHessian(OutputMatrix):
    """``|b| / N`` times the second derivative of a batch's loss with respect to the outputs."""

    def __init__(self, loss: LossFunction, targets: Tensor) -> None:
        self._loss, self._targets = loss, targets

    def on(self, outputs: Float[Tensor, "b ..."], rows: slice) -> Action:
        """By the loss's rule where it has one, else by double backward."""
        share, targets = (rows.stop - rows.start) / len(self._targets), self._targets[rows]
        try:
            rule = registry().loss(self._loss)
        except UnsupportedError:
            product = self._by_autograd(outputs, targets)
        else:
            rule.cotangent0(outputs, targets)
            product = rule.cotangent1
        return lambda u: torch.stack([product(one) for one in u.unbind()]).mul_(share)

    def _by_autograd(self, outputs: Tensor, targets: Tensor) -> Action:
        z = outputs.detach().requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(self._loss(z, targets), z, create_graph=True)
        if not gradient.requires_grad:
            raise ValueError("gauss_newton: the loss has no second derivative with respect to the model's outputs.")
        return lambda u: torch.autograd.grad(gradient, z, u, retain_graph=True)[0]


@final
class ExpectedScores(OutputMatrix):
    """``E[s s'] / N`` of every row, over the model's own labels."""

    def __init__(self, likelihood: Likelihood, rows: int) -> None:
        self._likelihood, self._rows = likelihood, rows

    def on(self, outputs: Float[Tensor, "b ..."], rows: slice) -> Action:
        """Of these rows, whatever their targets."""
        return lambda u: self._likelihood.second_moment(outputs, u) / self._rows


@final
class GivenScores(OutputMatrix):
    """``sum_j s_j s_j' / (N S)`` of every row, over given labels (S, N, ...): the rows' own, or drawn ones."""

    def __init__(self, loss: LossFunction, labels: Tensor) -> None:
        self._loss, self._labels = loss, labels

    def on(self, outputs: Float[Tensor, "b ..."], rows: slice) -> Action:
        """The scores are made once for all products."""
        count = self._labels.shape[0] * self._labels.shape[1]
        scores = torch.stack([row_scores(self._loss, outputs, labels) for labels in self._labels[:, rows]])

        def product(u: Tensor) -> Tensor:
            along = torch.einsum("src,krc->ksr", scores, u)
            moved: Tensor = torch.einsum("ksr,src->krc", along, scores)
            return moved / count

        return product


def row_scores(loss: LossFunction, outputs: Float[Tensor, "b C"], labels: Tensor) -> Float[Tensor, "b C"]:
    """The scores at these labels, where the loss is the mean of the rows' own."""
    z = outputs.detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(loss(z, labels), z)
    return gradient * len(z)
