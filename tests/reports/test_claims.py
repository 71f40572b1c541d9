"""Every claim on made sweeps whose truth is known: supported, contradicted, undecided, missing, of one seed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spectral_run.reports.chest_claims import SOURCES
from spectral_run.reports.claims import CLAIMS, COVTYPE, USPS, Claim
from spectral_run.reports.evidence import CONTRADICTED, SUPPORTED, UNDECIDED, UNTESTED, Judgement, judge
from spectral_run.reports.sweeps import Cell, Sweep

BY_KEY: Mapping[str, Claim] = {claim.key: claim for claim in CLAIMS}
SEEDS = 3
OTHERS = ("unregularized", "asymmetric_valley", "entropy_sgd", "kfac")


def noise_of(seed: int, *purpose: object) -> float:
    """A standard normal number of its own for every seed and purpose."""
    digits = sum(ord(letter) * 31**i for i, letter in enumerate(str(purpose))) % 2**32
    return float(np.random.default_rng([seed, digits]).normal())


def penalty(name: str) -> dict[str, float]:
    """mu and K of ``mu0.01-K1``."""
    mu, _, rest = name.removeprefix("mu").partition("-K")
    return {"mu": float(mu), "K": float(rest.partition("-")[0])}


def result(method: str, seed: int, **numbers: Any) -> dict[str, Any]:
    regularizer: dict[str, Any] = {}
    if method.startswith("mu"):
        regularizer = {**penalty(method), "solver": "power"}
    elif method.startswith("lobpcg"):
        regularizer = {"mu": 0.005, "K": 0.0, "solver": "lobpcg_paper"}
    made = {
        "status": "done",
        "seed": seed,
        "data": {"name": "usps", "rows": {"train": 10, "test": 5}, "sha256": "5dee4bba" * 8},
        "config": {"regularizer": regularizer, "training": {"batch_size": 128}},
        "test": {"accuracy": 0.95 + 0.001 * noise_of(seed, method)},
        "train": {"loss": 0.01},
        "rho": {"value": 10.0},
        "generalization": {},
    }
    for path, value in numbers.items():
        held = made
        *parents, last = path.split("__")
        for key in parents:
            held = held.setdefault(key, {})
        held[last] = value
    return made


def sweep(
    name: str, methods: tuple[str, ...], numbers: Callable[[str, int], dict[str, Any]], seeds: int = SEEDS, **about: Any
) -> Sweep:
    cells = [
        Cell({"method": method, "seed": str(seed)}, "done", None, result(method, seed, **numbers(method, seed)))
        for method in methods
        for seed in range(seeds)
    ]
    return Sweep(name, about.get("scale", "small"), Path("made"), tuple(cells))


def outcome(key: str, *sweeps: Sweep) -> Judgement:
    found = BY_KEY[key].tried({sweep.experiment: sweep for sweep in sweeps})
    return judge(found.tests, found.missing)


def metric(value: float) -> dict[str, float]:
    return {"value": value, "ci_low": value, "ci_high": value, "n": 5}


TABLE2 = (*OTHERS, *COVTYPE, "lobpcg_covtype")
FIGURE1 = (*OTHERS, *USPS, "lobpcg")


def shifted(gain: Callable[[str], float], draw: int = 0, **about: Any) -> Sweep:
    """Table 2 with relative changes of -2%, plus ``gain`` of the method, plus noise of a thousandth."""

    def numbers(method: str, seed: int) -> dict[str, Any]:
        value = -0.02 + gain(method) + 0.001 * noise_of(seed, method, draw)
        return {"generalization__covariate_shift": {"relative_change": metric(value)}}

    return sweep("table2", TABLE2, numbers, **about)


def augmented(gain: Callable[[str], float], at2: Callable[[str], float] | None = None, **about: Any) -> Sweep:
    def numbers(method: str, seed: int) -> dict[str, Any]:
        first = 0.88 + gain(method) + 0.001 * noise_of(seed, method, "at1")
        second = 0.65 + (at2 or gain)(method) + 0.001 * noise_of(seed, method, "at2")
        return {"generalization__augmentation": {"at1": metric(first), "at2": metric(second)}}

    return sweep("figure1", FIGURE1, numbers, **about)


def penalized(method: str) -> bool:
    return method.startswith("mu") or method == "lobpcg"


def test_shift_claims() -> None:
    gaining = shifted(lambda method: 0.02 * method.startswith("mu"))
    assert outcome("shift_mean", gaining).outcome == SUPPORTED
    assert outcome("shift_each", gaining).outcome == SUPPORTED
    assert outcome("shift_best", gaining).outcome == UNDECIDED  # all of them gain the same
    assert outcome("shift_best", shifted(lambda m: 0.02 * (m == "mu0.01-K0"))).outcome == SUPPORTED
    losing = shifted(lambda method: -0.02 * method.startswith("mu"))
    assert {outcome(key, losing).outcome for key in ("shift_mean", "shift_each", "shift_best")} == {CONTRADICTED}


@pytest.mark.parametrize("key", ["shift_mean", "shift_each", "shift_best"])
def test_no_effect_is_seldom_supported_or_contradicted(key: str) -> None:
    """Of sweeps without one: 2.5% either way, to three standard errors."""
    found = [outcome(key, shifted(lambda method: 0.0, draw=draw)).outcome for draw in range(100)]
    assert max(found.count(SUPPORTED), found.count(CONTRADICTED)) <= 2.5 + 3 * math.sqrt(2.5)


def test_one_model_worse_than_the_unregularized_contradicts_each_but_not_the_mean() -> None:
    mixed = shifted(lambda method: 0.03 * method.startswith("mu") - 0.06 * (method == "mu0.001-K5"))
    assert outcome("shift_each", mixed).outcome == CONTRADICTED
    assert outcome("shift_mean", mixed).outcome == SUPPORTED


def test_augmented_claims_need_both_tests() -> None:
    both = augmented(lambda m: 0.03 * penalized(m))
    assert {outcome(key, both).outcome for key in ("augmented_mean", "augmented_each")} == {SUPPORTED}
    one = augmented(lambda m: 0.03 * penalized(m), at2=lambda m: 0.0)
    assert {outcome(key, one).outcome for key in ("augmented_mean", "augmented_each")} == {UNDECIDED}
    best = augmented(lambda m: 0.03 * (m == "mu0.005-K0"))
    assert outcome("augmented_best", best).outcome == SUPPORTED
    assert len(BY_KEY["augmented_best"].tried({"figure1": best}).tests) == 2 * (len(FIGURE1) - 1)


@pytest.mark.parametrize("seeds", [0, 1])
def test_one_seed_is_not_tested(seeds: int) -> None:
    found = outcome("augmented_best", augmented(lambda m: 0.03 * (m == "mu0.005-K0"), seeds=seeds))
    assert found.outcome == UNTESTED
    tried = BY_KEY["augmented_best"].tried({"figure1": augmented(lambda m: 0.0, seeds=seeds)})
    assert ("one seed" if seeds else "no run that is done") in tried.missing[0]


def test_smoke_is_not_tested() -> None:
    found = BY_KEY["shift_mean"].tried({"table2": shifted(lambda m: 0.02 * m.startswith("mu"), scale="smoke")})
    assert (found.tests, found.missing) == ((), ("table2 at scale smoke has no meaning",))


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.key)
def test_no_sweep_is_no_error(claim: Claim) -> None:
    found = claim.tried({})
    assert found.tests == ()
    assert found.missing == tuple(f"no sweep of {name}" for name in claim.experiments)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.key)
def test_runs_without_the_numbers_are_not_tested(claim: Claim) -> None:
    """Results of other methods, or without the tests asked for: said, and no error."""
    bare = {name: sweep(name, ("unregularized", "sam"), lambda m, s: {}) for name in claim.experiments}
    found = claim.tried(bare)
    assert judge(found.tests, found.missing).outcome == UNTESTED
    assert found.missing


def without(made: Sweep, method: str, status: str, seeds: tuple[str, ...]) -> Sweep:
    cells = tuple(
        Cell(cell.overrides, status, None, None)
        if cell.overrides["method"] == method and cell.overrides["seed"] in seeds
        else cell
        for cell in made.cells
    )
    return Sweep(made.experiment, made.scale, made.folder, cells)


def test_a_favourite_that_diverged_is_not_supported() -> None:
    gaining = shifted(lambda method: 0.1 * method.startswith("mu"))
    for key in ("shift_mean", "shift_each"):
        assert outcome(key, without(gaining, "mu0.01-K1", "diverged", ("2",))).outcome == UNDECIDED
        # A cell that is still to come, or a baseline that diverged, takes nothing from it.
        assert outcome(key, without(gaining, "mu0.01-K1", "missing", ("2",))).outcome == SUPPORTED
        assert outcome(key, without(gaining, "unregularized", "diverged", ("2",))).outcome == SUPPORTED
        assert outcome(key, without(gaining, "mu0.01-K1", "failed", ("1", "2"))).outcome != SUPPORTED


def test_a_favourite_that_hardly_learned_is_not_supported() -> None:
    """Who gives one class for everything loses nothing under a shift."""

    def numbers(method: str, seed: int) -> dict[str, Any]:
        dead = method == "mu0.01-K1" and seed == 1
        value = -0.02 + 0.02 * method.startswith("mu") + 0.001 * noise_of(seed, method)
        return {"generalization__covariate_shift__relative_change": metric(value)} | (
            {"test__accuracy": 0.49} if dead else {}
        )

    made = sweep("table2", TABLE2, numbers)
    found = BY_KEY["shift_each"].tried({"table2": made})
    assert found.missing == ("mu0.01-K1 hardly learned at seed 1",)
    assert outcome("shift_each", made).outcome == UNDECIDED


def test_accuracy_is_a_question_of_a_margin() -> None:
    def made(loss: float) -> Sweep:
        return sweep(
            "figure1",
            FIGURE1,
            lambda m, s: {"test__accuracy": 0.95 - loss * penalized(m) + 0.001 * noise_of(s, m, "plain")},
        )

    assert outcome("accuracy", made(0.005)).outcome == SUPPORTED
    assert outcome("accuracy", made(0.0144)).outcome == UNDECIDED
    assert outcome("accuracy", made(0.04)).outcome == CONTRADICTED


@pytest.mark.parametrize(("power", "wanted"), [(-0.5, SUPPORTED), (0.5, CONTRADICTED)])
def test_rho_with_mu(power: float, wanted: str) -> None:
    def numbers(method: str, seed: int) -> dict[str, Any]:
        mu = penalty(method)["mu"] if method.startswith("mu") else 1.0
        return {"rho__value": math.exp(power * math.log(mu) + 0.05 * noise_of(seed, method))}

    assert outcome("rho_mu_usps", sweep("figure1", FIGURE1, numbers)).outcome == wanted
    assert outcome("rho_mu_covtype", sweep("table2", TABLE2, numbers)).outcome == wanted
    flat = sweep("figure1", FIGURE1, lambda m, s: {"rho__value": math.exp(noise_of(s, m))})
    assert outcome("rho_mu_usps", flat).outcome == UNDECIDED


def grid(slope: float, *, mus: tuple[float, ...] | None = None, dead: int = 0, falls: bool = True) -> Sweep:
    """Figure 2: 70 models of one seed; the gap's size is ``slope`` times log rho, and noise."""
    cells = []
    for mu in mus or (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2):
        for K in (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0):
            log_rho = (-0.6 * math.log(mu + 1e-4) if falls else 0.0) + 0.5 * noise_of(0, mu, K)
            gap = -0.1 - slope * log_rho + 0.02 * noise_of(1, mu, K)
            made = result("", 0)
            made["config"]["regularizer"] = {"mu": mu, "K": K, "solver": "lanczos"}
            made["rho"]["value"] = math.exp(log_rho)
            made["generalization"]["augmentation"] = {"gap_at1": metric(gap), "gap_at2": metric(gap - 0.1)}
            if len(cells) < dead:
                made["test"]["accuracy"], made["rho"]["value"] = 0.17, 1e-3 * (1 + K)
                made["generalization"]["augmentation"] = {"gap_at1": metric(0.0), "gap_at2": metric(0.0)}
            overrides = {"regularizer.mu": str(mu), "regularizer.K": str(K), "seed": "0"}
            cells.append(Cell(overrides, "done", None, made))
    return Sweep("figure2", "small", Path("made"), tuple(cells))


