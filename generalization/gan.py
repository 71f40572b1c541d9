"""Accuracy on images that a conditional GAN made of the training set: GAN1 (perceptrons), GAN2 (convolutional).

Source: section 5.1 and appendix C.3 of the spectral-radius paper: 10,000 images, labelled by the class that was asked
for. The paper's GAN1 made images too much alike, and "the models classify or misclassify them in the same way". So here
the images are judged too (``gan_quality.py``), by numbers in the details, a table by class and a picture of samples.

The paper leaves the following open; it is settled so:

- Layers: ``models/conditional_gan.py``. Loss: squared for the perceptrons, cross-entropy for the convolutional pair.
- Training rows: the official training set, the network's training and validation rows together.
- Classes asked for: in training those of the batch of real images, for the test equally many of each.
- The generator's target is drawn as that of real images is.

The GAN is trained once, in the first run that asks for it, cached, and shared by all (``gan_training.py``): neither the
network tested nor its device, dtype, batch size or seed changes an image. Images are bytes, as the USPS scans are.
Cost: training once (``conf/generalization`` has the minutes for USPS), then a prediction of images and test split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, final

import numpy as np
import torch

from spectral_run.datasets.base import Data, DataHome, Dataset
from spectral_run.datasets.cache import Arrays
from spectral_run.generalization.base import (
    GeneralizationTest,
    ImageSource,
    LabelledImages,
    Metric,
    Predict,
    TestResult,
    check_seed,
    correctness,
    derived_seed,
    require_classes,
)
from spectral_run.generalization.gan_quality import class_table, measured_quality, summary
from spectral_run.generalization.gan_training import (
    LEVELS,
    Recipe,
    TrainingImages,
    described,
    drawn_images,
    training_images,
    weights_key,
)
from spectral_run.generalization.statistics import bootstrap_ratio, proportion
from spectral_run.reports.gan_figures import samples_figure

SAMPLES = 10  # of each class in the picture


@final
@dataclass(frozen=True, kw_only=True)
class GAN(GeneralizationTest, ImageSource):
    """Accuracy on ``count`` generated images, as many of each class, and its gap to the plain test accuracy.

    ``fake`` and ``real`` are the intervals of the discriminator's targets, ``swap`` the share of batches in which they
    change sides. ``classifier_epochs``: of the classifier that judges the images.
    """

    kind: str = "convolutional"
    epochs: int = 150
    count: int = 10_000
    batch_size: int = 64
    lr: float = 1e-4
    betas: Sequence[float] = (0.5, 0.999)
    fake: Sequence[float] = (0.0, 0.3)
    real: Sequence[float] = (0.7, 1.0)
    swap: float = 0.01
    latent: int = 100
    classifier_epochs: int = 10
    seed: int = 0  # of the GAN's training and its images

    def __post_init__(self) -> None:
        check_seed("GAN", self.seed)
        _ = self.recipe  # checks the rest
        for name, least in (("count", 1), ("classifier_epochs", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"GAN: {name} must be at least {least}, got {getattr(self, name)}.")

    @property
    def recipe(self) -> Recipe:
        """How the GAN is trained."""
        return Recipe(**{part.name: getattr(self, part.name) for part in fields(Recipe)})

    def check(self, dataset: Dataset) -> None:
        """Grey images with classes are needed, of sides that can be halved twice, and a ``count`` that they divide."""
        require_classes("GAN", dataset)
        shape = dataset.input_shape
        if len(shape) != 3 or shape[0] != 1 or any(side < 8 or side % 4 for side in shape[1:]):
            raise ValueError(
                f"GAN: data set must have images of 1 channel with sides that are multiples of 4, 8 at least "
                f"(USPS: 16x16), got {dataset.name} with {shape}."
            )
        if self.count % dataset.classes or self.count < 2 * dataset.classes:
            raise ValueError(
                f"GAN: count must be a multiple of the {dataset.classes} classes of {dataset.name}, 2 of each at "
                f"least, got {self.count}."
            )

    def images(self, data: Data, home: DataHome) -> LabelledImages:
        """The generated images, class after class, after training if they are not there yet."""
        rows = training_images(data)
        return self._labelled(rows, self._drawn(rows), data)

    def evaluate(self, predict: Predict, data: Data, home: DataHome) -> TestResult:
        """Accuracy and gap, which is left out where the plain test accuracy is 0; what the images are worth."""
        rows = training_images(data)
        drawn = self._drawn(rows)
        source = self._labelled(rows, drawn, data)
        plain = correctness(predict, data.test.tensor, data.test.targets)
        correct = correctness(predict, source.images, source.targets)
        metrics: dict[str, Metric] = {"test": proportion(plain), "accuracy": proportion(correct)}
        gap = bootstrap_ratio(
            correct, plain, paired=False, seed=derived_seed(self.seed, "bootstrap", data.name, "gan", self.kind)
        )
        if gap is not None:
            metrics["gap"] = gap

        images = source.images.to("cpu", torch.float32)
        targets = torch.from_numpy(np.array(drawn["targets"]))
        key = f"{weights_key(rows, self.recipe, self.seed)}-{self.count}"
        found = measured_quality(key, images, targets, rows, data.test, self.classifier_epochs)
        quality, table = summary(found), class_table(found, drawn["targets"], {"accuracy": correct})
        details = {
            **source.details,
            "accuracy_by_class": dict(zip(map(str, table["class"]), table["accuracy"], strict=True)),
            "quality": quality,
        }
        caption = f"label agreement {quality['label_agreement']:.1%}, FID {quality['fid']:.1f}"
        figure = samples_figure(_samples(images, targets), _samples(rows.images, rows.targets), rows.range, caption)
        return TestResult(metrics, details, tables={"classes": table}, figures={"samples": figure})

    def _drawn(self, rows: TrainingImages) -> Arrays:
        return drawn_images(rows, self.recipe, self.seed, self.count)

    def _labelled(self, rows: TrainingImages, drawn: Arrays, data: Data) -> LabelledImages:
        low, high = rows.range
        levels = torch.from_numpy(np.array(drawn["images"])).to(torch.float32) / LEVELS
        details: dict[str, Any] = {
            **described(self.recipe),
            "seed": self.seed,
            "training_rows": len(rows.images),
            "training_rows_sha256": rows.sha256,
            "images": len(levels),
            "images_sha256": hashlib.sha256(drawn["images"].tobytes()).hexdigest(),
            "range": [low, high],
            "training_seconds": float(drawn["seconds"]),
            "last_losses": dict(zip(("discriminator", "generator"), drawn["losses"][-1].tolist(), strict=True)),
        }
        test = data.test.inputs
        images = (low + (high - low) * levels).to(test.device, test.dtype)
        targets = torch.from_numpy(np.array(drawn["targets"])).to(test.device)
        return LabelledImages(images=images, targets=targets, details=details)


def _samples(images: torch.Tensor, targets: torch.Tensor) -> list[torch.Tensor]:
    """Images of each class, as far apart in it as can be: training rows are sorted, neighbours alike."""
    classes = [images[targets == label] for label in range(int(targets.max()) + 1)]
    return [own[torch.linspace(0, len(own) - 1, min(SAMPLES, len(own))).long()] for own in classes]
