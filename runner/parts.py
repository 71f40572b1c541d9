"""Everything a run is made of, built and checked before any data is touched."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral_run.curvature.backends import Backend, choose_backend
from spectral_run.curvature.exact_layers import ExactBatchNorm, refuse_inexact, running_statistics, swap_norms
from spectral_run.curvature.measure import measure_rho
from spectral_run.curvature.objective import Objective
from spectral_run.curvature.parallel import ParallelProblem, Processes, average_statistics
from spectral_run.curvature.problem import BatchProblem
from spectral_run.curvature.solver import EigenResult, EigenSolver
from spectral_run.curvature.solvers import solver
from spectral_run.datasets.base import Data, DataHome, Dataset, Split, check_data
from spectral_run.generalization.base import Measurement
from spectral_run.models.base import Origin
from spectral_run.optimizers.base import Averaging
from spectral_run.regularizers.base import Regularizer
from spectral_run.runner import initial
from spectral_run.runner.labels import Labels, check_loss, labels_of
from spectral_run.runner.processes import launch
from spectral_run.runner.seeding import derive
from spectral_run.runner.settings import ConfigurationError, Settings
from spectral_run.runner.targets import build
from spectral_run.trackers.base import Tracker
from spectral_run.trackers.none import NoTracker

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": F.cross_entropy,
    "mse": F.mse_loss,
    "binary_cross_entropy": F.binary_cross_entropy_with_logits,
}

T = TypeVar("T")


@dataclass(frozen=True)
class Parts:
    """The objects that a resolved configuration describes."""

    settings: Settings
    device: torch.device
    dtype: torch.dtype
    dataset: Dataset
    objective: Objective
    optimizer: torch.optim.Optimizer
    regularizer: Regularizer
    backend: Backend
    measuring: EigenSolver
    tests: Mapping[str, Measurement]
    tracker: Tracker
    processes: Processes | None = None  # where there are several
    origin: Origin | None = None  # of the first weights, where init_from names it

    @property
    def model(self) -> nn.Module:
        """The network."""
        return self.objective.model

    def load(self, home: DataHome) -> Data:
        """The run's data on its device; those of its tests are there too."""
        self.dataset.prepare(home)
        for test in self.tests.values():
            test.prepare(self.dataset, home)
        data = self.dataset.load(home)
        check_data(data, self.dataset)
        return data.to(self.device, self.dtype)

    def problem(self, inputs: Tensor, targets: Tensor) -> BatchProblem:
        """The batch problem of these rows, which several processes share."""
        if self.processes is None:
            return self.backend(self.objective, inputs, targets)
        return ParallelProblem.split(self.processes, self.backend, self.objective, inputs, targets)

    def first_pass(self, problem: BatchProblem) -> None:
        """A step's first forward pass: the one in which running statistics move."""
        with running_statistics(self.model):
            if isinstance(problem, ParallelProblem):
                problem.forward()
            else:
                problem.loss()
        if self.processes is not None and isinstance(problem, ParallelProblem):
            average_statistics(self.model, self.processes, problem.share)

    def measure_rho(self, split: Split, generator: torch.Generator) -> EigenResult:
        """Spectral radius over a whole split, as ``curvature`` has it measured."""
        return measure_rho(
            self.objective,
            split.inputs,
            split.targets,
            self.measuring,
            generator,
            backend=self.backend,
            batch_size=self.settings.curvature.batch_size,
            processes=self.processes,
        )

    @property
    def weight_decay(self) -> float:
        """What the optimizer's weight decay adds to every eigenvalue, where it counts as part of f; else 0."""
        return self.backend.weight_decay


def build_parts(settings: Settings, processes: Processes | None = None) -> Parts:
    """Build everything, and try one forward pass on zeros. Raises ``ConfigurationError``."""
    device, dtype = _device(settings.device), getattr(torch, settings.dtype)
    dataset = _a(Dataset, build(settings.dataset, "dataset"), "dataset")
    check_loss(settings.training, dataset)
    regularizer = _a(Regularizer, build(settings.regularizer, "regularizer"), "regularizer")
    tests = _tests(settings, dataset)
    tracker = _a(Tracker, build(settings.tracker, "tracker"), "tracker")
    if processes is not None and processes.rank > 0:
        tracker = NoTracker()
    c = settings.curvature
    try:
        measuring = solver(c.solver, eps=c.eps, relative=c.relative, cap=c.cap)
    except ValueError as error:
        raise ConfigurationError(f"curvature: {error}") from error
    model = _model(settings, dataset, device, dtype)
    origin = None if settings.source is None else initial.load(model, settings.source)
    objective = Objective(model, LOSSES[dataset.loss])
    if not objective.parameters:
        raise ConfigurationError(f"model: {type(model).__name__} has no trainable parameters.")
    optimizer = build(settings.optimizer, "optimizer", objective.parameters, epochs=settings.training.epochs)
    optimizer = _a(torch.optim.Optimizer, optimizer, "optimizer")
    for name, test in tests.items():
        if test.needs_last_iterate and not isinstance(optimizer, Averaging):
            kind = type(optimizer).__name__
            raise ConfigurationError(
                f"generalization.{name}: optimizer must average its iterates, and {kind} does not."
            )
    decay = float(optimizer.defaults.get("weight_decay") or 0.0) if c.weight_decay else 0.0
    if decay and optimizer.defaults.get("decoupled_weight_decay"):
        raise ConfigurationError(f"curvature.weight_decay: {type(optimizer).__name__}'s decay is no part of any loss.")
    backend = _backend(settings, dataset, objective, device, dtype, decay)
    return Parts(
        settings,
        device,
        dtype,
        dataset,
        objective,
        optimizer,
        regularizer,
        backend,
        measuring,
        tests,
        tracker,
        processes,
        origin,
    )


