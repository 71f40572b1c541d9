"""The tests of the paper's claims: from a sweep to its evidence, and to what is missing.

Regularized models are those of algorithm 1 (``method=mu...``); LOBPCG as printed is named where a claim has it.
A network that came to give one class for nearly everything has hardly any rho and hardly any gap, which speaks for no
claim: runs with less than half of the sweep's best test accuracy are left out of trends and correlations (as of figure
2), and a claim in favour of a model that diverged or fell below three quarters of the best cannot be supported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from spectral_run.reports.collect import curves, number
from spectral_run.reports.evidence import Evidence, correlation, difference, over_seeds, trend
from spectral_run.reports.findings import (
    Findings,
    best_accuracy,
    by_method,
    called,
    few,
    findings,
    lost,
    mean_over,
    versus,
)
from spectral_run.reports.seeds import Model, Number, models

if TYPE_CHECKING:
    from spectral_run.reports.sweeps import Sweep

UNREGULARIZED: Final = "unregularized"
NEAREST_COVTYPE: Final = "mu0.005-K1"  # of the penalties by power iteration the nearest to LOBPCG's mu .0028, K 1
AROUND: Final = (0.65, 0.85)  # three quarters, to ten points
EIGENSOLVER: Final = "eigensolver"
TRAINED: Final = 0.5  # of the best test accuracy: what figure 2 draws as trained


def value_of(*path: str) -> Number:
    """A number of ``result.json``."""
    return lambda result: number(result, *path)


def log_of(value: Number) -> Number:
    """Its logarithm; NaN where it is not positive."""
    return lambda result: math.log(value(result)) if value(result) > 0 else math.nan


RHO = log_of(value_of("rho", "value"))
MU = value_of("config", "regularizer", "mu")
TEST = value_of("test", "accuracy")
SHIFT = value_of("generalization", "covariate_shift", "relative_change", "value")
AUGMENTED: Final = {name.upper(): value_of("generalization", "augmentation", name, "value") for name in ("at1", "at2")}
GAPS: Final = {
    name.upper(): value_of("generalization", "augmentation", f"gap_{name}", "value") for name in ("at1", "at2")
}
CONSTRUCTED: Final = {
    name.capitalize(): value_of("generalization", "constructed", name, "value") for name in ("const1", "const2")
}


def trends(what: str, sweep: Sweep, level: Number, value: Number, chosen: Sequence[Model], *, sign: int) -> Findings:
    """``value`` against ``level`` over models, seed by seed; models of one level are averaged first."""
    least = TRAINED * best_accuracy(sweep)
    remarks = [f"{called(model)}: {model.runs}" for model in chosen if model.trouble]
    blocks = {}
    for seed in sorted({seed for model in chosen for seed in model.cells}):
        levels: dict[float, list[float]] = {}
        for model in chosen:
            result = model.results.get(seed)
            if result is not None and TEST(result) < least:
                remarks.append(f"{called(model)}, seed {seed} left out: test accuracy {TEST(result):.1%}")
            elif result is not None and math.isfinite(level(result)):
                levels.setdefault(level(result), []).append(value(result))
        blocks[seed] = [(key, sum(values) / len(values)) for key, values in levels.items()]
    test = trend(what, blocks, sign=sign)
    missing = [] if test else ["fewer than two seeds with three levels (of one seed: eight levels)"]
    return findings([test], missing, remarks)


def penalized(sweep: Sweep) -> list[Model]:
    """The models with a penalty (mu > 0) by algorithm 1, LOBPCG as printed left out."""
    return [
        model
        for model in models(sweep)
        if not model.overrides.get("method", "").startswith("lobpcg")
        and any(MU(result) > 0 for result in model.results.values())
    ]


def rho_with_mu(sweep: Sweep) -> Findings:
    """Over the mu's; models of one mu, whatever their K, are averaged."""
    return trends("log rho with mu", sweep, MU, RHO, penalized(sweep), sign=-1)


