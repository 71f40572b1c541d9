"""Ours beside the paper's: models as rows, mean ± standard deviation over seeds, paired differences to one of them.

The best of a column is bold only where its paired differences to every other row have an interval without 0, all at
95%: with several rows that is stricter than 95%.  A row whose seeds are missing or failed altogether could be better,
so then none is bold; where all diverged there is no model to be better.  With one seed nothing is bold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import numpy as np
import pandas as pd

from spectral_run.reports.document import TableOut
from spectral_run.reports.paired import Paired, paired
from spectral_run.reports.seeds import Model, Number
from spectral_run.reports.tables import mean_and_spread

Ends: TypeAlias = Callable[[Mapping[str, Any]], tuple[float, float]]
"""Of a ``result.json``: the 95% interval within one run."""
HERE, PAPER = "here", "paper"
ABSENT: Final = "n/a"  # the runs are done and have no such number
NOT_RUN: Final = "not run"  # the sweep has no such model
NOT_PRINTED: Final = "-"  # the paper has no such number


@dataclass(frozen=True, kw_only=True)
class Column:
    """``better``: 1 where larger is, -1 where smaller is, 0 where neither. ``share``: in percent, to two decimals.

    ``paper``: the column of the paper's table, ``paper_ends`` those of its interval.  ``ends`` stand in the cell of a
    single run, with ``always`` their means over the seeds beside the spread.  ``itself``: the method that has 1 here.
    ``count``: a number that is the same for all seeds, as a rule, and is then shown without spread.
    """

    key: str  # in the CSV
    title: str
    number: Number
    paper: str | None = None
    paper_ends: tuple[str, str] | None = None
    paper_decimals: int = 2
    share: bool = False
    better: int = 0
    ends: Ends | None = None
    always: bool = False
    flag: Callable[[Mapping[str, Any]], str] = lambda _: ""
    itself: str | None = None
    count: bool = False


@dataclass(frozen=True, kw_only=True)
class Line:
    """A row: one of our models, or None where there is none, and the paper's numbers."""

    label: str
    model: Model | None
    paper: Mapping[str, float] = field(default_factory=dict)

    def values(self, column: Column) -> dict[str, float]:
        """By seed."""
        return self.model.values(column.number) if self.model else {}


def beside(
    name: str, caption: str, head: str, lines: Sequence[Line], columns: Sequence[Column], *, stacked: bool = False
) -> TableOut:
    """Ours and the paper's, in columns beside each other, or ``stacked`` in rows where there are many columns."""
    best = {column.key: best_line(lines, column) for column in columns}
    shown: list[dict[str, str]] = []
    bold = set()
    for number, line in enumerate(lines):
        row = {head: line.label} | ({"from": HERE} if stacked else {})
        row["runs"] = line.model.runs if line.model else "0"
        other = {head: "", "from": PAPER, "runs": ""}
        for column in columns:
            if best[column.key] == number:
                bold.add((len(shown), len(row)))
            row[column.title] = _ours(line, column)
            if stacked:
                other[column.title] = _theirs(line, column)
            elif column.paper:
                row[f"{column.title}, paper"] = _theirs(line, column)
        shown.append(row)
        if stacked and line.paper:
            shown.append(other)
    frame = pd.DataFrame([_numbers(head, line, columns) for line in lines])
    return TableOut(name, caption, frame, pd.DataFrame(shown), frozenset(bold))


def differences(
    name: str, caption: str, head: str, lines: Sequence[Line], columns: Sequence[Column], reference: Line
) -> TableOut:
    """Each row less ``reference``: mean over the seeds that both have, and its 95% interval."""
    shown, numbers = [], []
    for line in lines:
        if line is reference or line.model is None:
            continue
        text, row = {head: line.label}, {head: line.label}
        found = {column.key: paired(line.values(column), reference.values(column)) for column in columns}
        counts = {difference.n for difference in found.values() if difference}
        text["pairs"] = str(max(counts, default=0))
        for column in columns:
            difference = found[column.key]
            text[column.title] = ABSENT if difference is None else interval_text(difference, column.share)
            if difference is not None and len(counts) > 1:
                text[column.title] += f" (n={difference.n})"
            row |= _difference_numbers(column.key, difference)
        shown.append(text)
        numbers.append(row)
    return TableOut(name, caption, pd.DataFrame(numbers), pd.DataFrame(shown, columns=None if shown else [head]))


