"""The command in this process, in an empty folder: what a person types, what comes out, what is left behind."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from spectral_run.runner import cli, console

QUICK = ("training.epochs=2", "generalization=none", "model.widths=[8]", "curvature.eps=0.1")
"""A run of a second: digits, two epochs, a small network."""


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str
    folder: Path

    def results(self) -> list[Path]:
        return sorted(self.folder.rglob("result.json"))

    def result(self) -> dict[str, Any]:
        (path,) = self.results()
        return json.loads(path.read_text())


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Ran]]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    random = torch.get_rng_state()

    def run(*arguments: str) -> Ran:
        capfd.readouterr()
        code = cli.command(list(arguments))
        out, err = capfd.readouterr()
        return Ran(code, out, err, tmp_path)

    yield run
    if "joblib" in sys.modules:  # workers stay, in the folder that they were started in
        from joblib.externals.loky import get_reusable_executor

        get_reusable_executor().shutdown(wait=True)
    torch.set_rng_state(random)
    for handler in list(console.log.handlers):
        console.log.removeHandler(handler)


@pytest.fixture
def quick(command: Callable[..., Ran]) -> Callable[..., Ran]:
    return lambda *arguments: command(*QUICK, *arguments)
