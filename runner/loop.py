"""The training loop: batch -> batch problem -> regularized gradient -> ``optimizer.step(closure)``, and its state.

All of the state goes through ``state_dict``: a run resumed from it does the same arithmetic as an unbroken one.
"""

from __future__ import annotations

import copy
import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from spectral_run.curvature.objective import flatten
from spectral_run.datasets.base import Data
from spectral_run.optimizers.base import Averaging
from spectral_run.optimizers.schedules import schedule
from spectral_run.regularizers.base import RegularizedGradient
from spectral_run.runner import checkpoint, seeding
from spectral_run.runner.averaged import averaged_weights
from spectral_run.runner.clock import Clock
from spectral_run.runner.closure import StepClosure
from spectral_run.runner.console import EpochReport
from spectral_run.runner.evaluate import evaluate
from spectral_run.runner.parts import Parts, refuse_single_rows
from spectral_run.runner.record import RunFolder
from spectral_run.trackers.base import Tracker

_SHOWN = {
    "train/loss": "loss",
    "validation/loss": "val loss",
    "validation/accuracy": "val acc",
    "validation/auc": "val auc",
    "train/rho": "batch rho",
    "train/full_rho": "rho",
}
BLOWN_UP = 1e6  # times the first loss (or 1): beyond it a run has diverged, finite or not


class DivergedError(ArithmeticError):
    """The loss or the gradient is not finite any more, or the loss is out of all proportion."""

    def __init__(self, what: str, step: int, loss: float, last_good: str) -> None:
        super().__init__(f"diverged at step {step}: {what} (loss {loss:g}). Last good checkpoint: {last_good}.")
        self.step, self.loss = step, loss