@pytest.mark.parametrize(("slope", "wanted"), [(0.05, SUPPORTED), (-0.05, CONTRADICTED), (0.0, UNDECIDED)])
def test_the_gap_with_rho(slope: float, wanted: str) -> None:
    assert outcome("gap_rho", grid(slope)).outcome == wanted
    found = BY_KEY["gap_rho"].tried({"figure2": grid(slope)})
    assert [test.n for test in found.tests] == [70] * 4


def test_networks_that_died_speak_for_no_claim() -> None:
    """No gap and no rho, ten times: of these alone the correlation would be made."""
    found = BY_KEY["gap_rho"].tried({"figure2": grid(0.0, dead=10)})
    assert judge(found.tests).outcome == UNDECIDED
    assert [test.n for test in found.tests] == [60] * 4
    assert found.remarks == ("10 with less than half of the best test accuracy left out",)


def test_a_gap_of_exactly_nothing_is_none() -> None:
    made = grid(0.05)
    held = made.cells[0].result
    assert held is not None
    held["generalization"]["augmentation"]["gap_at1"]["value"] = 0.0
    assert [test.n for test in BY_KEY["gap_rho"].tried({"figure2": made}).tests] == [69, 69, 70, 70]


def test_the_regularized_models_alone() -> None:
    tried = BY_KEY["gap_rho_regularized"].tried({"figure2": grid(0.05)})
    assert tried.tests == ()
    assert "every model of the sweep has a penalty" in tried.missing[0]
    with_zero = grid(0.05, mus=(0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05))
    assert [t.n for t in BY_KEY["gap_rho_regularized"].tried({"figure2": with_zero}).tests] == [42] * 4
    assert outcome("gap_rho_regularized", with_zero).outcome == SUPPORTED