def mean_of_models(sweep: Sweep, metrics: Mapping[str, Number], ours: Sequence[str]) -> Findings:
    """The mean over ``ours`` less the unregularized model, paired over seeds."""
    there = by_method(sweep)
    missing = [f"no {name}" for name in (*ours, UNREGULARIZED) if name not in there]
    if missing:
        return Findings((), tuple(missing))
    missing += [text for name in ours for text in lost(name, there[name], sweep)]
    tests: list[Evidence | None] = []
    for metric, value in metrics.items():
        a = mean_over([there[name].values(value) for name in ours])
        b = there[UNREGULARIZED].values(value)
        tests.append(difference(f"{metric}, mean of {len(ours)} less {UNREGULARIZED}", a, b))
        missing += [] if tests[-1] else [few(metric, len(a.keys() & b.keys()))]
    return findings(tests, missing, [f"{name}: {there[name].runs}" for name in ours if there[name].trouble])


def best(sweep: Sweep, favourite: str, others: Sequence[str], metrics: Mapping[str, Number]) -> Findings:
    """The favourite against each model of the paper's, and each more that the sweep has."""
    every = dict.fromkeys((*others, *by_method(sweep)))
    return versus(sweep, [(favourite, name) for name in every if name != favourite], metrics)


def size_of(gap: float) -> float:
    """How far it is below 0; NaN of exactly 0, which has who gives one class for everything."""
    return -gap if gap != 0 else math.nan


def gaps(sweep: Sweep, *, regularized: bool) -> Findings:
    """Pearson's with rho, as figure 2 draws it, and Spearman's; models of one seed and mu are a cluster."""
    least = TRAINED * best_accuracy(sweep)
    every = [(seed, result) for model in models(sweep) for seed, result in model.results.items()]
    results = [(seed, result) for seed, result in every if not TEST(result) < least]
    untrained = len(every) - len(results)
    if regularized:
        chosen = [(seed, result) for seed, result in results if MU(result) > 0]
        if len(chosen) == len(results):
            return Findings((), ("every model of the sweep has a penalty: the same test as over all models",))
        results = chosen
    rho = [number(result, "rho", "value") for _, result in results]
    seeds = [seed for seed, _ in results]
    clusters = [(seed, repr(MU(result))) for seed, result in results]
    tests = [
        correlation(
            f"{metric}: size of the gap with rho ({kind})",
            rho,
            [size_of(gap(result)) for _, result in results],
            clusters,
            strata=seeds,
            kind=kind,
        )
        for metric, gap in GAPS.items()
        for kind in ("Pearson", "Spearman")
    ]
    missing = [] if all(tests) else ["fewer than 10 models that differ, or than 5 values of mu"]
    remarks = [f"{called(model)}: {model.runs}" for model in models(sweep) if model.trouble]
    remarks += [f"{untrained} with less than half of the best test accuracy left out"] if untrained else []
    return findings(tests, missing, remarks)


def training_batches(sweep: Sweep) -> Findings:
    """Over batch sizes, and the smallest against the largest."""
    size = value_of("config", "training", "batch_size")
    chosen = penalized(sweep)
    found = trends("log rho with batch size", sweep, size, RHO, chosen, sign=-1)
    sizes = {size(result): model for model in chosen for result in model.results.values()}
    if len(sizes) < 2:
        return found
    small, large = min(sizes), max(sizes)
    test = difference(
        f"log rho, batches of {small:g} less {large:g}", sizes[small].values(RHO), sizes[large].values(RHO)
    )
    missing = [*found.missing, *(text for model in chosen for text in lost(called(model), model, sweep))]
    return findings([*found.tests, test], missing, found.remarks)


def measuring_batches(sweep: Sweep) -> Findings:
    """The same networks measured on batches of each size."""
    measured: dict[int, dict[str, float]] = {}
    for model in penalized(sweep):
        for seed, result in model.results.items():
            for metric in (result.get("generalization") or {}).get("batch_radius") or {}:
                size = metric.removeprefix("rho_")
                value = number(result, "generalization", "batch_radius", metric, "value")
                if size.isdigit() and value > 0:
                    measured.setdefault(int(size), {})[f"{called(model)} {seed}"] = math.log(value)
    if len(measured) < 2:
        return Findings((), ("no rho of two sizes of batch (generalization=[batch_radius])",))
    seeds = sorted({seed for values in measured.values() for seed in values})
    blocks = {seed: [(float(s), values[seed]) for s, values in measured.items() if seed in values] for seed in seeds}
    small, large = min(measured), max(measured)
    tests = [
        trend("log rho with measuring batch", blocks, sign=-1),
        difference(f"log rho, batches of {small} less {large}", measured[small], measured[large]),
    ]
    return findings(tests, [] if all(tests) else [few("rho by measuring batch", len(seeds))])


