"""How good generated images are: whether they show their class, how near they come to real ones, whether all are alike.

| number | what | beside it |
|---|---|---|
| label agreement | share in which an independent classifier sees the intended class | its accuracy on the test images |
| FID | Fréchet distance of its features to those of test images (Heusel et al. 2017) | that of the training images |
| nearest | L2 distance to the nearest training image, median | that of the test images |
| copies | share nearer to a training image than all but 1% of the test images are | 0.01 |
| diversity | mean L2 distance of two images of a class over that in the training set | 1; a class collapses towards 0 |

FID is ``|m - n|^2 + tr(C + D - 2 (CD)^(1/2))`` with means m, n and covariances C, D, in float64. The trace of the root
is the sum of the singular values of ``A'B``, ``C = AA'``, ``D = BB'``; the root itself (scipy.linalg.sqrtm), which a
feature that never fires makes inaccurate, is not needed. torchmetrics' FID was looked at: two packages and 8 to 12
seconds of import for these lines, and images of Inception's shape unless its interface is imitated.
FIDs compare under one classifier and equal numbers of images only. Distances are of pixels in the data's units.

Cost, one core, 10,000 images against 7,291 and 2,007: 3 s, then cached.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import pandas as pd
import scipy.linalg
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from spectral_run.datasets.base import Split
from spectral_run.datasets.cache import Arrays, cached
from spectral_run.generalization.digit_classifier import classifier_key, digit_classifier
from spectral_run.generalization.distances import nearest
from spectral_run.generalization.gan_training import TrainingImages, entry_key, repeatable
from spectral_run.generalization.statistics import proportion

VERSION: Final = 1
GOOD_ENOUGH: Final = 0.97  # accuracy of a classifier whose judgement counts
QUANTILE: Final = 0.01  # of the test images' distances to their nearest training image


def frechet_distance(a: Float[Tensor, "n features"], b: Float[Tensor, "m features"]) -> float:
    """Squared Fréchet distance of the normal distributions with the two samples' means and covariances."""
    (mean_a, cov_a), (mean_b, cov_b) = (
        (x.mean(axis=0), np.cov(x, rowvar=False)) for x in (a.double().numpy(), b.double().numpy())
    )
    factors = [vectors * np.sqrt(values.clip(0)) for values, vectors in map(scipy.linalg.eigh, (cov_a, cov_b))]
    root = scipy.linalg.svdvals(factors[0].T @ factors[1]).sum()
    return float(((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * root)


def spread(
    images: Float[Tensor, "rows channels height width"], targets: Int64[Tensor, " rows"], classes: int
) -> Float64[np.ndarray, " classes"]:
    """Mean L2 distance between two images of a class, for each class; NaN where it has fewer than two."""
    means = [torch.pdist(images[targets == label].flatten(1)).double() for label in range(classes)]
    return np.array([float(distances.mean()) if len(distances) else np.nan for distances in means])


def measured_quality(
    key: str, images: Tensor, targets: Tensor, rows: TrainingImages, test: Split, epochs: int
) -> Arrays:
    """``quality`` of the images that lie in the cache under ``key``, cached; ``epochs`` are the classifier's."""
    pixels, labels = test.tensor.to("cpu", torch.float32).contiguous(), test.targets.cpu()
    digest = hashlib.sha256(pixels.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()
    name = entry_key("gan-quality", VERSION, key, classifier_key(rows, epochs), digest)
    return cached(name, lambda: quality(images, targets, rows, pixels, labels, epochs), once=True)


def quality(
    images: Float[Tensor, "rows channels height width"],
    targets: Int64[Tensor, " rows"],
    rows: TrainingImages,
    test: Float[Tensor, "m channels height width"],
    test_targets: Int64[Tensor, " m"],
    epochs: int,
) -> Arrays:
    """Everything in the table above, per image or per class where there is such a number."""
    classifier = digit_classifier(rows, epochs)
    low, high = rows.range
    with repeatable(0):
        (features, logits), (test_features, test_logits), (train_features, _) = (
            classifier.judge((x - low) / (high - low)) for x in (images, test, rows.images)
        )
        own, of_test = (nearest(x.flatten(1), rows.images.flatten(1)).distance for x in (images, test))
        return {
            "agrees": (logits.argmax(1) == targets).numpy(),
            "classifier_right": (test_logits.argmax(1) == test_targets).numpy(),
            "fid": np.array(frechet_distance(features, test_features)),
            "fid_of_training": np.array(frechet_distance(train_features, test_features)),
            "nearest": own,
            "nearest_of_test": of_test,
            "spread": spread(images, targets, rows.classes),
            "spread_of_training": spread(rows.images, rows.targets, rows.classes),
        }


def summary(found: Arrays) -> dict[str, Any]:
    """The numbers as a result has them."""
    classifier, agreement = proportion(found["classifier_right"]), proportion(found["agrees"])
    closest = float(np.quantile(found["nearest_of_test"], QUANTILE))
    diversity = _diversity(found)
    known = {label: value for label, value in enumerate(diversity) if np.isfinite(value)}
    numbers: dict[str, Any] = {
        "label_agreement": agreement.value,
        "label_agreement_ci": [agreement.ci_low, agreement.ci_high],
        "classifier_accuracy": classifier.value,
        "classifier_accuracy_ci": [classifier.ci_low, classifier.ci_high],
        "fid": float(found["fid"]),
        "fid_of_training_images": float(found["fid_of_training"]),
        "nearest_median": float(np.median(found["nearest"])),
        "nearest_median_of_test_images": float(np.median(found["nearest_of_test"])),
        "copies": float((found["nearest"] < closest).mean()),
        "copies_below": closest,
        "diversity": [value if np.isfinite(value) else None for value in diversity.tolist()],
    }
    if known:
        least = min(known, key=known.__getitem__)
        numbers |= {"least_diverse_class": least, "least_diversity": float(known[least])}
    if classifier.value < GOOD_ENOUGH:
        numbers["notice"] = (
            f"the classifier that judges label agreement and FID is right on {classifier.value:.1%} of the test "
            f"images, below {GOOD_ENOUGH:.0%}: neither counts for much"
        )
    return numbers


def class_table(found: Arrays, targets: Int64[np.ndarray, " rows"], right: Mapping[str, Any]) -> pd.DataFrame:
    """A row per class: images, the shares of ``right`` (each an array over images), agreement, distance, diversity."""
    columns = {**right, "label_agreement": found["agrees"]}
    frame = pd.DataFrame({"class": targets, **columns, "nearest": found["nearest"]})
    groups = frame.groupby("class")
    table = groups[list(columns)].mean()
    table.insert(0, "images", groups.size())
    return table.assign(nearest_median=groups["nearest"].median(), diversity=_diversity(found)).reset_index()


def _diversity(found: Arrays) -> Float64[np.ndarray, " classes"]:
    real = found["spread_of_training"]
    return np.asarray(np.divide(found["spread"], real, out=np.full_like(real, np.nan), where=real > 0))