def best_line(lines: Sequence[Line], column: Column) -> int | None:
    """The row that is better than every other one by its paired interval; None where a tie is not excluded."""
    if not column.better:
        return None
    found = {number: values for number, line in enumerate(lines) if (values := line.values(column))}
    unknown = [
        line for line in lines if line.model and not line.model.results and set(line.model.trouble) != {"diverged"}
    ]
    if len(found) < 2 or unknown:
        return None
    best = max(found, key=lambda number: column.better * float(np.mean(list(found[number].values()))))
    against = [paired(found[best], values) for number, values in found.items() if number != best]
    return best if all(one is not None and one.sign == column.better for one in against) else None


def interval_text(found: Paired, share: bool) -> str:
    """``-0.52 [-0.91, -0.13]``, to the second digit of half the interval's width; in percent two decimals at least."""
    width = (found.ci_high - found.ci_low) / 2 or abs(found.mean)
    decimals = 1 - math.floor(math.log10(width)) if width > 0 else 0
    decimals = min(8, max(decimals, 2 if share else 0))
    return f"{found.mean:,.{decimals}f} [{found.ci_low:,.{decimals}f}, {found.ci_high:,.{decimals}f}]"


def ends_of(line: Line, column: Column) -> tuple[float, float]:
    """Mean over the seeds of the intervals within the runs; NaN where there are none.

    Where every run meets the same draws (shifts, batches) this is no narrower than the interval of the runs' average.
    """
    if column.ends is None or line.model is None:
        return math.nan, math.nan
    found = [column.ends(line.model.results[seed]) for seed in line.values(column)]
    low, high = (float(np.mean(ends)) for ends in zip(*found, strict=True)) if found else (math.nan, math.nan)
    return low, high


def _ours(line: Line, column: Column) -> str:
    model = line.model
    if model is None:
        return NOT_RUN
    if not model.results:
        return model.fate
    if column.itself is not None and column.itself == model.overrides.get("method"):
        return "1"
    values = line.values(column)
    if not values:
        return ABSENT
    mean = float(np.mean(list(values.values())))
    if len(values) > 1 and not (column.count and len(set(values.values())) == 1):
        text = mean_and_spread(mean, float(np.std(list(values.values()), ddof=1)), column.share)
    else:
        text = _plain(mean, column)
    low, high = ends_of(line, column)
    if (column.always or len(values) == 1) and math.isfinite(low) and math.isfinite(high):
        text += f" [{_plain(low, column)}, {_plain(high, column)}]"
    notes = [f"n={len(values)}"] if len(values) < len(model.results) else []
    flags = [flag for seed in values if (flag := column.flag(model.results[seed]))]
    notes += [f"{flags.count(flag)} {flag}" for flag in dict.fromkeys(flags)]
    return text + (f" ({', '.join(notes)})" if notes else "")


def _theirs(line: Line, column: Column) -> str:
    value = line.paper.get(column.paper, math.nan) if column.paper else math.nan
    if not math.isfinite(value):
        return NOT_PRINTED
    places = column.paper_decimals
    text = f"{value:.{places}f}"
    if column.paper_ends:
        low, high = (line.paper[end] for end in column.paper_ends)
        text += f" [{low:.{places}f}, {high:.{places}f}]"
    return text


def _plain(value: float, column: Column) -> str:
    return f"{value:.2f}" if column.share else f"{value:.4g}"


def _numbers(head: str, line: Line, columns: Sequence[Column]) -> dict[str, Any]:
    done, planned = (len(line.model.results), len(line.model.cells)) if line.model else (0, 0)
    row: dict[str, Any] = {head: line.label, "runs": line.model.runs if line.model else NOT_RUN}
    row |= {"done": done, "planned": planned}
    for column in columns:
        values = list(line.values(column).values())
        row[column.key] = float(np.mean(values)) if values else math.nan
        row[f"{column.key} sd"] = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
        row[f"{column.key} n"] = len(values)
        if column.ends:
            row[f"{column.key} ci_low"], row[f"{column.key} ci_high"] = ends_of(line, column)
        if column.paper:
            row[f"{column.key} paper"] = line.paper.get(column.paper, math.nan)
        for end in column.paper_ends or ():
            row[f"{column.key} paper {end.rpartition('_')[2]}"] = line.paper.get(end, math.nan)
    return row


def _difference_numbers(key: str, found: Paired | None) -> dict[str, Any]:
    if found is None:
        return {
            key: math.nan,
            f"{key} ci_low": math.nan,
            f"{key} ci_high": math.nan,
            f"{key} n": 0,
            f"{key} method": "",
        }
    return {
        key: found.mean,
        f"{key} ci_low": found.ci_low,
        f"{key} ci_high": found.ci_high,
        f"{key} n": found.n,
        f"{key} method": found.method,
    }
