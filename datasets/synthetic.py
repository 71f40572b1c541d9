"""Linear regression whose loss Hessian is known exactly: a prescribed spectrum, to test curvature and regularizers on.

With training inputs X (N rows, p features) the loss mean((X w - y)^2) has the Hessian H = (2/N) X'X, the same at every
w. Here X = sqrt(N/2) U diag(sqrt(s)) V', U (N, p) and V (p, p) with random orthonormal columns, so H = V diag(s) V' to
rounding (relative 1e-15). All in float64: the runner casts. Cost: a QR of (N, p).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from spectral_run.datasets.base import Data, DataHome, Dataset, Split
from spectral_run.datasets.splits import check_seed


@final
@dataclass(frozen=True, kw_only=True)
class Synthetic(Dataset):
    """Regression with Hessian eigenvalues ``spectrum``; validation and test are Gaussian inputs of the same covariance.

    ``rows`` is the training split's; the other two have a quarter of it. ``noise`` is the targets' standard deviation.
    """

    spectrum: Sequence[int | float]
    rows: int = 256
    noise: float = 0.1
    seed: int = 0

    loss = "mse"

    def __post_init__(self) -> None:
        object.__setattr__(self, "spectrum", tuple(float(value) for value in self.spectrum))
        if not self.spectrum or not all(math.isfinite(value) and value >= 0 for value in self.spectrum):
            raise ValueError(f"Synthetic: spectrum must be one or more finite numbers >= 0, got {self.spectrum}.")
        if type(self.rows) is not int or self.rows < len(self.spectrum):
            raise ValueError(f"Synthetic: rows must be an integer >= {len(self.spectrum)}, got {self.rows}.")
        if not (math.isfinite(self.noise) and self.noise >= 0):
            raise ValueError(f"Synthetic: noise must be finite and >= 0, got {self.noise}.")
        check_seed("Synthetic", "seed", self.seed)

    @property
    def name(self) -> str:
        """The name on the command line."""
        return "synthetic"

    @property
    def input_shape(self) -> tuple[int, ...]:
        """One feature per eigenvalue."""
        return (len(self.spectrum),)

    @property
    def classes(self) -> int:
        """One real-valued output."""
        return 1

    def load(self, home: DataHome) -> Data:
        """Draw the inputs and the targets ``X w* + noise``."""
        p = len(self.spectrum)
        random = self._generator()
        vectors = _orthonormal(random, p, p)
        root = np.sqrt(np.asarray(self.spectrum) / 2)[:, None] * vectors.T  # root' root = H / 2
        solution = random.standard_normal((p, 1))
        others = max(1, self.rows // 4)
        latent = (
            math.sqrt(self.rows)
            * _orthonormal(random, self.rows, p),  # its second moment is I, not only in expectation
            random.standard_normal((others, p)),
            random.standard_normal((others, p)),
        )
        splits = []
        digest = hashlib.sha256()
        for z in latent:
            inputs = z @ root
            targets = inputs @ solution + self.noise * random.standard_normal((len(z), 1))
            digest.update(inputs.tobytes() + targets.tobytes())
            splits.append(Split(torch.from_numpy(inputs), torch.from_numpy(targets)))
        train, validation, test = splits
        files = {"synthetic (generated)": digest.hexdigest()}
        return Data(name=self.name, train=train, validation=validation, test=test, files=files, official=True)

    def hessian(self) -> Float64[Tensor, "p p"]:
        """The Hessian of the training loss, from its eigenvectors; no data are drawn."""
        p = len(self.spectrum)
        vectors = _orthonormal(self._generator(), p, p)
        return torch.from_numpy(vectors * np.asarray(self.spectrum) @ vectors.T)

    def _generator(self) -> np.random.Generator:
        """Draws the eigenvectors first, which ``hessian`` relies on."""
        return np.random.default_rng(self.seed)


def _orthonormal(random: np.random.Generator, rows: int, columns: int) -> Float64[np.ndarray, "rows columns"]:
    """Random orthonormal columns."""
    return np.linalg.qr(random.standard_normal((rows, columns))).Q
