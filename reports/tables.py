"""Runs to a table a person reads: mean over seeds, spread and n; missing cells are named, never guessed."""

from __future__ import annotations

import math
import re
from collections.abc import Collection

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from spectral_run.reports.collect import ABOUT, HIGH, LABEL, LOW, STATUS

ABSENT = "n/a"  # the run is done and has no such number: the data set has no such test
_SHARE = re.compile(r"\b(accuracy|gap|error rate|relative change)\b|\bat\d+$")
_BESIDE = 4  # models at most that stand beside each other


def numbers(frame: pd.DataFrame) -> list[str]:
    """The columns that a table shows: those with a value in some run, intervals and flags apart."""
    hidden = (*ABOUT, "rho converged")
    names = [n for n in frame.columns if n not in hidden and not n.endswith((LOW, HIGH))]
    return [name for name in names if frame[name].notna().any()]


def is_share(name: str, names: Collection[str]) -> bool:
    """Whether a number is an accuracy, or a relative change of one, and so shown in percent.

    A level of a test, whatever it is called, is an accuracy if the test has its gap.
    """
    siblings = (other.replace(" gap ", " ", 1) for other in names if " gap " in other)
    return bool(_SHARE.search(name)) or name in siblings


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """A row per model and a column per number, as text, in the frame's order.

    One run: value and 95% interval. Several: mean ± standard deviation over seeds, with n where a value is missing.
    """
    names = numbers(frame)
    rows = []
    for label, group in frame.groupby(LABEL, sort=False):
        done = group[group[STATUS] == "done"]
        other = group.loc[group[STATUS] != "done", STATUS].value_counts()
        runs = f"{len(done)}"
        if len(other):
            runs += f" of {len(group)}"
        if len(other) and (len(done) or not names):  # else the cells say it
            runs += f" ({', '.join(f'{n} {status}' for status, n in other.items())})"
        row = {LABEL: label, "runs": runs}
        for name in names:
            row[name] = _cell(name, done, is_share(name, names)) if len(done) else "/".join(map(str, other.index))
        rows.append(row)
    return pd.DataFrame(rows).set_index(LABEL)


def legend(frame: pd.DataFrame) -> str:
    """What the signs in the cells mean, of those that are there."""
    done = frame[frame[STATUS] == "done"]
    if done.empty:
        return ""
    counts = done.groupby(LABEL).size()
    parts = ["mean ± standard deviation over seeds"] if (counts > 1).any() else []
    single = done[done[LABEL].map(counts) == 1]
    if any(name.endswith(LOW) and single[name].notna().any() for name in frame.columns):
        parts.append("value [95% interval]" + (" where there is one run" if parts else ""))
    return "; ".join(parts)


def markdown(text: pd.DataFrame) -> str:
    """The table for a page: models as columns where there are few, as rows where there are many."""
    shown = text.T if len(text) <= _BESIDE else text
    escaped = shown.rename(index=_no_bar, columns=_no_bar).map(_no_bar).rename_axis(None)
    return str(escaped.to_markdown(disable_numparse=True, colalign=["left", *["right"] * len(escaped.columns)])) + "\n"


