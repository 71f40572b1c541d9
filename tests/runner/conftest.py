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


SCANS = """
from dataclasses import dataclass
import numpy as np
import torch
from torch import nn
from spectral_run.datasets.base import Data, Dataset, Split
from spectral_run.datasets.chest_xray.images import Geometry, StoredImages

@dataclass(frozen=True, kw_only=True)
class Scans(Dataset):
    stored: bool
    loss = "binary_cross_entropy"
    name, input_shape, classes = "scans", (3, 6, 6), 2

    def load(self, home):
        random = np.random.default_rng(0)
        pixels = random.integers(0, 256, size=(90, 8, 8)).astype(np.uint8)
        bright = pixels.mean((1, 2)) + 3 * random.normal(size=90)
        labels = torch.tensor(np.stack([bright > 127, bright > 131], 1), dtype=torch.float32)
        splits = []
        for start, stop in ((0, 50), (50, 70), (70, 90)):
            inputs = StoredImages(pixels, np.arange(start, stop), Geometry(8, 6))
            groups = torch.arange(stop - start) // 2
            splits.append(Split(inputs if self.stored else inputs[:], labels[start:stop], groups))
        return Data("scans", *splits, {"scans": "0" * 64}, official=True)

class Net(nn.Module):
    def __init__(self, input_shape, classes):
        super().__init__()
        layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(64, classes)
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x)
"""


"""The same images twice: in memory, and stored as X-rays are, normalized when they are asked for; and a network."""


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


@pytest.fixture
def scans(tmp_path: Path) -> Iterator[Callable[..., tuple[str, ...]]]:
    """Puts ``SCANS`` and its conf files into a folder; gives the arguments that choose the data set."""

    def put(folder: Path = tmp_path) -> tuple[str, ...]:
        for group, text in (
            ("dataset", "# @package _global_\n# Mine.\ndataset:\n  _target_: scans.Scans\n  stored: true\n"),
            ("model", "# Mine.\n_target_: scans.Net\n"),
        ):
            (folder / "mine" / group).mkdir(parents=True)
            (folder / "mine" / group / "scans.yaml").write_text(text)
        (folder / "scans.py").write_text(SCANS)
        return ("--config-dir", "mine", "dataset=scans", "training.select_by=auc")

    sys.modules.pop("scans", None)
    yield put
    sys.modules.pop("scans", None)
