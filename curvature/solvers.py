"""Solvers by name, as settings name them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Literal, TypeAlias

from spectral_run.curvature.lanczos import Lanczos
from spectral_run.curvature.lobpcg import LOBPCG
from spectral_run.curvature.lobpcg_paper import PaperLOBPCG
from spectral_run.curvature.power import PowerIteration
from spectral_run.curvature.solver import EigenSolver

SolverName: TypeAlias = Literal["power", "lanczos", "lobpcg", "lobpcg_paper"]

PRECONDITIONED = ("lobpcg", "lobpcg_paper")
"""Solvers that take a preconditioner."""

_SOLVERS: dict[str, type[EigenSolver]] = {
    "power": PowerIteration,
    "lanczos": Lanczos,
    "lobpcg": LOBPCG,
    "lobpcg_paper": PaperLOBPCG,
}


def solver(name: str, *, eps: float, relative: bool, cap: int, **options: Any) -> EigenSolver:
    """The solver of that name; ``options`` are its own settings.

    Raises ``ValueError`` with the names there are, of solvers or of settings.
    """
    if name not in _SOLVERS:
        raise ValueError(f"solver must be one of {', '.join(_SOLVERS)}; got {name!r}.")
    known = [field.name for field in fields(_SOLVERS[name])]
    for option in options:
        if option not in known:
            raise ValueError(f"solver {name} has no setting {option!r}; it has {', '.join(known)}.")
    return _SOLVERS[name](eps=eps, relative=relative, cap=cap, **options)
