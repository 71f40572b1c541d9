"""The command that is to be run where there is a GPU: what it says where there is none, and how it reports trouble."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

FILE = Path(__file__).resolve().parents[3] / "benchmarks" / "gpu.py"


@pytest.fixture
def gpu() -> Any:
    spec = importlib.util.spec_from_file_location("benchmarks_gpu", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_without_a_gpu_it_says_so(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    assert gpu.main() == 1
    assert capsys.readouterr().out == "benchmarks/gpu.py: there is no CUDA device here; nothing was run.\n"


def test_a_part_that_fails_is_reported_and_costs_itself_alone(
    gpu: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part = gpu.Part(torch.device("cpu"), True, tmp_path / "rows.json")
    with part.trying("first"):
        raise RuntimeError("a kernel went wrong")
    part.report("second", 3.0, "x", 2.0)
    part.report("third", 3.0, "x", 2.0, least=True)
    gpu.show(part.rows)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "  FAILED  first: RuntimeError: a kernel went wrong"
    assert [line.split()[:2] for line in lines[1:]] == [["OVER", "second"], ["ok", "third"]]
    assert "a kernel went wrong" in (tmp_path / "rows.json").read_text()


def test_the_way_to_a_float64_reference(gpu: Any, tmp_path: Path) -> None:
    part = gpu.Part(torch.device("cpu"), True, tmp_path / "rows.json")
    objective, x, y = gpu.small(part, "mlp")
    assert (objective.n, x.dtype, tuple(x.shape)) == (2087, torch.float32, (128, 54))
    reference = gpu.doubled(objective, x, y)
    assert reference.params.dtype == torch.float64
    problem = gpu.makers(part, objective, x, y)["graph"]()
    assert gpu.error(problem.grad(), reference.grad()) < 1e-5
    assert gpu.again(problem).network is problem.network
