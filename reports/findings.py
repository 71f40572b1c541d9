"""What a sweep has to say on a claim: its tests, what is missing for a "supported", and remarks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from spectral_run.reports.collect import number
from spectral_run.reports.evidence import Evidence, difference
from spectral_run.reports.seeds import Model, Number, models

if TYPE_CHECKING:
    from spectral_run.reports.sweeps import Sweep

METHOD: Final = "method"
LEARNED: Final = 0.75  # of the best test accuracy: below it a run has hardly learned


@dataclass(frozen=True)
class Findings:
    """``missing``: why the claim can't be supported whatever the tests say, or why there are none."""

    tests: tuple[Evidence, ...]
    missing: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


def findings(tests: Iterable[Evidence | None], missing: Iterable[str] = (), remarks: Iterable[str] = ()) -> Findings:
    """Without the tests that could not be made."""
    return Findings(tuple(t for t in tests if t), tuple(dict.fromkeys(missing)), tuple(dict.fromkeys(remarks)))


def by_method(sweep: Sweep) -> dict[str, Model]:
    """The models of a sweep whose cells differ in method and seed."""
    return {model.overrides[METHOD]: model for model in models(sweep) if METHOD in model.overrides}


def versus(
    sweep: Sweep,
    pairs: Sequence[tuple[str, str]],
    metrics: Mapping[str, Number],
    *,
    null: float = 0.0,
    sign: int = 1,
) -> Findings:
    """For each (ours, theirs) and metric: ours less theirs, paired over the seeds; the claim favours ours."""
    there = by_method(sweep)
    tests: list[Evidence | None] = []
    missing, remarks = [], []
    for name in dict.fromkeys(name for pair in pairs for name in pair):
        if name not in there:
            missing.append(f"no {name}")
            continue
        missing += lost(name, there[name], sweep) if name in {ours for ours, _ in pairs} else []
        remarks += [f"{name}: {there[name].runs}"] if there[name].trouble else []
    for ours, theirs in pairs:
        if ours not in there or theirs not in there:
            continue
        for metric, value in metrics.items():
            a, b = there[ours].values(value), there[theirs].values(value)
            tests.append(difference(f"{metric}, {ours} less {theirs}", a, b, null=null, sign=sign))
            if tests[-1] is None:
                missing.append(few(f"{metric} of {ours} and {theirs}", len(a.keys() & b.keys())))
    return findings(tests, missing, remarks)


def lost(name: str, model: Model, sweep: Sweep) -> list[str]:
    """The runs of a model that diverged or hardly learned: what is left of it is the better part."""
    seeds = model.trouble.get("diverged", [])
    found = [f"{name} diverged at seed {', '.join(seeds)}"] if seeds else []
    least = LEARNED * best_accuracy(sweep)
    seeds = [seed for seed, value in model.values(_accuracy).items() if value < least]
    return found + ([f"{name} hardly learned at seed {', '.join(seeds)}"] if seeds else [])


def best_accuracy(sweep: Sweep) -> float:
    """The best test accuracy of a run; NaN where none has one."""
    every = [value for model in models(sweep) for value in model.values(_accuracy).values()]
    return max(every, default=math.nan)


def called(model: Model) -> str:
    """A model's overrides in a word."""
    return ", ".join(text if key == METHOD else f"{key}={text}" for key, text in model.overrides.items()) or "the run"


def _accuracy(result: Mapping[str, Any]) -> float:
    return number(result, "test", "accuracy")


def few(what: str, seeds: int) -> str:
    """Why there is no interval."""
    return f"{what}: {'one seed' if seeds == 1 else 'no seed'}, where an interval over seeds needs two"


def mean_over(models_values: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean over models by seed, of the seeds that all of them have."""
    common = set.intersection(*(set(values) for values in models_values)) if models_values else set()
    return {seed: sum(values[seed] for values in models_values) / len(models_values) for seed in sorted(common)}
