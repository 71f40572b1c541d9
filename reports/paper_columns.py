"""The columns of tables 2 to 5: where ``result.json`` has a number, and where the paper's table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from spectral_run.reports.beside import Column
from spectral_run.reports.collect import number
from spectral_run.reports.seeds import Number


def at(*path: str, scale: float = 1.0) -> Number:
    """A number of ``result.json``."""
    return lambda result: scale * number(result, *path)


def ends(*path: str, scale: float = 1.0) -> Callable[[Mapping[str, Any]], tuple[float, float]]:
    """Those of its 95% interval."""
    return lambda result: (scale * number(result, *path, "ci_low"), scale * number(result, *path, "ci_high"))


def not_converged(result: Mapping[str, Any]) -> str:
    """What stands beside a rho whose solver stopped early."""
    return "not converged" if (result.get("rho") or {}).get("converged") is False else ""


RHO: Final = Column(
    key="rho", title="rho", number=at("rho", "value"), paper="rho", better=-1, flag=not_converged
)  # loss per squared parameter
_SHIFT: Final = ("generalization", "covariate_shift", "relative_change")
COVTYPE: Final = (
    RHO,
    Column(
        key="test accuracy", title="test acc. (%)", number=at("test", "accuracy", scale=100), paper="test_acc",
        share=True, better=1, ends=ends("test", scale=100),
    ),
    Column(
        key="relative shift accuracy", title="relative shift acc. (%)", number=at(*_SHIFT, "value", scale=100),
        paper="shift_rel_mean", paper_ends=("shift_rel_lo", "shift_rel_hi"),
        share=True, better=1, ends=ends(*_SHIFT, scale=100), always=True,
    ),
)  # fmt: skip
_EVERY: Final = ("generalization", "covariate_shift_all")
EVERY_COLUMN: Final = (
    Column(
        key="relative shift accuracy", title="relative shift acc. (%) [over shifts]",
        number=at(*_EVERY, "relative_change", "value", scale=100),
        paper="shift_rel_mean", paper_ends=("shift_rel_lo", "shift_rel_hi"),
        share=True, ends=ends(*_EVERY, "relative_change", scale=100), always=True,
    ),
    Column(
        key="over test rows", title="the same [over test rows]",
        number=at(*_EVERY, "relative_change_examples", "value", scale=100),
        share=True, ends=ends(*_EVERY, "relative_change_examples", scale=100), always=True,
    ),
    Column(
        key="sd over shifts", title="sd over shifts (%)",
        number=at(*_EVERY, "relative_change_sd", "value", scale=100), share=True,
    ),
)  # fmt: skip
USPS_TESTS: Final[Mapping[str, tuple[str, ...]]] = {  # the paper's name in lower case: where result.json has it
    "at1": ("generalization", "augmentation", "at1"),
    "at2": ("generalization", "augmentation", "at2"),
    "mnist": ("generalization", "transfer", "accuracy"),
    "gan1": ("generalization", "gan1", "accuracy"),
    "gan2": ("generalization", "gan2", "accuracy"),
    "const1": ("generalization", "constructed", "const1"),
    "const2": ("generalization", "constructed", "const2"),
}
_TITLES: Final = {"at1": "AT 1", "at2": "AT 2", "mnist": "MNIST", "gan1": "GAN1", "gan2": "GAN2"}
USPS: Final = (
    RHO,
    Column(
        key="test", title="test", number=at("test", "accuracy", scale=100), paper="test",
        share=True, better=1, ends=ends("test", scale=100),
    ),
    *(
        Column(
            key=key, title=_TITLES.get(key, key.capitalize()), number=at(*path, "value", scale=100), paper=key,
            share=True, better=1, ends=ends(*path, scale=100),
        )
        for key, path in USPS_TESTS.items()
    ),
)  # fmt: skip
