"""The paper's tables, figures and claims as reports: of which experiments' sweeps each is made, and by what."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, TypeAlias, cast

if TYPE_CHECKING:
    from spectral_run.reports.document import Document
    from spectral_run.reports.sweeps import Sweep

Make: TypeAlias = "Callable[[Mapping[str, Sweep]], Document]"
"""Sweeps by experiment to the report; of ``experiments`` those that are there."""


@dataclass(frozen=True)
class Report:
    """``experiments``: whose sweeps it is made of, the first the one it can't do without; with ``any_of`` each can."""

    experiments: tuple[str, ...]
    make: Make
    any_of: bool = False


def _later(module: str, function: str) -> Make:
    """The function, whose module is imported when it is called: naming the reports loads no matplotlib."""

    def make(sweeps: Mapping[str, Sweep]) -> Document:
        return cast(Make, getattr(import_module(f"spectral_run.reports.{module}"), function))(sweeps)

    return make


REPORTS: Final[Mapping[str, Report]] = MappingProxyType(
    {
        "table2": Report(("table2",), _later("paper_tables", "table2")),
        "table3": Report(("table3",), _later("paper_tables", "table3")),
        "table4": Report(("table4",), _later("paper_tables", "table4")),
        "table5": Report(("table5",), _later("paper_tables", "table5")),
        "table6": Report(("chest_finetune",), _later("overlap_tables", "table6")),
        "table7": Report(("chest_finetune",), _later("overlap_tables", "table7")),
        "table2_clipped": Report(("table2_clipped", "table2"), _later("paper_tables", "table2_clipped")),
        "table3_clipped": Report(("table3_clipped",), _later("paper_tables", "table3_clipped")),
        "table4_clipped": Report(("table4_clipped",), _later("paper_tables", "table4_clipped")),
        "figure1": Report(("figure1",), _later("paper_figures", "figure1")),
        "figure2": Report(("figure2",), _later("paper_figures", "figure2")),
        "figure3": Report(("chest_finetune",), _later("paper_figures", "figure3")),
        "figure4": Report(("table2", "figure1"), _later("paper_figures", "figure4"), any_of=True),
        "figure5": Report(("figure5", "table2"), _later("paper_figures", "figure5"), any_of=True),
        "figure6": Report(("figure1",), _later("paper_figures", "figure6")),
        "figure7": Report(("figure1",), _later("paper_figures", "figure7")),
        "verdicts": Report(
            (
                *("table2", "table3", "table4", "table5", "table2_clipped", "table3_clipped", "table4_clipped"),
                *("figure1", "figure2", "figure5", "chest_finetune"),
            ),
            _later("verdicts", "verdicts"),
            any_of=True,
        ),
    }
)
"""By the name that ``report=`` takes."""
