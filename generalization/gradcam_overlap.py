"""How much the regions agree that networks look at: Jaccard index of the top 10% of Grad-CAM pixels, pair by pair.

Source: appendix E and tables 6 and 7 of the spectral-radius paper, for the six findings that the three X-ray data sets
share.  The paper does not say over which images and findings it averages: here over all images whatever their labels,
finding by finding, then over the findings.  A network's own mean is that over the other networks (as in its tables).
Two random tenths of the pixels have an index of 0.053.  Interval: bootstrap over patients, the same resamples for
every pair.
A map is as coarse as the layer: DenseNet-121 has 7x7 positions for 224x224 pixels, and 2x2 for 64x64.
Cost: one forward pass an image and run (DenseNet-121 at 224x224: 0.2 s of one core); comparing 5 runs of 256, 1 s.
Fails: a map that is zero everywhere has no top pixels: its image is left out of the pair, and counted.  A map with
fewer positive pixels than a tenth is filled up with zeros in order of position, which agree in any two such maps: they
are counted too (``filled``).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from spectral_run.curvature.rows import Rows
from spectral_run.datasets.base import Data, DataHome, Dataset
from spectral_run.datasets.chest_xray.findings import COMMON, COMMON_COLUMNS
from spectral_run.datasets.chest_xray.images import Decoding
from spectral_run.datasets.chest_xray.transfer_sets import Selection
from spectral_run.generalization.base import (
    Comparison,
    MeasuredRun,
    Metric,
    TestResult,
    TrainedNetwork,
    check_seed,
    derived_seed,
)
from spectral_run.generalization.chest_transfer import SOURCES, load_source, prepare_source, require_findings
from spectral_run.generalization.gradcam import choose_layer, heat_maps, jaccard, top_pixels
from spectral_run.generalization.gradcam_pairs import (
    distinct,
    estimate,
    interval,
    matrix_table,
    patient_draws,
    pictures,
    require_same_images,
)
from spectral_run.reports.heatmap_figures import overlap_matrix

HELD_OUT: Final = "nih_test"


@final
@dataclass(frozen=True, kw_only=True)
class GradCamOverlap(Comparison):
    """``source``: the images, ``nih_test`` for the run's own held-out ones; ``images``: as many of them at most.

    ``layer``: the one whose maps are taken, by its name in the network; null for the last that keeps positions apart.
    ``share``: of the pixels that count as a map's top.  ``shown``: images that pictures are made of.
    ``views`` and ``bad_images_limit`` as in ``ChestTransfer``, of CheXpert and MIMIC-CXR.
    ``batch_size``: images at once; bounds memory, decides no number.
    """

    source: str = "chexpert_valid"
    layer: str | None = None
    share: float = 0.1
    images: int = 256
    views: str = "all"
    bad_images_limit: float = 0.01
    shown: int = 4
    batch_size: int = 16
    seed: int = 0  # of the choice of images, and of the bootstrap

    def __post_init__(self) -> None:
        def require(holds: bool, what: str, got: object) -> None:
            if not holds:
                raise ValueError(f"GradCamOverlap: {what}, got {got!r}.")

        known = (HELD_OUT, *SOURCES)
        require(self.source in known, f"source must be one of {', '.join(known)}", self.source)
        require(0 < self.share < 1, "share must be in (0, 1)", self.share)
        require(self.images >= 1, "images must be at least 1", self.images)
        require(self.shown >= 0, "shown must be at least 0", self.shown)
        require(self.batch_size >= 1, "batch_size must be at least 1", self.batch_size)
        check_seed("GradCamOverlap", self.seed)
        _ = self.selection, self.decoding  # check themselves

    @property
    def selection(self) -> Selection:
        """Of the source's images."""
        return Selection(views=self.views)

    @property
    def decoding(self) -> Decoding:
        """How files become images."""
        return Decoding(bad_images_limit=self.bad_images_limit)

    def check(self, dataset: Dataset) -> None:
        """The six findings must be among the outputs."""
        require_findings("GradCamOverlap", dataset)

    def prepare(self, dataset: Dataset, home: DataHome) -> None:
        """The source's files must be there."""
        if self.source != HELD_OUT:
            try:
                prepare_source(self.source, home, self.selection)
            except FileNotFoundError as error:
                raise FileNotFoundError(
                    f"GradCamOverlap has no {self.source} (source={HELD_OUT} takes the run's own test images): {error}"
                ) from error

    def measure(self, network: TrainedNetwork, data: Data, home: DataHome) -> TestResult:
        """Leave the top pixels of every image and finding, packed; maps and images of those shown."""
        images = self._images(data, home)
        model = network.objective.model
        layer = choose_layer(model, images.inputs[images.rows[:1]], self.layer)
        outputs = list(COMMON_COLUMNS)
        shown = _shown(images.labels, self.shown)
        masks, filled = [], 0
        heat, grey = {}, {}
        for start in range(0, len(images.rows), self.batch_size):
            part = images.inputs[images.rows[start : start + self.batch_size]]
            # In single precision, or what upsampling makes equal would be ranked by its rounding.
            maps = heat_maps(model, layer, part, outputs).float().cpu().numpy()
            if not np.isfinite(maps).all():
                raise ValueError("GradCamOverlap: the network's maps are not finite.")
            chosen = top_pixels(maps, self.share)
            masks.append(np.packbits(chosen, axis=-1))
            filled += int((chosen & (maps.reshape(chosen.shape) <= 0)).any(-1).sum())
            for i, finding in shown:
                if start <= i < start + len(part):
                    heat[i] = maps[i - start, finding] / max(maps[i - start, finding].max(), np.finfo(np.float32).tiny)
                    grey[i] = _grey(part[i - start])
        packed = np.concatenate(masks)
        empty = np.asarray(~packed.any(-1))
        draws = patient_draws(images.patients, derived_seed(self.seed, "gradcam_overlap", "bootstrap", self.source))
        metrics = {"empty": estimate(empty.astype(np.float64), draws)[0]}
        pairs = list(itertools.combinations(range(len(COMMON)), 2))
        among = np.stack([jaccard(packed[:, i], packed[:, j]) for i, j in pairs], axis=-1)
        if np.isfinite(among).any():
            metrics["between_findings"] = estimate(among, draws)[0]
        size = [int(length) for length in images.inputs.shape[2:]]
        details = images.details | {
            "source": self.source,
            "images": len(packed),
            "patients": len(np.unique(images.patients)),
            "layer": layer,
            "share": self.share,
            "size": size,
            "empty": dict(zip(COMMON, empty.sum(0).tolist(), strict=True)),
            "filled": filled,
            "seed": self.seed,
        }
        arrays: dict[str, NDArray[Any]] = {
            "masks": packed,
            "files": np.array(sorted(f"{name}: {digest}" for name, digest in images.details["source_files"].items())),
            "names": np.array(images.names),
            "patients": images.patients,
            "findings": np.array(COMMON),
            "size": np.array(size),
            "share": np.array(self.share),
            "source": np.array(self.source),
            "layer": np.array(layer),
            "shown": np.array(shown, dtype=np.int64).reshape(-1, 2),
            "heat": np.array([heat[i] for i, _ in shown], dtype=np.float16).reshape(-1, *size),
            "grey": np.array([grey[i] for i, _ in shown], dtype=np.uint8).reshape(-1, *size),
        }
        return TestResult(metrics, details, arrays=arrays)

    def _images(self, data: Data, home: DataHome) -> _Images:
        """The sample: of all rows the same ones for every run."""
        details: dict[str, Any] = {}
        names: Sequence[str]
        if self.source == HELD_OUT:
            inputs, groups = data.test.inputs, data.test.groups
            labels = data.test.targets[:, list(COMMON_COLUMNS)]
            files, names = data.files, [f"{HELD_OUT} row {row}" for row in range(len(inputs))]
        else:
            found = load_source(self.source, data, home, self.selection, self.decoding)
            inputs, labels, groups, names = found.inputs, found.labels, found.groups, found.paths
            files, details = found.files, {"notices": list(found.notices), "skipped": dict(found.skipped)}
        random = np.random.default_rng(derived_seed(self.seed, "gradcam_overlap", "images", self.source))
        rows = np.sort(random.permutation(len(inputs))[: self.images])
        patients = np.arange(len(inputs)) if groups is None else groups.cpu().numpy()
        return _Images(
            inputs=inputs,
            rows=torch.from_numpy(rows),
            names=[str(names[row]) for row in rows],
            labels=labels.double().cpu().numpy()[rows],
            patients=patients[rows],
            details={"source_files": dict(files), "of": len(inputs)} | details,
        )

    def compare(self, runs: Sequence[MeasuredRun], home: DataHome) -> TestResult:
        """Every pair's index, each network's mean over the others, and pictures of both."""
        require_same_images(runs)
        labels = distinct([run.label for run in runs])
        masks = [run.arrays["masks"] for run in runs]
        first, count = runs[0].arrays, len(runs)
        source, share = str(first["source"]), float(first["share"])
        draws = patient_draws(first["patients"], derived_seed(self.seed, "gradcam_overlap", "bootstrap", source))
        metrics: dict[str, Metric] = {}
        matrix, rows = np.full((count, count), np.nan), []
        sampled: dict[tuple[int, int], NDArray[np.float64]] = {}
        left_out: dict[str, int] = {}
        for i, j in itertools.combinations_with_replacement(range(count), 2):
            values = jaccard(masks[i], masks[j])
            pair = f"{labels[i]} | {labels[j]}"
            if missing := int(np.isnan(values).sum()):
                left_out[pair] = missing
            if np.isnan(values).all():
                continue
            metric, sample = estimate(values, draws)
            matrix[i, j] = matrix[j, i] = metric.value
            if i == j:
                continue
            metrics[f"jaccard: {pair}"], sampled[i, j] = metric, sample
            for finding, column in zip(first["findings"].tolist(), values.T, strict=True):
                if not np.isnan(column).all():
                    one = estimate(column[:, None], draws)[0]
                    numbers = {"jaccard": one.value, "ci_low": one.ci_low, "ci_high": one.ci_high, "images": one.n}
                    rows.append({"finding": finding, "model": labels[i], "other": labels[j]} | numbers)
        for i, label in enumerate(labels):
            if others := [pair for pair in sampled if i in pair]:
                value = float(np.mean([matrix[pair] for pair in others]))
                mean = np.mean([sampled[pair] for pair in others], axis=0)
                metrics[f"mean: {label}"] = interval(value, mean, len(first["names"]))
        chance = share / (2 - share)
        details = {
            "source": source,
            "models": labels,
            "images": len(first["names"]),
            "patients": len(np.unique(first["patients"])),
            "share": share,
            "chance": chance,
            "layers": [str(run.arrays["layer"]) for run in runs],
            "maps_left_out": left_out,
            "seed": self.seed,
        }
        what = f"Jaccard index of the top {share:.0%} of Grad-CAM pixels\n{source}, {len(first['names'])} images"
        tables = {"matrix": matrix_table(runs, labels, matrix, metrics, source), "findings": pd.DataFrame(rows)}
        figures = {"matrix": overlap_matrix(labels, matrix, chance=chance, what=what)}
        if len(first["shown"]):
            figures["heat_maps"] = pictures(runs, labels)
        return TestResult(metrics, details, {name: table for name, table in tables.items() if len(table)}, figures)


