"""One run, from checked settings to ``result.json``: skip, resume or start; train; measure; test; record."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from spectral_run.curvature.solver import EigenResult
from spectral_run.datasets.base import Data, DataHome
from spectral_run.models.base import Origin
from spectral_run.optimizers.base import Averaging
from spectral_run.runner import checkpoint, initial, measurements, seeding
from spectral_run.runner.again import measure_again
from spectral_run.runner.console import epoch_report
from spectral_run.runner.evaluate import evaluate
from spectral_run.runner.labels import each_area, frequent_outputs
from spectral_run.runner.loop import DivergedError, Loop
from spectral_run.runner.outcome import Outcome, describe
from spectral_run.runner.parts import Parts, build_parts, remarks, with_data
from spectral_run.runner.processes import Ranks, abandon, join
from spectral_run.runner.record import RESULT_SCHEMA, RunBusyError, RunFolder, log_to, stop_log
from spectral_run.runner.settings import Settings
from spectral_run.trackers.base import RunInfo, Tracker

log = logging.getLogger("spectral_run")


def execute(settings: Settings, choices: Mapping[str, str], *, bar: bool = False) -> Outcome:
    """Do a run, or skip it where it is finished. Raises ``ConfigurationError`` before any work is done.

    Every other error ends as ``status: failed`` with its traceback in ``result.json``; ``KeyboardInterrupt`` passes.
    """
    set_up_torch(settings)
    ranks = join()
    ranks.agree("their settings", f"{settings.config_hash} {settings.seed}")
    folder = RunFolder(settings, choices, processes=ranks.size, writes=ranks.first)
    with ranks.together():
        parts = build_parts(settings, ranks.processes)
    if settings.validate:
        log.info("valid: %s (%d parameters)", folder.label, parts.objective.n)
        return Outcome(0, "valid")
    outcome = ranks.from_first(lambda: _enter(folder, parts))
    if outcome is not None:
        return outcome
    try:
        handler = log_to(folder.path / "run.log") if ranks.first else None
        try:
            return _record(parts, folder, ranks, bar=bar)
        finally:
            if handler is not None:
                stop_log(handler)
    finally:
        folder.close()


def _enter(folder: RunFolder, parts: Parts) -> Outcome | None:
    """Take the run's folder; or how the run ends, where there is nothing to train in it."""
    if finished := _finished_before(folder, parts):
        return finished
    try:
        folder.open()
    except RunBusyError as error:
        log.error("%s", error)
        return Outcome(1, "busy", str(folder.path))
    except OSError as error:
        log.error("%s can't be written: %s", folder.path, describe(error))
        folder.close()
        return Outcome(1, "failed", str(folder.path))
    if _trained(folder, parts.settings):  # by a process that held the lock until now
        folder.close()
        return _finished_before(folder, parts)
    return None


def set_up_torch(settings: Settings) -> None:
    """Threads, and exact convolutions: on a GPU they would otherwise round to ten bits and be picked by stopwatch."""
    torch.set_num_threads(settings.threads)
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True


def _trained(folder: RunFolder, settings: Settings) -> dict[str, Any] | None:
    """The result of an earlier run that ended, well or not."""
    earlier = None if settings.rerun else folder.result()
    return earlier if earlier is not None and earlier.get("status") in ("done", "diverged") else None


def _finished_before(folder: RunFolder, parts: Parts) -> Outcome | None:
    """A run that was trained is skipped, and only asked what it was not asked then."""
    earlier = _trained(folder, parts.settings)
    if earlier is None:
        return None
    status = str(earlier["status"])
    if status == "done" and measurements.unanswered(parts, earlier, folder.path):
        return measure_again(parts, folder)
    log.info("skipped, finished before (%s): %s", status, folder.path)
    return Outcome(0 if status == "done" else 1, status, str(folder.path), skipped=True)


