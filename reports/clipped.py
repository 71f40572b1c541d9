"""Table 2 with its penalties exchanged for those of another sweep, whose gradients are clipped.

As printed the penalties of forest cover diverge now and then (``docs/reproduction.md``); on X-rays, where its own did,
the paper clips.  What has no penalty is the same in both, and trained once.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spectral_run.reports.sweeps import Sweep


def with_clipped(clipped: Sweep, printed: Sweep | None) -> Sweep:
    """The cells of ``clipped``, after those of ``printed`` that it leaves as they are."""
    return replace(clipped, cells=(*(unchanged(clipped, printed).cells if printed else ()), *clipped.cells))


def unchanged(clipped: Sweep, printed: Sweep) -> Sweep:
    """Of ``printed`` the cells whose method is not in ``clipped``."""
    methods = {cell.overrides.get("method") for cell in clipped.cells}
    return replace(printed, cells=tuple(cell for cell in printed.cells if cell.overrides.get("method") not in methods))
