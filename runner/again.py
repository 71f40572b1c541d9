"""More tests of a finished run: its weights are loaded, what it was not asked yet is added to ``result.json``."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any

import torch

from spectral_run.datasets.base import DataHome
from spectral_run.runner import measurements
from spectral_run.runner.outcome import Outcome, describe
from spectral_run.runner.parts import Parts, with_data
from spectral_run.runner.record import RunBusyError, RunFolder, log_to, stop_log

log = logging.getLogger("spectral_run")


def measure_again(parts: Parts, folder: RunFolder, where: str = "") -> Outcome:
    """All of ``parts.tests`` on a run that is finished and stays so, whatever comes of this.

    ``where``: what the log lines begin with. Raises nothing but ``KeyboardInterrupt``.
    """
    try:
        folder.lock()
    except RunBusyError as error:
        log.error("%s", error)
        return Outcome(1, "busy", str(folder.path))
    handler = log_to(folder.path / "run.log")
    try:
        _measure(parts, folder, where)
    except Exception as error:  # whatever it is, the other runs go on
        log.error("%s", describe(error))
        log.debug("", exc_info=error)
        return Outcome(1, "failed", str(folder.path))
    finally:
        stop_log(handler)
        folder.close()
    return Outcome(0, "done", str(folder.path))


def _measure(parts: Parts, folder: RunFolder, where: str) -> None:
    settings = parts.settings
    result = folder.result()  # read under the lock: another process may have added to it
    assert result is not None
    home = DataHome(Path(settings.data_root), settings.download)
    data = parts.load(home)
    if data.sha256 != result["data"]["sha256"]:
        raise ValueError(
            f"{folder.path} was trained on data with sha256 {result['data']['sha256'][:12]}, "
            f"now it is {data.sha256[:12]}; bring the old files back."
        )
    parts, _ = with_data(parts, data)
    parts.model.load_state_dict(_weights(folder.path / "model.pt", parts.device))
    parts.model.eval()
    log.info("%smeasuring %s, backend %s", where, folder.path, parts.backend.name)
    missing = measurements.unanswered(parts, result, folder.path)
    for name in parts.tests:
        if name not in missing and not settings.rerun:
            finished = result["measured"][name]["finished"]
            log.info("%s: measured before, %s (rerun=true repeats it)", name, finished)
            continue
        seconds = measurements.ask(name, parts, data, home, folder.path, result)
        folder.write_result(result)
        log.info("%s: %.1f s", name, seconds)


def _weights(path: Path, device: torch.device) -> dict[str, Any]:
    try:
        weights: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:  # torch's words for a file that is cut off
        raise ValueError(f"{path} is damaged and can't be read.") from error
    return weights
