"""Tables from sweeps whose numbers are known: read from files, as a report reads them."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from spectral_run.reports.document import write
from spectral_run.reports.paper_numbers import FILES, METHODS, by_method, numbers
from spectral_run.reports.paper_tables import table2, table2_clipped, table3, table4, table5
from spectral_run.reports.sweeps import read_sweep

PAPER = ("unregularized", "asymmetric_valley", "entropy_sgd", "kfac", "mu0.01-K1", "mu0.01-K0", "mu0.005-K1")


def metric(value, half=0.0, n=1000):
    return {"value": value, "ci_low": value - half, "ci_high": value + half, "n": n}


def run(*, seed=0, rho=8.0, accuracy=0.75, converged=True, batch=128, **tests):
    """What a finished run leaves, as far as the tables look."""
    return {
        "schema": 1,
        "status": "done",
        "seed": seed,
        "config_hash": f"{rho}/{accuracy}/{batch}",
        "config": {"training": {"batch_size": batch}},
        "test": {"accuracy": accuracy, "ci_low": accuracy - 0.01, "ci_high": accuracy + 0.01},
        "rho": {"value": rho, "converged": converged},
        "generalization": tests,
    }


def shifted(change, half=0.001):
    return {"relative_change": metric(change, half)}


@pytest.fixture
def sweep_of(tmp_path):
    """Writes a sweep; cells are (overrides, result or how it ended)."""

    def make(experiment, cells, scale="small"):
        folder = tmp_path / "results" / f"paper_{scale}" / "sweeps" / experiment
        folder.mkdir(parents=True)
        jobs = []
        for number, (_, ended) in enumerate(cells):
            place = folder.parents[1] / "covtype" / f"{experiment}-{number}"
            if ended == "missing":
                continue
            if ended in ("failed", "diverged"):
                ended = {"schema": 1, "status": ended, "error": "it ended early"}
            place.mkdir(parents=True)
            (place / "result.json").write_text(json.dumps(ended))
            jobs.append({"job": number, "status": ended["status"], "folder": f"../../covtype/{place.name}"})
        began = {
            "schema": 1,
            "experiment": experiment,
            "scale": scale,
            "started": "2026",
            "jobs": [o for o, _ in cells],
        }
        (folder / "sweep.json").write_text(json.dumps(began))
        (folder / "jobs.jsonl").write_text("".join(json.dumps(job) + "\n" for job in jobs))
        return read_sweep(folder)

    return make


def of_method(method, rhos, accuracies, changes, half=0.001):
    return [
        ({"method": method, "seed": str(i)}, run(seed=i, rho=r, accuracy=a, covariate_shift=shifted(c, half)))
        for i, (r, a, c) in enumerate(zip(rhos, accuracies, changes, strict=True))
    ]


def table(document, name=None):
    found = {part.name: part for part in document.parts}
    return found[name or document.name]


def row(part, label, **where):
    rows = part.shown[part.shown.iloc[:, 0] == label]
    return rows.iloc[0]


def bolds(part):
    return {(part.shown.iloc[r, 0], part.shown.columns[c]) for r, c in part.bold}


def test_the_papers_numbers_are_all_there():
    assert {name: len(numbers(name)) for name in FILES} == {
        "table2": 10, "table3": 5, "table4": 5, "table5": 5, "table6": 5, "table7": 5, "figure1": 15,
    }  # fmt: skip
    table = by_method("table2")
    assert set(PAPER) | set(METHODS.values()) <= set(table.index)
    assert table.loc["mu0.01-K0", ["rho", "test_acc", "shift_rel_mean"]].tolist() == [2.16, 70.39, -0.96]
    assert table.loc["lobpcg_covtype", "rho"] == 1.99
    overlap = by_method("table7")
    assert overlap.loc["chest_kfac", "chest_unregularized"] == 0.272
    with pytest.raises(ValueError, match="name must be one of table2"):
        numbers("table1")
    with pytest.raises(ValueError, match="must be one of methods"):
        by_method("table5")


def test_table2_has_ours_beside_the_papers(sweep_of):
    cells = of_method("unregularized", (10, 12, 14), (0.74, 0.75, 0.76), (-0.001, -0.002, -0.003))
    cells += of_method("mu0.01-K0", (2, 3, 4), (0.70, 0.71, 0.72), (-0.001, -0.001, -0.001), half=0.002)
    part = table(table2({"table2": sweep_of("table2", cells)}))
    assert part.shown["model"].tolist()[:2] == ["Unregularized", "Asym. Valley"]
    first = row(part, "Unregularized")
    assert first.to_dict() == {
        "model": "Unregularized",
        "runs": "3",
        "rho": "12.0 ± 2.0",
        "rho, paper": "36.58",
        "test acc. (%)": "75.0 ± 1.0",
        "test acc. (%), paper": "71.74",
        "relative shift acc. (%)": "-0.20 ± 0.10 [-0.30, -0.10]",
        "relative shift acc. (%), paper": "-2.80 [-3.38, -2.23]",
    }
    ours = row(part, "mu = 0.01, K = 0")
    assert ours["relative shift acc. (%)"] == "-0.10 ± 0.00 [-0.30, 0.10]"
    assert row(part, "K-FAC")["rho"] == "not run"
    assert row(part, "K-FAC")["rho, paper"] == "58.55"
    exact = part.frame.set_index("model").loc["Unregularized"]
    assert exact["rho"] == pytest.approx(12)
    assert exact["rho sd"] == pytest.approx(2)
    assert exact[["done", "planned", "rho n"]].tolist() == [3, 3, 3]
    assert exact["relative shift accuracy paper lo"] == -3.38
    assert exact["relative shift accuracy ci_low"] == pytest.approx(-0.3)


def test_differences_are_paired_with_the_unregularized(sweep_of):
    plain, mine = np.array([0.74, 0.75, 0.77]), np.array([0.70, 0.72, 0.72])
    cells = of_method("kfac", (2, 3, 4), mine, (0, 0, 0)) + of_method("unregularized", (9, 12, 14), plain, (0, 0, 0))
    part = table(table2({"table2": sweep_of("table2", cells)}), "table2_differences")
    assert part.shown["model"].tolist() == ["K-FAC"]
    found = part.frame.iloc[0]
    expected = stats.ttest_rel(100 * mine, 100 * plain).confidence_interval(0.95)
    assert found["test accuracy"] == pytest.approx(-4)
    assert found["test accuracy ci_low"] == pytest.approx(expected.low)
    assert found["test accuracy ci_high"] == pytest.approx(expected.high)
    assert found[["test accuracy n", "test accuracy method"]].tolist() == [3, "Student's t"]
    assert row(part, "K-FAC")["test acc. (%)"] == f"-4.00 [{expected.low:.2f}, {expected.high:.2f}]"
    assert row(part, "K-FAC")["relative shift acc. (%)"] == "0.00 [0.00, 0.00]"


def test_failed_diverged_and_missing_cells_are_named(sweep_of):
    cells = of_method("unregularized", (10, 12, 14), (0.74, 0.75, 0.76), (0, 0, 0))
    cells += [*of_method("kfac", (2, 4), (0.7, 0.8), (0, 0)), ({"method": "kfac", "seed": "2"}, "diverged")]
    cells += [({"method": "entropy_sgd", "seed": str(seed)}, "failed") for seed in range(3)]
    cells += [({"method": "mu0.01-K1", "seed": "0"}, "failed"), ({"method": "mu0.01-K1", "seed": "1"}, "missing")]
    cells += [({"method": "lobpcg_covtype", "seed": str(seed)}, "missing") for seed in range(3)]
    document = table2({"table2": sweep_of("table2", cells)})
    part = table(document)
    assert row(part, "K-FAC")[["runs", "rho"]].tolist() == ["2 of 3: seed 2 diverged", "3.0 ± 1.4"]
    assert row(part, "Entropy-SGD")[["runs", "rho", "test acc. (%)"]].tolist() == [
        "0 of 3: all failed",
        "failed",
        "failed",
    ]
    both = row(part, "mu = 0.01, K = 1")
    assert both[["runs", "rho"]].tolist() == ["0 of 2: seed 0 failed; seed 1 missing", "failed/missing"]
    assert row(part, "LOBPCG")[["runs", "rho"]].tolist() == ["0 of 3: all missing", "missing"]
    apart = table(document, "table2_differences")
    assert row(apart, "K-FAC")["pairs"] == "2"
    assert row(apart, "LOBPCG")[["pairs", "rho"]].tolist() == ["0", "n/a"]


def test_one_seed_shows_its_own_interval_and_nothing_is_bold(sweep_of):
    cells = of_method("unregularized", (10,), (0.75,), (-0.002,)) + of_method("kfac", (1,), (0.9,), (0.1,))
    document = table2({"table2": sweep_of("table2", cells)})
    part = table(document)
    assert row(part, "Unregularized")[["runs", "rho", "test acc. (%)"]].tolist() == ["1", "10", "75.00 [74.00, 76.00]"]
    assert row(part, "Unregularized")["relative shift acc. (%)"] == "-0.20 [-0.30, -0.10]"
    assert part.bold == frozenset()
    assert row(table(document, "table2_differences"), "K-FAC")["rho"] == "n/a"


def test_a_method_that_is_not_in_the_paper_comes_last_without_its_numbers(sweep_of):
    cells = of_method("sam", (1, 2), (0.7, 0.7), (0, 0)) + of_method("unregularized", (9, 12), (0.7, 0.7), (0, 0))
    part = table(table2({"table2": sweep_of("table2", cells)}))
    assert part.shown["model"].tolist()[-1] == "sam"
    assert row(part, "sam")[["rho", "rho, paper", "relative shift acc. (%), paper"]].tolist() == [
        "1.50 ± 0.71",
        "-",
        "-",
    ]


def test_overrides_that_differ_make_other_rows(sweep_of):
    cells = of_method("kfac", (1, 2), (0.7, 0.7), (0, 0)) + of_method("kfac", (5, 6), (0.7, 0.7), (0, 0))
    for number, (overrides, _) in enumerate(cells):
        overrides |= {"optimizer.lr": "0.1" if number < 2 else "0.2", "training.epochs": "3"}
    part = table(table2({"table2": sweep_of("table2", cells)}))
    assert row(part, "K-FAC, optimizer.lr=0.1")["rho"] == "1.50 ± 0.71"
    assert row(part, "K-FAC, optimizer.lr=0.2")["rho"] == "5.50 ± 0.71"
    assert row(part, "K-FAC")["rho"] == "not run"


def test_bold_only_where_a_tie_with_every_row_is_excluded(sweep_of):
    best = of_method("mu0.01-K0", (1.0, 1.1, 1.2), (0.70, 0.80, 0.75), (0, 0, 0))
    others = of_method("unregularized", (10, 10.2, 10.1), (0.71, 0.79, 0.76), (0, 0, 0))
    others += of_method("kfac", (20, 21, 22), (0.60, 0.69, 0.66), (0, 0, 0))
    part = table(table2({"table2": sweep_of("table2", best + others)}))
    assert bolds(part) == {("mu = 0.01, K = 0", "rho")}  # in accuracy two are as good, in shift all are equal


@pytest.mark.parametrize(("ended", "bold"), [("diverged", True), ("failed", False), ("missing", False)])
def test_a_row_that_could_be_better_stops_bold(sweep_of, ended, bold):
    cells = of_method("mu0.01-K0", (1.0, 1.1, 1.2), (0.7, 0.7, 0.7), (0, 0, 0))
    cells += of_method("unregularized", (10, 10.2, 10.1), (0.7, 0.7, 0.7), (0, 0, 0))
    cells += [({"method": "kfac", "seed": str(seed)}, ended) for seed in range(3)]
    part = table(table2({"table2": sweep_of("table2", cells)}))
    assert bolds(part) == ({("mu = 0.01, K = 0", "rho")} if bold else set())


def test_a_number_that_a_run_lacks_and_rho_not_converged_are_said(sweep_of):
    cells = of_method("unregularized", (10, 12, 14), (0.74, 0.75, 0.76), (-0.01, -0.03, 0))
    cells[2][1]["generalization"] = {}
    cells[0][1]["rho"]["converged"] = False
    part = table(table2({"table2": sweep_of("table2", cells)}))
    first = row(part, "Unregularized")
    assert first["rho"] == "12.0 ± 2.0 (1 not converged)"
    assert first["relative shift acc. (%)"] == "-2.0 ± 1.4 [-2.10, -1.90] (n=2)"


def batches(rhos, key="method"):
    name = (lambda size: f"mu0.01-K0-batch{size}") if key == "method" else str
    return [
        ({key: name(size), "seed": str(seed)}, run(seed=seed, rho=rho + seed, batch=size, covariate_shift=shifted(0)))
        for size, rho in rhos.items()
        for seed in range(2)
    ]


def test_table3_is_by_batch_size_and_less_128(sweep_of):
    cells = batches({512: 1, 32: 5, 128: 2, 1024: 0.5})
    document = table3({"table3": sweep_of("table3", cells)})
    part = table(document)
    assert part.shown["batch size"].tolist() == ["32", "64", "128", "256", "512", "1024"]
    assert part.shown["rho"].tolist()[:3] == ["5.50 ± 0.71", "not run", "2.50 ± 0.71"]
    assert part.shown["rho, paper"].tolist() == ["5.25", "4.05", "2.16", "1.32", "1.24", "-"]
    apart = table(document, "table3_differences")
    assert apart.shown["batch size"].tolist() == ["32", "512", "1024"]
    assert apart.frame["rho"].tolist() == pytest.approx([3, -1, -1.5])


def test_another_method_beside_the_papers_gets_rows_without_its_numbers(sweep_of):
    cells = batches({32: 5, 128: 2})
    cells += [({"method": f"sam-batch{size}", "seed": "0"}, run(batch=size, rho=0.1)) for size in (32, 128)]
    part = table(table3({"table3": sweep_of("table3", cells)}))
    assert part.shown["batch size"].tolist() == ["32", "64", "128", "256", "512", "32, sam", "128, sam"]
    assert row(part, "32, sam")[["rho", "rho, paper"]].tolist() == ["0.1", "-"]


def test_table5_has_two_rows_a_batch_size_and_every_test(sweep_of):
    tests = {
        "augmentation": {"at1": metric(0.9), "at2": metric(0.6)},
        "transfer": {"accuracy": metric(0.5)},
        "gan1": {"accuracy": metric(0.8)},
        "gan2": {"accuracy": metric(0.85)},
        "constructed": {"const1": metric(0.7), "const2": metric(0.71)},
    }
    cells = [
        ({"training.batch_size": str(size), "seed": str(seed)}, run(seed=seed, batch=size, accuracy=0.95, **tests))
        for size in (128, 32)
        for seed in (0, 1)
    ]
    part = table(table5({"table5": sweep_of("table5", cells)}))
    here, paper = part.shown[part.shown["from"] == "here"], part.shown[part.shown["from"] == "paper"]
    assert here["batch size"].tolist() == ["32", "64", "128", "256", "512"]
    shown = ["95.00 ± 0.00", "90.00 ± 0.00", "60.00 ± 0.00", "50.00 ± 0.00", "80.00 ± 0.00", "85.00 ± 0.00"]
    assert here.iloc[2].tolist() == ["128", "here", "2", "8 ± 0", *shown, "70.00 ± 0.00", "71.00 ± 0.00"]
    assert paper.iloc[2].tolist()[3:] == [f"{value:.2f}" for value in numbers("table5").iloc[2, 1:]]
    assert part.bold == frozenset()  # all equal


def test_table4_has_the_batches_of_one_network(sweep_of):
    def radius(seed):
        values = {size: metric(2 * 128 / size + seed, 0.196, n=100) for size in (64, 128)}
        result = run(seed=seed, rho=1.0 + seed, batch_radius={f"rho_{size}": value for size, value in values.items()})
        return result | {"generalization_details": {"batch_radius": {"not_converged": {"64": seed, "128": 0}}}}

    sweep = sweep_of("table4", [({"method": "mu0.01-K0", "seed": str(seed)}, radius(seed)) for seed in (0, 1)])
    document = table4({"table4": sweep})
    part = table(document)
    assert part.shown["measuring batch size"].tolist() == ["32", "64", "128", "256", "512", "all rows"]
    assert row(part, "64")[["rho", "rho, paper"]].tolist() == ["4.50 ± 0.71 (1 not converged)", "3.31"]
    assert row(part, "64")["batches"] == "100"
    assert part.frame.set_index("measuring batch size").loc["64", "standard error"] == pytest.approx(0.1, rel=1e-3)
    assert row(part, "32")["rho"] == "n/a"
    assert row(part, "all rows")[["rho", "rho, paper"]].tolist() == ["1.50 ± 0.71", "2.16"]
    apart = table(document, "table4_differences")
    assert apart.frame.set_index("measuring batch size").loc["64", "rho"] == pytest.approx(2)


def test_all_of_it_is_written(sweep_of, tmp_path):
    cells = of_method("unregularized", (10, 12, 14), (0.74, 0.75, 0.76), (-0.01, -0.03, 0))
    cells += of_method("mu0.01-K0", (1, 2, 3), (0.74, 0.75, 0.76), (-0.01, -0.03, 0))
    written = write(table2({"table2": sweep_of("table2", cells)}), tmp_path / "out")
    names = {Path(path).name for path in written}
    assert {f"{name}.{kind}" for name in ("table2", "table2_differences") for kind in ("csv", "md", "tex")} <= names
    assert "-2.80 [-3.38, -2.23]" in (tmp_path / "out" / "table2.md").read_text()
    assert r"\%" in (tmp_path / "out" / "table2.tex").read_text()
    assert "**2.0 ± 1.0**" in (tmp_path / "out" / "table2.md").read_text()


def test_clipped_penalties_stand_in_table_2_for_those_as_printed(sweep_of):
    plain = of_method("unregularized", [12, 13], [0.75, 0.76], [-0.01, -0.01])
    lost = [({"method": "mu0.01-K0", "seed": seed}, "diverged") for seed in "01"]
    printed = sweep_of("table2", [*plain, *lost])
    clipped = sweep_of("table2_clipped", of_method("mu0.01-K0", [3.0, 3.5], [0.74, 0.75], [-0.01, -0.01]))
    document = table2_clipped({"table2_clipped": clipped, "table2": printed})
    frame = table(document).frame.set_index("model")
    assert frame.loc["Unregularized", "rho"] == 12.5
    assert frame.loc["mu = 0.01, K = 0", ["rho", "done"]].tolist() == [3.25, 2]
    assert frame.loc["mu = 0.01, K = 0", "rho paper"] == 2.16
    assert table(document, "table2_clipped_differences").frame["rho"].tolist() == [-9.25]
    assert [len(sweep.cells) for sweep in document.sweeps] == [2, 2]
    assert document.gaps == ()  # what diverged is in none of its rows
    assert "clipped at 1" in document.title
    alone = table(table2_clipped({"table2_clipped": clipped})).frame.set_index("model")
    assert alone.loc["Unregularized", "done"] == 0


def test_every_column_shifted_is_a_table_of_its_own_where_it_was_asked_for(sweep_of):
    cells = [
        ({"method": "unregularized", "seed": str(i)}, run(seed=i, covariate_shift=shifted(-0.001), covariate_shift_all={
            "relative_change": metric(-0.02 - i / 100, 0.005),
            "relative_change_examples": metric(-0.02 - i / 100, 0.04),
            "relative_change_sd": metric(0.08),
        }))
        for i in range(2)
    ]  # fmt: skip
    part = table(table2({"table2": sweep_of("table2", cells)}), "table2_every_column")
    row = part.frame.set_index("model").loc["Unregularized"]
    assert row["relative shift accuracy"] == pytest.approx(-2.5)
    assert row["over test rows ci_low"] == pytest.approx(-6.5)
    assert row["relative shift accuracy paper"] == -2.80
    without = [(cells[0][0], run(covariate_shift=shifted(-0.001)))]
    assert "table2_every_column" not in [p.name for p in table2({"table2": sweep_of("without", without)}).parts]
