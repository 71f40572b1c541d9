"""Augmented test images: a random crop, then a random rotation, each image with its own.

Source: appendix C.2 of the spectral-radius paper. AT1 crops by up to one pixel and rotates by up to 15 degrees, AT2 by
up to two pixels and 30 degrees. Figure 2 plots the gap, augmented accuracy / test accuracy - 1.

The paper leaves the following open; it is settled so:

- Order: crop first, then rotate about the centre of the image. Measured with two USPS networks, the other order has
  an accuracy up to 0.3 points (AT1) or 0.7 points (AT2) away, which is within the spread of the draws.
- Crop: ``padding`` pixels on every side, then a window of the old size at a uniform one of the
  ``(2 padding + 1)^2`` places. Rotation: uniform in [-degrees, degrees], counterclockwise positive.
- Pixels from outside the image, in either step, are black: the smallest value of each channel over the test inputs.
  That is 0 for images in [0, 1], and what 0 became where they were normalized.
- Each image is perturbed anew in each of ``draws`` draws. A draw's generator is seeded by a hash of
  (seed, data set, level, draw), so all models meet the same perturbations, whatever the batch size or device.

Interpolation: see ``conf/generalization/augmentation.yaml`` for what each choice measures.
Cost: ``draws`` predictions of the test split for each level.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, final

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from spectral_run.datasets.base import Data, DataHome, Dataset
from spectral_run.generalization.base import (
    GeneralizationTest,
    Metric,
    Predict,
    TestResult,
    check_seed,
    correctness,
    derived_seed,
    require_classes,
)
from spectral_run.generalization.statistics import bootstrap_mean, bootstrap_ratio, proportion

INTERPOLATIONS: Final = ("nearest", "bilinear")
_BLOCK: Final = 4_000_000  # image values perturbed at a time: bounds the memory, changes no number


def black_level(images: Float[Tensor, "rows channels height width"]) -> Float[Tensor, "1 channels 1 1"]:
    """Smallest value of each channel over all images."""
    return images.amin(dim=(0, 2, 3), keepdim=True)


def crop(
    images: Float[Tensor, "rows channels height width"],
    offsets: Int[Tensor, "rows 2"],
    padding: int,
    fill: Float[Tensor, "1 channels 1 1"],
) -> Float[Tensor, "rows channels height width"]:
    """Pad with ``fill``, then cut the old size out, ``offsets`` (top, left) in 0 ... 2 padding for each image."""
    rows, channels, height, width = images.shape
    padded = fill.expand(rows, channels, height + 2 * padding, width + 2 * padding).clone()
    padded[:, :, padding : padding + height, padding : padding + width] = images
    offsets = offsets.to(images.device)
    y = offsets[:, 0, None] + torch.arange(height, device=images.device)
    x = offsets[:, 1, None] + torch.arange(width, device=images.device)
    tall = padded.gather(2, y[:, None, :, None].expand(-1, channels, -1, padded.shape[3]))
    return tall.gather(3, x[:, None, None, :].expand(-1, channels, height, -1))


def rotate(
    images: Float[Tensor, "rows channels height width"],
    angles: Float[Tensor, " rows"],
    interpolation: str,
    fill: Float[Tensor, "1 channels 1 1"],
) -> Float[Tensor, "rows channels height width"]:
    """Rotate each image about its centre by its own angle in degrees, counterclockwise."""
    height, width = images.shape[2:]
    radians = torch.deg2rad(angles.to(torch.float64))
    cos, sin, zero = radians.cos(), radians.sin(), torch.zeros_like(radians)
    # The grid runs over [-1, 1] in both directions, so that a turn in pixels is no turn in it unless it is square.
    theta = torch.stack([cos, -sin * height / width, zero, sin * width / height, cos, zero], dim=1).view(-1, 2, 3)
    # float64 up to here: the grid is rounded once, so that a network's dtype decides no more than ties of neighbours.
    grid = functional.affine_grid(theta, [len(images), 1, height, width], align_corners=False).to(images)
    # Samples outside the image count as zero: moved there, black is what they count as.
    moved = images - fill
    return functional.grid_sample(moved, grid, mode=interpolation, padding_mode="zeros", align_corners=False) + fill


@final
@dataclass(frozen=True, kw_only=True)
class Augmentation(GeneralizationTest):
    """Accuracy on cropped and rotated test images, for each of several levels."""

    levels: Mapping[str, Mapping[str, float | int]] = field(
        default_factory=lambda: {"at1": {"padding": 1, "degrees": 15}, "at2": {"padding": 2, "degrees": 30}}
    )
    draws: int = 10
    interpolation: str = "nearest"
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.levels:
            raise ValueError("Augmentation: levels must name at least one level, got none.")
        if "test" in self.levels:
            raise ValueError("Augmentation: no level may be called test, the name of the plain accuracy.")
        for name, level in self.levels.items():
            if set(level) != {"padding", "degrees"}:
                raise ValueError(f"Augmentation: level {name} must set padding and degrees, got {sorted(level)}.")
            if int(level["padding"]) != level["padding"] or level["padding"] < 0:
                raise ValueError(f"Augmentation: padding of {name} must be an integer >= 0, got {level['padding']}.")
            if not 0 <= level["degrees"] <= 180:
                raise ValueError(f"Augmentation: degrees of {name} must be in [0, 180], got {level['degrees']}.")
        if self.draws < 1:
            raise ValueError(f"Augmentation: draws must be >= 1, got {self.draws}.")
        if self.interpolation not in INTERPOLATIONS:
            choices = ", ".join(INTERPOLATIONS)
            raise ValueError(f"Augmentation: interpolation must be one of {choices}, got {self.interpolation!r}.")
        check_seed("Augmentation", self.seed)

    def check(self, dataset: Dataset) -> None:
        """Images with classes are needed."""
        require_classes("Augmentation", dataset)
        if len(dataset.input_shape) != 3:
            raise ValueError(
                f"Augmentation: inputs must be images (channels, height, width), got {dataset.name} with "
                f"{dataset.input_shape}."
            )

    def draw_seed(self, dataset: str, level: str, draw: int) -> int:
        """Seed of one draw's generator."""
        return derived_seed(self.seed, "augmentation", dataset, level, draw)

    def perturbation(
        self, dataset: str, level: str, draw: int, rows: int
    ) -> tuple[Int[Tensor, "rows 2"], Float[Tensor, " rows"]]:
        """Offsets (top, left) and angles in degrees of one draw, on the CPU."""
        generator = torch.Generator().manual_seed(self.draw_seed(dataset, level, draw))
        padding, degrees = int(self.levels[level]["padding"]), self.levels[level]["degrees"]
        offsets = torch.randint(0, 2 * padding + 1, (rows, 2), generator=generator)
        angles = (2 * torch.rand(rows, generator=generator, dtype=torch.float64) - 1) * degrees
        return offsets, angles

    def perturbed(
        self, images: Float[Tensor, "rows channels height width"], dataset: str, level: str, draw: int
    ) -> Iterator[Float[Tensor, "block channels height width"]]:
        """The images of one draw, in blocks of consecutive rows."""
        offsets, angles = self.perturbation(dataset, level, draw, len(images))
        padding, degrees = int(self.levels[level]["padding"]), self.levels[level]["degrees"]
        fill = black_level(images)
        size = max(1, _BLOCK // images[0].numel())
        for start in range(0, len(images), size):
            block, rows = images[start : start + size], slice(start, start + size)
            if padding:
                block = crop(block, offsets[rows], padding, fill)
            if degrees:
                block = rotate(block, angles[rows], self.interpolation, fill)
            yield block

    def evaluate(self, predict: Predict, data: Data, home: DataHome) -> TestResult:
        """Accuracy of each level and its gap to the plain test accuracy; a gap is left out where that is 0.

        Images, not draws, are what an interval resamples: an image's draws are averaged first.
        """
        images, targets = data.test.tensor, data.test.targets
        plain = correctness(predict, images, targets)
        metrics: dict[str, Metric] = {"test": proportion(plain)}
        details: dict[str, object] = {
            "order": "crop, then rotation",
            "interpolation": self.interpolation,
            "fill": black_level(images).flatten().tolist(),
            "draws": self.draws,
            "seed": self.seed,
        }
        for level, settings in self.levels.items():
            right = np.stack([self._correct(predict, images, targets, data.name, level, d) for d in range(self.draws)])
            per_image = right.mean(axis=0)
            resampling = derived_seed(self.seed, "bootstrap", data.name, level)
            metrics[level] = bootstrap_mean(per_image, seed=resampling)
            gap = bootstrap_ratio(per_image, plain, paired=True, seed=resampling)
            if gap is not None:
                metrics[f"gap_{level}"] = gap
            per_draw = right.mean(axis=1)
            details[level] = {
                **settings,
                "accuracy_of_each_draw": per_draw.tolist(),
                "sd_over_draws": float(np.std(per_draw, ddof=1)) if self.draws > 1 else None,
                "seeds": [self.draw_seed(data.name, level, draw) for draw in range(self.draws)],
            }
        return TestResult(metrics, details)

    def _correct(
        self, predict: Predict, images: Tensor, targets: Tensor, dataset: str, level: str, draw: int
    ) -> NDArray[np.bool_]:
        predicted = torch.cat([predict(block) for block in self.perturbed(images, dataset, level, draw)])
        right: NDArray[np.bool_] = (predicted == targets).cpu().numpy()
        return right
