"""``make data``: fetch every data set that has a conf file, and the MNIST test images, or say where each belongs.

Those that no program can fetch are looked for, and skipped with a line that says who hands them out.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from omegaconf import OmegaConf

from spectral_run.datasets import mnist
from spectral_run.datasets.base import DataError, DataHome, Dataset
from spectral_run.datasets.chest_xray.chexpert import PARTS, prepare_chexpert
from spectral_run.datasets.chest_xray.mimic import prepare_mimic
from spectral_run.datasets.files import ByHandError
from spectral_run.runner.cli import CONF
from spectral_run.runner.targets import build

BY_HAND: dict[str, Callable[[DataHome], None]] = {
    **{f"chexpert ({part})": partial(prepare_chexpert, part=part) for part in PARTS},
    "mimic-cxr-jpg": partial(prepare_mimic, part="test"),
}
"""What has no conf file: a test asks for it."""


def main() -> int:
    """Fetch into $SPECTRAL_DATA, else ``data``; returns 1 where a file is missing still that could be fetched."""
    home = DataHome(Path(os.environ.get("SPECTRAL_DATA", "data")))
    missing = 0
    datasets = map(_dataset, sorted((CONF / "dataset").glob("*.yaml")))
    jobs = {dataset.name: dataset.prepare for dataset in datasets}
    for name, prepare in {**jobs, "mnist": mnist.prepare, **BY_HAND}.items():
        try:
            prepare(home)
            print(f"{name}: ready")
        except ByHandError as error:
            print(f"{name}: skipped, {error}")
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
