"""Const1, Const2: augmented test images, chosen so that their distances to the test images have gaps.

Source: appendix D of the spectral-radius paper.  Its GAN1 has images at some distances to the USPS test images and none
at others, and these two sets imitate that with images whose labels are sure.  Const1 bins the images of AT1 and AT2 by
the Euclidean distance to the nearest test image, Const2 by the largest cosine similarity to one; ``emptied`` bins drawn
at random give no image, each other one all those of one level, drawn at random.  The histograms behind it, over further
data sets too, are figures 6 and 7.

The paper leaves the following open; it is settled so:

- Pixels are mapped from the range of the test inputs to ``pixel_range`` first: ``conf/generalization/constructed.yaml``
  has the reason for [-1, 1].
- The augmented images are draw 0 of ``augmentation``, the same ones as that test's first draw where the seeds agree.
- Emptied bins are drawn from all bins, those without any image included, as the paper has it; the details say how many
  images each held.  Images outside all bins are left out and counted.  So are unchanged images in Const2: their
  similarity is exactly 1, and the last bin ends before it.
- A test image can be in a set twice, once from each level, or not at all: what an interval resamples are test images.

Sets are made on the CPU in float32 from the seeds alone: the same bytes for every model, device and batch size.
Cost: the distances of all sets, 1 s for 34,000 images against 2,007 on one core; a prediction of each set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from spectral_run.datasets.base import Data, DataHome, Dataset
from spectral_run.generalization.augmentation import Augmentation
from spectral_run.generalization.base import (
    GeneralizationTest,
    ImageSource,
    Measurement,
    Metric,
    Predict,
    TestResult,
    check_seed,
    correctness,
    derived_seed,
    require_classes,
)
from spectral_run.generalization.distances import Bins, Nearest, nearest
from spectral_run.generalization.statistics import bootstrap_pooled, bootstrap_pooled_ratio, proportion
from spectral_run.reports.histogram_figures import histogram_figure

SETS = {"const1": "distance", "const2": "cosine"}


@final
@dataclass(frozen=True)
class ConstructedSet:
    """Images of the levels, and ``rows``: the number of the test image that each was made from."""

    images: Tensor
    rows: Tensor
    details: Mapping[str, Any]


@final
@dataclass(frozen=True, kw_only=True)
class Constructed(GeneralizationTest):
    """Accuracy on Const1 and Const2; histograms of distance and similarity for them, the levels and ``others``.

    An entry of ``others`` that is None is left out, and all of them where it is None itself.
    """

    augmentation: Augmentation = field(default_factory=lambda: Augmentation(draws=1))
    others: Mapping[str, ImageSource | None] | None = None
    pixel_range: Sequence[float] = (-1.0, 1.0)
    distance_bins: Bins = field(default_factory=lambda: Bins(start=0.0, width=1.0, count=18))
    cosine_bins: Bins = field(default_factory=lambda: Bins(start=0.5, width=0.025, count=20))
    emptied: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.augmentation.draws != 1:
            raise ValueError(f"Constructed: augmentation.draws must be 1, got {self.augmentation.draws}.")
        if len(self.pixel_range) != 2 or not -np.inf < self.pixel_range[0] < self.pixel_range[1] < np.inf:
            raise ValueError(f"Constructed: pixel_range must be two rising numbers, got {list(self.pixel_range)}.")
        for name, bins in (("distance_bins", self.distance_bins), ("cosine_bins", self.cosine_bins)):
            if not 0 <= self.emptied <= bins.count:
                raise ValueError(
                    f"Constructed: emptied must be in [0, {bins.count}], the number of {name}, got {self.emptied}."
                )
        for name, source in (self.others or {}).items():
            if name in {*self.augmentation.levels, *SETS}:
                raise ValueError(f"Constructed: none of others may be called {name}, the name of a set here.")
            if source is not None and not isinstance(source, ImageSource):
                raise ValueError(f"Constructed: others.{name} must give images, got {type(source).__name__}.")
        check_seed("Constructed", self.seed)

    @property
    def sources(self) -> dict[str, ImageSource]:
        """The ``others`` that are there."""
        return {name: source for name, source in (self.others or {}).items() if source is not None}

    def check(self, dataset: Dataset) -> None:
        """Images with classes are needed, of a kind that all sources take."""
        require_classes("Constructed", dataset)
        parts = {"augmentation": self.augmentation} | {f"others.{name}": s for name, s in self.sources.items()}
        for name, part in parts.items():
            if isinstance(part, Measurement):
                try:
                    part.check(dataset)
                except ValueError as error:
                    raise ValueError(f"Constructed: {name}: {error}") from error

    def prepare(self, dataset: Dataset, home: DataHome) -> None:
        """Fetch the sources' files, or raise ``FileNotFoundError``."""
        for source in self.sources.values():
            if isinstance(source, Measurement):
                source.prepare(dataset, home)

    def augmented(self, data: Data) -> dict[str, Tensor]:
        """The images of each level, ``(rows, channels, height, width)``, on the CPU."""
        test = _plain(data.test.tensor)
        return {
            level: torch.cat(list(self.augmentation.perturbed(test, data.name, level, 0)))
            for level in self.augmentation.levels
        }

    def near(self, images: Tensor, data: Data) -> Nearest:
        """Their distances and similarities to the test images, in ``pixel_range``."""
        test = _plain(data.test.tensor)
        low, high = float(test.min()), float(test.max())
        start, end = self.pixel_range
        scale = (end - start) / (high - low) if high > low else 1.0

        def mapped(pixels: Tensor) -> Tensor:
            return start + scale * (pixels.detach().to("cpu", torch.float64).flatten(1) - low)

        return nearest(mapped(images), mapped(test))

    def constructed(
        self, name: str, augmented: Mapping[str, Tensor], near: Mapping[str, Nearest], dataset: str
    ) -> ConstructedSet:
        """Const1 or Const2 from the levels' images and their distances."""
        bins, levels = self._bins(name), list(augmented)
        rng = np.random.default_rng(derived_seed(self.seed, "constructed", dataset, name))
        emptied = rng.choice(bins.count, self.emptied, replace=False)
        chosen = rng.integers(len(levels), size=bins.count)
        chosen[emptied] = -1
        places = {level: bins.of(getattr(near[level], SETS[name])) for level in levels}
        outside = {level: (place < 0) | (place >= bins.count) for level, place in places.items()}
        taken = [
            np.flatnonzero(~outside[level] & (chosen[np.where(outside[level], 0, place)] == number))
            for number, (level, place) in enumerate(places.items())
        ]
        images = torch.cat([augmented[level][rows] for level, rows in zip(levels, taken, strict=True)])
        details = {
            "images": len(images),
            "images_of_each_level": {level: len(rows) for level, rows in zip(levels, taken, strict=True)},
            "outside_all_bins": {level: int(rows.sum()) for level, rows in outside.items()},
            "sha256": hashlib.sha256(images.contiguous().numpy().tobytes()).hexdigest(),
            "bins": [
                {
                    "low": float(bins.edges[k]),
                    "high": float(bins.edges[k + 1]),
                    "from": levels[chosen[k]] if chosen[k] >= 0 else None,
                    "held": {level: int((place == k).sum()) for level, place in places.items()},
                }
                for k in range(bins.count)
            ],
        }
        return ConstructedSet(images, torch.from_numpy(np.concatenate(taken)), details)

    def evaluate(self, predict: Predict, data: Data, home: DataHome) -> TestResult:
        """Accuracy of each set and its gap; both are left out of a set without images, the gap where the test has 0."""
        test, targets = data.test.tensor, data.test.targets
        plain = correctness(predict, test, targets)
        metrics: dict[str, Metric] = {"test": proportion(plain)}
        augmented = self.augmented(data)
        near = {level: self.near(images, data) for level, images in augmented.items()}
        details: dict[str, Any] = {
            "pixel_range": list(self.pixel_range),
            "augmentation": {
                level: {**settings, "seed": self.augmentation.draw_seed(data.name, level, 0)}
                for level, settings in self.augmentation.levels.items()
            },
            "seed": self.seed,
        }
        for name in SETS:
            built = self.constructed(name, augmented, near, data.name)
            details[name] = built.details
            metrics |= self._metrics(name, built, predict, data, plain)
            near[name] = self.near(built.images, data) if len(built.images) else Nearest(np.zeros(0), np.zeros(0))
        for name, source in self.sources.items():
            labelled = source.images(data, home)
            near[name] = self.near(labelled.images, data)
            details[name] = dict(labelled.details)
        details["distances"] = {name: _moments(n.distance) for name, n in near.items()}
        details["cosines"] = {name: _moments(n.cosine) for name, n in near.items()}
        distances = {name: n.distance for name, n in near.items() if name != "const2"}
        cosines = {name: n.cosine for name, n in near.items() if name != "const1"}
        tables = {
            "distances": _histograms(distances, self.distance_bins),
            "cosines": _histograms(cosines, self.cosine_bins),
        }
        figures = {
            "distances": histogram_figure(tables["distances"], "distance to the nearest test image (L2)", "const1"),
            "cosines": histogram_figure(tables["cosines"], "largest cosine similarity to a test image", "const2"),
        }
        return TestResult(metrics, details, tables, figures)

    def _bins(self, name: str) -> Bins:
        return self.distance_bins if SETS[name] == "distance" else self.cosine_bins

    def _metrics(
        self, name: str, built: ConstructedSet, predict: Predict, data: Data, plain: NDArray[np.bool_]
    ) -> dict[str, Metric]:
        if not len(built.images):
            return {}
        test, targets = data.test.tensor, data.test.targets
        right = correctness(predict, built.images.to(test.device, test.dtype), targets[built.rows.to(targets.device)])
        rows = built.rows.numpy()
        counts = np.bincount(rows, minlength=len(plain))
        sums = np.bincount(rows, weights=right, minlength=len(plain))
        seed = derived_seed(self.seed, "bootstrap", data.name, name)
        found = {
            name: bootstrap_pooled(sums, counts, seed=seed),
            f"gap_{name}": bootstrap_pooled_ratio(sums, counts, plain, seed=seed),
        }
        return {key: metric for key, metric in found.items() if metric is not None}


def _plain(images: Tensor) -> Tensor:
    return images.detach().to("cpu", torch.float32)


def _moments(values: NDArray[np.float64]) -> dict[str, float | int | None]:
    """Of a bell curve, skewness and excess kurtosis are 0."""
    spread = float(np.std(values)) if len(values) else 0.0
    return {
        "images": len(values),
        "mean": float(np.mean(values)) if len(values) else None,
        "sd": spread,
        "skewness": float(stats.skew(values)) if spread > 0 else None,
        "excess_kurtosis": float(stats.kurtosis(values)) if spread > 0 else None,
    }


def _histograms(values: Mapping[str, NDArray[np.float64]], bins: Bins) -> pd.DataFrame:
    """A row per set and bin, first and last of each what lies outside: an edge that is missing has no end there."""
    edges = [np.nan, *bins.edges, np.nan]
    return pd.concat(
        [
            pd.DataFrame({
                "set": name,
                "low": edges[:-1],
                "high": edges[1:],
                "images": bins.counts(numbers),
                "share": bins.counts(numbers) / max(1, len(numbers)),
            })
            for name, numbers in values.items()
        ],
        ignore_index=True,
    )  # fmt: skip
