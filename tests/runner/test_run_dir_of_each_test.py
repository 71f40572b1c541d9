"""Every file of ``conf/generalization`` on a finished run: nothing is trained or done twice, and its record grows."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

import spectral_run.reports.figures  # noqa: F401  (matplotlib looks for fonts once, and keeps them in the user's cache)

FILES = {path.stem: path for path in (Path(__file__).parents[2] / "conf" / "generalization").glob("*.yaml")}
NAMES = sorted(name for name in FILES if name != "none")
GAN = ["epochs=1", "count=20", "classifier_epochs=1"]
QUICK = {
    "augmentation": ["draws=2"],
    "constructed": [f"others.{gan}.{setting}" for gan in ("gan1", "gan2") for setting in GAN[:2]],
    "batch_radius": ["sizes=[64]", "batches=2", "eps=0.1"],
    "gan1": GAN,
    "gan2": GAN,
    "loss_surface": ["points=3", "plane=3", "eps=0.1"],
    "spectrum": ["steps=6", "probes=2", "layer_probes=2", "sketch=2"],
    "valley_probe": ["points=4"],
}
ALONG = {"valley_probe": ["optimizer=gadam"]}
"""What a run needs besides, to be asked."""
NOT_OF_DIGITS = {"covariate_shift", "covariate_shift_all", "chest_transfer", "gradcam_overlap"}
SMALL = [
    "training.epochs=2", "model.widths=[8]", "curvature.eps=0.1", "curvature.backend=rop", "regularizer=none",
    "data_root=data",
]  # fmt: skip


def chosen_by(name: str) -> list[str]:
    """What a file chooses."""
    node = OmegaConf.load(FILES[name])
    if "_target_" not in node:
        return [test for choice in node.defaults for test in chosen_by(choice)]
    return [FILES[name].read_text().partition("\n")[0].rpartition(".")[2]]


def asked(name: str) -> list[str]:
    quick = [f"generalization.{test}.{setting}" for test in chosen_by(name) for setting in QUICK.get(test, [])]
    return [f"generalization=[{name}]", *quick]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for what the tests here share: finished runs and decoded data."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def finished(command: Callable, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """A copy of a run that was trained without tests, once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(kept / "cache"))
    mnist(tmp_path / "data" / "mnist" / "MNIST" / "raw")

    def run(along: Sequence[str]) -> Path:
        place = kept / ("run " + " ".join(along).replace("/", "-"))
        if not place.exists():
            ran = command(*along, *SMALL, "generalization=none", "name=first")
            assert ran.code == 0, ran.err
            shutil.copytree(ran.results()[0].parent, place)
        return Path(shutil.copytree(place, tmp_path / "run"))

    return run


def mnist(folder: Path) -> None:
    folder.mkdir(parents=True)
    random = np.random.default_rng(3)
    for name, values in (
        ("images-idx3", random.integers(0, 256, (40, 28, 28))),
        ("labels-idx1", random.integers(0, 10, 40)),
    ):
        header = bytes((0, 0, 8, values.ndim)) + b"".join(size.to_bytes(4, "big") for size in values.shape)
        path = folder / f"t10k-{name}-ubyte.gz"
        path.write_bytes(gzip.compress(header + values.astype(np.uint8).tobytes(), mtime=0))


@pytest.mark.parametrize("name", sorted(set(NAMES) - NOT_OF_DIGITS))
def test_each_test_runs_on_a_finished_run_without_retraining_and_adds_to_its_results(
    command: Callable, finished: Callable, name: str
) -> None:
    along = ALONG.get(name, [])
    folder = finished(along)
    before = json.loads((folder / "result.json").read_text())
    untouched = {file.name: file.read_bytes() for file in folder.glob("*") if file.suffix in (".pt", ".jsonl", ".yaml")}
    assert {"model.pt", "metrics.jsonl", "config.yaml"} <= set(untouched)
    ran = command(f"run_dir={folder}", "data_root=data", *asked(name))
    assert ran.code == 0, ran.err
    assert "epoch" not in ran.out
    after = json.loads((folder / "result.json").read_text())
    assert untouched == {file: (folder / file).read_bytes() for file in untouched}
    for key in ("generalization", "generalization_details", "measured"):
        assert list(after.pop(key)) == chosen_by(name)
    assert after == {key: value for key, value in before.items() if not key.startswith("generalization")}
    for file in ("table.csv", "result.json"):
        assert (folder / file).stat().st_size > 0

    result = (folder / "result.json").read_bytes()
    again = command(f"run_dir={folder}", "data_root=data", *asked(name))
    assert again.code == 0, again.err
    assert again.out.count("measured before") == len(chosen_by(name))
    assert (folder / "result.json").read_bytes() == result


def test_a_run_that_had_the_tests_from_the_start_has_the_same_numbers(command: Callable, finished: Callable) -> None:
    tests = ["usps", "batch_radius", "loss_surface", "spectrum"]
    quick = [override for name in tests for override in asked(name)[1:]]
    folder = finished([])
    assert command(f"run_dir={folder}", "data_root=data", f"generalization=[{','.join(tests)}]", *quick).code == 0
    ran = command(*SMALL, f"generalization=[{','.join(tests)}]", *quick, "name=second")
    assert ran.code == 0, ran.err
    (other,) = (path.parent for path in ran.results() if "second" in path.parts)
    assert (other / "model.pt").read_bytes() == (folder / "model.pt").read_bytes()
    later, at_once = (json.loads((run / "result.json").read_text()) for run in (folder, other))
    assert len(later["generalization"]) == 8
    assert later["generalization"] == at_once["generalization"]
    tables = [table.name for table in folder.glob("*_*.csv")]
    assert len(tables) >= 6
    assert all((folder / table).read_bytes() == (other / table).read_bytes() for table in tables)
    ran = command(f"run_dir={other}", "data_root=data", f"generalization=[{','.join(tests)}]", *quick)
    assert ran.code == 0
    assert ran.out.count("measured before") == 8


@pytest.mark.parametrize("name", sorted(NOT_OF_DIGITS))
def test_what_does_not_fit_the_data_is_refused(command: Callable, finished: Callable, name: str) -> None:
    folder = finished([])
    before = (folder / "result.json").read_bytes()
    ran = command(f"run_dir={folder}", f"generalization=[{name}]")
    assert ran.code == 2
    assert f"generalization.{name}: " in ran.err
    assert len(ran.err.splitlines()) == 1
    assert (folder / "result.json").read_bytes() == before
