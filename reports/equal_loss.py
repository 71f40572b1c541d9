"""What of a lower rho is more than a lower training loss, or smaller weights.

Cross-entropy's Hessian shrinks with the loss itself, so a small rho may only mean a well-fitted training set: beside
rho stand rho / training loss, and correlations given the log of that loss.  A network of ReLU layers stays the same
function when the weights of one layer are multiplied and the next one's divided, and rho does not (Dinh et al. 2017):
rho times the squared norm of the parameters takes out the scale of all weights together, not such exchanges between
layers.  Training loss, rho and norm are of the selected weights, the loss in evaluation mode.  Intervals: ``evidence``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import pandas as pd

from spectral_run.reports.claim_tests import GAPS, MU, RHO, TEST, TRAINED, UNREGULARIZED, log_of, size_of, value_of
from spectral_run.reports.evidence import Evidence, correlation, difference
from spectral_run.reports.findings import best_accuracy, by_method, mean_over
from spectral_run.reports.seeds import Number, models

if TYPE_CHECKING:
    from spectral_run.reports.sweeps import Sweep

LOSS: Final = log_of(value_of("train", "loss"))
NORM: Final = log_of(value_of("parameters_squared_norm"))
MEASURES: Final[Mapping[str, Number]] = {
    "rho": RHO,
    "rho / training loss": lambda result: RHO(result) - LOSS(result),
    "rho * squared norm": lambda result: RHO(result) + NORM(result),
    "training loss": LOSS,
    "squared norm": NORM,
}
"""Logarithms of what is set side by side."""


def gap_correlations(sweep: Sweep) -> pd.DataFrame:
    """Pearson's correlation of the gap's size with the log of each measure, as it is and at equal training loss."""
    least = TRAINED * best_accuracy(sweep)
    runs = [
        (seed, result) for model in models(sweep) for seed, result in model.results.items() if not TEST(result) < least
    ]
    seeds = [seed for seed, _ in runs]
    clusters = [(seed, repr(MU(result))) for seed, result in runs]
    loss = [LOSS(result) for _, result in runs]
    rows = []
    for metric, gap in GAPS.items():
        size = [size_of(gap(result)) for _, result in runs]
        for measure, value in MEASURES.items():
            x = [value(result) for _, result in runs]
            for given in (None, loss) if value is not LOSS else (None,):
                test = correlation(metric, x, size, clusters, kind="Pearson", given=given, strata=seeds)
                if test is not None:
                    about = {"test": metric, "log of": measure, "at equal training loss": given is not None}
                    rows.append(about | numbers(test))
    return pd.DataFrame(rows)


def ratios(sweep: Sweep) -> pd.DataFrame:
    """Each measure by method, geometric mean over seeds; and its factor over the unregularized model's."""
    there = by_method(sweep)
    rows = []
    for method, model in there.items():
        for measure, value in MEASURES.items():
            logs = model.values(value)
            if not logs:
                continue
            row = {
                "model": method,
                "measure": measure,
                "mean": math.exp(sum(logs.values()) / len(logs)),
                "n": len(logs),
            }
            if UNREGULARIZED in there and method != UNREGULARIZED:
                row |= factor(difference(measure, logs, there[UNREGULARIZED].values(value)))
            rows.append(row)
    return pd.DataFrame(rows)


def factors_of_mean(sweep: Sweep, ours: Sequence[str]) -> dict[str, Evidence]:
    """By measure: the mean log over ``ours`` less the unregularized model's, over seeds."""
    there = by_method(sweep)
    if any(name not in there for name in (*ours, UNREGULARIZED)):
        return {}
    found = {}
    for measure, value in MEASURES.items():
        test = difference(
            measure,
            mean_over([there[name].values(value) for name in ours]),
            there[UNREGULARIZED].values(value),
            sign=-1,
        )
        if test is not None:
            found[measure] = test
    return found


def numbers(test: Evidence) -> dict[str, float | int | str]:
    """Value, ends of the interval, n and what it counts."""
    return {"value": test.value, "ci_low": test.low, "ci_high": test.high, "n": test.n, "of": test.of}


def factor(test: Evidence | None) -> dict[str, float]:
    """A difference of logarithms as a factor with its interval."""
    if test is None:
        return {}
    return {"factor": math.exp(test.value), "ci_low": math.exp(test.low), "ci_high": math.exp(test.high)}


def changes(gap: pd.DataFrame) -> tuple[str, ...]:
    """What becomes of figure 2's correlation, in words, a sentence per test."""
    sentences = []
    for metric in dict.fromkeys(gap["test"]) if len(gap) else ():
        rows = gap[gap["test"] == metric]

        def row(measure: str, equal: bool, rows: pd.DataFrame = rows) -> pd.Series | None:
            found = rows[(rows["log of"] == measure) & (rows["at equal training loss"] == equal)]
            return found.iloc[0] if len(found) else None

        plain = row("rho", False)
        if plain is None:
            continue
        text = f"{metric}: the correlation of the gap's size with log rho is {_interval(plain)}"
        for measure, equal, what in (
            ("rho", True, "at equal training loss"),
            ("rho / training loss", False, "with log(rho / training loss)"),
            ("rho * squared norm", False, "with log(rho * squared norm of the parameters)"),
        ):
            other = row(measure, equal)
            text += "; " + (
                f"{what} it is {_interval(other)}, {_became(plain, other)}"
                if other is not None
                else f"{what}: not measured"
            )
        sentences.append(f"{text}.")
    return tuple(sentences)


def side(row: Mapping[str, float] | pd.Series) -> int:
    """1 or -1 where the interval leaves out 0, else 0."""
    return int(row["ci_low"] > 0) - int(row["ci_high"] < 0)


def _became(before: pd.Series, after: pd.Series) -> str:
    if side(before) == side(after):
        return "which changes nothing" if side(before) else "as undecided"
    if side(after) == 0:
        return "where the interval no longer leaves out 0"
    return "of the other sign" if side(before) else "where the interval leaves out 0"


def _interval(row: pd.Series) -> str:
    return f"{row['value']:.2f} [{row['ci_low']:.2f}, {row['ci_high']:.2f}]"
