"""Batch normalization in any number of dimensions; in training it ties the rows of a batch together."""

from __future__ import annotations

from typing import final

from torch import nn

from spectral_run.curvature.exact_layers import ExactBatchNorm
from spectral_run.curvature.rop.normalization import RunningNormalization


@final
class BatchNorm(RunningNormalization):
    """torch's layers, and the exact one that ``swap_norms`` puts in their place."""

    modules = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, ExactBatchNorm)
    kept = (1,)
    smallest = 2
