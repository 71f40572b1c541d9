"""Losses as negative log likelihoods of a row's label: what is one, its second moments, and labels drawn from it.

Let f be the mean of the losses l_i of the rows, z the C outputs of a row, and the score the gradient of l_i with
respect to z.  Dimension letters: ``C`` outputs, ``k`` vectors.

    cross_entropy                      -log softmax(z)_y                   score p - e_y, y with probability p_y
    binary_cross_entropy_with_logits   mean_c -log Bernoulli(t_c; s(z_c))  score (s - t) / C, variance s (1 - s) / C^2
    mse_loss                           mean_c (z_c - t_c)^2                score 2 (z - t) / C, t normal, variance C / 2

The last is the negative log density up to a constant.  The second is a C-th of a negative log likelihood, so its
scores' second moment is a C-th of its second derivative; for the other two (and C = 1) they are equal.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from spectral_run.curvature.objective import LossFunction
from spectral_run.curvature.rop.base import LossRule, UnsupportedError
from spectral_run.curvature.rop.losses.bce_with_logits import BCEWithLogits
from spectral_run.curvature.rop.losses.cross_entropy import CrossEntropy
from spectral_run.curvature.rop.losses.mse import MSE
from spectral_run.curvature.rop.registry import registry


class Likelihood(ABC):
    """The model's distribution of a row's label, given its outputs; rows are independent."""

    @abstractmethod
    def second_moment(
        self, outputs: Float[Tensor, "rows C"], u: Float[Tensor, "k rows C"]
    ) -> Float[Tensor, "k rows C"]:
        """``E[s s'] u`` of every row, s its score at a label of the model's distribution."""

    @abstractmethod
    def noise(self, rows: int, outputs: int, samples: int, generator: torch.Generator) -> Float[Tensor, "S rows ..."]:
        """Random numbers for so many labels of every row, in float64 on the CPU."""

    @abstractmethod
    def labels(self, outputs: Float[Tensor, "rows C"], noise: Float[Tensor, "rows ..."]) -> Tensor:
        """A label for every row, of the model's distribution, made of such numbers."""


@final
class Categorical(Likelihood):
    """Of ``cross_entropy``: one class of C."""

    def second_moment(
        self, outputs: Float[Tensor, "rows C"], u: Float[Tensor, "k rows C"]
    ) -> Float[Tensor, "k rows C"]:
        """``sum_y p_y s_y (s_y' u)`` over all labels y, with ``s_y = p - e_y``."""
        p = outputs.softmax(1)
        weights = p * ((p * u).sum(2, keepdim=True) - u)  # p_y (s_y' u)
        return p * weights.sum(2, keepdim=True) - weights

    def noise(self, rows: int, outputs: int, samples: int, generator: torch.Generator) -> Float[Tensor, "S rows ..."]:
        """Uniform, one for a label."""
        return torch.rand(samples, rows, dtype=torch.float64, generator=generator)

    def labels(self, outputs: Float[Tensor, "rows C"], noise: Float[Tensor, "rows ..."]) -> Tensor:
        """The first class at which the distribution function is beyond the number."""
        distribution = outputs.double().softmax(1).cumsum(1)
        return torch.searchsorted(distribution, noise[:, None], right=True)[:, 0].clamp_max(outputs.shape[1] - 1)


@final
class Bernoulli(Likelihood):
    """Of ``binary_cross_entropy_with_logits``: C independent labels of 0 or 1."""

    def second_moment(
        self, outputs: Float[Tensor, "rows C"], u: Float[Tensor, "k rows C"]
    ) -> Float[Tensor, "k rows C"]:
        """Independent labels, so a diagonal: ``s (1 - s) / C^2``."""
        s = outputs.sigmoid()
        return s * (1 - s) / outputs.shape[1] ** 2 * u

    def noise(self, rows: int, outputs: int, samples: int, generator: torch.Generator) -> Float[Tensor, "S rows ..."]:
        """Uniform."""
        return torch.rand(samples, rows, outputs, dtype=torch.float64, generator=generator)

    def labels(self, outputs: Float[Tensor, "rows C"], noise: Float[Tensor, "rows ..."]) -> Tensor:
        """1 where the number is below the probability."""
        return (noise < outputs.double().sigmoid()).to(outputs)


@final
class Gaussian(Likelihood):
    """Of ``mse_loss``: C independent normal labels of variance C / 2 around the outputs."""

    def second_moment(
        self, outputs: Float[Tensor, "rows C"], u: Float[Tensor, "k rows C"]
    ) -> Float[Tensor, "k rows C"]:
        """The square of 2 / C times the variance."""
        outputs_per_row = outputs.shape[1]
        variance = outputs_per_row / 2
        return (2 / outputs_per_row) ** 2 * variance * u

    def noise(self, rows: int, outputs: int, samples: int, generator: torch.Generator) -> Float[Tensor, "S rows ..."]:
        """Standard normal."""
        return torch.randn(samples, rows, outputs, dtype=torch.float64, generator=generator)

    def labels(self, outputs: Float[Tensor, "rows C"], noise: Float[Tensor, "rows ..."]) -> Tensor:
        """The outputs and noise."""
        deviation = math.sqrt(outputs.shape[1] / 2)
        return outputs + (noise * deviation).to(outputs)


_KINDS: dict[type[LossRule], type[Likelihood]] = {CrossEntropy: Categorical, BCEWithLogits: Bernoulli, MSE: Gaussian}
_ROWS = "cross_entropy without class weights or ignored rows, binary_cross_entropy_with_logits, mse_loss"
_LIKELIHOODS = "cross_entropy of class numbers, binary_cross_entropy_with_logits, mse_loss"


def likelihood(loss: LossFunction, targets: Tensor) -> Likelihood:
    """The distribution whose negative log likelihood a loss is. Raises ``ValueError``."""
    allowed = f"it takes {_LIKELIHOODS}, with reduction mean, without weights, label smoothing or ignored rows"
    rule = _rule(loss, allowed)
    why = _not_over_rows(rule, targets) or _not_likelihood(rule, targets)
    if why:
        raise ValueError(f"a loss with {why} is no negative log likelihood; {allowed}.")
    return _KINDS[type(rule)]()


def check_mean_over_rows(loss: LossFunction, targets: Tensor) -> None:
    """Raise ``ValueError`` unless a loss is a mean of losses of one row each."""
    allowed = f"it takes {_ROWS}, with reduction mean"
    why = _not_over_rows(_rule(loss, allowed), targets)
    if why:
        raise ValueError(f"a loss with {why} is no mean over rows; {allowed}.")


def _rule(loss: LossFunction, allowed: str) -> LossRule:
    try:
        return registry().loss(loss)
    except UnsupportedError as error:
        raise ValueError(f"{error} Of these {allowed}.") from error


def _not_over_rows(rule: LossRule, targets: Tensor) -> str:
    given = rule.given
    if given.get("reduction", "mean") != "mean":
        return f"reduction {given['reduction']}"
    if isinstance(rule, CrossEntropy):
        if given.get("weight") is not None:
            return "class weights"
        if not targets.is_floating_point() and bool((targets == given.get("ignore_index", -100)).any()):
            return "ignored rows"
    return ""


def _not_likelihood(rule: LossRule, targets: Tensor) -> str:
    if any(rule.given.get(name) is not None for name in ("weight", "pos_weight")):
        return "weights"
    if rule.given.get("label_smoothing"):
        return "label smoothing"
    soft = isinstance(rule, CrossEntropy) and targets.is_floating_point()
    return "probabilities for targets" if soft else ""
