"""The resolved configuration as a checked object. Imports nothing heavy: help and composition stay fast."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from spectral_run.optimizers.schedules import SCHEDULES

# What decides no number of the network: left out of its hash, so that moving a folder, or asking a finished run
# one test more, does not repeat the training. (The seed does decide; it has a folder of its own.)
_IRRELEVANT = (
    "generalization", "name", "seed", "data_root", "download", "results_dir", "run_dir", "validate", "rerun",
    "optimized_metric", "tracker", "report",
)  # fmt: skip


class ConfigurationError(ValueError):
    """A setting that can't be: the command ends with exit code 2 and this one line."""


def nearest(word: str, options: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` where an option is close, else nothing."""
    close = difflib.get_close_matches(word, list(options), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""


def one_of(what: str, value: str, options: Iterable[str]) -> None:
    """Raise where the value is none of the options."""
    options = list(options)
    if value not in options:
        raise ConfigurationError(f"{what} must be one of {', '.join(options)}; got {value!r}.{nearest(value, options)}")


def _at_least(what: str, value: float | None, least: float) -> None:
    if value is not None and not (math.isfinite(value) and value >= least):
        raise ConfigurationError(f"{what} must be at least {least:g}, got {value}.")


@dataclass
class Training:
    """How to train; ``conf/config.yaml`` says what each means."""

    epochs: int = 30
    batch_size: int = 128
    schedule: str = "constant"
    select_by: str = "accuracy"
    class_weights: str = "none"
    checkpoint_minutes: float = 5.0
    max_steps: int | None = None

    def check(self) -> None:
        """Raise ``ConfigurationError`` for a value that can't be."""
        _at_least("training.epochs", self.epochs, 1)
        _at_least("training.batch_size", self.batch_size, 1)
        _at_least("training.checkpoint_minutes", self.checkpoint_minutes, 0)
        _at_least("training.max_steps", self.max_steps, 1)
        one_of("training.schedule", self.schedule, SCHEDULES)
        one_of("training.select_by", self.select_by, ("accuracy", "auc", "loss"))
        one_of("training.class_weights", self.class_weights, ("none", "balanced"))


@dataclass
class Curvature:
    """How rho of a trained network is measured; ``conf/curvature/lanczos.yaml`` says what each means."""

    backend: str = "auto"
    precision: str = "exact"
    fused: bool = False
    solver: str = "lanczos"
    eps: float = 1e-3
    relative: bool = True
    cap: int = 1000
    batch_size: int = 1024
    every_epochs: int = 0
    weight_decay: bool = False

    def check(self) -> None:
        """Raise ``ConfigurationError`` for a value that can't be; solver and backend check themselves."""
        _at_least("curvature.batch_size", self.batch_size, 1)
        _at_least("curvature.every_epochs", self.every_epochs, 0)


@dataclass
class Settings:
    """Everything that ``conf/config.yaml`` names; the groups with a ``_target_`` stay plain dictionaries."""

    name: str = "runs"
    seed: int = 0
    device: str = "auto"
    dtype: str = "float32"
    threads: int = 1
    data_root: str = "data"
    download: bool = True
    results_dir: str = "results"
    validate: bool = False
    rerun: bool = False
    report: str | None = None
    optimized_metric: str | None = None
    run_dir: Any = None  # a text or several
    init_from: str | None = None
    training: Training = field(default_factory=Training)
    curvature: Curvature = field(default_factory=Curvature)
    dataset: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    regularizer: dict[str, Any] = field(default_factory=dict)
    generalization: dict[str, Any] = field(default_factory=dict)
    tracker: dict[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Raise ``ConfigurationError`` for a value that can't be."""
        if not self.name or any(c in self.name for c in "/\\") or self.name in (".", ".."):
            raise ConfigurationError(f"name must be a folder's name, got {self.name!r}.")
        if not self.results_dir:
            raise ConfigurationError("results_dir needs a folder's path.")
        if self.init_from == "":
            raise ConfigurationError("init_from needs a run's folder or a file, or null.")
        if self.run_dir == [] or not all(self.run_dirs) or isinstance(self.run_dir, dict):
            raise ConfigurationError(
                f"run_dir must be a run's folder, a list of them or a pattern; got {self.run_dir!r}."
            )
        for group in ("dataset", "model", "optimizer", "regularizer", "tracker"):
            if not getattr(self, group):
                raise ConfigurationError(f"{group} needs a choice; spectral-run --help lists them.")
        _at_least("threads", self.threads, 1)
        one_of("dtype", self.dtype, ("float32", "float64"))
        self.training.check()
        self.curvature.check()

    @property
    def deciding(self) -> dict[str, Any]:
        """What decides the network and rho, seed apart."""
        plain = OmegaConf.to_container(OmegaConf.structured(self))
        assert isinstance(plain, dict)
        del plain["training"]["checkpoint_minutes"]
        if self.init_from is None:  # runs that have none keep the hashes of before there was any
            del plain["init_from"]
        if self.training.class_weights == "none":  # likewise
            del plain["training"]["class_weights"]
        plain["dataset"].pop("workers", None)  # that decode images: the same ones, however many
        return {str(key): value for key, value in plain.items() if key not in _IRRELEVANT}

    @property
    def run_dirs(self) -> list[str]:
        """``run_dir`` as a list, of folders and patterns; empty where there is none."""
        several = self.run_dir if isinstance(self.run_dir, list) else [self.run_dir]
        return [] if self.run_dir is None else [str(folder) for folder in several]

    @property
    def source(self) -> str | None:
        """``init_from`` for this seed."""
        return None if self.init_from is None else self.init_from.replace("{seed}", str(self.seed))

    @property
    def config_hash(self) -> str:
        """SHA-256 of what decides the run's numbers, seed apart; its first eight digits are the run id."""
        return hashlib.sha256(json.dumps(self.deciding, sort_keys=True).encode()).hexdigest()


def settings_from(config: DictConfig | Mapping[str, Any]) -> Settings:
    """Resolve and check a composed configuration. Raises ``ConfigurationError``."""
    plain = config if isinstance(config, DictConfig) else OmegaConf.create(dict(config))
    open_texts = OmegaConf.to_container(plain, resolve=False)
    assert isinstance(open_texts, dict)
    if "${seed}" in str(text := open_texts.get("init_from")):  # stays open: the seeds of a table's row have one hash
        plain = plain.copy()
        plain["init_from"] = str(text).replace("${seed}", "{seed}")
    try:
        resolved = OmegaConf.to_container(plain, resolve=True, throw_on_missing=True)
        merged = OmegaConf.merge(OmegaConf.structured(Settings), resolved)
        settings = OmegaConf.to_object(merged)
    except ConfigKeyError as error:
        key = str(error.full_key or error.key)
        known = keys_of(OmegaConf.structured(Settings))
        raise ConfigurationError(f"there is no setting {key!r}.{nearest(key, known)}") from error
    except MissingMandatoryValue as error:
        raise ConfigurationError(f"{error.full_key} needs a value.") from error
    except OmegaConfBaseException as error:
        message = str(error.msg or error).splitlines()[0]
        raise ConfigurationError(f"{error.full_key}: {message}") from error
    assert isinstance(settings, Settings)
    settings.check()
    return settings


def keys_of(config: Any, prefix: str = "") -> list[str]:
    """Every key of a configuration, dotted; what a typo is compared with."""
    if not OmegaConf.is_dict(config):
        return []
    keys = []
    for key in config:
        keys.append(f"{prefix}{key}")
        keys += keys_of(config._get_node(key), f"{prefix}{key}.")
    return keys