def with_data(parts: Parts, data: Data) -> tuple[Parts, Labels]:
    """The parts for these data, whose loss may weigh labels by how many there are, and what the record has of that.

    Raises ``ValueError`` where no checkpoint could be selected by what was asked for.
    """
    settings, dataset = parts.settings, parts.dataset
    labels = labels_of(data, dataset, settings.training)
    if labels.loss is None:
        return parts, labels
    objective = Objective(parts.model, labels.loss)
    backend = _backend(settings, dataset, objective, parts.device, parts.dtype, parts.weight_decay)
    return replace(parts, objective=objective, backend=backend), labels


def _backend(
    settings: Settings, dataset: Dataset, objective: Objective, device: torch.device, dtype: torch.dtype, decay: float
) -> Backend:
    c = settings.curvature
    example = torch.zeros(2, *dataset.input_shape, device=device, dtype=dtype)
    try:
        return choose_backend(c.backend, objective, example, weight_decay=decay, precision=c.precision, fused=c.fused)
    except ValueError as error:
        raise ConfigurationError(str(error)) from error


def _a(kind: Callable[..., T], thing: Any, where: str) -> T:
    # Callable, since mypy gives abstract classes no type[T]; an isinstance check is all that is done with it.
    if not isinstance(thing, cast(type, kind)):
        raise ConfigurationError(f"{where}: {type(thing).__name__} is no {kind.__name__} of {kind.__module__}.")
    return cast(T, thing)


def _device(name: str) -> torch.device:
    here = launch()
    if here.size > 1:
        if name.startswith("cuda:"):
            raise ConfigurationError(f"device={name} would be every process's; of several each has its own: cuda.")
        if name == "cuda" or (name == "auto" and torch.cuda.is_available()):
            name = f"cuda:{here.local_rank}"
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        message = str(error).splitlines()[0]
        raise ConfigurationError(f"device {name!r} can't be used here: {message}") from error
    return device


def _tests(settings: Settings, dataset: Dataset) -> dict[str, Measurement]:
    tests = {}
    for name, node in settings.generalization.items():
        where = f"generalization.{name}"
        test = _a(Measurement, build(node, where), where)
        try:
            test.check(dataset)
        except ValueError as error:
            raise ConfigurationError(f"{where}: {error}") from error
        tests[name] = test
    return tests


def _model(settings: Settings, dataset: Dataset, device: torch.device, dtype: torch.dtype) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(derive(settings.seed, dataset.name, "initialization"))
        model = build(settings.model, "model", input_shape=dataset.input_shape, classes=dataset.classes)
    model = swap_norms(_a(nn.Module, model, "model")).to(device, dtype)
    inputs = torch.zeros(2, *dataset.input_shape, device=device, dtype=dtype)
    what = f"model {type(model).__name__} on data set {dataset.name} (inputs {tuple(inputs.shape[1:])})"
    try:
        refuse_inexact(model, inputs)
    except ValueError as error:
        raise ConfigurationError(f"model: {error}") from error
    except Exception as error:  # whatever a network raises over an input of this shape
        raise ConfigurationError(f"{what}: {type(error).__name__}: {str(error).partition(chr(10))[0]}") from error
    with torch.no_grad(), torch.random.fork_rng():
        shape = tuple(model.eval()(inputs).shape)
    model.train()
    if shape != (2, dataset.classes):
        raise ConfigurationError(f"{what} must give outputs of shape (rows, {dataset.classes}), got {shape}.")
    return model


def remarks(parts: Parts, before: int) -> list[str]:
    """What several processes do otherwise than one, or than those that a run was begun ``before`` with."""
    size = 1 if parts.processes is None else parts.processes.size
    lines = []
    if before != size:
        lines.append(f"begun with processes={before}, goes on with {size}: numbers may differ in the last digits")
    if size > 1:
        lines.append(f"{size} processes share the rows of every batch")
        if _has_batch_norm(parts):
            lines.append("BatchNorm takes the statistics of each process's rows (ghost batch norm)")
        if parts.objective.random:
            lines.append("dropout draws other masks than one process would")
    return lines


def refuse_single_rows(parts: Parts, last: int) -> None:
    """Raise ``ValueError`` where a process gets a single row of a batch, the ``last`` one: it has no statistics."""
    size = parts.settings.training.batch_size
    if parts.processes is not None and _has_batch_norm(parts) and min(size, last) < 2 * parts.processes.size:
        raise ValueError(
            f"BatchNorm needs 2 rows in every process, and {parts.processes.size} processes share batches of {size} "
            f"rows, the last of {last}; choose another training.batch_size, or fewer processes."
        )


def _has_batch_norm(parts: Parts) -> bool:
    return any(isinstance(module, ExactBatchNorm) for module in parts.model.modules())
