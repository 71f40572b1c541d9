"""Tables 2 to 5 of the paper from sweeps, ours beside the paper's.

The paper trained one model of each; here a cell is the mean ± standard deviation over seeds.  Relative shift accuracy
has two uncertainties: over the seeds, the ±, and over the shifts, the paper's, in brackets: the mean of the runs' own
intervals.  All runs meet the same shifts, so this is the interval of one network, as the paper has it, and no narrower
than that of the networks' average change.  The two are not added up: the first holds for another training, the second
for other shifts.  In table 4 the standard error over batches is averaged the same way.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import pandas as pd

from spectral_run.reports.beside import Column, Line, beside, differences
from spectral_run.reports.clipped import unchanged, with_clipped
from spectral_run.reports.collect import number
from spectral_run.reports.document import Document, TableOut, about
from spectral_run.reports.paper_columns import COVTYPE, EVERY_COLUMN, USPS, at, not_converged
from spectral_run.reports.paper_numbers import METHODS, by_method, numbers
from spectral_run.reports.seeds import Model, models

if TYPE_CHECKING:
    from spectral_run.reports.sweeps import Sweep

REFERENCE: Final = "unregularized"
CLIP: Final = 1  # of conf/experiment/table*_clipped.yaml
_CLIPPED: Final = f", its gradient clipped at {CLIP}"
BATCH: Final = "training.batch_size"
PAPER_BATCH: Final = 128
_Z95: Final = 1.959963984540054  # of the intervals in result.json
_PENALTY: Final = re.compile(r"mu(?P<mu>[\d.e-]+)-K(?P<K>[\d.]+)")
_BATCH_METHOD: Final = re.compile(r"-batch(\d+)$")
READING: Final = (
    "Here: mean ± standard deviation over seeds; with one run, its value and 95% interval. The paper printed one model "
    "of each. Bold: better than every other row by paired 95% confidence intervals; no row where a tie is not excluded "
    "or another row failed or is missing."
)
PAIRED: Final = (
    "mean over the seeds that both have [95% confidence interval], by Student's t below 8 pairs and by the "
    "bootstrap-t from 8 on"
)


def table2(sweeps: Mapping[str, Sweep]) -> Document:
    """Forest cover, every method."""
    return _methods("table2", "Table 2: forest cover", "Forest cover, every method.", sweeps["table2"])


def table2_clipped(sweeps: Mapping[str, Sweep]) -> Document:
    """Table 2, its penalties exchanged for clipped ones."""
    clipped, printed = sweeps["table2_clipped"], sweeps.get("table2")
    return _methods(
        "table2_clipped",
        f"Table 2 with the penalty's gradient clipped at {CLIP}",
        f"Forest cover, every method; the five penalties by power iteration with their gradient clipped at {CLIP}.",
        with_clipped(clipped, printed),
        clipped,
        *([unchanged(clipped, printed)] if printed else []),
    )


def _methods(name: str, title: str, what: str, sweep: Sweep, *made_of: Sweep) -> Document:
    lines = method_lines(models(sweep), by_method("table2"))
    caption = (
        f"{what} Relative shift accuracy: weighted over plain test accuracy, less 1, mean over random shifts; ± over "
        "seeds; brackets: 95% interval over the shifts, as the paper's, mean of the runs' own."
    )
    parts = [beside(name, caption, "model", lines, COVTYPE)]
    reference = next((line for line in lines if _method(line) == REFERENCE), None)
    parts += _differences(name, "model", lines, COVTYPE, reference, "the unregularized network")
    if any(line.values(EVERY_COLUMN[0]) for line in lines):
        caption = (
            "The same with every column shifted, the rare binary ones too: changes as large as the paper's. Single "
            "rows of rare columns weigh far more than all others then; the second interval is for another test split."
        )
        parts.append(beside(f"{name}_every_column", caption, "model", lines, EVERY_COLUMN))
    return _document(name, title, parts, *(made_of or (sweep,)))


def table3(sweeps: Mapping[str, Sweep]) -> Document:
    """Forest cover, batch sizes."""
    return _covtype_batches("table3", "Table 3: batch size on forest cover", "", sweeps["table3"])


def table3_clipped(sweeps: Mapping[str, Sweep]) -> Document:
    """Table 3 with a clipped penalty."""
    title = f"Table 3 with the penalty's gradient clipped at {CLIP}"
    return _covtype_batches("table3_clipped", title, _CLIPPED, sweeps["table3_clipped"])


def _covtype_batches(name: str, title: str, clipped: str, sweep: Sweep) -> Document:
    caption = (
        f"Forest cover, mu = 0.01, K = 0{clipped}, by the batch size of training. Relative shift accuracy as in table "
        "2: ± over seeds; brackets: 95% interval over the shifts, mean of the runs' own."
    )
    return _batches(name, title, caption, sweep, numbers("table3"), COVTYPE, "mu0.01-K0")


def table5(sweeps: Mapping[str, Sweep]) -> Document:
    """USPS, batch sizes."""
    caption = "USPS, mu = 0.005, K = 0, by the batch size of training: rho, and accuracy on each test set in %."
    paper, title = numbers("table5"), "Table 5: batch size on USPS"
    return _batches("table5", title, caption, sweeps["table5"], paper, USPS, "mu0.005-K0", stacked=True)


def table4(sweeps: Mapping[str, Sweep]) -> Document:
    """Rho of one model by the batch size that it is measured with."""
    return _measuring("table4", "Table 4: rho by measuring batch size", "", sweeps["table4"])


def table4_clipped(sweeps: Mapping[str, Sweep]) -> Document:
    """Table 4 of a model with a clipped penalty."""
    title = f"Table 4 with the penalty's gradient clipped at {CLIP}"
    return _measuring("table4_clipped", title, _CLIPPED, sweeps["table4_clipped"])


def _measuring(name: str, title: str, clipped: str, sweep: Sweep) -> Document:
    parts: list[TableOut] = []
    every = models(sweep)
    for i, model in enumerate(every):
        part, label = f"{name}_{i + 1}" if i else name, f" ({method_label(model)})" if len(every) > 1 else ""
        lines, columns = _measured(model)
        caption = (
            f"Forest cover, mu = 0.01, K = 0{clipped}, batch 128{label}: rho as batches of each size see it, mean over "
            "batches; ± over seeds. Standard error: over batches, mean over seeds. The last row is of the full "
            "training set (the paper's number there: its table 2)."
        )
        parts.append(beside(part, caption, "measuring batch size", lines, columns))
        reference = next(line for line in lines if line.label == str(PAPER_BATCH))
        parts += _differences(part, "measuring batch size", lines, columns[:1], reference, f"batches of {PAPER_BATCH}")
    return _document(name, title, parts, sweep)


def method_lines(found: Sequence[Model], paper: pd.DataFrame) -> list[Line]:
    """The paper's models in its order, ``not run`` where the sweep has none, then the sweep's others."""
    rest = list(found)
    lines = []
    for method, row in paper.iterrows():
        mine = next((model for model in rest if dict(model.overrides) == {"method": method}), None)
        if mine is not None:
            rest.remove(mine)
        label = method_label(mine) if mine else _label(str(method))
        lines.append(Line(label=label, model=mine, paper=_numbers(row.to_dict())))
    return lines + [Line(label=method_label(model), model=model) for model in rest]


def method_label(model: Model) -> str:
    """The paper's word for a method, where it has one, and the other overrides."""
    others = [f"{key}={value}" for key, value in model.overrides.items() if key != "method"]
    return ", ".join([_label(model.overrides.get("method", "run")), *others])


