"""What a comparison of Grad-CAM maps is made of: that runs saw the same images, means over patients, table, pictures.

The arrays of a run (``MeasuredRun.arrays``) are those that ``GradCamOverlap.measure`` leaves: ``masks`` (images,
findings, bytes), the top pixels packed; ``names`` and ``patients`` of the images, and the ``files`` they are from;
``shown``, (image, finding) of those shown, with their ``heat`` (a map over its largest value) and ``grey`` levels.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
from jaxtyping import Float, Shaped
from matplotlib.figure import Figure
from numpy.typing import NDArray

from spectral_run.generalization.base import MeasuredRun, Metric
from spectral_run.reports.heatmap_figures import heat_map_grid

RESAMPLES: Final = 1000


def patient_draws(patients: Shaped[np.ndarray, " images"], seed: int) -> Float[np.ndarray, "resamples images"]:
    """How often every image is in every resample of the patients."""
    patient = np.unique(patients, return_inverse=True)[1].reshape(-1)
    count = int(patient.max()) + 1
    times = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    return times.astype(np.float64)[:, patient]


def estimate(
    values: Float[np.ndarray, "images columns"], draws: Float[np.ndarray, "resamples images"]
) -> tuple[Metric, NDArray[np.float64]]:
    """Mean over the columns of each column's mean over the images where it is no NaN; and that of every resample."""
    there = ~np.isnan(values)
    numbers = np.where(there, values, 0.0)

    def means(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        weight = weights @ there
        column = np.divide(weights @ numbers, weight, out=np.zeros_like(weight), where=weight > 0)
        columns = (weight > 0).sum(-1)
        return np.asarray(np.divide(column.sum(-1), columns, out=np.full(len(weights), np.nan), where=columns > 0))

    value = float(means(np.ones((1, len(values))))[0])
    sample = means(draws)
    return interval(value, sample, int(there.any(-1).sum())), sample


def interval(value: float, sample: Float[np.ndarray, " resamples"], n: int) -> Metric:
    """Between the 2.5% and the 97.5% point of the resamples that have a number."""
    defined = sample[~np.isnan(sample)]
    low, high = np.quantile(defined, (0.025, 0.975)).tolist() if len(defined) else (value, value)
    return Metric(value, min(low, value), max(high, value), n)


def distinct(labels: Sequence[str]) -> list[str]:
    """Labels that repeat, or are a column's name, get a number."""
    found: list[str] = []
    for label in labels:
        taken = {*found, "model", "rho", "mean", "drop"}
        names = itertools.chain([label], (f"{label} ({number})" for number in itertools.count(2)))
        found.append(next(name for name in names if name not in taken))
    return found


def require_same_images(runs: Sequence[MeasuredRun]) -> None:
    """Raise ``ValueError`` naming the runs that did not see what the first one saw."""
    if len(runs) < 2:
        raise ValueError(f"GradCamOverlap: there must be at least 2 runs, got {len(runs)}.")
    first = runs[0]
    words = {"names": "images", "patients": "patients of the images", "grey": "pixels of the same images"}
    for what in ("source", "share", "findings", "size", "files", "names", "patients", "grey"):
        if other := [run.label for run in runs if not _close(run.arrays[what], first.arrays[what])]:
            raise ValueError(
                f"GradCamOverlap: {words.get(what, what)} must be the same in all runs, and {', '.join(other)} "
                f"had others than {first.label}."
            )


def _close(a: NDArray[Any], b: NDArray[Any]) -> bool:
    if a.shape == b.shape and a.dtype == b.dtype == np.uint8:
        return bool((np.abs(a.astype(np.int64) - b) <= 2).all())  # grey levels, of other devices too
    return np.array_equal(a, b)


def matrix_table(
    runs: Sequence[MeasuredRun],
    labels: Sequence[str],
    matrix: Float[np.ndarray, "models models"],
    metrics: dict[str, Metric],
    source: str,
) -> pd.DataFrame:
    """As the paper's tables 6 and 7: a row per model with rho, the pairs, the mean; the drop in AUC where measured."""
    rows = []
    for i, (run, label) in enumerate(zip(runs, labels, strict=True)):
        row: dict[str, Any] = {"model": label, "rho": (run.result.get("rho") or {}).get("value")}
        row |= dict(zip(labels, matrix[i].tolist(), strict=True))
        mean = metrics.get(f"mean: {label}")
        row |= {"mean": mean.value if mean else None}
        tests = (run.result.get("generalization") or {}).values()
        drops = [test[f"drop_{source}"]["value"] for test in tests if f"drop_{source}" in test]
        rows.append(row | ({"drop": drops[0]} if drops else {}))
    return pd.DataFrame(rows)


def pictures(runs: Sequence[MeasuredRun], labels: Sequence[str]) -> Figure:
    """The images shown, a row each, with every run's map over them."""
    first = runs[0].arrays
    size, shown = first["size"].tolist(), first["shown"]
    packed = np.stack([run.arrays["masks"][shown[:, 0], shown[:, 1]] for run in runs], axis=1)
    outlines = np.unpackbits(packed, axis=-1, count=int(np.prod(size))).astype(np.bool_)
    return heat_map_grid(
        first["grey"],
        np.stack([run.arrays["heat"] for run in runs], axis=1),
        outlines.reshape(*packed.shape[:2], *size),
        rows=[f"{first['findings'][finding]} in {first['names'][image]}" for image, finding in shown],
        columns=labels,
        note=f"Grad-CAM of the finding at the left; the line is round the top {float(first['share']):.0%} of pixels",
    )
