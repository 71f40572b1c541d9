"""``make data``: fetch every data set that has a conf file, and the MNIST test images, or say where each belongs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from omegaconf import OmegaConf

from spectral_run.datasets import mnist
from spectral_run.datasets.base import DataError, DataHome, Dataset
from spectral_run.runner.cli import CONF
from spectral_run.runner.targets import build


def main() -> int:
    """Fetch into $SPECTRAL_DATA, else ``data``; returns 1 where a file is missing still."""
    home = DataHome(Path(os.environ.get("SPECTRAL_DATA", "data")))
    missing = 0
    jobs = {path.stem: _dataset(path).prepare for path in sorted((CONF / "dataset").glob("*.yaml"))}
    for name, prepare in {**jobs, "mnist": mnist.prepare}.items():
        try:
            prepare(home)
            print(f"{name}: ready")
        except (FileNotFoundError, DataError) as error:
            missing += 1
            print(f"{name}: {error}", file=sys.stderr)
    return 1 if missing else 0


def _dataset(path: Path) -> Dataset:
    node = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(node, dict)
    dataset = build(node["dataset"], f"{path.name}: dataset")
    assert isinstance(dataset, Dataset)
    return dataset


if __name__ == "__main__":
    sys.exit(main())