def print_summary(text: pd.DataFrame, console: Console) -> None:
    """Models side by side where they fit; else a row each, in as many blocks of columns as the width asks for."""
    for block in blocks(text, console.width):
        grid = Table()
        first = (_folded if block.index.name is None else _first)(block, console.width)
        least = [min(_width(block, i), console.width // 2) for i in range(block.shape[1])]
        spare = console.width - first - sum(least)
        grid.add_column("" if block.index.name is None else LABEL, overflow="fold", width=first - 4)
        for column, width in zip(block.columns, least, strict=True):
            more = max(0, len(str(column)) + 3 - width)  # for the title in one line, while there is room
            more = more if more <= spare else 0
            spare -= more
            grid.add_column(Text(str(column)), justify="right", overflow="fold", width=width + more - 3)
        for name, row in block.iterrows():
            grid.add_row(Text(str(name)), *(Text(str(cell)) for cell in row))
        console.print(grid)


def blocks(text: pd.DataFrame, width: int) -> list[pd.DataFrame]:
    """The table cut into parts that are no wider than ``width``, where a part with one column can be."""
    across = text.T.rename_axis(index=None, columns=None)
    if (
        len(text) <= _BESIDE
        and _folded(across, width) + sum(_width(across, i) for i in range(across.shape[1])) <= width
    ):
        return [across]
    parts: list[list[int]] = []
    used = width + 1
    for i in range(text.shape[1]):
        needed = _width(text, i)
        if used + needed > width:
            parts.append([])
            used = _first(text, width)
        parts[-1].append(i)
        used += needed
    return [text.iloc[:, part] for part in parts]


def _first(shown: pd.DataFrame, width: int) -> int:
    """Characters of the first column with its frame: half the width at most, beyond that it is folded."""
    return min(width // 2 - 4, max(len(LABEL), *(len(str(name)) for name in shown.index))) + 4


def _folded(shown: pd.DataFrame, width: int) -> int:
    """The same where the names may be folded at spaces to make room for the columns."""
    words = [word for name in shown.index for word in str(name).split()]
    room = width - sum(_width(shown, i) for i in range(shown.shape[1]))
    return max(16, max(map(len, words)) + 4, min(room, _first(shown, width)))


def _width(shown: pd.DataFrame, column: int) -> int:
    """Characters of a column with its frame; its title is folded at spaces, its cells are not."""
    words = str(shown.columns[column]).split()
    return max(map(len, [*words, *shown.iloc[:, column].astype(str)])) + 3


def _cell(name: str, done: pd.DataFrame, share: bool) -> str:
    values = done[name].dropna()
    if values.empty:
        return ABSENT
    unit, scale = ("%", 100.0) if share else ("", 1.0)
    mean = scale * float(values.mean())
    if len(values) == 1:
        text = f"{_plain(mean, share)}{unit}"
        row = done.loc[values.index[0]]
        low, high = (scale * float(row.get(f"{name}{end}", math.nan)) for end in (LOW, HIGH))
        if math.isfinite(low) and math.isfinite(high):
            text += f" [{_plain(low, share)}, {_plain(high, share)}]"
    else:
        text = f"{mean_and_spread(mean, scale * float(values.std()), share)}{unit}"
    if len(values) < len(done):
        text += f" (n={len(values)})"
    stopped = int((done["rho converged"] == 0).sum()) if name == "rho" else 0
    return f"{text} ({stopped} not converged)" if stopped else text


def mean_and_spread(mean: float, spread: float, share: bool) -> str:
    """Both to the spread's second digit, at most to the mean's fourth, or in percent to its second decimal."""
    if spread <= 1e-12 * abs(mean):  # of equal values, by rounding
        spread = 0.0
    if not (math.isfinite(mean) and math.isfinite(spread)):
        return f"{_plain(mean, share)} ± {_plain(spread, share)}"
    most = 2 if share else max(0, 3 - _exponent(mean))
    decimals = min(most, max(0, 1 - _exponent(spread))) if spread > 0 else most
    decimals = min(decimals, 8)
    small = f"{spread:,.{decimals}f}"
    if spread > 0 and float(small.replace(",", "")) == 0:
        small = f"{spread:.1g}"
    large = f"{mean:,.{decimals}f}"
    if spread == 0 and not share and "." in large:
        large = large.rstrip("0").rstrip(".")
        small = "0"
    return f"{large} ± {small}"


def _plain(value: float, share: bool) -> str:
    if share:
        return f"{value:.2f}"
    if abs(value) >= 1000 and math.isfinite(value) and abs(value) < 1e9:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _exponent(value: float) -> int:
    return math.floor(math.log10(abs(value))) if value else 0


def _no_bar(value: object) -> str:
    return str(value).replace("|", "\\|")
