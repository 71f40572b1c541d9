"""Tables: known means and spreads, every missing cell named, everything inside 80 columns."""

from __future__ import annotations

import io
import itertools
from types import SimpleNamespace

import pandas as pd
import pytest
from rich.console import Console

from spectral_run.reports.collect import table
from spectral_run.reports.tables import blocks, is_share, legend, markdown, mean_and_spread, print_summary, summary


def printed(text: pd.DataFrame, width: int = 80) -> str:
    file = io.StringIO()
    print_summary(text, Console(file=file, width=width, highlight=False))
    return file.getvalue()


def test_one_run_has_intervals(make: SimpleNamespace) -> None:
    frame = table([make.result(0.9)])
    cells = summary(frame).loc["none"]
    assert cells["runs"] == "1"
    assert cells["test accuracy"] == "90.00% [85.00, 94.00]"
    assert cells["augmentation mild"] == "50.00% [45.00, 55.00]"
    assert cells["augmentation gap mild"] == "-40.00% [-45.00, -35.00]"
    assert cells["test loss"] == "0.25"
    assert cells["rho"] == "8"
    assert cells["products"] == "1,200"
    assert legend(frame) == "value [95% interval]"


def test_an_area_is_no_percentage(make: SimpleNamespace) -> None:
    test = {"loss": 0.5, "auc": 0.8125, "ci_low": 0.7, "ci_high": 0.9, "n": 100}
    cells = summary(table([make.result(test=test)])).loc["none"]
    assert cells["test AUC"] == "0.8125 [0.7, 0.9]"
    assert "test accuracy" not in cells


def test_seeds_have_mean_and_standard_deviation(make: SimpleNamespace) -> None:
    frame = table([make.result(a, seed=s) for s, a in enumerate((0.90, 0.92, 0.94))])
    cells = summary(frame).loc["none"]
    assert cells["runs"] == "3"
    assert cells["test accuracy"] == "92.0 ± 2.0%"  # divisor n - 1
    assert cells["rho"] == "8 ± 0"
    assert legend(frame) == "mean ± standard deviation over seeds"


def test_legend_of_both(make: SimpleNamespace) -> None:
    frame = table([make.result(seed=0), make.result(seed=1), make.result(regularizer="sam")])
    assert legend(frame) == "mean ± standard deviation over seeds; value [95% interval] where there is one run"


def test_sizes_are_no_percentages(make: SimpleNamespace) -> None:
    tests = {
        "covariate_shift": {
            name: make.metric(0.5)
            for name in ("weighted_accuracy", "effective_sample_size", "relative_change", "relative_change_sd")
        }
    }
    cells = summary(table([make.result(generalization=tests)])).loc["none"]
    assert cells["covariate shift effective sample size"] == "0.5"
    for name in ("weighted accuracy", "relative change", "relative change sd"):
        assert cells[f"covariate shift {name}"] == "50.00%"


def test_a_level_of_any_name_is_an_accuracy_where_the_test_has_its_gap() -> None:
    names = ["augmentation mild", "augmentation gap mild", "other mild"]
    assert [is_share(name, names) for name in names] == [True, True, False]
    assert is_share("augmentation at1", [])  # the gap is left out where the plain accuracy is 0
    assert not any(is_share(name, names) for name in ("rho", "test loss", "products", "training seconds"))


def test_missing_cells_are_named(make: SimpleNamespace) -> None:
    other = make.result(regularizer="b", generalization={})
    runs = [make.result(regularizer="a"), other, make.failed("failed", regularizer="c")]
    runs += [make.failed("diverged", regularizer="d"), make.failed("failed", seed=1, regularizer="d")]
    text = summary(table(runs))
    assert text["augmentation mild"].tolist()[1:3] == ["n/a", "failed"]
    assert set(text.loc["d", "rho"].split("/")) == {"diverged", "failed"}
    assert text["runs"].tolist() == ["1", "1", "0 of 1", "0 of 2"]


def test_means_are_over_finished_runs_and_say_so(make: SimpleNamespace) -> None:
    runs = [make.result(0.8, seed=0), make.result(0.9, seed=1), make.failed("diverged", seed=2)]
    cells = summary(table(runs)).loc["none"]
    assert cells["runs"] == "2 of 3 (1 diverged)"
    assert cells["test accuracy"] == "85.0 ± 7.1%"