def test_rho_over_the_grid_of_one_seed() -> None:
    assert outcome("rho_mu_grid", grid(0.0)).outcome == SUPPORTED
    assert outcome("rho_mu_grid", grid(0.0, falls=False)).outcome == UNDECIDED
    few = grid(0.0, mus=(0.001, 0.002, 0.005, 0.01, 0.02))
    assert outcome("rho_mu_grid", few).outcome == UNTESTED


@pytest.mark.parametrize("key", ["batch_covtype", "batch_usps", "batch_measured"])
@pytest.mark.parametrize(("power", "wanted"), [(-0.5, SUPPORTED), (0.5, CONTRADICTED), (0.0, UNDECIDED)])
def test_batches(key: str, power: float, wanted: str) -> None:
    (experiment,) = BY_KEY[key].experiments
    cells = []
    for seed in range(SEEDS):
        rho = {size: size**power * math.exp(0.1 * noise_of(seed, size)) for size in (32, 64, 128, 256, 512)}
        if key == "batch_measured":
            made = result("mu0.01-K0", seed)
            made["generalization"]["batch_radius"] = {f"rho_{size}": metric(value) for size, value in rho.items()}
            cells.append(Cell({"method": "mu0.01-K0", "seed": str(seed)}, "done", None, made))
            continue
        for size, value in rho.items():
            made = result("mu0.01-K0", seed, rho__value=value)
            made["config"]["training"]["batch_size"] = size
            own = {"method": f"mu0.01-K0-batch{size}"} if key == "batch_covtype" else {"training.batch_size": str(size)}
            cells.append(Cell({**own, "seed": str(seed)}, "done", None, made))
    assert outcome(key, Sweep(experiment, "small", Path("made"), tuple(cells))).outcome == wanted


