"""Mean AUC over six findings on chest X-rays of other hospitals: CheXpert (Stanford) and MIMIC-CXR (Beth Israel).

Source: section 5.2, figure 3 and appendix C.2 of the spectral-radius paper: networks of ChestX-ray14 (NIH) are asked
about the findings that all three label, with uncertain and missing labels left out finding by finding; each data set's
parts apart, since they are labelled differently (CheXpert's valid part by radiologists, the others from reports).
Units: AUC.  ``drop`` is transfer minus held-out, so negative is worse, as in tables 6 and 7; by the caption of figure
3 it is this difference that the paper gives, -4.15% for -0.0415.  ``relative_drop`` is transfer over held-out, minus 1.
Interval: bootstrap over patients, of both sets independently: they have no patient in common.
A finding with one label only in either set has no AUC there, and is left out of both sides of the drop.
Cost: one forward pass an image, 223,414 and 234 of CheXpert's train and valid part, 368,960, 2,991 and 5,159 of
MIMIC-CXR's train, validate and test part in the official releases; and the bootstrap, some 10 s per 100,000 images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, final

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from spectral_run.curvature.rows import Rows
from spectral_run.datasets.base import Data, DataHome, Dataset
from spectral_run.datasets.chest_xray import chexpert, mimic
from spectral_run.datasets.chest_xray.findings import COMMON, COMMON_COLUMNS, FINDINGS
from spectral_run.datasets.chest_xray.images import Decoding, Geometry
from spectral_run.datasets.chest_xray.transfer_sets import Selection, TransferSet
from spectral_run.generalization.auc import AUCs, aucs, point_aucs
from spectral_run.generalization.base import (
    Measurement,
    Metric,
    TestResult,
    TrainedNetwork,
    check_seed,
    derived_seed,
)

SOURCES: Final = ("chexpert_train", "chexpert_valid", "mimic_train", "mimic_validate", "mimic_test")
MISSING: Final = ("error", "skip")


def require_findings(test: str, dataset: Dataset) -> None:
    """Refuse a data set whose outputs are not the findings of ChestX-ray14, in their order."""
    if dataset.loss != "binary_cross_entropy" or tuple(dataset.outputs) != FINDINGS:
        raise ValueError(
            f"{test}: data set must have the {len(FINDINGS)} findings of ChestX-ray14 as outputs (chest_xray), "
            f"got {dataset.name}."
        )


def prepare_source(source: str, home: DataHome, selection: Selection) -> None:
    """Raise ``FileNotFoundError`` where the source's label files are not there."""
    name, _, part = source.partition("_")
    if name == "chexpert":
        chexpert.label_file(home, part)
    else:
        mimic.find_tables(home, mimic.TABLES if selection.views == "frontal" else mimic.TABLES[:2])


def load_source(source: str, data: Data, home: DataHome, selection: Selection, decoding: Decoding) -> TransferSet:
    """One of ``SOURCES``, its images resized and cropped as the training images are, on their device."""
    geometry = getattr(data.train.inputs, "geometry", None)
    if not isinstance(geometry, Geometry):
        raise ValueError(f"{source}: is prepared as the training images are, and those of {data.name} are no X-rays.")
    name, _, part = source.partition("_")
    load = chexpert.load_chexpert if name == "chexpert" else mimic.load_mimic
    found = load(home, part, geometry, selection=selection, decoding=decoding)
    return replace(found, inputs=found.inputs.to(data.test.inputs.device, data.test.inputs.dtype))


