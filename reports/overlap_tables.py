"""Tables 6 and 7: how much the models' Grad-CAM maps overlap, beside rho and the drop in AUC, ours and the paper's.

Made of the ``comparison.json`` files that ``generalization=[gradcam_overlap]`` has left below the sweep's runs.  The
paper compares one model of each; here two methods are compared seed by seed, and a cell is over seeds.  Where the
images of the paper (CheXpert's and MIMIC-CXR's validation parts) were not compared, those of the held-out NIH test
split are taken, and the caption says so.  Comparisons with other settings than the newest are left out, and counted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from spectral_run.reports.beside import Column, Line, beside, differences
from spectral_run.reports.collect import number
from spectral_run.reports.document import Document, about
from spectral_run.reports.paper_columns import RHO
from spectral_run.reports.paper_numbers import CHEST, METHOD, by_method
from spectral_run.reports.paper_tables import PAIRED, READING
from spectral_run.reports.seeds import Model, models

if TYPE_CHECKING:
    from spectral_run.reports.sweeps import Sweep

SOURCES: Final = {"table6": "chexpert_valid", "table7": "mimic_validate"}
NAMES: Final = {
    "chexpert_valid": "CheXpert's validation part",
    "mimic_validate": "MIMIC-CXR's validation part",
    "nih_test": "ChestX-ray14's held-out test split",
}
HERE: Final = "nih_test"
EXPERIMENT: Final = "chest_finetune"
_REFERENCE: Final = CHEST["UnReg"]


@dataclass(frozen=True)
class Overlaps:
    """``pairs``: Jaccard index and its interval over patients, by two runs (configuration's hash and seed)."""

    source: str
    pairs: Mapping[tuple[tuple[str, str], tuple[str, str]], tuple[float, float, float]]
    images: int
    chance: float
    left_out: int  # comparisons with other settings


def table6(sweeps: Mapping[str, Sweep]) -> Document:
    """On CheXpert, where that is there."""
    return _document("table6", "Table 6: Grad-CAM overlap on CheXpert", sweeps)


def table7(sweeps: Mapping[str, Sweep]) -> Document:
    """On MIMIC-CXR, where that is there."""
    return _document("table7", "Table 7: Grad-CAM overlap on MIMIC-CXR", sweeps)


def overlaps(sweep: Sweep, source: str) -> Overlaps | None:
    """Of all comparisons of the sweep's runs on these images, newest settings; None where there is none."""
    runs = {_run(cell.result) for cell in sweep.cells if cell.result is not None}
    found = [one for one in comparisons(sweep.folder) if _of(one, source, runs)]
    if not found:
        return None
    found.sort(key=lambda one: str(one.get("finished")))
    newest = found[-1]
    same = [one for one in found if one["settings"] == newest["settings"]]
    pairs: dict[tuple[tuple[str, str], tuple[str, str]], tuple[float, float, float]] = {}
    for one in same:
        ids, names = [_run(run) for run in one["runs"]], one["details"]["models"]
        for i, first in enumerate(ids):
            for j in range(i + 1, len(ids)):
                metric = (one["metrics"] or {}).get(f"jaccard: {names[i]} | {names[j]}")
                if metric is not None:
                    pairs[first, ids[j]] = pairs[ids[j], first] = (
                        metric["value"], metric["ci_low"], metric["ci_high"],
                    )  # fmt: skip
    details = newest["details"]
    return Overlaps(source, pairs, int(details["images"]), float(details["chance"]), len(found) - len(same))


def comparisons(folder: Path) -> list[dict[str, Any]]:
    """All ``comparison.json`` of Grad-CAM maps below ``results/<name>``, of a sweep's folder in there."""
    found = []
    for path in sorted(folder.parents[1].rglob("comparisons/gradcam_overlap-*/comparison.json")):
        try:
            one = json.loads(path.read_text())
        except (OSError, json.JSONDecodeError):
            continue  # not finished
        if isinstance(one, dict) and {"runs", "metrics", "details", "settings"} <= one.keys():
            found.append(one)
    return found


def overlap_columns(lines: Sequence[Line], found: Overlaps | None, drop: str) -> list[Column]:
    """Rho, a column per model, the mean over the others, and the drop in AUC on ``drop``."""
    every = [line for line in lines if line.model is not None]
    compared = {run for runs in found.pairs for run in runs} if found else set()
    met = [line.model for line in every if line.model and {_run(r) for r in line.model.results.values()} & compared]

    def index(result: Mapping[str, Any], other: Model) -> tuple[float, float, float]:
        seed = str(result.get("seed"))
        theirs = other.results.get(seed)
        nothing = (math.nan, math.nan, math.nan)
        return found.pairs.get((_run(result), _run(theirs)), nothing) if found and theirs else nothing

    def mean(result: Mapping[str, Any]) -> float:
        values = [index(result, model)[0] for model in met if not _is(result, model)]
        return math.fsum(values) / len(values) if values else math.nan  # NaN where one of them is missing

    def pair(line: Line, other: Model) -> Column:
        method = _method(line)
        return Column(
            key=f"overlap {line.label}",
            title=line.label,
            number=lambda result: index(result, other)[0],
            ends=lambda result: index(result, other)[1:],
            paper=method if line.paper else None,
            paper_decimals=3,
            itself=method,
        )

    columns = [RHO, *(pair(line, line.model) for line in every if line.model is not None)]
    test = ("generalization", "chest_transfer", f"drop_{drop}")
    return [
        *columns,
        Column(key="mean overlap", title="mean", number=mean, paper="mean", paper_decimals=3, better=1),
        Column(
            key="drop in AUC", title="AUC drop (points)", number=lambda result: 100 * number(result, *test, "value"),
            paper="perf_drop", share=True, better=1,
            ends=lambda result: (100 * number(result, *test, "ci_low"), 100 * number(result, *test, "ci_high")),
        ),
    ]  # fmt: skip


def overlap_lines(found: Sequence[Model], paper: Any) -> list[Line]:
    """The paper's models in its order under its names, then the sweep's others under theirs."""
    rest = list(found)
    lines = []
    names = {ours: theirs for theirs, ours in CHEST.items()}
    for row in paper.reset_index().to_dict("records"):
        method = str(row[METHOD])
        mine = next((model for model in rest if dict(model.overrides) == {"method": method}), None)
        if mine is not None:
            rest.remove(mine)
        numbers = {key: float(value) for key, value in row.items() if isinstance(value, int | float)}
        lines.append(Line(label=names[method], model=mine, paper=numbers))
    for model in rest:
        others = [f"{key}={value}" for key, value in model.overrides.items() if key != METHOD]
        method = model.overrides.get(METHOD, "run").removeprefix("chest_")
        lines.append(Line(label=", ".join([method, *others]), model=model))
    return lines


def _document(name: str, title: str, sweeps: Mapping[str, Sweep]) -> Document:
    sweep = sweeps[EXPERIMENT]
    wanted = SOURCES[name]
    found = overlaps(sweep, wanted) or overlaps(sweep, HERE)
    lines = overlap_lines(models(sweep), by_method(name))
    columns = overlap_columns(lines, found, wanted)
    parts = [beside(name, _caption(found, wanted), "model", lines, columns, stacked=True)]
    reference = next((line for line in lines if line.model is not None and _method(line) == _REFERENCE), None)
    if reference is not None and sum(line.model is not None for line in lines) > 1:
        what = [column for column in columns if column.itself is None]
        caption = f"Difference to the unregularized network, seed by seed: {PAIRED}. n/a: fewer than two pairs."
        parts.append(differences(f"{name}_differences", caption, "model", lines, what, reference))
    return Document(name, title, (READING, *about([sweep])), tuple(parts), (sweep,))


def _caption(found: Overlaps | None, wanted: str) -> str:
    drop = f"Drop: mean AUC over six findings on {NAMES[wanted]} less the held-out test split's, times 100."
    if found is None:
        return f"No comparison of Grad-CAM maps on {NAMES[wanted]} or {NAMES[HERE]} is there. {drop}"
    text = (
        f"Jaccard index of the top tenth of Grad-CAM pixels on {found.images} images of {NAMES[found.source]}, methods "
        f"compared seed by seed; by chance it is {found.chance:.3f}. Mean: over the other models compared. {drop}"
    )
    if found.source != wanted:
        text += f" The paper's overlap is on {NAMES[wanted]}, which was not at hand: other images, not its numbers."
    if found.left_out:
        text += f" {found.left_out} older comparisons with other settings are left out."
    return text


def _of(one: Mapping[str, Any], source: str, runs: set[tuple[str, str]]) -> bool:
    return one["details"].get("source") == source and len({_run(run) for run in one["runs"]} & runs) > 1


def _run(result: Mapping[str, Any]) -> tuple[str, str]:
    return str(result.get("config_hash")), str(result.get("seed"))


def _is(result: Mapping[str, Any], model: Model) -> bool:
    return _run(result) in {_run(other) for other in model.results.values()}


def _method(line: Line) -> str | None:
    return line.model.overrides.get(METHOD) if line.model else None