def shares(result: Mapping[str, object]) -> dict[str, float]:
    """Each phase's share of the seconds of training, as in figure 5: evaluation, with the final tests, left out."""
    train = result.get("train")
    phases = train.get("seconds_by_phase") if isinstance(train, Mapping) else None
    seconds = {str(k): float(v) for k, v in phases.items()} if isinstance(phases, Mapping) else {}
    seconds.pop("evaluation", None)
    total = sum(seconds.values())
    return {phase: value / total for phase, value in seconds.items()} if total > 0 else {}


def solver_of(result: Mapping[str, object]) -> str:
    """The regularizer's eigensolver."""
    config = result.get("config")
    regularizer = config.get("regularizer") if isinstance(config, Mapping) else None
    return str(regularizer.get("solver", "")) if isinstance(regularizer, Mapping) else ""


def time_shares(sweep: Sweep) -> Findings:
    """The mean over the models with power iteration of the eigensolver's share, seed by seed, in ``AROUND``."""
    chosen = [m for m in penalized(sweep) if all(solver_of(result) == "power" for result in m.results.values())]
    if not chosen:
        return Findings((), ("no run with power iteration",))
    share = mean_over([model.values(lambda result: shares(result).get(EIGENSOLVER, math.nan)) for model in chosen])
    tests = [
        over_seeds("eigensolver's share of the time", share, null=AROUND[0], sign=1),
        over_seeds("eigensolver's share of the time", share, null=AROUND[1], sign=-1),
    ]
    missing = [] if all(tests) else [few("share", len(share))]
    return findings(tests, missing, [f"{called(model)}: {model.runs}" for model in chosen if model.trouble])


def residuals(model: Model) -> dict[str, dict[str, float]]:
    """By what it is relative to: the log of the solver's mean residual in training, by seed."""
    found: dict[str, dict[str, float]] = {"residual": {}, "residual / rho": {}}
    for seed in model.results:
        frame = curves(Path(model.cells[seed].folder or ""))
        if not {"train/residual", "train/rho"} <= set(frame.columns):
            continue
        residual, rho = float(frame["train/residual"].mean()), float(frame["train/rho"].mean())
        if residual > 0 and rho > 0:
            found["residual"][seed] = math.log(residual)
            found["residual / rho"][seed] = math.log(residual / rho)
    return found


def larger_residual(lobpcg: Model | None, power: Model | None) -> Findings:
    """LOBPCG's less power iteration's; both as they are and in units of rho, for the two may regularize differently."""
    if lobpcg is None or power is None:
        return Findings((), ("no run of LOBPCG as printed" if lobpcg is None else "no run with power iteration",))
    ours, theirs = residuals(lobpcg), residuals(power)
    tests = [difference(f"log {what}, LOBPCG less power iteration", ours[what], theirs[what]) for what in ours]
    both = len(ours["residual"].keys() & theirs["residual"].keys())
    missing = [] if all(tests) else [few("residuals in metrics.jsonl of both", both)]
    return findings(tests, missing, [f"{called(model)}: {model.runs}" for model in (lobpcg, power) if model.trouble])


def residual_covtype(sweep: Sweep) -> Findings:
    """Within table 2, where algorithm 1 runs as printed."""
    there = by_method(sweep)
    power = there.get(NEAREST_COVTYPE)
    if power is not None and any(solver_of(result) != "power" for result in power.results.values()):
        power = None
    return larger_residual(there.get("lobpcg_covtype"), power)


def residual_usps(figure1: Sweep, figure5: Sweep) -> Findings:
    """Figure 1's LOBPCG against figure 5's power iteration: mu and K are the same."""
    power = [m for m in penalized(figure5) if all(solver_of(result) == "power" for result in m.results.values())]
    return larger_residual(by_method(figure1).get("lobpcg"), power[0] if power else None)
