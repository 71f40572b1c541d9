"""Several labels a row, drawn from a logistic model: a small stand-in for data with findings of patients.

Inputs x have unit variance, ``share`` of it common to the rows of a patient.  Label j is 1 with probability
``1 / (1 + exp(-(strength u_j'x + b_j)))``, u_j a random unit vector, b_j such that ``prevalences[j]`` of all rows have
it.  So a linear model is the true one, and rare labels, patients and intervals are as with real findings.
All in float64: the runner casts.  Cost: nothing to speak of.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import expit

from spectral_run.datasets.base import Data, DataHome, Dataset, Split
from spectral_run.datasets.splits import check_seed

_NODES = 64  # of the quadrature over the logit, exact to 1e-10 for the strengths that make sense


@final
@dataclass(frozen=True, kw_only=True)
class SyntheticMultilabel(Dataset):
    """A label per prevalence; ``patients`` with ``rows_each`` rows in training, a quarter as many in the other splits.

    No patient is in two splits.
    """

    prevalences: Sequence[float]
    shape: Sequence[int] = (12,)
    patients: int = 200
    rows_each: int = 3
    share: float = 0.5
    strength: float = 2.0
    seed: int = 0

    loss = "binary_cross_entropy"

    def __post_init__(self) -> None:
        def require(holds: bool, what: str, got: object) -> None:
            if not holds:
                raise ValueError(f"SyntheticMultilabel: {what}, got {got}.")

        object.__setattr__(self, "prevalences", tuple(float(value) for value in self.prevalences))
        object.__setattr__(self, "shape", tuple(self.shape))
        inside = bool(self.prevalences) and all(0 < value < 1 for value in self.prevalences)
        require(inside, "prevalences must be one or more numbers in (0, 1)", self.prevalences)
        sizes = bool(self.shape) and all(type(size) is int and size >= 1 for size in self.shape)
        require(sizes, "shape must be integers >= 1", self.shape)
        require(type(self.patients) is int and self.patients >= 4, "patients must be an integer >= 4", self.patients)
        require(type(self.rows_each) is int and self.rows_each >= 1, "rows_each must be >= 1", self.rows_each)
        require(0 <= self.share < 1, "share must be in [0, 1)", self.share)
        require(0 <= self.strength <= 10, "strength must be in [0, 10]", self.strength)
        check_seed("SyntheticMultilabel", "seed", self.seed)

    @property
    def name(self) -> str:
        """The name on the command line."""
        return "synthetic_multilabel"

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Features, or channels, height and width."""
        return tuple(self.shape)

    @property
    def classes(self) -> int:
        """One output per label."""
        return len(self.prevalences)

    @property
    def outputs(self) -> tuple[str, ...]:
        """``label_1``, ..."""
        return tuple(f"label_{j + 1}" for j in range(self.classes))

    def load(self, home: DataHome) -> Data:
        """Draw everything."""
        random = np.random.default_rng(self.seed)
        directions = random.standard_normal((math.prod(self.shape), self.classes))
        directions *= self.strength / np.linalg.norm(directions, axis=0)
        intercepts = np.array([self._intercept(prevalence) for prevalence in self.prevalences])
        splits = []
        digest = hashlib.sha256()
        first = 0
        for patients in (self.patients, self.patients // 4, self.patients // 4):
            groups = first + np.repeat(np.arange(patients), self.rows_each)
            first += patients
            common = random.standard_normal((patients, len(directions)))[groups - groups[0]]
            own = random.standard_normal((len(groups), len(directions)))
            x = math.sqrt(self.share) * common + math.sqrt(1 - self.share) * own
            chance = expit(x @ directions + intercepts)
            labels = (random.random(chance.shape) < chance).astype(np.float64)
            digest.update(x.tobytes() + labels.tobytes())
            inputs = torch.from_numpy(x).reshape(-1, *self.shape)
            splits.append(Split(inputs, torch.from_numpy(labels), torch.from_numpy(groups)))
        train, validation, test = splits
        files = {"synthetic_multilabel (generated)": digest.hexdigest()}
        return Data(name=self.name, train=train, validation=validation, test=test, files=files, official=True)

    def _intercept(self, prevalence: float) -> float:
        """Where the mean probability over normal logits is the prevalence."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
        weights = weights / weights.sum()
        return float(brentq(lambda b: weights @ expit(self.strength * nodes + b) - prevalence, -200, 200))