def _record(parts: Parts, folder: RunFolder, ranks: Ranks, *, bar: bool) -> Outcome:
    """Run, and write down whatever came of it."""
    started = time.perf_counter()
    result = _header(parts, folder)
    lost = False
    try:
        result["versions"] = folder.write_environment(str(parts.device))
        if parts.settings.rerun:
            folder.clear()
        elif folder.writes:
            (folder.path / "result.json").unlink(missing_ok=True)  # of an earlier failure
        _run(parts, folder, ranks, result, bar=bar)
    except KeyboardInterrupt:
        _close(parts.tracker, result | {"status": "interrupted"})
        raise
    except DivergedError as error:
        log.error("%s", error)
        result |= {"status": "diverged", "error": str(error), "step": error.step, "loss": error.loss}
    except Exception as error:  # the run ends here, whatever it was; the sweep goes on
        lost = ranks.lost(error)
        what = ranks.describe(error, describe(error))
        log.log(logging.CRITICAL if lost else logging.ERROR, "%s", what)
        result |= {"status": "failed", "error": what, "traceback": traceback.format_exc()}
    result["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
    result["seconds"] = time.perf_counter() - started
    _close(parts.tracker, result)
    try:
        folder.write_result(result)
    except OSError as error:
        log.error("result.json could not be written: %s", describe(error))
        result["status"] = "failed"
    if lost:
        abandon()
    status = str(result["status"])
    if status != "done":
        log.info("its folder: %s", folder.path)
    return Outcome(0 if status == "done" else 1, status, str(folder.path))


def _close(tracker: Tracker, result: dict[str, Any]) -> None:
    try:
        tracker.finish(result)
    except Exception as error:  # the result is worth more than its second place
        log.warning("the tracker could not be closed: %s", describe(error))


def _run(parts: Parts, folder: RunFolder, ranks: Ranks, result: dict[str, Any], *, bar: bool) -> None:
    settings = parts.settings
    home = DataHome(Path(settings.data_root), settings.download)
    with ranks.together():
        data = parts.load(home)
        parts, labels = with_data(parts, data)
    notices = [*data.notices, *labels.notices]
    for notice in notices:
        log.warning("%s", notice)
    result["backend"] = {"name": parts.backend.name, "why": parts.backend.why}
    result["data"] = {
        "name": data.name,
        "rows": data.rows,
        "sha256": data.sha256,
        "official": data.official,
        "files": dict(data.files),
        "notices": notices,
    } | labels.record
    state = ranks.from_first(lambda: _resumable(folder, parts, data))
    if state is None:
        folder.clear()
    result["initialization"] = _first_weights(parts, ranks, state)
    log.info("%s %s, %d parameters", "resuming" if state else "starting", folder.path, parts.objective.n)
    log.info("backend %s: %s", parts.backend.name, parts.backend.why)
    for line in remarks(parts, ranks.size if state is None else state.get("processes", 1)):
        log.info("%s", line)
    config = OmegaConf.to_container(OmegaConf.structured(settings))
    assert isinstance(config, dict)
    with ranks.together():
        parts.tracker.start(
            RunInfo(folder.label, settings.name, folder.path, {str(k): v for k, v in config.items()}, state is not None)
        )
        loop = Loop(parts, data, folder, parts.tracker, state, result["initialization"])
    try:
        with epoch_report(settings.training.epochs, loop.epoch, bar=bar) as report:
            loop.run(report)
        train = _measure(parts, data, loop, folder, result)
        with ranks.together(), loop.clock.phase("evaluation"):
            if ranks.first:  # the others wait
                for name in parts.tests:
                    measurements.ask(name, parts, data, home, folder.path, result)
        result["train"] = _cost(loop) | train
    finally:
        loop.close()
    result["status"] = "done"


def _first_weights(parts: Parts, ranks: Ranks, state: dict[str, Any] | None) -> dict[str, Any]:
    """Published weights for a model that has some, where the run begins and ``init_from`` is null; for the record."""
    if state is not None:
        held: dict[str, Any] = state.get("initialization") or Origin(kind="random").record
        return held
    with ranks.together():
        origin = parts.origin or initial.pretrain(parts.model, download=parts.settings.download)
    ranks.agree("the network's first weights", f"{origin.kind} {origin.sha256}")
    for notice in origin.notices:
        log.warning("%s", notice)
    if origin.path is not None:
        log.info("first weights: %s (%s)", origin.path, origin.kind)
    return dict(origin.record)


def _measure(parts: Parts, data: Data, loop: Loop, folder: RunFolder, result: dict[str, Any]) -> dict[str, float]:
    """Loss, accuracy or AUC and rho of the network, at the selected checkpoint; gives the training split's numbers."""
    settings = parts.settings
    assert loop.best is not None
    if isinstance(parts.optimizer, Averaging):
        if not loop.best["averaged"]:
            log.warning("training ended before there was an average; the weights themselves are evaluated")
        if folder.writes:
            checkpoint.save_weights(folder.path / "last.pt", parts.model.state_dict())
    parts.model.load_state_dict(loop.best["model"])
    if folder.writes:
        checkpoint.save_weights(folder.path / "model.pt", loop.best["model"])
    result["parameters_squared_norm"] = sum(
        float(w.detach().double().square().sum()) for w in parts.objective.parameters
    )
    frequent = frequent_outputs(result["data"])
    with loop.clock.phase("evaluation"):
        train, result["val"], result["test"] = (
            evaluate(parts.objective, split, parts.dataset, parts.processes, frequent=frequent).numbers()
            for split in (data.train, data.validation, data.test)
        )
    if areas := each_area(result["test"]):
        log.info("test AUC, 95%% interval (positives): %s", areas)
    began = time.perf_counter()
    with loop.clock.phase("evaluation"):
        start = seeding.generator(settings.seed, parts.dataset.name, "measure", 0)
        rho = parts.measure_rho(data.train, start)
    result["rho"] = _rho(rho, parts, len(data.train)) | {"seconds": time.perf_counter() - began}
    if not rho.converged:
        log.warning(
            "rho did not converge (%s): residual %.3g after %d products", rho.reason, rho.residual, rho.products
        )
    result["generalization"], result["generalization_details"] = {}, {}
    return train


def _cost(loop: Loop) -> dict[str, Any]:
    """What the run has cost."""
    assert loop.best is not None
    seconds = loop.clock.seconds()
    averaged = {"averaged": loop.best["averaged"]} if isinstance(loop.parts.optimizer, Averaging) else {}
    return averaged | {
        "epochs": loop.epoch,
        "steps": loop.step,
        "best_epoch": loop.best["epoch"],
        "products": loop.products,
        "gradient_evaluations": loop.evaluations,
        "seconds": sum(value for phase, value in seconds.items() if phase != "evaluation"),
        "seconds_by_phase": seconds,
    }


def _header(parts: Parts, folder: RunFolder) -> dict[str, Any]:
    settings = parts.settings
    return {
        "schema": RESULT_SCHEMA,
        "status": "failed",
        "name": settings.name,
        "run_id": folder.run_id,
        "config_hash": settings.config_hash,
        "seed": settings.seed,
        "choices": folder.choices,
        "config": settings.deciding,
        "device": str(parts.device),
        "threads": settings.threads,
        "processes": folder.processes,
        "parameters": parts.objective.n,
        "backend": {"name": parts.backend.name, "why": parts.backend.why},
    }


def _rho(rho: EigenResult, parts: Parts, rows: int) -> dict[str, Any]:
    return {
        "value": rho.rho,
        "lambda": rho.value,
        "residual": rho.residual,
        "converged": rho.converged,
        "reason": rho.reason,
        "products": rho.products,
        "solver": parts.settings.curvature.solver,
        "rows": rows,
        "weight_decay": parts.weight_decay,
    }


def _resumable(folder: RunFolder, parts: Parts, data: Data) -> dict[str, Any] | None:
    """The newest whole checkpoint of this very run, or None.

    Raises ``ValueError`` where the data have changed, or the weights that ``init_from`` names.
    """

    def damaged(what: str) -> None:
        log.warning("%s; the one before it is used", what)

    state = checkpoint.load_last(folder.checkpoints, damaged)
    if state is None:
        if checkpoint.last_path(folder.checkpoints) is not None:
            log.warning("there is no whole checkpoint in %s; starting over", folder.checkpoints)
        return None
    if state["config_hash"] != parts.settings.config_hash:
        log.warning("the checkpoint in %s belongs to other settings; starting over", folder.checkpoints)
        return None
    if state["data_sha256"] != data.sha256:
        raise ValueError(
            f"{folder.path} was begun on data with sha256 {state['data_sha256'][:12]}, now it is {data.sha256[:12]}; "
            f"bring the old files back, or start over with rerun=true."
        )
    begun = (state.get("initialization") or {}).get("sha256")
    if parts.origin is not None and begun != parts.origin.sha256:
        raise ValueError(
            f"{folder.path} was begun from weights with sha256 {str(begun)[:12]}, and {parts.origin.path} has "
            f"{str(parts.origin.sha256)[:12]} now; bring the old file back, or start over with rerun=true."
        )
    for name, least in (("metrics.jsonl", state["metrics_bytes"]), ("timing.jsonl", state["timing_bytes"])):
        path = folder.path / name
        if (path.stat().st_size if path.exists() else 0) < least:
            log.warning("%s is shorter than its checkpoint says; starting over", path)
            return None
    return state
