"""The import package is made of links: every folder of code at the root, and nothing that would break an install."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "spectral_run"
OUTSIDE = ("tests", "benchmarks")  # run from the checkout, never installed
FOLDERS = sorted(
    path.name for path in ROOT.iterdir() if path.is_dir() and (list(path.glob("*.py"))) and path.name not in OUTSIDE
)


@pytest.mark.parametrize("name", FOLDERS)
def test_every_folder_is_linked(name: str) -> None:
    link = PACKAGE / name
    assert link.is_symlink()
    assert str(link.readlink()) == f"../../{name}"


def test_no_link_leads_nowhere() -> None:
    assert {path.name for path in PACKAGE.iterdir() if path.is_symlink()} == set(FOLDERS)


def test_only_conf_has_an_init() -> None:
    assert [name for name in FOLDERS if (ROOT / name / "__init__.py").exists()] == ["conf"]


def test_constraints_name_no_host() -> None:
    text = (ROOT / "constraints.txt").read_text()
    assert "://" not in text
    assert re.search(r"^torch==", text, re.MULTILINE)


def test_every_make_target_has_a_line_of_help() -> None:
    targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    shown = subprocess.run(
        ["make", "--no-print-directory", "-C", str(ROOT), "help"], capture_output=True, text=True, check=True
    ).stdout
    assert set(targets) == {line.split()[0] for line in shown.splitlines() if line}
    for target in ("run", "test", "data", "golden", "clean"):
        assert target in targets