@final
@dataclass(frozen=True, kw_only=True)
class ChestTransfer(Measurement):
    """``sources``: of ``SOURCES``; ``missing``: what to do where files of one are not there, ``error`` or ``skip``.

    ``views``: all or frontal.  ``rows``: of a source named there so many images, of patients drawn at random.
    ``bad_images_limit``: the share of a source's images that may be missing or damaged; they are left out and named.
    """

    sources: Sequence[str] = SOURCES
    missing: str = "error"
    views: str = "all"
    rows: Mapping[str, int] = field(default_factory=dict)
    bad_images_limit: float = 0.01
    seed: int = 0  # of the bootstrap, and of the patients drawn

    def __post_init__(self) -> None:
        unknown = [source for source in self.sources if source not in SOURCES]
        if unknown or not self.sources or len(set(self.sources)) < len(self.sources):
            raise ValueError(
                f"ChestTransfer: sources must be different ones of {', '.join(SOURCES)}, got {list(self.sources)}."
            )
        if self.missing not in MISSING:
            raise ValueError(f"ChestTransfer: missing must be {' or '.join(MISSING)}, got {self.missing!r}.")
        check_seed("ChestTransfer", self.seed)
        if unused := sorted(set(self.rows) - set(self.sources)):
            raise ValueError(f"ChestTransfer: rows must be of {', '.join(self.sources)}, got {', '.join(unused)}.")
        for source in self.sources:
            _ = self._selection(source), self.decoding  # check themselves

    @property
    def decoding(self) -> Decoding:
        """How files become images."""
        return Decoding(bad_images_limit=self.bad_images_limit)

    def _selection(self, source: str) -> Selection:
        seed = derived_seed(self.seed, "chest_transfer", "rows", source) % 2**32
        return Selection(views=self.views, rows=self.rows.get(source), seed=seed)

    def check(self, dataset: Dataset) -> None:
        """The six findings must be among the outputs."""
        require_findings("ChestTransfer", dataset)

    def prepare(self, dataset: Dataset, home: DataHome) -> None:
        """The files of every source must be there; with ``missing=skip``, of one."""
        _, absent = self._there(home)
        if absent and (self.missing == "error" or len(absent) == len(self.sources)):
            why = {source.partition("_")[0]: said for source, said in reversed(absent.items())}  # one of each data set
            raise FileNotFoundError(
                f"ChestTransfer has no {', '.join(absent)} (missing=skip leaves out what is not there, sources=[...] "
                f"says what to take): {' '.join(reversed(why.values()))}"
            )

    def _there(self, home: DataHome) -> tuple[list[str], dict[str, str]]:
        """The sources whose files are there, and what is said of the others."""
        absent = {}
        for source in self.sources:
            try:
                prepare_source(source, home, self._selection(source))
            except FileNotFoundError as error:
                absent[source] = str(error)
        return [source for source in self.sources if source not in absent], absent

    def measure(self, network: TrainedNetwork, data: Data, home: DataHome) -> TestResult:
        """The held-out test split, then one source after another."""
        held_out = _Judged(
            _scores(network, data.test.inputs),
            _numbers(data.test.targets)[:, COMMON_COLUMNS],
            None if data.test.groups is None else _numbers(data.test.groups),
            derived_seed(self.seed, "chest_transfer", "bootstrap", data.name),
        )
        metrics: dict[str, Metric] = {}
        details: dict[str, Any] = {"findings": list(COMMON), "seed": self.seed, "held_out": held_out.counts()}
        rows = held_out.rows("heldout")
        if not held_out.defined:
            raise ValueError("ChestTransfer: no finding has both labels in the held-out test split.")
        metrics["heldout"] = held_out.over(held_out.defined).mean
        there, absent = self._there(home)
        details |= {"missing": absent} if absent else {}
        details["sources"] = {}
        for source in there:
            found = load_source(source, data, home, self._selection(source), self.decoding)
            judged = _Judged(
                _scores(network, found.inputs),
                _numbers(found.labels),
                _numbers(found.groups),
                derived_seed(self.seed, "chest_transfer", "bootstrap", source),
            )
            both = [i for i in judged.defined if i in held_out.defined]
            about = judged.counts() | {
                "files": dict(found.files),
                "notices": list(found.notices),
                "skipped": dict(found.skipped),
                "left_out": [name for i, name in enumerate(COMMON) if i not in both],
            }
            if both:
                there_auc, here_auc = judged.over(both), held_out.over(both)
                metrics |= {source: there_auc.mean, f"drop_{source}": _change(there_auc, here_auc, relative=False)}
                if here_auc.mean.value > 0:
                    metrics[f"relative_drop_{source}"] = _change(there_auc, here_auc, relative=True)
                about["heldout"] = here_auc.mean.value  # over the same findings
            details["sources"][source] = about
            rows += judged.rows(source)
        return TestResult(metrics, details, {"findings": pd.DataFrame(rows)})


def _scores(network: TrainedNetwork, inputs: Rows) -> NDArray[np.float64]:
    """Outputs before the sigmoid, of the six findings: an AUC knows their order only."""
    return _numbers(network.outputs(inputs))[:, COMMON_COLUMNS]


def _numbers(values: Tensor) -> NDArray[Any]:
    return (values.detach().double() if values.is_floating_point() else values).cpu().numpy()


@final
@dataclass
class _Judged:
    """Scores and labels of one set of images; ``defined``: the findings with both labels."""

    scores: Float[np.ndarray, "rows findings"]
    labels: Float[np.ndarray, "rows findings"]
    groups: NDArray[Any] | None
    seed: int
    defined: list[int] = field(init=False)
    _found: dict[tuple[int, ...], AUCs] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.defined = np.flatnonzero(~np.isnan(point_aucs(self.scores, self.labels))).tolist()

    def over(self, findings: Sequence[int]) -> AUCs:
        """AUCs of these findings, and their mean."""
        key = tuple(findings)
        if key not in self._found:
            names = [COMMON[i] for i in key]
            self._found[key] = aucs(self.scores[:, key], self.labels[:, key], names, groups=self.groups, seed=self.seed)
        return self._found[key]

    def counts(self) -> dict[str, Any]:
        """Images, patients, and labels finding by finding."""
        numbers = {"positive": self.labels == 1, "negative": self.labels == 0, "no label": np.isnan(self.labels)}
        about: dict[str, Any] = {"images": len(self.labels)}
        if self.groups is not None:
            about["patients"] = len(np.unique(self.groups))
        return about | {what: dict(zip(COMMON, of.sum(0).tolist(), strict=True)) for what, of in numbers.items()}

    def rows(self, source: str) -> list[dict[str, Any]]:
        """For the table: a row per finding."""
        found = self.over(self.defined).each if self.defined else {}
        rows = []
        for name, labels in zip(COMMON, self.labels.T, strict=True):
            auc = found.get(name)
            numbers = {"auc": auc.value, "ci_low": auc.ci_low, "ci_high": auc.ci_high} if auc else {}
            counts = {"positive": int((labels == 1).sum()), "negative": int((labels == 0).sum())}
            rows.append({"source": source, "finding": name} | numbers | counts)
        return rows


def _change(there: AUCs, here: AUCs, *, relative: bool) -> Metric:
    """Transfer against held-out; a resample of one has nothing to do with the other's of the same number."""

    def change(a: Any, b: Any) -> Any:
        return a / b - 1 if relative else a - b

    value = float(change(there.mean.value, here.mean.value))
    with np.errstate(divide="ignore", invalid="ignore"):
        sample = change(there.resampled, here.resampled)
    sample = sample[np.isfinite(sample)]  # a resample without an AUC, or with none to divide by, has no change
    low, high = np.quantile(sample, (0.025, 0.975)).tolist() if len(sample) else (value, value)
    return Metric(value, min(low, value), max(high, value), there.mean.n)
