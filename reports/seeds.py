"""The cells of a sweep as models: those that differ in the seed alone, and what became of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    from spectral_run.reports.sweeps import Cell, Sweep

Number: TypeAlias = Callable[[Mapping[str, Any]], float]
"""Of a ``result.json``; NaN where it has no such number."""
SEED: Final = "seed"
DONE: Final = "done"


@dataclass(frozen=True)
class Model:
    """``overrides``: those that it has to itself; ``cells`` by seed."""

    overrides: Mapping[str, str]
    cells: Mapping[str, Cell]

    @property
    def results(self) -> dict[str, Mapping[str, Any]]:
        """Of the cells that are done, by seed."""
        return {seed: c.result for seed, c in self.cells.items() if c.status == DONE and c.result is not None}

    def values(self, number: Number) -> dict[str, float]:
        """By seed, of the cells that are done and have the number."""
        found = {seed: number(result) for seed, result in self.results.items()}
        return {seed: value for seed, value in found.items() if math.isfinite(value)}

    @property
    def trouble(self) -> dict[str, list[str]]:
        """The seeds without a result, by what became of them: failed, diverged, missing."""
        found: dict[str, list[str]] = {}
        for seed, cell in self.cells.items():
            if seed not in self.results:
                found.setdefault("missing" if cell.status == DONE else cell.status, []).append(seed)
        return found

    @property
    def runs(self) -> str:
        """``3``; ``2 of 3: seed 1 diverged``; ``0 of 3: all failed``."""
        trouble = self.trouble
        if not trouble:
            return str(len(self.cells))
        words = [f"seed{'s' * (len(seeds) > 1)} {', '.join(seeds)} {status}" for status, seeds in trouble.items()]
        if len(trouble) == 1 and not self.results:
            words = [f"all {status}" for status in trouble]
        return f"{len(self.results)} of {len(self.cells)}: {'; '.join(words)}"

    @property
    def fate(self) -> str:
        """What stands in place of a number where no cell is done."""
        return "/".join(self.trouble) or "n/a"


def models(sweep: Sweep) -> list[Model]:
    """In the sweep's order. What all cells have in common is no part of ``overrides``, ``method`` apart."""
    groups: dict[tuple[tuple[str, str], ...], dict[str, Cell]] = {}
    common = _common(cell.overrides for cell in sweep.cells)
    for cell in sweep.cells:
        own = {k: v for k, v in cell.overrides.items() if k != SEED and (k not in common or k == "method")}
        seeds = groups.setdefault(tuple(sorted(own.items())), {})
        seeds.setdefault(_seed(cell), cell)
    return [Model(dict(own), cells) for own, cells in groups.items()]


def _common(overrides: Iterable[Mapping[str, str]]) -> set[str]:
    every = list(overrides)
    return {key for key in every[0] if all(one.get(key) == every[0][key] for one in every)} if every else set()


def _seed(cell: Cell) -> str:
    found = cell.overrides.get(SEED, (cell.result or {}).get(SEED))
    return "0" if found is None else str(found)
