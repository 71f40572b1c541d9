"""A report as one HTML page: everything in it, nothing fetched, no script; ``page.html.j2`` is its template.

Pictures are PNG, embedded: the same bytes as the file beside the page. A content security policy forbids the browser to
load anything else. Configurations, hashes, versions and times of all cells are folded below.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from spectral_run.reports.about import called
from spectral_run.reports.document import Document, TableOut, csv, latex, spans
from spectral_run.reports.figures import DPI
from spectral_run.reports.sweeps import Cell, Sweep

_SHORT = 32  # characters up to which row names are not folded
_INCH = 96  # pixels of CSS


def page(document: Document, pictures: Mapping[str, bytes]) -> str:
    """The page; ``pictures`` holds each figure's PNG by name."""
    parts = [
        _table(part) if isinstance(part, TableOut) else _figure(part.name, part.caption, part.alt, pictures[part.name])
        for part in document.parts
    ]
    return _template().render(
        title=document.title,
        gaps=document.gaps,
        paragraphs=document.paragraphs,
        parts=parts,
        sweeps=[_sweep(sweep) for sweep in document.sweeps],
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["rich"] = _rich
    return environment.get_template("page.html.j2")


def _rich(text: str) -> Markup:
    """Escaped, with `` `...` `` as code."""
    return Markup("").join(
        Markup("<code>{}</code>").format(piece) if code else escape(piece) for piece, code in spans(text)
    )


def _table(part: TableOut) -> dict[str, Any]:
    grid = part.grid
    rows = [
        [{"text": cell, "bold": (i, j) in grid.bold, "right": grid.right[j]} for j, cell in enumerate(row)]
        for i, row in enumerate(grid.rows)
    ]
    files = [
        {"name": f"{part.name}.csv", "kind": "CSV", "href": _data("text/csv;charset=utf-8", csv(part).encode())},
        {"name": f"{part.name}.tex", "kind": "LaTeX", "href": _data("text/plain;charset=utf-8", latex(part).encode())},
    ]
    titles = [{"text": title, "right": right} for title, right in zip(grid.titles, grid.right, strict=True)]
    short = all(len(row[0]) <= _SHORT for row in grid.rows if row)
    about = {"kind": "table", "name": part.name, "caption": part.caption, "short": short}
    return about | {"titles": titles, "rows": rows, "files": files}


def _figure(name: str, caption: str, alt: str, png: bytes) -> dict[str, Any]:
    width, height = struct.unpack(">II", png[16:24])  # of the header
    size = {"width": round(width * _INCH / DPI), "height": round(height * _INCH / DPI)}
    return {"kind": "figure", "name": name, "caption": caption, "alt": alt, "src": _data("image/png", png)} | size


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _sweep(sweep: Sweep) -> dict[str, Any]:
    configs = [dict(_settings(cell)) for cell in sweep.cells]
    known = [config for config in configs if config]
    paths = dict.fromkeys(path for config in known for path in config)
    differing = {path for path in paths if len({config.get(path) for config in known}) > 1}
    results = sweep.folder.parents[2] if len(sweep.folder.parents) > 2 else None  # results/<name>/sweeps/<time>
    cells = [
        _cell(cell, called(cell, sweep), config, differing, results)
        for cell, config in zip(sweep.cells, configs, strict=True)
    ]
    scale = f", scale {sweep.scale}" if sweep.scale else ""
    return {
        "title": f"{sweep.experiment}{scale}: {len(cells)} cells",
        "folder": _below(sweep.folder, results),
        "cells": cells,
    }


def _below(folder: Path, results: Path | None) -> str:
    """The folder as seen from the results' one: the page says nothing of the machine it was made on."""
    return str(folder.relative_to(results)) if results is not None and folder.is_relative_to(results) else str(folder)


def _cell(
    cell: Cell, name: str, config: Mapping[str, str], differing: set[str], results: Path | None
) -> dict[str, Any]:
    result = cell.result or {}
    data = result.get("data") or {}
    train = result.get("train") or {}
    facts = {
        "folder": None if cell.folder is None else _below(Path(cell.folder), results),
        "run": result.get("run_id"),
        "configuration (sha256)": result.get("config_hash"),
        "data": data.get("name"),
        **{f"sha256 of {file}": digest for file, digest in (data.get("files") or {}).items()},
        "first weights": (result.get("initialization") or {}).get("kind"),
        "parameters": f"{result['parameters']:,}" if "parameters" in result else None,
        "backend": (result.get("backend") or {}).get("name"),
        "device": result.get("device"),
        "threads": result.get("threads"),
        "processes": result.get("processes"),
        "versions": ", ".join(f"{package} {version}" for package, version in (result.get("versions") or {}).items()),
        "training": _seconds(train.get("seconds")),
        **{f"phase: {phase}": _seconds(value) for phase, value in (train.get("seconds_by_phase") or {}).items()},
        "whole run": _seconds(result.get("seconds")),
        "finished": result.get("finished"),
        "error": result.get("error"),
    }
    return {
        "name": name,
        "status": cell.status,
        "seconds": _seconds(train.get("seconds")),
        "facts": [(fact, str(value)) for fact, value in facts.items() if value not in (None, "")],
        "settings": [(path, value, path in differing) for path, value in config.items()],
        "traceback": str(result.get("traceback") or ""),
    }


def _seconds(value: Any) -> str:
    return f"{value:,.2f} s" if isinstance(value, int | float) else ""


def _settings(cell: Cell) -> Sequence[tuple[str, str]]:
    """The configuration as dotted paths and values, in its order."""

    def flat(value: Mapping[str, Any], prefix: str) -> list[tuple[str, str]]:
        found = []
        for key, item in value.items():
            if isinstance(item, Mapping) and item:
                found += flat(item, f"{prefix}{key}.")
            else:
                found.append((f"{prefix}{key}", item if isinstance(item, str) else json.dumps(item)))
        return found

    return flat((cell.result or {}).get("config") or {}, "")
