"""What a run does about several labels a row: how many there are, how they weigh in the loss, what can't be done.

``training.class_weights=balanced`` is equation (1) of Rajpurkar et al. 2017 (CheXNet): with P positives and N negatives
of a finding in the training split, a positive weighs ``N / (P + N)`` and a negative ``P / (P + N)``, so that both have
the same part in the loss.  Units: nats; the mean is over rows and findings, as without weights, and is smaller.
A finding with one label only weighs nothing, as the equation says: the loss has no part for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from spectral_run.datasets.base import Data, Dataset
from spectral_run.generalization.auc import without_area
from spectral_run.runner.settings import ConfigurationError, Training

FREQUENT = 30  # positives, over all splits: the mean area over the others is mostly chance


@final
@dataclass(frozen=True, kw_only=True)
class Labels:
    """``loss``: where it is not the data set's plain one. ``record``: for ``data`` in ``result.json``."""

    loss: Callable[[Tensor, Tensor], Tensor] | None = None
    record: dict[str, Any] = field(default_factory=dict)
    notices: tuple[str, ...] = ()


def check_loss(training: Training, dataset: Dataset) -> None:
    """Raise ``ConfigurationError`` where training asks for what goes with another loss than the data set's."""
    allowed, why = {
        "cross_entropy": (("accuracy", "loss"), "which has classes"),
        "mse": (("loss",), "which has no classes"),
        "binary_cross_entropy": (("auc", "loss"), "which has several labels a row"),
    }[dataset.loss]
    if training.select_by not in allowed:
        what = " or ".join(allowed)
        raise ConfigurationError(
            f"training.select_by must be {what} for data set {dataset.name}, {why}; got {training.select_by}."
        )
    if training.class_weights != "none" and dataset.loss != "binary_cross_entropy":
        raise ConfigurationError(
            f"training.class_weights must be none for data set {dataset.name}, {why}; "
            f"{training.class_weights} is for several labels a row."
        )


def labels_of(data: Data, dataset: Dataset, training: Training) -> Labels:
    """Counts, weights and notices; nothing where a row has no several labels.

    Raises ``ValueError`` where no finding of the validation split has an area to select by.
    """
    if dataset.loss != "binary_cross_entropy":
        return Labels()
    names = dataset.outputs
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    positives = {
        name: dict(zip(names, split.targets.sum(0, dtype=torch.int64).tolist(), strict=True))
        for name, split in splits.items()
    }
    record: dict[str, Any] = {"positives": positives}
    groups = {name: len(torch.unique(split.groups)) for name, split in splits.items() if split.groups is not None}
    if groups:
        record["groups"] = groups
    missing = {name: without_area(split.targets.cpu().double().numpy(), names) for name, split in splits.items()}
    if training.select_by == "auc" and len(missing["validation"]) == len(names):
        raise ValueError(
            f"{dataset.name}: no finding has both labels in the validation split, so there is no AUC to select by; "
            "training.select_by=loss can do without."
        )
    notices = [
        f"{dataset.name}, {name} split: {', '.join(f'{finding} has {why}' for finding, why in found.items())}; "
        + ("no part of the loss" if name == "train" and training.class_weights != "none" else "left out of the AUC")
        for name, found in missing.items()
        if found
    ]
    if training.class_weights == "none":
        return Labels(record=record, notices=tuple(notices))
    positive, negative = balanced_weights(data.train.targets)
    pairs = zip(names, positive.tolist(), negative.tolist(), strict=True)
    record["class_weights"] = {name: {"positive": p, "negative": n} for name, p, n in pairs}
    own = (positive.to(data.train.targets), negative.to(data.train.targets))
    return Labels(loss=weighted_loss(*own), record=record, notices=tuple(notices))


def balanced_weights(
    targets: Float[Tensor, "rows outputs"],
) -> tuple[Float[Tensor, " outputs"], Float[Tensor, " outputs"]]:
    """Weights of each finding's positives and of its negatives, in float64; both together are 1."""
    share = targets.double().mean(0)
    return 1 - share, share


def weighted_loss(
    positive: Float[Tensor, " outputs"], negative: Float[Tensor, " outputs"]
) -> Callable[[Tensor, Tensor], Tensor]:
    """Binary cross-entropy with these weights, as torch's own function of ``weight`` and ``pos_weight``."""
    # Where negatives weigh nothing there are no positives to weigh either.
    ratio = torch.where(negative > 0, positive / negative, torch.ones_like(negative))
    return partial(F.binary_cross_entropy_with_logits, weight=negative, pos_weight=ratio)


def frequent_outputs(record: Mapping[str, Any]) -> list[str]:
    """Outputs with 30 positives or more in the three splits together, from ``Labels.record``."""
    splits = list((record.get("positives") or {}).values())
    return [name for name in (splits[0] if splits else {}) if sum(split[name] for split in splits) >= FREQUENT]


def each_area(numbers: Mapping[str, Any]) -> str:
    """Every finding's area, its interval and its positives, as a line of text; empty where there are no findings."""
    shown = [
        f"{name} {metric['value']:.3f} [{metric['ci_low']:.3f}, {metric['ci_high']:.3f}] ({metric['positives']})"
        for name, metric in numbers.get("auc_by_output", {}).items()
    ]
    left_out = [f"{name} ({why})" for name, why in numbers.get("left_out", {}).items()]
    return "; ".join(filter(None, [", ".join(shown), "left out: " * bool(left_out) + ", ".join(left_out)]))
