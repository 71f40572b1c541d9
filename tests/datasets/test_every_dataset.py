"""The contract of ``Dataset``, kept by every file in ``conf/dataset``; a new one is found by itself."""

from __future__ import annotations

import hashlib
import inspect
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf

from spectral_run import conf
from spectral_run.datasets.base import Data, DataHome, Dataset, Split
from spectral_run.datasets.files import ByHandError

FOLDER = Path(conf.__file__).parent / "dataset"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
VARIANTS = {"chest_xray_64": "chest_xray"}  # conf file -> data set that it gives other settings
DATA_FOLDERS = {"chest_xray": "chestxray14"}  # where a data set's files lie under another name


def config(name: str) -> DictConfig:
    loaded = OmegaConf.load(FOLDER / f"{name}.yaml")
    assert isinstance(loaded, DictConfig)
    return loaded


def construct(name: str) -> Dataset:
    dataset = instantiate(config(name).dataset, _convert_="all")
    assert isinstance(dataset, Dataset)
    return dataset


def home_for(dataset: Dataset, tmp_path: Path) -> DataHome:
    """A root that has the data set's files; skips the test where there is none."""
    home = DataHome(Path(os.environ.get("SPECTRAL_DATA", tmp_path)), download=False)
    try:
        dataset.prepare(home)
    except FileNotFoundError as error:
        known = "SPECTRAL_DATA" in os.environ
        pytest.skip(f"SPECTRAL_DATA has no {dataset.name}: {error}" if known else "SPECTRAL_DATA is not set")
    return home


def loadable(name: str) -> Dataset:
    """As the conf file has it; 200 images are enough of those that are large."""
    dataset = construct(name)
    return replace(dataset, rows=200) if name == "chest_xray" else dataset  # type: ignore[type-var]


def splits(data: Data) -> dict[str, Split]:
    return {"train": data.train, "validation": data.validation, "test": data.test}


def digest(data: Data) -> dict[str, str]:
    """Of all bits of every split."""
    return {
        name: hashlib.sha256(split.tensor.numpy().tobytes() + split.targets.numpy().tobytes()).hexdigest()
        for name, split in splits(data).items()
    }


def row_hashes(split: Split) -> list[bytes]:
    return [hashlib.blake2b(row.numpy().tobytes(), digest_size=16).digest() for row in split.tensor]


def test_all_are_found() -> None:
    assert {"chest_xray", "chest_xray_64", "cifar10", "covtype", "digits", "synthetic", "usps"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_file_layout(name: str) -> None:
    lines = (FOLDER / f"{name}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_"
    assert lines[1].startswith("# ")
    assert lines[1].endswith(".")
    settings = config(name).dataset
    assert settings["_target_"].startswith(f"spectral_run.datasets.{VARIANTS.get(name, name)}.")
    fields = inspect.signature(get_class(settings["_target_"])).parameters
    assert settings.keys() - {"_target_"} == fields.keys()  # every setting can be seen in the file
    for default in config(name).defaults:
        for group, choices in default.items():
            for choice in [choices] if isinstance(choices, str) else choices:
                folder = FOLDER.parent / group.removeprefix("override /")
                assert (folder / f"{choice}.yaml").is_file(), f"{group}: {choice}"


@pytest.mark.parametrize("name", NAMES)
def test_constructing_touches_no_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    construct(name)  # imports its module
    settings = config(name).dataset

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError(f"opened {args[0]}")

    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("io.open", refuse)
        patch.setattr("builtins.open", refuse)
        patch.setattr("os.stat", refuse)
        dataset = instantiate(settings, _convert_="all")
        facts = (dataset.name, dataset.input_shape, dataset.classes, dataset.standardized, dataset.loss)
    assert facts[0] == VARIANTS.get(name, name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_equal_settings_are_equal(name: str) -> None:
    assert construct(name) == construct(name)
    assert hash(construct(name)) == hash(construct(name))


@pytest.mark.parametrize("name", NAMES)
def test_load(name: str, tmp_path: Path) -> None:
    dataset = loadable(name)
    data = dataset.load(home_for(dataset, tmp_path))
    assert data.name == dataset.name
    for split in splits(data).values():
        assert len(split) > 0
        assert split.inputs.shape[1:] == dataset.input_shape
        assert split.inputs.dtype.is_floating_point
        assert split.tensor.is_contiguous()
        assert torch.isfinite(split.tensor).all()
        assert len(split.targets) == len(split)
        if dataset.loss == "cross_entropy":
            assert split.targets.dtype == torch.int64
            assert split.targets.unique().tolist() == list(range(dataset.classes))
        else:
            assert split.targets.shape == (len(split), dataset.classes)
            assert torch.isfinite(split.targets).all()
    assert data.official == (not any("not the official release" in notice for notice in data.notices))
    assert data.files
    assert all(len(value) == 64 and int(value, 16) >= 0 for value in data.files.values())
    hashes = [row_hashes(split) for split in splits(data).values()]
    assert len(set().union(*hashes)) == sum(len(rows) for rows in hashes)  # no row twice, so none in two splits
    if dataset.standardized:
        train = data.train.tensor.double()
        varying = train.amax(dim=0) > train.amin(dim=0)
        assert train.mean(dim=0).abs().max() < 1e-5
        assert (train.std(dim=0, correction=0)[varying] - 1).abs().max() < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_loading_is_a_function_of_the_settings(name: str, tmp_path: Path) -> None:
    dataset = loadable(name)
    home = home_for(dataset, tmp_path)
    state = torch.get_rng_state()
    first = digest(dataset.load(home))
    torch.manual_seed(123)
    assert digest(dataset.load(home)) == first
    torch.set_rng_state(state)


@pytest.mark.parametrize("name", NAMES)
def test_seed_changes_the_split(name: str, tmp_path: Path) -> None:
    dataset = loadable(name)
    home = home_for(dataset, tmp_path)
    seed = next(field for field in ("split_seed", "seed") if hasattr(dataset, field))
    other = replace(dataset, **{seed: getattr(dataset, seed) + 1})  # type: ignore[type-var]
    ours, theirs = dataset.load(home), other.load(home)
    if ours.train.groups is None:
        assert ours.rows == theirs.rows
    else:  # whole patients move, who have more images or fewer
        assert sum(ours.rows.values()) == sum(theirs.rows.values())
    assert digest(ours)["train"] != digest(theirs)["train"]
    assert digest(ours)["validation"] != digest(theirs)["validation"]


@pytest.mark.parametrize("name", NAMES)
def test_missing_files_are_reported_before_any_work(name: str, tmp_path: Path) -> None:
    dataset = construct(name)
    home = DataHome(tmp_path / "empty", download=False)
    try:
        dataset.prepare(home)
    except FileNotFoundError as error:
        message, by_hand = str(error), isinstance(error, ByHandError)
    else:
        dataset.load(home)  # bundled or generated: no file is needed
        message, by_hand = None, False
    assert not home.root.exists()
    if message is not None:
        folder = home.root / DATA_FOLDERS.get(dataset.name, dataset.name)
        for part in (str(folder), "https://", "SPECTRAL_DATA", "data_root="):
            assert part in message
        assert ("download=true" in message) != by_hand
        with pytest.raises(FileNotFoundError):
            dataset.load(home)