@final
@dataclass(frozen=True, kw_only=True)
class _Images:
    """``rows`` of ``inputs``, and a name, labels and a patient for each of those."""

    inputs: Rows
    rows: Tensor
    names: list[str]
    labels: NDArray[np.float64]
    patients: NDArray[np.int64]
    details: dict[str, Any]


def _shown(labels: Float[np.ndarray, "images findings"], count: int) -> list[tuple[int, int]]:
    """Images to show, each with a finding that it has: the findings in turn; others where none has any."""
    pairs: list[tuple[int, int]] = []
    used: set[int] = set()
    count = min(count, len(labels))
    turns = [
        (turn % labels.shape[1], labels[:, turn % labels.shape[1]] == 1) for turn in range(count * labels.shape[1])
    ]
    turns += [(turn % labels.shape[1], np.ones(len(labels), dtype=np.bool_)) for turn in range(count)]
    for finding, fits in turns:
        free = [int(i) for i in np.flatnonzero(fits) if int(i) not in used]
        if free and len(pairs) < count:
            pairs.append((free[0], finding))
            used.add(free[0])
    return pairs


def _grey(image: Float[Tensor, "channels height width"]) -> NDArray[np.uint8]:
    """An image for the eye: its own range from black to white."""
    mean = image.double().mean(0).cpu().numpy()
    levels: NDArray[np.uint8] = np.rint(255 * (mean - mean.min()) / max(float(np.ptp(mean)), 1e-12)).astype(np.uint8)
    return levels
