"""Every conf file composes, and every experiment and data set runs for one step where its data are at hand."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from spectral_run.models.densenet import DenseNet
from spectral_run.runner.help import describe
from spectral_run.runner.parts import build_parts
from spectral_run.runner.settings import settings_from

CONF = Path(__file__).parents[2] / "conf"
CHOICES = sorted(
    (path.parent.relative_to(CONF).as_posix(), path.stem)
    for path in CONF.rglob("*/*.yaml")
    if "hydra" not in path.parts and path.parent.name not in ("experiment", "of", "solver")
)
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
# What has to be chosen along with a choice that is not for the default data set.
ALONG = {
    ("model", "usps_cnn"): ["dataset=usps"],
    ("generalization", "transfer"): ["dataset=usps"],
    ("generalization", "constructed"): ["dataset=usps"],
    ("generalization", "usps"): ["dataset=usps"],
    ("generalization", "covariate_shift"): ["dataset=covtype"],
    ("generalization", "covariate_shift_all"): ["dataset=covtype"],
    ("generalization", "valley_probe"): ["optimizer=gadam"],
    ("optimizer", "asymmetric_valley"): ["training.epochs=250"],
    ("model", "densenet121"): ["dataset=chest_xray"],
    ("model", "densenet_small"): ["dataset=chest_xray_64"],
    ("generalization", "chest_transfer"): ["dataset=chest_xray_64"],
    ("generalization", "gradcam_overlap"): ["dataset=chest_xray_64"],
}


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_builds(group: str, choice: str) -> None:
    with initialize_config_module(version_base="1.3", config_module="spectral_run.conf"):
        config = compose("config", [*ALONG.get((group, choice), []), f"{group}={choice}"])
    settings = settings_from(config)
    parts = build_parts(settings)
    assert parts.objective.n > 0


@pytest.mark.parametrize("path", sorted(CONF.rglob("*/*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_conf_file_says_in_a_line_what_it_is(path: Path) -> None:
    assert 10 < len(describe(path)) <= 130


def chest(folder: Path) -> list[str]:
    """24 patients of two X-rays each, one of them with findings; weights to start from; and what makes a run small."""
    images = folder / "data" / "chestxray14" / "images"
    images.mkdir(parents=True)
    lines = ["Image Index,Finding Labels,Patient ID,View Position"]
    generator = np.random.default_rng(0)
    for patient in range(1, 25):
        for number, findings in enumerate(("No Finding", "Effusion|Mass")):
            name = f"{patient:08}_{number:03}.png"
            Image.fromarray(generator.integers(256, size=(40, 40), dtype=np.uint8)).save(images / name)
            lines.append(f"{name},{findings},{patient},PA")
    (images.parent / "Data_Entry_2017_v2020.csv").write_text("\n".join(lines) + "\n")
    small = OmegaConf.to_container(OmegaConf.load(CONF / "model" / "densenet121.yaml"))
    small |= OmegaConf.to_container(OmegaConf.load(CONF / "model" / "densenet_small.yaml"))
    del small["defaults"], small["_target_"]
    torch.save(DenseNet(input_shape=(3, 32, 32), classes=14, **small).state_dict(), folder / "chexnet.pt")
    return [f"data_root={folder / 'data'}", "model=densenet_small", "dataset.resize=32", "dataset.crop=32"]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_runs_for_a_step(command, tmp_path: Path, name: str) -> None:
    with initialize_config_module(version_base="1.3", config_module="spectral_run.conf"):
        stored = compose("config", [f"experiment={name}"], return_hydra_config=True)
    override = stored.hydra.runtime.choices.dataset
    few = one_cell(stored) if stored.report else ["seed=0"]
    if override.startswith("chest_xray"):
        more = chest(tmp_path) + (["init_from=chexnet.pt"] if OmegaConf.is_missing(stored, "init_from") else [])
        ran = command(f"experiment={name}", *more, "training.max_steps=1", "curvature.cap=2", *few)
        assert ran.code == 0, ran.err
        assert list(ran.folder.rglob("table.md"))
        return
    if override not in ("digits", "synthetic") and "SPECTRAL_DATA" not in os.environ:
        pytest.skip("SPECTRAL_DATA is not set")
    ran = command(f"experiment={name}", "training.max_steps=1", "curvature.cap=2", *few)
    assert ran.code == 0, ran.err
    assert list(ran.folder.rglob("table.md"))


def one_cell(stored: DictConfig) -> list[str]:
    """The last cell of one of the paper's experiments, at the smallest scale and in this process; no report."""
    params = (OmegaConf.select(stored, "hydra.sweeper.params") or {}).items()
    last = {key: str(values).split(",")[-1].strip() for key, values in params} | {"seed": "0"}
    return [*(f"{key}={value}" for key, value in last.items()), "scale=smoke", "report=null", "hydra/launcher=basic"]


@pytest.mark.skipif("SPECTRAL_DATA" not in os.environ, reason="SPECTRAL_DATA is not set")
@pytest.mark.parametrize("dataset", ["usps", "covtype", "cifar10"])
def test_real_data_run_for_a_step(command, dataset: str) -> None:
    # 20 draws of 10,000 images through a ResNet would take minutes.
    few = ["dataset.rows=500", "generalization.augmentation.draws=1"] if dataset == "cifar10" else []
    ran = command(f"dataset={dataset}", "training.max_steps=1", "curvature.cap=2", *few)
    assert ran.code == 0, ran.err
    result = ran.result()
    assert result["data"]["name"] == dataset
    assert len(result["data"]["sha256"]) == 64
    assert result["generalization"]


def test_synthetic_measures_its_prescribed_top_eigenvalue(command) -> None:
    ran = command("dataset=synthetic", "training.epochs=1", "dtype=float64", "curvature.eps=1e-8")
    assert ran.code == 0, ran.err
    assert ran.result()["rho"]["value"] == pytest.approx(4.0, rel=1e-10)