def batch_size(model: Model) -> int | None:
    """Of training: by override, by the method's name, by the configuration of a result."""
    for cell in model.cells.values():
        found = _BATCH_METHOD.search(cell.overrides.get("method", ""))
        said = cell.overrides.get(BATCH) or (found[1] if found else None)
        said = said or (((cell.result or {}).get("config") or {}).get("training") or {}).get("batch_size")
        if said is not None and str(said).isdigit():
            return int(said)
    return None


def batch_lines(found: Sequence[Model], paper: pd.DataFrame, method: str) -> list[Line]:
    """A row per batch size; the paper's numbers are those of ``method``, or of the only method there is."""
    kinds = {id(model): _kind(model) for model in found}
    several = len(set(kinds.values())) > 1
    sizes = {id(model): batch_size(model) for model in found}
    rest = sorted(found, key=lambda model: sizes[id(model)] or math.inf)
    lines = []
    for row in paper.to_dict("records"):
        size = int(row["batch_size"])
        fits = [m for m in rest if sizes[id(m)] == size and (not several or kinds[id(m)] == method)]
        if fits:
            rest.remove(fits[0])
        lines.append(Line(label=str(size), model=fits[0] if fits else None, paper=_numbers(row)))
    for model in rest:
        size_text = str(sizes[id(model)] or "batch size unknown")
        lines.append(Line(label=f"{size_text}, {kinds[id(model)]}" if several else size_text, model=model))
    return lines