@pytest.mark.parametrize(("share", "wanted"), [(0.75, SUPPORTED), (0.66, UNDECIDED), (0.4, CONTRADICTED)])
def test_three_quarters(share: float, wanted: str) -> None:
    def numbers(method: str, seed: int) -> dict[str, Any]:
        own = share + 0.01 * noise_of(seed, method)
        return {"train__seconds_by_phase": {"eigensolver": own, "gradient": 1 - own, "evaluation": 2.0}}

    made = sweep("figure5", ("mu0.005-K0",), numbers)
    assert outcome("time_usps", made).outcome == wanted
    lanczos = sweep("figure5", ("mu0.005-K0",), lambda m, s: numbers(m, s) | {"config__regularizer__solver": "lanczos"})
    assert outcome("time_usps", lanczos).outcome == UNTESTED


@pytest.mark.parametrize(("times", "wanted"), [(100.0, SUPPORTED), (1.0, UNDECIDED), (0.01, CONTRADICTED)])
def test_the_residual_of_lobpcg(tmp_path: Path, times: float, wanted: str) -> None:
    def written(cell: Cell) -> Cell:
        method, seed = cell.overrides["method"], int(cell.overrides["seed"])
        folder = tmp_path / f"{method}-{seed}"
        folder.mkdir()
        residual = (times if method == "lobpcg_covtype" else 1.0) * math.exp(0.1 * noise_of(seed, method))
        lines = [
            {"step": 1, "epoch": epoch, "split": "train", "name": name, "value": value, "products": 1}
            for epoch in (1, 2)
            for name, value in (("residual", residual), ("rho", 1.0))
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return Cell(cell.overrides, cell.status, str(folder), cell.result)

    made = sweep("table2", ("mu0.005-K1", "lobpcg_covtype"), lambda m, s: {})
    assert outcome("residual_covtype", made).outcome == UNTESTED  # no metrics.jsonl
    cells = tuple(map(written, made.cells))
    assert outcome("residual_covtype", Sweep("table2", "small", tmp_path, cells)).outcome == wanted


def test_clipped_claims_take_the_clipped_penalties_and_everything_else_of_table_2() -> None:
    losing = shifted(lambda method: -0.02 * method.startswith("mu"))
    gaining = shifted(lambda method: 0.02 * method.startswith("mu"))
    clipped = Sweep(
        "table2_clipped", "small", Path("made"), tuple(c for c in gaining.cells if "mu" in c.overrides["method"])
    )
    assert outcome("shift_mean", losing, clipped).outcome == CONTRADICTED
    assert outcome("shift_mean_clipped", losing, clipped).outcome == SUPPORTED
    assert outcome("shift_each_clipped", losing, clipped).outcome == SUPPORTED
    assert outcome("shift_mean_clipped", losing).outcome == UNTESTED
    assert outcome("shift_mean_clipped", clipped).outcome == UNTESTED  # nothing to compare with
    assert BY_KEY["batch_covtype_clipped"].experiments == ("table3_clipped",)


def test_the_papers_sources_are_ours() -> None:
    from spectral_run.generalization import chest_transfer

    assert set(SOURCES) < set(chest_transfer.SOURCES)


CHEST = tuple(f"chest_{name}" for name in ("unregularized", "spectral_radius", "entropy_sgd", "kfac", "valley"))


@pytest.mark.parametrize(("slope", "wanted"), [(-0.02, SUPPORTED), (0.02, CONTRADICTED)])
def test_transfer_on_every_source_there_is(slope: float, wanted: str) -> None:
    def made(sources: tuple[str, ...]) -> Sweep:
        def numbers(method: str, seed: int) -> dict[str, Any]:
            size = CHEST.index(method)
            drops = {f"drop_{s}": metric(-0.05 + slope * size + 0.003 * noise_of(seed, method, s)) for s in sources}
            return {"rho__value": math.exp(size), "generalization__chest_transfer": drops}

        return sweep("chest_finetune", CHEST, numbers)

    assert outcome("transfer", made(SOURCES)).outcome == wanted
    part = outcome("transfer", made(SOURCES[:2])).outcome
    assert part == (UNDECIDED if wanted == SUPPORTED else CONTRADICTED)  # what is missing could speak against it


@pytest.mark.parametrize(("slope", "wanted"), [(-0.1, SUPPORTED), (0.1, CONTRADICTED)])
def test_grad_cam(tmp_path: Path, slope: float, wanted: str) -> None:
    made = sweep("chest_finetune", CHEST, lambda m, s: {"rho__value": math.exp(CHEST.index(m))}, seeds=1)
    cells = []
    for cell in made.cells:
        folder = tmp_path / "runs" / cell.overrides["method"] / "seed-0"
        folder.mkdir(parents=True)
        cells.append(Cell(cell.overrides, cell.status, str(folder), cell.result))
    assert outcome("grad_cam", Sweep("chest_finetune", "small", tmp_path, tuple(cells))).outcome == UNTESTED
    place = tmp_path / "runs" / "comparisons" / "gradcam_overlap-12345678"
    place.mkdir(parents=True)
    runs = [{"label": method, "folder": f"../../{method}/seed-0", "seed": 0} for method in CHEST]
    metrics = {
        f"jaccard: {one} | {two}": metric(0.9 + slope * (i + j) / 2 / 2)
        for i, one in enumerate(CHEST)
        for j, two in enumerate(CHEST[i + 1 :], i + 1)
    }
    comparison = {"settings": {"source": "nih_test"}, "runs": runs, "metrics": metrics}
    (place / "comparison.json").write_text(json.dumps(comparison))
    found = outcome("grad_cam", Sweep("chest_finetune", "small", tmp_path, tuple(cells)))
    assert found.outcome == wanted
    assert found.decisive is not None
    assert "nih_test" in found.decisive.what
