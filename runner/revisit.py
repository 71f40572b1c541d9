"""``run_dir=<finished run> generalization=[...]``: ask a trained network more, without training it again.

The run's own configuration decides what it is; of the command line count the tests, and what says where and how to
compute.  Results are added to ``result.json``; a test that is there with the same settings is not repeated.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from spectral_run.datasets.base import DataHome
from spectral_run.runner import measurements
from spectral_run.runner.parts import Parts, build_parts
from spectral_run.runner.record import RunBusyError, RunFolder, log_to, stop_log
from spectral_run.runner.run import Outcome, describe, load_data, set_up_torch
from spectral_run.runner.settings import ConfigurationError, Settings, settings_from

log = logging.getLogger("spectral_run")

_OURS = ("generalization", "curvature", "device", "threads", "data_root", "download", "run_dir", "rerun", "validate")
_ALWAYS = ("generalization", "device", "threads", "data_root", "download", "rerun")  # have defaults of the machine


def revisit(asked: Settings, overrides: list[str]) -> Outcome:
    """Measure a finished run. ``overrides`` are the command line's. Raises ``ConfigurationError`` before any work."""
    assert asked.run_dir is not None
    path = Path(asked.run_dir)
    given = {override.lstrip("+~").partition("=")[0].partition("@")[0].partition(".")[0] for override in overrides}
    _refuse(path, given)
    stored = OmegaConf.load(path / "config.yaml")
    if not isinstance(stored, DictConfig):
        raise ConfigurationError(f"run_dir: {path / 'config.yaml'} is no configuration of a run.")
    own = settings_from(stored)
    settings = replace(own, **{name: getattr(asked, name) for name in _ALWAYS})
    if "curvature" in given:
        settings = replace(settings, curvature=asked.curvature)
    folder = RunFolder(own, {"dataset": "", "model": "", "regularizer": ""}, path)
    result = _finished(folder)
    set_up_torch(settings)
    parts = build_parts(settings)
    if asked.validate:
        log.info("valid: %s can be measured (%s)", path, ", ".join(parts.tests))
        return Outcome(0, "valid")
    try:
        folder.lock()
    except RunBusyError as error:
        log.error("%s", error)
        return Outcome(1, "busy", str(path))
    handler = log_to(path / "run.log")
    try:
        _measure(parts, folder, result)
    except Exception as error:  # the run itself is finished and stays so, whatever came of this
        log.error("%s", describe(error))
        log.debug("", exc_info=error)
        return Outcome(1, "failed", str(path))
    finally:
        stop_log(handler)
        folder.close()
    return Outcome(0, "done", str(path))


def _refuse(path: Path, given: set[str]) -> None:
    if not (path / "config.yaml").is_file():
        raise ConfigurationError(f"run_dir must be a run's folder (with config.yaml and result.json), got {path}.")
    if foreign := sorted(given - set(_OURS) - {"hydra"}):
        raise ConfigurationError(
            f"run_dir: a finished run keeps its own {', '.join(foreign)}; what can be given is {', '.join(_OURS)}."
        )
    if "generalization" not in given:
        raise ConfigurationError("run_dir: say what to measure: generalization=[spectrum], for one.")


def _finished(folder: RunFolder) -> dict[str, Any]:
    result = folder.result()
    status = "no result.json" if result is None else str(result.get("status"))
    if result is None or status != "done" or not (folder.path / "model.pt").is_file():
        what = status if status != "done" else "no model.pt"
        raise ConfigurationError(f"run_dir needs a finished run, and {folder.path} has {what}.")
    return result


def _measure(parts: Parts, folder: RunFolder, result: dict[str, Any]) -> None:
    settings = parts.settings
    home = DataHome(Path(settings.data_root), settings.download)
    data = load_data(parts, home)
    if data.sha256 != result["data"]["sha256"]:
        raise ValueError(
            f"{folder.path} was trained on data with sha256 {result['data']['sha256'][:12]}, "
            f"now it is {data.sha256[:12]}; bring the old files back."
        )
    weights = torch.load(folder.path / "model.pt", map_location=parts.device, weights_only=True)
    parts.model.load_state_dict(weights)
    parts.model.eval()
    log.info("measuring %s, backend %s", folder.path, parts.backend.name)
    record = result.setdefault("measured", {})
    for name in parts.tests:
        how = {"config": settings.generalization[name], "curvature": vars(settings.curvature)}
        how |= {"device": str(parts.device), "backend": parts.backend.name}
        earlier = record.get(name)
        if earlier and all(earlier[key] == value for key, value in how.items()) and not settings.rerun:
            log.info("%s: measured before, %s (rerun=true repeats it)", name, earlier["finished"])
            continue
        began = time.perf_counter()
        measurements.take(name, parts, data, home, folder.path, result)
        seconds = time.perf_counter() - began
        record[name] = how | {"finished": datetime.now(UTC).isoformat(timespec="seconds"), "seconds": seconds}
        folder.write_result(result)
        log.info("%s: %.1f s", name, seconds)
