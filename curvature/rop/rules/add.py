"""Sum of two values, or of a value and a number, with broadcasting."""

from __future__ import annotations

import operator
from typing import Any, final

import torch
from torch import Tensor

from spectral_run.curvature.rop.forms import SumOfTwo


@final
class Add(SumOfTwo):
    """``input + alpha other``."""

    functions = (operator.add, operator.iadd, torch.add)
    methods = ("add",)

    def forward0(self, input: Any, other: Any, *, alpha: int | float = 1) -> Tensor:
        """The sum."""
        return self.begin(input, other, alpha)
