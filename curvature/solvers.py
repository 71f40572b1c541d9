"""Solvers by name, as settings name them."""

from __future__ import annotations

from typing import Literal, TypeAlias

from spectral_run.curvature.lanczos import Lanczos
from spectral_run.curvature.lobpcg import LOBPCG
from spectral_run.curvature.power import PowerIteration
from spectral_run.curvature.solver import EigenSolver

SolverName: TypeAlias = Literal["power", "lanczos", "lobpcg"]

_SOLVERS: dict[str, type[EigenSolver]] = {"power": PowerIteration, "lanczos": Lanczos, "lobpcg": LOBPCG}


def solver(name: str, *, eps: float, relative: bool, cap: int) -> EigenSolver:
    """The solver of that name. Raises ``ValueError`` with the names there are."""
    if name not in _SOLVERS:
        raise ValueError(f"solver must be one of {', '.join(_SOLVERS)}; got {name!r}.")
    return _SOLVERS[name](eps=eps, relative=relative, cap=cap)