class Loop:
    """Trains one network. ``run`` goes on from wherever ``load_state_dict`` left it."""

    def __init__(
        self,
        parts: Parts,
        data: Data,
        folder: RunFolder,
        tracker: Tracker,
        state: dict[str, Any] | None,
        initialization: Mapping[str, Any],
    ) -> None:
        self.parts, self.data, self.folder, self.tracker = parts, data, folder, tracker
        self.initialization = dict(initialization)  # where the first weights came from
        self.epoch = self.position = self.step = self.products = self.evaluations = 0
        self.first_loss = math.nan
        self.best: dict[str, Any] | None = None
        self._sums: dict[str, list[float]] = {}
        self._carried: Mapping[str, Tensor] = {}
        self._regularizer_calls = 0
        training = parts.settings.training
        # A last batch of a single row would have no batch statistics: it joins the one before.
        whole, left = divmod(len(data.train), training.batch_size)
        self._steps_per_epoch = max(1, whole + (left > 1))
        self._factor = schedule(training.schedule, training.epochs)
        # Before a state is loaded, whose rates are those of its epoch.
        self._rates = [group.get("lr", 0.0) for group in parts.optimizer.param_groups]
        self.clock = Clock(state["seconds"] if state else None)
        torch.manual_seed(seeding.derive(parts.settings.seed, parts.dataset.name, "forward"))
        refuse_single_rows(parts, len(data.train) - (self._steps_per_epoch - 1) * training.batch_size)
        if state:
            self._load(state)
        self.metrics = folder.lines("metrics.jsonl", state["metrics_bytes"] if state else 0)
        self.timing = folder.lines("timing.jsonl", state["timing_bytes"] if state else 0)
        flat = torch.zeros(parts.objective.n, device=parts.device, dtype=parts.dtype)
        self._gradient = (flat, *parts.objective.split(flat))

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to train."""
        return self.position == 0 and (self.epoch >= self.parts.settings.training.epochs or self._enough)

    @property
    def _enough(self) -> bool:
        """Whether ``max_steps`` are done; the epoch begun is still brought to its record."""
        most = self.parts.settings.training.max_steps
        return most is not None and self.step >= most

    def run(self, report: EpochReport) -> None:
        """Train to the end. Raises ``DivergedError``; at Ctrl-C saves, then raises ``KeyboardInterrupt``."""
        training = self.parts.settings.training
        self.parts.model.train()
        last_save = time.monotonic()
        with _stop_requests() as stop:
            while not self.finished:
                order = self._order()
                for group, rate in zip(self.parts.optimizer.param_groups, self._rates, strict=True):
                    if "lr" in group:
                        group["lr"] = rate * self._factor(self.epoch)
                while self.position < self._steps_per_epoch and not self._enough:
                    self._one_step(order)
                    self.step += 1
                    stopping = self._stopping(stop)
                    if stopping or time.monotonic() - last_save > 60 * training.checkpoint_minutes:
                        self.save()
                        last_save = time.monotonic()
                    if stopping:
                        raise KeyboardInterrupt
                self.epoch += 1
                self.position = 0
                report(self.epoch, self._end_of_epoch())
                self.save()
                last_save = time.monotonic()
                if self._stopping(stop):
                    raise KeyboardInterrupt

    def save(self) -> None:
        """Write a checkpoint of everything."""
        with self.clock.phase("other"):
            if not self.folder.writes:
                return
            checkpoint.save(self.folder.checkpoints, self.step, self.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """All that decides how the run goes on: tensors and plain values only."""
        parts = self.parts
        return {
            "config_hash": parts.settings.config_hash,
            "processes": self.folder.processes,
            "data_sha256": self.data.sha256,
            "initialization": self.initialization,
            "model": parts.model.state_dict(),
            "optimizer": parts.optimizer.state_dict(),
            "carried": dict(self._carried),
            "counters": [self.epoch, self.position, self.step, self.products, self.evaluations],
            "first_loss": self.first_loss,
            "best": self.best,
            "sums": self._sums,
            "random": torch.get_rng_state(),
            "cuda_random": torch.cuda.get_rng_state(parts.device) if parts.device.type == "cuda" else None,
            "seconds": self.clock.seconds(),
            "metrics_bytes": self.metrics.sync(),
            "timing_bytes": self.timing.sync(),
        }

    def close(self) -> None:
        """Close the files."""
        self.metrics.close()
        self.timing.close()

    def _load(self, state: dict[str, Any]) -> None:
        parts = self.parts
        parts.model.load_state_dict(state["model"])
        parts.optimizer.load_state_dict(state["optimizer"])
        self._carried = {name: tensor.to(parts.device) for name, tensor in state["carried"].items()}
        self.epoch, self.position, self.step, self.products, self.evaluations = state["counters"]
        self.first_loss, self.best, self._sums = state["first_loss"], state["best"], state["sums"]
        torch.set_rng_state(state["random"])
        if state["cuda_random"] is not None and parts.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_random"], parts.device)

    def _order(self) -> Tensor:
        settings = self.parts.settings
        shuffle = seeding.generator(settings.seed, self.parts.dataset.name, "order", self.epoch)
        return torch.randperm(len(self.data.train), generator=shuffle).to(self.parts.device)

    def _stopping(self, stop: list[int]) -> bool:
        """Whether to stop here; of several processes all stop after the same step, since their messages tell them."""
        processes = self.parts.processes
        if processes is None:
            return bool(stop)
        processes.flag = bool(stop)
        return processes.raised

    def _one_step(self, order: Tensor) -> None:
        closure = StepClosure(
            self.parts,
            self.step,
            self.clock,
            self._gradient,
            self._carried,
            take=lambda: self._take(order),
            accept=self._accept,
        )
        self.parts.optimizer.step(closure)
        self._carried = closure.carried
        self.evaluations += closure.evaluations
        self.products += closure.products

    def _take(self, order: Tensor) -> tuple[Tensor, Tensor]:
        """The epoch's next batch; a step that wants more than are left goes round to the epoch's first."""
        size = self.parts.settings.training.batch_size
        place = self.position % self._steps_per_epoch
        end = len(order) if place == self._steps_per_epoch - 1 else (place + 1) * size
        rows = order[place * size : end]
        self.position += 1
        return self.data.train.inputs[rows], self.data.train.targets[rows]

    def _accept(self, result: RegularizedGradient, rows: int, first: bool) -> None:
        self._check(result)
        if first:
            self._note(result, rows)

    def _check(self, result: RegularizedGradient) -> None:
        if self.step == 0 and math.isnan(self.first_loss):
            self.first_loss = result.loss
        limit = BLOWN_UP * max(1.0, abs(self.first_loss))
        what = ""
        if not math.isfinite(result.loss):
            what = "the loss is not finite"
        elif abs(result.loss) > limit:
            what = f"the loss is beyond {limit:g}"
        elif not math.isfinite(float(result.gradient.abs().max())):
            what = "the gradient is not finite"
        if what:
            last = checkpoint.last_path(self.folder.checkpoints)
            raise DivergedError(what, self.step, result.loss, str(last) if last else "none yet")

    def _note(self, result: RegularizedGradient, rows: int) -> None:
        """Add to the epoch's means: the loss by rows, what the regularizer logs by steps."""
        for name, value, weight in [
            ("loss", result.loss, float(rows)),
            ("objective", result.objective, float(rows)),
            *((name, value, 1.0) for name, value in result.log.items()),
        ]:
            if math.isfinite(value):
                total = self._sums.setdefault(name, [0.0, 0.0])
                total[0] += weight * value
                total[1] += weight

    def _end_of_epoch(self) -> dict[str, float]:
        parts, settings = self.parts, self.parts.settings
        if parts.processes is not None:  # to the bit, or they train different networks from here on
            held = [*parts.objective.parameters, *parts.model.buffers()]
            everything = flatten([tensor.detach().to(parts.dtype) for tensor in held])
            parts.processes.sum(everything[:1], same=everything)
        train = {name: total / weight for name, (total, weight) in self._sums.items()}
        train["lr"] = self._rates[0] * self._factor(self.epoch - 1)
        self._sums = {}
        if isinstance(parts.optimizer, Averaging):
            parts.optimizer.end_epoch(self.epoch)
        with self.clock.phase("evaluation"), averaged_weights(parts, self.data.train) as averaged:
            validation = evaluate(
                parts.objective, self.data.validation, parts.dataset, parts.processes, interval=False
            ).numbers()
            every = settings.curvature.every_epochs
            if every and (self.epoch % every == 0 or self.finished):
                generator = seeding.generator(settings.seed, parts.dataset.name, "measure", self.epoch)
                measured = parts.measure_rho(self.data.train, generator)
                train |= {"full_rho": measured.rho, "full_rho_residual": measured.residual}
            self._select(validation, averaged=averaged)
        numbers = {f"train/{name}": value for name, value in train.items()}
        numbers |= {
            f"validation/{name}": validation[name] for name in ("loss", "accuracy", "auc") if name in validation
        }
        for key, value in numbers.items():
            split, _, name = key.partition("/")
            line = value if math.isfinite(value) else None
            self.metrics.write(
                step=self.step, epoch=self.epoch, split=split, name=name, value=line, products=self.products
            )
        self.timing.write(step=self.step, epoch=self.epoch, seconds=self.clock.seconds())
        self.tracker.log(self.step, numbers)
        shown = {title: numbers[name] for name, title in _SHOWN.items() if name in numbers}
        solved = numbers.get("train/converged", 1.0)
        if solved < 1.0:  # what stands there is not the batches' spectral radius
            shown[f"({solved:.0%} solved) batch rho"] = shown.pop("batch rho")
        return shown

    def _select(self, validation: Mapping[str, float], *, averaged: bool) -> None:
        """Keep the weights in the network where they are the best; once there is an average, nothing else counts."""
        by = self.parts.settings.training.select_by
        value = validation[by]
        score = (-value if by == "loss" else value) if math.isfinite(value) else -math.inf
        best = self.best
        if best is None or score > best["score"] or averaged > best.get("averaged", False):
            model = copy.deepcopy(self.parts.model.state_dict())
            self.best = {"score": score, "epoch": self.epoch, "model": model, "averaged": averaged}


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """A list that a first Ctrl-C or SIGTERM fills, so that the step at hand is finished and saved; a second kills."""
    requests: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield requests
        return

    def note(number: int, frame: FrameType | None) -> None:
        if requests:
            raise KeyboardInterrupt
        requests.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
