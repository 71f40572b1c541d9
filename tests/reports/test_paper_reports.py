"""The registry: every report exists, is made of sweeps, and naming them loads neither torch nor matplotlib."""

import subprocess
import sys

import pytest

from spectral_run.reports.document import Document
from spectral_run.reports.paper_reports import REPORTS
from spectral_run.reports.sweeps import Cell, Sweep

CLIPPED = [f"table{i}_clipped" for i in range(2, 5)]
NAMES = [*(f"table{i}" for i in range(2, 8)), *CLIPPED, *(f"figure{i}" for i in range(1, 8)), "verdicts"]


def test_every_table_and_figure_and_the_verdicts_are_there():
    assert list(REPORTS) == NAMES
    for report in REPORTS.values():
        assert report.experiments
        assert len(set(report.experiments)) == len(report.experiments)


def test_naming_the_reports_loads_no_torch_and_no_matplotlib_and_making_them_no_torch():
    code = """
import sys
from importlib import import_module
from spectral_run.reports.paper_reports import REPORTS
assert not {"torch", "matplotlib", "pandas", "scipy"} & sys.modules.keys()
for name in ("paper_tables", "overlap_tables", "paper_figures", "verdicts"):
    import_module(f"spectral_run.reports.{name}")
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_a_report_of_cells_that_are_all_missing_is_made(name, tmp_path):
    cells = tuple(Cell({"method": "unregularized", "seed": str(seed)}, "missing", None, None) for seed in range(2))
    folder = tmp_path / "results" / "paper_small" / "sweeps" / "x"
    sweeps = {of: Sweep(of, "small", folder, cells) for of in REPORTS[name].experiments}
    document = REPORTS[name].make(sweeps)
    assert isinstance(document, Document)
    assert document.name == name
