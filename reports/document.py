"""What a report is made of, and its files: tables, figures, and both in order as Markdown and as one HTML page.

A table is CSV (numbers, all their digits), Markdown and LaTeX; a figure PNG and PDF; the whole ``<name>.md`` and
``<name>.html``. Texts are plain; `` `...` `` in them is set as code. Every file appears whole, and the same document
gives the same bytes. A new report replaces the files of its names and leaves others alone.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from spectral_run.reports.about import about as about  # a document's first paragraphs
from spectral_run.reports.about import gaps
from spectral_run.reports.figures import save
from spectral_run.reports.sweeps import Sweep
from spectral_run.runner.files import write_whole

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_WORD = "n/a|none|not run|missing|diverged|failed"  # what stands in a column of numbers where there is none
_NUMBER = re.compile(rf"\s*$|({_WORD})(/({_WORD}))*$|[-–—]$|[\s(\[<>≤≥≈~+±−-]*\.?\d", re.IGNORECASE)
_MINUS = re.compile(r"(?<![\w)])-(?=\.?\d)")
_LONG = 32  # characters from which on a column of a LaTeX table breaks its lines
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"$<$", ">": r"$>$", "|": r"$|$",
    "±": r"$\pm$", "−": r"$-$", "×": r"$\times$", "·": r"$\cdot$", "≤": r"$\leq$", "≥": r"$\geq$", "≈": r"$\approx$",
    "∞": r"$\infty$", "→": r"$\rightarrow$", "ρ": r"$\rho$", "μ": r"$\mu$", "λ": r"$\lambda$", "Δ": r"$\Delta$",
    "–": "--", "—": "---", "…": r"\dots{}", "²": r"$^2$", "³": r"$^3$", "✓": r"$\surd$", "\n": " ",
}  # fmt: skip


@dataclass(frozen=True)
class TableOut:
    """A table: ``frame`` has the numbers, ``shown`` the cells as text, ``bold`` positions (row, column) in ``shown``.

    An index other than 0, 1, ... is shown as the first column; positions do not count it.
    """

    name: str
    caption: str
    frame: pd.DataFrame
    shown: pd.DataFrame
    bold: frozenset[tuple[int, int]] = frozenset()

    def __post_init__(self) -> None:
        _check_name("TableOut", self.name)
        rows, columns = self.shown.shape
        outside = sorted(place for place in self.bold if not (0 <= place[0] < rows and 0 <= place[1] < columns))
        if outside:
            raise ValueError(f"TableOut {self.name}: bold cells must be among {rows} x {columns}, got {outside[0]}.")

    @property
    def grid(self) -> Grid:
        """The text cells with the index, where it says something, as first column."""
        index = _says_something(self.shown.index)
        columns = [_text(column) for column in self.shown.columns]
        rows = [[_text(cell) for cell in row] for row in self.shown.itertuples(index=False, name=None)]
        if index:
            columns.insert(0, _text(self.shown.index.name) if self.shown.index.name is not None else "")
            rows = [[_text(label), *row] for label, row in zip(self.shown.index, rows, strict=True)]
        return Grid(columns, rows, frozenset((row, column + index) for row, column in self.bold))


@dataclass(frozen=True)
class Grid:
    """A table as it is set: titles, cells, and which of them are bold."""

    titles: list[str]
    rows: list[list[str]]
    bold: frozenset[tuple[int, int]]

    @property
    def right(self) -> list[bool]:
        """Which columns are set to the right: those of numbers, never the first."""
        return [i > 0 and all(_NUMBER.match(row[i]) for row in self.rows) for i in range(len(self.titles))]


@dataclass(frozen=True)
class FigureOut:
    """A figure; ``alt`` says what is to be seen to those who do not see it."""

    name: str
    caption: str
    figure: Figure
    alt: str

    def __post_init__(self) -> None:
        _check_name("FigureOut", self.name)
        if not self.alt.strip():
            raise ValueError(f"FigureOut {self.name}: alt must say what is to be seen, got {self.alt!r}.")


@dataclass(frozen=True)
class Document:
    """A report: paragraphs, then tables and figures in order, made of ``sweeps``."""

    name: str
    title: str
    text: tuple[str, ...]
    parts: tuple[TableOut | FigureOut, ...]
    sweeps: tuple[Sweep, ...] = ()

    def __post_init__(self) -> None:
        _check_name("Document", self.name)
        for kind in (TableOut, FigureOut):
            names = Counter(part.name for part in self.parts if isinstance(part, kind))
            twice = [name for name, count in names.items() if count > 1]
            if twice:
                raise ValueError(f"Document {self.name}: each {kind.__name__} needs a name of its own, got {twice}.")

    @property
    def gaps(self) -> tuple[str, ...]:
        """What is missing, for the top of the page."""
        return gaps(self.sweeps)

    @property
    def paragraphs(self) -> tuple[str, ...]:
        """The text without what the top says."""
        return tuple(paragraph for paragraph in self.text if paragraph not in self.gaps)


def write(document: Document, destination: Path) -> list[Path]:
    """Write all files of the document into a folder, which is made; gives their paths. Raises ``OSError``.

    A table with the document's name has no Markdown of its own: that is the document's.
    """
    from spectral_run.reports.html import page  # it builds on the classes here

    destination.mkdir(parents=True, exist_ok=True)
    written = []

    def put(name: str, text: str) -> None:
        write_whole(destination / name, text.encode())
        written.append(destination / name)

    pictures = {}
    for part in document.parts:
        if isinstance(part, TableOut):
            put(f"{part.name}.csv", csv(part))
            if part.name != document.name:
                put(f"{part.name}.md", f"{_captioned(part)}\n\n{markdown(part)}")
            put(f"{part.name}.tex", latex(part))
        else:
            part.figure.draw_without_rendering()
            part.figure.set_layout_engine("none")  # it stays: every further drawing would move it a little
            for ending in ("png", "pdf"):
                path = destination / f"{part.name}.{ending}"
                save(part.figure, path)
                written.append(path)
            pictures[part.name] = (destination / f"{part.name}.png").read_bytes()
    put(f"{document.name}.md", _whole(document))
    put(f"{document.name}.html", page(document, pictures))
    return written


def csv(table: TableOut) -> str:
    """The numbers with all their digits."""
    return str(table.frame.to_csv(index=_says_something(table.frame.index), lineterminator="\n"))


def markdown(table: TableOut) -> str:
    """The text cells as a Markdown table, the bold ones bold."""
    grid = table.grid
    titles = [_safe(title) for title in grid.titles]
    rows = [
        [f"**{_safe(cell)}**" if (i, j) in grid.bold and cell else _safe(cell) for j, cell in enumerate(row)]
        for i, row in enumerate(grid.rows)
    ]
    aligned = ["right" if right else "left" for right in grid.right]
    shown = pd.DataFrame(rows, columns=range(len(titles)))
    return str(shown.to_markdown(index=False, headers=titles, disable_numparse=True, colalign=aligned)) + "\n"


def latex(table: TableOut) -> str:
    """The text cells as a LaTeX table that needs the package booktabs, with caption and label."""
    grid = table.grid
    bold = pd.DataFrame(
        [["font-weight: bold" if (i, j) in grid.bold else "" for j in range(len(grid.titles))]
         for i in range(len(grid.rows))],
        columns=range(len(grid.titles)),
    )  # fmt: skip
    shown = pd.DataFrame(grid.rows, columns=range(len(grid.titles)))
    style = shown.style.format(_latex).hide(axis="index").apply(lambda _: bold, axis=None)
    style = style.relabel_index([_latex(title) for title in grid.titles], axis=1)
    return str(
        style.to_latex(
            column_format=_columns(grid),
            hrules=True,
            convert_css=True,
            position="htbp",
            position_float="centering",
            caption=_latex(table.caption),
            label=f"tab:{table.name}",
        )
    )


def spans(text: str) -> list[tuple[str, bool]]:
    """A text cut where `` ` `` stand: what is plain, and what is code. One without a partner is a plain character."""
    pieces = re.split(r"`([^`]+)`", text)
    return [(piece, i % 2 == 1) for i, piece in enumerate(pieces) if piece]


def _whole(document: Document) -> str:
    """The document as Markdown; pictures and files by relative links."""
    blocks = [f"# {_safe(document.title)}", *(f"> {_safe(gap)}" for gap in document.gaps)]
    blocks += [_safe(paragraph) for paragraph in document.paragraphs]
    for part in document.parts:
        blocks.append(_captioned(part))
        if isinstance(part, TableOut):
            blocks.append(markdown(part).rstrip("\n"))
            blocks.append(f"[CSV]({part.name}.csv), [LaTeX]({part.name}.tex)")
        else:
            alt = re.sub(r"([\[\]])", r"\\\1", _safe(part.alt))
            blocks.append(f"![{alt}]({part.name}.png)")
            blocks.append(f"[PDF]({part.name}.pdf)")
    return "\n\n".join(blocks) + "\n"


def _captioned(part: TableOut | FigureOut) -> str:
    return f"**{part.name}.** {_safe(part.caption)}"


def _safe(text: str) -> str:
    """For Markdown: signs that mean something there, code apart, and no line breaks."""
    parts = [
        f"`{piece}`".replace("|", "\\|") if code else re.sub(r"([\\*|]|(?<!\w)_|_(?!\w))", r"\\\1", _entities(piece))
        for piece, code in spans(text)
    ]
    return " ".join("".join(parts).split())


def _entities(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _latex(value: object) -> str:
    parts = [(piece if code else _MINUS.sub("−", piece), code) for piece, code in spans(str(value))]
    escaped = [("".join(_LATEX.get(sign, sign) for sign in piece), code) for piece, code in parts]
    return "".join(rf"\texttt{{{piece}}}" if code else piece for piece, code in escaped)


def _columns(grid: Grid) -> str:
    """LaTeX's column letters; columns of long texts share the line."""
    widest = [max([len(title), *(len(row[i]) for row in grid.rows)]) for i, title in enumerate(grid.titles)]
    wide = [i for i, right in enumerate(grid.right) if not right and widest[i] > _LONG]
    total = sum(widest)
    return "".join(
        rf"p{{{max(0.1, 0.9 * widest[i] / total):.2f}\linewidth}}" if i in wide else "r" if right else "l"
        for i, right in enumerate(grid.right)
    )


def _says_something(index: pd.Index[Any]) -> bool:
    return index.name is not None or list(index) != list(range(len(index)))


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(str(part) for part in value if str(part))
    return "" if value is None else str(value)


def _check_name(who: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{who}: name must be the name of a file without ending, got {name!r}.")
