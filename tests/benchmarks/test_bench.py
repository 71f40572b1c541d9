"""The harness itself: two libraries on a tiny network, in real processes, and the tables made of it."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(script: str, *arguments: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        importlib.import_module(script).main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    settings = ("--sessions", 1, "--rounds", 2, "--moment", 0.001, "--out", folder)
    run("curvature", "--case", "tiny", "--library", "autograd", "kept graph", *settings)  # exits where one is wrong
    return folder


def test_every_quantity_has_a_time_per_round_and_a_right_result(results: Path) -> None:
    found = json.loads((results / "tiny.json").read_text())
    assert found["wrong"] == []
    (case,) = found["cases"]
    for quantity, record in case["quantities"].items():
        assert set(record["libraries"]) == {"autograd", "kept graph"}
        for name, best in record["best"].items():
            result = record["libraries"][name][best]
            assert len(result["wall"]) == record["rounds"] == 2
            assert min(result["wall"]) > 0
            if quantity in ("gradient", "product", "quadratic"):
                assert result["error"] < 1e-5
            if quantity.startswith("solve"):
                assert result["residual"] <= 1.1 * float(quantity.split()[1])
        assert record["ratios"]["autograd"]["autograd"] == [1.0, 1.0, 1.0]


def test_results_name_versions_and_no_machine(results: Path) -> None:
    text = (results / "tiny.json").read_text()
    assert json.loads(text)["versions"]["kept graph"]["torch"]
    assert str(Path.home()) not in text
    assert str(BENCHMARKS) not in text


def test_tables_replace_what_stands_between_the_markers(results: Path, tmp_path: Path) -> None:
    (tmp_path / "mlp.json").write_text((results / "tiny.json").read_text())  # as if it were one of the main cases
    docs = tmp_path / "speed.md"
    docs.write_text("before\n<!-- begin: written by benchmarks/report.py -->\nstale numbers\n<!-- end -->\nafter\n")
    run("report", "--results", tmp_path, "--docs", docs)
    text = docs.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "stale numbers" not in text
    rows = [line for line in text.splitlines() if line.startswith("| kept graph |")]
    assert len(rows) > 8