def test_a_number_that_only_some_seeds_have_says_how_many(make: SimpleNamespace) -> None:
    cells = summary(table([make.result(0.8), make.result(None, seed=1)])).loc["none"]
    assert cells["test accuracy"] == "80.00% [85.00, 94.00] (n=1)"


def test_rho_that_did_not_converge_is_marked(make: SimpleNamespace) -> None:
    cells = summary(table([make.result(rho={"value": 2.0, "converged": False})])).loc["none"]
    assert cells["rho"] == "2 (1 not converged)"


@pytest.mark.parametrize("status", ["failed", "diverged"])
def test_all_runs_failed(make: SimpleNamespace, status: str) -> None:
    frame = table([make.failed(status, seed=s) for s in range(2)])
    text = summary(frame)
    assert text.loc["none"].to_dict() == {"runs": f"0 of 2 (2 {status})"}
    assert legend(frame) == ""
    assert f"0 of 2 (2 {status})" in printed(text)
    assert "0 of 2" in markdown(text)


@pytest.mark.parametrize(
    ("mean", "spread", "share", "shown"),
    [
        (89.32, 1.4142, True, "89.3 ± 1.4"),
        (89.32, 0.0049, True, "89.32 ± 0.005"),
        (63.05, 11.4, True, "63 ± 11"),
        (0.8827, 0.1567, False, "0.88 ± 0.16"),
        (12345.0, 123.0, False, "12,345 ± 123"),
        (4.0, 6.2e-9, False, "4.000 ± 6e-09"),
        (900.7, 0.0, False, "900.7 ± 0"),
        (0.0, 0.0, False, "0 ± 0"),
        (0.0001234, 0.00002, False, "0.000123 ± 0.000020"),
    ],
)
def test_mean_and_spread(mean: float, spread: float, share: bool, shown: str) -> None:
    assert mean_and_spread(mean, spread, share) == shown


def test_infinite_mean_and_spread() -> None:
    assert mean_and_spread(float("inf"), float("nan"), False) == "inf ± nan"


def sweep(make: SimpleNamespace, models: int, prefix: str = "") -> pd.DataFrame:
    runs = itertools.product(range(models), range(3))
    return summary(
        table([make.result(0.8 + 0.01 * m + 0.001 * s, seed=s, regularizer=f"{prefix}{m}") for m, s in runs])
    )


@pytest.mark.parametrize("models", [1, 2, 4, 5, 12])
@pytest.mark.parametrize("prefix", ["r", "spectral_radius, mu=0.0003, "])
def test_every_cell_is_readable_in_80_columns(make: SimpleNamespace, models: int, prefix: str) -> None:
    text = sweep(make, models, prefix)
    shown = printed(text)
    assert max(map(len, shown.splitlines())) <= 80
    assert shown.count("…") == 0
    for cell in text.to_numpy().ravel():
        assert f" {cell} " in shown  # in one piece


def test_two_models_stand_side_by_side_and_twelve_are_rows(make: SimpleNamespace) -> None:
    (part,) = blocks(sweep(make, 2), 80)
    assert list(part.columns) == ["0", "1"]
    parts = blocks(sweep(make, 12), 80)
    assert all(len(part) == 12 for part in parts)
    assert [name for part in parts for name in part.columns] == list(sweep(make, 12).columns)


def test_a_terminal_too_narrow_loses_no_cell(make: SimpleNamespace) -> None:
    shown = printed(sweep(make, 3), 24)
    assert shown.count("±") >= 3 * 8


def test_labels_are_no_markup(make: SimpleNamespace) -> None:
    assert "[bold]x" in printed(summary(table([make.result(regularizer="[bold]x")])))


def test_markdown(make: SimpleNamespace) -> None:
    head, line, *rows = markdown(sweep(make, 2, "a|b")).splitlines()
    assert [cell.strip() for cell in head.split(" | ")] == ["|", "a\\|b0", "a\\|b1 |"]
    assert set(line) <= set("|:-")
    assert rows[0].split("|")[1].strip() == "runs"
    many = markdown(sweep(make, 5)).splitlines()
    assert len(many) == 2 + 5
