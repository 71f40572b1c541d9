"""Instance normalization in any number of dimensions, on batched input: every channel of every row alone."""

from __future__ import annotations

from typing import final

from torch import nn

from spectral_run.curvature.exact_layers import ExactInstanceNorm
from spectral_run.curvature.rop.normalization import RunningNormalization


@final
class InstanceNorm(RunningNormalization):
    """torch's layers, and the exact one that ``swap_norms`` puts in their place."""

    modules = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, ExactInstanceNorm)
    kept = (0, 1)
    smallest = 3
