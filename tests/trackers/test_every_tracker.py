"""The contract of a tracker, checked for every conf file there is; wandb without a network."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from spectral_run.trackers.base import RunInfo, Tracker

FILES = sorted((Path(__file__).parents[2] / "conf" / "tracker").glob("*.yaml"))
OFFLINE = {"wandb": {"mode": "offline"}}
"""What keeps a tracker off the network."""


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def tracker(request: pytest.FixtureRequest) -> Tracker:
    conf = OmegaConf.merge(OmegaConf.load(request.param), OFFLINE.get(request.param.stem, {}))
    built = instantiate(conf, _convert_="all")
    assert isinstance(built, Tracker)
    return built


def run_info(folder: Path, *, resumed: bool = False) -> RunInfo:
    return RunInfo("digits/mlp/none-12345678/seed-0", "quickstart", folder, {"seed": 0, "model": {"k": None}}, resumed)


def test_conf_files_are_found() -> None:
    assert {"none", "wandb"} <= {path.stem for path in FILES}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_whole_run(tracker: Tracker, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tracker.start(run_info(tmp_path))
    tracker.log(1, {"train/loss": 1.5, "train/rho": float("nan")})
    tracker.log(2, {"train/loss": 0.5})
    tracker.finish({"status": "done", "test": {"accuracy": 0.9, "ci_low": None}, "notices": []})
    assert capfd.readouterr().out == ""


def test_finish_without_start_and_twice(tracker: Tracker) -> None:
    tracker.finish({"status": "failed"})
    tracker.finish({"status": "failed"})


def test_log_without_start(tracker: Tracker) -> None:
    tracker.log(1, {"train/loss": 1.5})
