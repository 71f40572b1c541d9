"""The report of the claims: what it says of made sweeps, of none, and what rho is at equal training loss."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from spectral_run.reports.claims import CLAIMS
from spectral_run.reports.document import TableOut, write
from spectral_run.reports.equal_loss import changes, gap_correlations, ratios
from spectral_run.reports.evidence import CONTRADICTED, SUPPORTED, UNDECIDED, UNTESTED
from spectral_run.reports.sweeps import Cell, Sweep
from spectral_run.reports.verdicts import judge_all, verdicts

MUS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2)


def metric(value: float) -> dict[str, float]:
    return {"value": value, "ci_low": value, "ci_high": value, "n": 5}


def grid(behind: str, *, norm: bool = True) -> Sweep:
    """70 models of figure 2; ``behind`` says what the gap follows: rho, or the training loss that rho follows too."""
    random = np.random.default_rng(0)
    cells = []
    for mu in MUS:
        for K in (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0):
            log_loss = -5 - 0.5 * math.log(mu) + random.normal()
            log_rho = log_loss + 4 + random.normal()
            gap = -0.1 - 0.02 * (log_rho if behind == "rho" else log_loss) + 0.01 * random.normal()
            made: dict[str, Any] = {
                "status": "done", "seed": 0, "config": {"regularizer": {"mu": mu, "K": K}},
                "data": {"name": "usps", "rows": {"train": 6250, "test": 2007}, "sha256": "ab" * 32},
                "train": {"loss": math.exp(log_loss)}, "test": {"accuracy": 0.95}, "rho": {"value": math.exp(log_rho)},
                "generalization": {"augmentation": {"gap_at1": metric(gap), "gap_at2": metric(gap)}},
            }  # fmt: skip
            if norm:
                made["parameters_squared_norm"] = 100.0
            cells.append(Cell({"regularizer.mu": str(mu), "regularizer.K": str(K), "seed": "0"}, "done", None, made))
    return Sweep("figure2", "small", Path("made"), tuple(cells))


def figure1(seeds: int = 3) -> Sweep:
    """rho of the penalty a tenth, at a fifth of the loss and four times the squared norm."""
    random = np.random.default_rng(1)
    cells = []
    for method, rho, loss, norm in (("unregularized", 20.0, 0.005, 50.0), ("mu0.005-K0", 2.0, 0.001, 200.0)):
        for seed in range(seeds):
            made = {
                "status": "done", "seed": seed, "train": {"loss": loss * math.exp(0.1 * random.normal())},
                "rho": {"value": rho * math.exp(0.1 * random.normal())}, "parameters_squared_norm": norm,
                "test": {"accuracy": 0.95},
            }  # fmt: skip
            cells.append(Cell({"method": method, "seed": str(seed)}, "done", None, made))
    return Sweep("figure1", "small", Path("made"), tuple(cells))


def tables(sweeps: dict[str, Sweep]) -> dict[str, TableOut]:
    return {part.name: part for part in verdicts(sweeps).parts if isinstance(part, TableOut)}


def test_without_any_sweep_nothing_is_tested_and_all_is_said(tmp_path: Path) -> None:
    document = verdicts({})
    table = next(part for part in document.parts if part.name == "verdicts")
    assert set(table.frame["outcome"]) == {UNTESTED}
    assert len(table.shown) == len(CLAIMS)
    assert all(text.startswith("no sweep of ") for text in table.shown["missing, left out"])
    assert f"{len(CLAIMS)} claims: 0 supported" in document.text[0]
    write(document, tmp_path)
    assert "no sweep of figure2" in (tmp_path / "verdicts.md").read_text()


def test_the_table_says_what_was_found_and_on_what(tmp_path: Path) -> None:
    document = verdicts({"figure2": grid("rho")})
    table = next(part for part in document.parts if part.name == "verdicts")
    rows = table.frame.set_index("name")
    assert rows.loc["gap_rho", "outcome"] == SUPPORTED
    assert rows.loc["rho_mu_grid", "outcome"] in (SUPPORTED, UNDECIDED)
    assert rows.loc["shift_mean", "outcome"] == UNTESTED
    gap = rows.loc["gap_rho"]
    assert 0 < gap["ci_low"] < gap["value"] < gap["ci_high"]
    assert gap["n"] == 70
    assert gap["data"] == "figure2: usps 8,257 rows (sha256 abababab), 70 runs, seed 0, scale small"
    outcome = list(table.shown.columns).index("outcome")
    assert {row for row, column in table.bold if column == outcome} == set(
        np.flatnonzero(table.frame["outcome"].isin([SUPPORTED, CONTRADICTED]))
    )
    write(document, tmp_path)
    written = pd.read_csv(tmp_path / "verdicts.csv").set_index("name")
    assert written.loc["gap_rho", "value"] == pytest.approx(gap["value"])


def test_holm_is_over_the_claims_that_were_tested() -> None:
    judged = judge_all({"figure2": grid("rho")})
    tested = [verdict for verdict in judged if verdict.judgement.outcome != UNTESTED]
    assert [verdict.claim.key for verdict in tested] == ["rho_mu_grid", "gap_rho"]
    smallest, largest = sorted(tested, key=lambda verdict: verdict.judgement.p)
    assert smallest.p == pytest.approx(2 * smallest.judgement.p)
    assert largest.p == pytest.approx(max(largest.judgement.p, smallest.p))
    assert all(math.isnan(verdict.p) for verdict in judged if verdict not in tested)


@pytest.mark.parametrize(
    ("behind", "said"),
    [("rho", "which changes nothing"), ("training loss", "where the interval no longer leaves out 0")],
)
def test_what_changes_at_equal_training_loss(behind: str, said: str) -> None:
    gap = gap_correlations(grid(behind))
    for sentence in changes(gap):
        _, equal, ratio, norm = sentence.split("; ")
        assert equal.startswith("at equal training loss it is ")
        assert equal.endswith(said)
        assert ratio.startswith("with log(rho / training loss)")
        assert norm.endswith("which changes nothing.")
    assert len(changes(gap)) == 2
    assert any("at equal training loss" in text for text in verdicts({"figure2": grid(behind)}).text)


def test_results_without_the_norm_say_so() -> None:
    sentences = changes(gap_correlations(grid("rho", norm=False)))
    assert all(s.endswith("with log(rho * squared norm of the parameters): not measured.") for s in sentences)


def test_rho_beside_loss_and_norm() -> None:
    found = ratios(figure1()).set_index(["model", "measure"])
    row = found.loc[("mu0.005-K0", "rho")]
    assert row["ci_low"] < 0.1 < row["ci_high"]
    row = found.loc[("mu0.005-K0", "rho / training loss")]
    assert row["ci_low"] < 0.5 < row["ci_high"]
    mean = found.loc[("unregularized", "rho * squared norm"), "mean"]
    assert mean == pytest.approx(50 * found.loc[("unregularized", "rho"), "mean"])
    # Equal norms leave no interval, and the factor is there all the same.
    assert found.loc[("mu0.005-K0", "squared norm"), "factor"] == pytest.approx(4)
    shown = tables({"figure1": figure1()})["verdict_rho_figure1"].shown.set_index("model")
    assert "[" in shown.loc["mu0.005-K0", "rho"]
    assert "[" not in shown.loc["unregularized", "rho"]


def test_one_seed_has_values_and_no_intervals() -> None:
    found = ratios(figure1(seeds=1))
    assert "ci_low" not in found
    assert verdicts({"figure1": figure1(seeds=1)}).text[0].startswith(f"{len(CLAIMS)} claims: 0 supported, 0 contra")


def test_the_shares_of_the_time_are_there_for_each_solver() -> None:
    cells = []
    for solver, share in (("power", 0.75), ("lanczos", 0.6)):
        for seed in range(3):
            own = share + 0.01 * seed
            made = {
                "status": "done", "seed": seed, "config": {"regularizer": {"mu": 0.005, "K": 0.0, "solver": solver}},
                "train": {"seconds_by_phase": {"eigensolver": 10 * own, "gradient": 10 * (1 - own)}},
            }  # fmt: skip
            cells.append(Cell({"method": solver, "seed": str(seed)}, "done", None, made))
    found = tables({"figure5": Sweep("figure5", "small", Path("made"), tuple(cells))})
    frame = found["verdict_time"].frame.set_index(["model", "phase"])
    assert frame.loc[("lanczos", "eigensolver"), "value"] == pytest.approx(0.61)
    rows = found["verdicts"].frame.set_index("name")
    assert rows.loc["time_usps", "outcome"] == SUPPORTED
    assert rows.loc["time_usps", "value"] == pytest.approx(0.76)  # Lanczos's is not in it


def test_a_report_loads_no_torch() -> None:
    code = "import sys; from spectral_run.reports.verdicts import verdicts; verdicts({}); print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == "False\n"


def test_the_same_sweeps_give_the_same_bytes(tmp_path: Path) -> None:
    one, two = (write(verdicts({"figure2": grid("rho")}), tmp_path / name) for name in ("one", "two"))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


def test_smoke_leaves_no_numbers() -> None:
    """20 steps: every claim is untested, and no table but that one."""
    made = grid("rho")
    document = verdicts({"figure2": Sweep("figure2", "smoke", made.folder, made.cells)})
    assert [part.name for part in document.parts] == ["verdicts"]
    assert set(document.parts[0].frame["outcome"]) == {UNTESTED}


def test_x_rays_say_how_large_they_are() -> None:
    made = {"status": "done", "seed": 0, "data": {"name": "x-rays", "rows": {"train": 5}, "sha256": "cd" * 32}}
    made["config"] = {"dataset": {"crop": 64}}
    cell = Cell({"method": "chest_kfac", "seed": "0"}, "done", None, made)
    rows = tables({"chest_finetune": Sweep("chest_finetune", "", Path("made"), (cell,))})["verdicts"].frame
    row = rows.set_index("name").loc["transfer"]
    assert row["data"].startswith("chest_finetune: x-rays 5 rows of 64x64 pixels (sha256 cdcdcdcd)")
    assert row["remarks"].startswith("no chexpert_valid")