def _kind(model: Model) -> str:
    parts = {key: value for key, value in model.overrides.items() if key != BATCH}
    method = _BATCH_METHOD.sub("", parts.pop("method", ""))
    return ", ".join([method] * bool(method) + [f"{key}={value}" for key, value in parts.items()])


def _batches(
    name: str,
    title: str,
    caption: str,
    sweep: Sweep,
    paper: pd.DataFrame,
    columns: Sequence[Column],
    method: str,
    *,
    stacked: bool = False,
) -> Document:
    head = "batch size"
    lines = batch_lines(models(sweep), paper, method)
    parts = [beside(name, caption, head, lines, columns, stacked=stacked)]
    reference = next((line for line in lines if line.label == str(PAPER_BATCH)), None)
    parts += _differences(name, head, lines, columns, reference, f"batches of {PAPER_BATCH}")
    return _document(name, title, parts, sweep)


def _measured(model: Model) -> tuple[list[Line], list[Column]]:
    """A row per measuring batch size: the same runs, each with results of which ``rho`` is that one."""
    paper = {int(size): float(rho) for size, rho in numbers("table4").itertuples(index=False)}
    key = re.compile(r"rho_(\d+)$")
    tests = [(result.get("generalization") or {}).get("batch_radius") or {} for result in model.results.values()]
    sizes = sorted({int(match[1]) for test in tests for metric in test if (match := key.match(metric))} | {*paper})
    full = float(by_method("table2")["rho"].loc["mu0.01-K0"])
    lines = [Line(label=str(s), model=_only(model, s), paper={"rho": paper[s]} if s in paper else {}) for s in sizes]
    lines.append(Line(label="all rows", model=model, paper={"rho": full}))
    columns = [
        Column(key="rho", title="rho", number=at("rho", "value"), paper="rho", flag=not_converged),
        Column(key="standard error", title="standard error", number=at("rho", "standard_error")),
        Column(key="batches", title="batches", number=at("rho", "batches"), count=True),
    ]
    return lines, columns


def _only(model: Model, size: int) -> Model:
    cells = {}
    for seed, cell in model.cells.items():
        result = None
        if cell.result is not None:
            metric = ("generalization", "batch_radius", f"rho_{size}")
            value, high = number(cell.result, *metric, "value"), number(cell.result, *metric, "ci_high")
            stopped = number(cell.result, "generalization_details", "batch_radius", "not_converged", str(size))
            rho = {"value": value, "standard_error": (high - value) / _Z95, "converged": not stopped > 0}
            result = dict(cell.result) | {"rho": rho | {"batches": number(cell.result, *metric, "n")}}
        cells[seed] = replace(cell, result=result)
    return Model(model.overrides, cells)


def _differences(
    name: str, head: str, lines: Sequence[Line], columns: Sequence[Column], reference: Line | None, what: str
) -> list[TableOut]:
    if reference is None or reference.model is None:
        return []
    if not any(line.model is not None and line is not reference for line in lines):
        return []
    units = " (percentage points where a column is in %)" if any(column.share for column in columns) else ""
    caption = f"Difference to {what}, seed by seed{units}: {PAIRED}. n/a: fewer than two pairs."
    return [differences(f"{name}_differences", caption, head, lines, columns, reference)]


def _document(name: str, title: str, parts: Sequence[TableOut], *sweeps: Sweep) -> Document:
    return Document(name, title, (READING, *about(sweeps)), tuple(parts), tuple(sweeps))


def _method(line: Line) -> str | None:
    return line.model.overrides.get("method") if line.model else None


def _label(method: str) -> str:
    for theirs, ours in METHODS.items():
        if method == ours:
            return theirs
    found = _PENALTY.fullmatch(method)
    return f"mu = {found['mu']}, K = {found['K']}" if found else method


def _numbers(row: Mapping[Any, Any]) -> dict[str, float]:
    return {str(key): float(value) for key, value in row.items() if isinstance(value, int | float)}
