"""Accuracy on another data set of the same classes: USPS networks on MNIST digits.

Source: section 5.1 and appendix C.3 of the spectral-radius paper: the 10,000 MNIST test images, resized to the
network's 16x16. Resizing is bilinear with antialiasing (Pillow's).
The images' [0, 1] is mapped to the range of the data set's own test inputs, so black stays black and white white.
MNIST digits fill the middle 20x20 of 28x28 pixels, USPS digits all of their height, and that is most of what is
measured: two unregularized USPS networks had 46% and 41%, but 76% and 71% once the margins were cut off (we don't: the
paper only resizes), and 49% and 43% without antialiasing. The paper's networks have 51% to 67%.

Cost: one prediction of the test split and one of the 10,000 images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from spectral_run.datasets.base import Data, DataHome, Dataset
from spectral_run.datasets.mnist import load_test_images
from spectral_run.datasets.mnist import prepare as prepare_mnist
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
from spectral_run.generalization.statistics import bootstrap_ratio, proportion

SOURCES: Final = ("mnist",)


def resize(
    images: Float[Tensor, "rows height width"], size: tuple[int, int], low: float, high: float
) -> Float[Tensor, "rows 1 new_height new_width"]:
    """Antialiased bilinear resize of images in [0, 1], mapped to [low, high]."""
    smaller = functional.interpolate(images[:, None], size=size, mode="bilinear", antialias=True, align_corners=False)
    return low + (high - low) * smaller


@final
@dataclass(frozen=True, kw_only=True)
class Transfer(GeneralizationTest, ImageSource):
    """Accuracy on the test images of ``source``, and its gap to the plain test accuracy."""

    source: str = "mnist"
    seed: int = 0  # of the bootstrap

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise ValueError(f"Transfer: source must be one of {', '.join(SOURCES)}, got {self.source!r}.")
        check_seed("Transfer", self.seed)

    def check(self, dataset: Dataset) -> None:
        """Grey images of ten classes are needed (that they are the ten digits, the user knows), of another source."""
        require_classes("Transfer", dataset)
        shape = dataset.input_shape
        if len(shape) != 3 or shape[0] != 1 or dataset.classes != 10:
            raise ValueError(
                f"Transfer: data set must have images of 1 channel and 10 classes, got {dataset.name} with "
                f"{shape} and {dataset.classes} classes."
            )
        if dataset.name == self.source:
            raise ValueError(f"Transfer: data set must not be {self.source}, the source itself.")

    def prepare(self, dataset: Dataset, home: DataHome) -> None:
        """Fetch the source's test files, or raise ``FileNotFoundError``."""
        prepare_mnist(home)

    def images(self, data: Data, home: DataHome) -> LabelledImages:
        """The source's test images in the size and range of the data set's own."""
        test = data.test.tensor
        low, high = float(test.min()), float(test.max())
        height, width = test.shape[-2:]
        source = load_test_images(home)
        images = resize(source.images.to(torch.float32), (height, width), low, high)
        details = {
            "source": self.source,
            "files": dict(source.files),
            "official": source.official,
            "notices": list(source.notices),
            "resized_to": [height, width],
            "resize": "bilinear, antialiased",
            "range": [low, high],
        }
        return LabelledImages(
            images=images.to(test.device, test.dtype), targets=source.labels.to(test.device), details=details
        )

    def evaluate(self, predict: Predict, data: Data, home: DataHome) -> TestResult:
        """Accuracy of the source; the gap is left out where the plain test accuracy is 0."""
        source = self.images(data, home)
        plain = correctness(predict, data.test.tensor, data.test.targets)
        correct = correctness(predict, source.images, source.targets)
        metrics: dict[str, Metric] = {"test": proportion(plain), "accuracy": proportion(correct)}
        resampling = derived_seed(self.seed, "bootstrap", data.name, self.source)
        gap = bootstrap_ratio(correct, plain, paired=False, seed=resampling)
        if gap is not None:
            metrics["gap"] = gap
        return TestResult(metrics, dict(source.details) | {"seed": self.seed})
