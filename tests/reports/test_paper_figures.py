"""The paper's figures from sweeps whose numbers are known."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.text import Text
from scipy import stats

from spectral_run.reports import paper_figures
from spectral_run.reports.document import Document, FigureOut, TableOut, write
from spectral_run.reports.figures import save
from spectral_run.reports.paper_drawing import DOUBLE, drawn, not_drawn
from spectral_run.reports.sweeps import Cell, Sweep

Result = dict[str, Any]
USPS = (
    "unregularized", "asymmetric_valley", "asymmetric_valley_usps", "entropy_sgd", "kfac", "lobpcg",
    "mu0.005-K0", "mu0.05-K1", "mu0.03-K0", "mu0.1-K2",
)  # fmt: skip
COVTYPE = (
    "unregularized", "asymmetric_valley", "entropy_sgd", "kfac", "mu0.01-K1", "mu0.01-K0", "mu0.005-K1", "mu0.001-K5",
    "mu0.001-K0", "lobpcg_covtype",
)  # fmt: skip
CHEST = ("unregularized", "spectral_radius", "spectral_radius_slow", "entropy_sgd", "kfac", "asymmetric_valley")


def metric(value: float) -> dict[str, float]:
    return {"value": value, "ci_low": value - 0.01, "ci_high": value + 0.02, "n": 100}


def result(seed: int = 0, *, data: str = "usps", accuracy: float = 0.95, rho: float = 2.0, **more: Any) -> Result:
    """A finished run; ``gaps``: to AT1 and AT2, ``seconds``: by phase, ``regularizer``: its settings."""
    gaps = more.pop("gaps", (-0.08, -0.3))
    phases = more.pop("seconds", {"gradient": 4.0, "eigensolver": 0.0, "gradient of rho": 0.0, "other": 6.0})
    regularizer = more.pop("regularizer", {})
    tests = {name: {"accuracy": metric(value)} for name, value in (("transfer", 0.6), ("gan1", 0.8), ("gan2", 0.9))}
    return {
        "status": "done",
        "seed": seed,
        "config": {"regularizer": regularizer},
        "data": {"name": data, "sha256": "cd" * 32, "rows": {"train": 10, "validation": 5, "test": 5}},
        "device": "cpu",
        "threads": 1,
        "versions": {"torch": "2.15.0"},
        "test": {"loss": 0.2, "accuracy": accuracy, "ci_low": accuracy - 0.01, "ci_high": accuracy + 0.01, "n": 2007},
        "rho": {"value": rho, "converged": True},
        "generalization": tests
        | {
            "augmentation": {f"at{i + 1}": metric(accuracy * (1 + gap)) for i, gap in enumerate(gaps)}
            | {f"gap_at{i + 1}": metric(gap) for i, gap in enumerate(gaps)},
            "constructed": {"const1": metric(0.75), "const2": metric(0.72)},
        },
        "train": {
            "seconds": sum(phases.values()), "seconds_by_phase": phases | {"evaluation": 2.0}, "epochs": 100,
            "gradient_evaluations": 4900, "products": 0,
        },
    } | more  # fmt: skip


def cell(result: Result | None, status: str = "done", folder: str | None = None, **overrides: str) -> Cell:
    return Cell({name.replace("__", "."): value for name, value in overrides.items()}, status, folder, result)


def sweep(cells: Sequence[Cell], experiment: str = "x") -> Sweep:
    return Sweep(experiment, "small", Path("nowhere"), tuple(cells))


def methods(names: Sequence[str], make: Callable[[int, int], Result], seeds: int = 3) -> list[Cell]:
    return [
        cell(make(i, seed), method=name, seed=str(seed)) for i, name in enumerate(names) for seed in range(seeds)
    ]  # fmt: skip


def figure_of(document: Document) -> Figure:
    (found,) = (part for part in document.parts if isinstance(part, FigureOut))
    return found.figure


def caption_of(document: Document) -> str:
    return next(part.caption for part in document.parts if isinstance(part, FigureOut))


def table_of(document: Document, name: str) -> TableOut:
    return next(part for part in document.parts if isinstance(part, TableOut) and part.name == name)


def texts(figure: Figure) -> list[Text]:
    """All that can be read; a tick outside the limits has a label that is not drawn."""
    figure.canvas.draw()
    hidden = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [tick for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high]
            hidden |= {label for tick in ticks for label in (tick.label1, tick.label2)}
    found = [text for text in figure.findobj(Text) if isinstance(text, Text) and text not in hidden]
    return [text for text in found if text.get_visible() and text.get_text().strip()]


def usps() -> Sweep:
    return sweep(
        methods(USPS, lambda i, seed: result(seed, accuracy=0.94 + 0.001 * i + 0.002 * seed, rho=10.0 / (i + 1) + seed))
    )


def grid(n_mu: int = 10) -> Sweep:
    """70 models with a known relation of gap and rho."""
    rng = np.random.default_rng(0)
    cells = []
    for mu in np.geomspace(0.0005, 0.2, n_mu):
        for K in (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0):
            rho = 0.2 + K + 0.002 / mu + rng.exponential()
            gaps = (-0.06 - 0.004 * rho + 0.01 * rng.normal(), -0.28 - 0.008 * rho + 0.02 * rng.normal())
            overrides = {"regularizer__mu": f"{mu:.4g}", "regularizer__K": f"{K:g}", "seed": "0"}
            cells.append(cell(result(rho=rho, gaps=gaps), **overrides))
    return sweep(cells)


def timed(method: str, seed: int, data: str = "usps") -> Result:
    seconds = {"unregularized": 10.0, "asymmetric_valley": 20.0, "entropy_sgd": 30.0, "kfac": 80.0, "lobpcg": 60.0}
    plain = next((s for name, s in seconds.items() if method.startswith(name)), 70.0) * (1 + 0.05 * (seed - 1))
    phases = {"gradient": 0.3 * plain, "eigensolver": 0.0, "gradient of rho": 0.0, "other": 0.7 * plain}
    if method.startswith("mu"):
        phases = {"gradient": 0.06, "eigensolver": 0.7, "gradient of rho": 0.2, "other": 0.04}
        phases = {name: plain * share for name, share in phases.items()}
        return result(seed, data=data, seconds=phases, regularizer={"solver": "power", "mode": "converge"})
    return result(seed, data=data, seconds=phases)


def costs(data: str, names: Sequence[str]) -> Sweep:
    return sweep([cell(timed(name, seed, data), method=name, seed=str(seed)) for name in names for seed in range(3)])


def chest(sources: Sequence[str]) -> Sweep:
    def make(i: int, seed: int) -> Result:
        transfer = {f"drop_{source}": metric(-0.02 * (i + 1) + 0.001 * seed) for source in sources}
        return result(seed, data="chest_xray", rho=40.0 + 20 * i, test={"auc": 0.8}) | {
            "generalization": {"chest_transfer": transfer} if sources else {}
        }

    return sweep(methods([f"chest_{name}" for name in CHEST], make, seeds=1))


def histograms(folder: Path, name: str = "distances") -> Cell:
    folder.mkdir()
    rows = pd.DataFrame({
        "set": ["at1"] * 4 + ["const1"] * 4,
        "low": [math.nan, 0.0, 1.0, math.nan] * 2,
        "high": [math.nan, 1.0, 2.0, math.nan] * 2,
        "images": [0, 6, 3, 1, 0, 4, 0, 0],
        "share": [0, 0.6, 0.3, 0.1, 0, 1.0, 0, 0],
    })  # fmt: skip
    rows.to_csv(folder / f"constructed_{name}.csv", index=False)
    details = {"constructed": {name: {"at1": {"mean": 1.25, "sd": 0.5, "skewness": -1.5, "excess_kurtosis": 2.0}}}}
    return cell(result(generalization_details=details), folder=str(folder), method="unregularized", seed="0")


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Document]:
    return all_figures(tmp_path_factory.mktemp("figures"))


def all_figures(tmp_path: Path) -> dict[str, Document]:
    run = sweep([histograms(tmp_path / "run")])
    return {
        "figure1": paper_figures.figure1({"figure1": usps()}),
        "figure2": paper_figures.figure2({"figure2": grid()}),
        "figure3": paper_figures.figure3({"chest": chest(["chexpert_train", "chexpert_valid", "mimic_validate"])}),
        "figure4": paper_figures.figure4({"table2": costs("covtype", COVTYPE), "figure1": costs("usps", USPS)}),
        "figure5": paper_figures.figure5({"figure5": costs("usps", USPS), "table2": costs("covtype", COVTYPE)}),
        "figure6": paper_figures.figure6({"figure1": run}),
    }


@pytest.mark.parametrize("name", ["figure1", "figure2", "figure3", "figure4", "figure5", "figure6"])
def test_a_figure_fits_two_columns_and_is_legible(every: dict[str, Document], name: str) -> None:
    """No letter below 7 points, none beyond the edge, none under the legend."""
    figure = figure_of(every[name])
    width, height = figure.get_size_inches() * 25.4
    assert width <= DOUBLE + 0.1
    assert height < 240
    found = texts(figure)
    for text in found:
        assert text.get_fontsize() >= 7, text.get_text()
        box = text.get_window_extent()
        assert figure.bbox.x0 <= box.x0 + 1, text.get_text()
        assert box.x1 <= figure.bbox.x1 + 1, text.get_text()
    for legend in figure.legends:
        own = set(legend.findobj(Text))
        for text in found:
            assert text in own or not legend.get_window_extent().overlaps(text.get_window_extent()), text.get_text()


@pytest.mark.parametrize("name", ["figure1", "figure2", "figure3", "figure4", "figure5", "figure6"])
def test_a_report_is_written_whole(every: dict[str, Document], name: str, tmp_path: Path) -> None:
    document = every[name]
    assert document.name == name
    assert all(part.alt for part in document.parts if isinstance(part, FigureOut))
    for part in document.parts:
        if isinstance(part, TableOut):
            assert len(part.frame)
            assert part.shown.map(lambda entry: isinstance(entry, str) and entry != "nan").all(axis=None), part.name
    paths = write(document, tmp_path)
    assert {f"{name}.png", f"{name}.pdf", f"{name}.md", f"{name}.html"} <= {path.name for path in paths}
    assert all(path.stat().st_size for path in paths)


def test_figure1_has_means_spreads_and_the_papers_numbers() -> None:
    document = paper_figures.figure1({"figure1": usps()})
    frame = table_of(document, "figure1_numbers").frame.set_index("method")
    row = frame.loc["mu0.005-K0"]
    assert row["test"] == pytest.approx(0.94 + 0.006 + 0.002)
    assert row["test_sd"] == pytest.approx(0.002)
    assert row["gan1_paper"] == pytest.approx(0.7044)
    assert frame.loc["unregularized", "at2_paper"] == pytest.approx(0.6303)
    assert frame.loc["entropy_sgd", "mnist_paper"] == pytest.approx(0.6712)
    assert frame.loc["mu0.05-K1", "rho_paper"] == 1.16
    assert math.isnan(frame.loc["kfac", "at1_paper"])
    assert (frame["runs"] == 3).all()
    assert [axis.get_title() for axis in figure_of(document).axes] == [
        "Test", "AT1", "AT2", "MNIST", "GAN1", "GAN2", "Const1", "Const2",
    ]  # fmt: skip
    assert "ρ = " in figure_of(document).axes[0].get_yticklabels()[0].get_text()


def test_figure1_draws_the_numbers_and_no_zero_for_a_failed_model() -> None:
    cells = [c if c.overrides["method"] != "kfac" else cell(None, "failed", **c.overrides) for c in usps().cells]
    cells = [
        c if c.overrides != {"method": "lobpcg", "seed": "2"} else cell(None, "missing", **c.overrides) for c in cells
    ]
    document = paper_figures.figure1({"figure1": sweep(cells)})
    axis = figure_of(document).axes[0]
    lines = [container.lines[0] for container in axis.containers if isinstance(container, ErrorbarContainer)]
    points = {round(line.get_ydata()[0]): line.get_xdata()[0] for line in lines}
    assert USPS.index("kfac") not in points
    assert points[0] == pytest.approx(94.2)
    assert min(points.values()) > 90
    assert "K-FAC, seed 0, 1, 2 (failed)" in caption_of(document)
    assert "LOBPCG, seed 2 (missing)" in caption_of(document)
    row = table_of(document, "figure1_numbers").shown.set_index("model").loc["K-FAC"]
    assert row["Test"] == "n/a"


def test_a_model_far_below_is_written_at_the_edge_and_does_not_set_the_scale() -> None:
    cells = methods(USPS, lambda i, seed: result(seed, accuracy=0.1789 if i == 1 else 0.95 + 0.001 * i))
    axis = figure_of(paper_figures.figure1({"figure1": sweep(cells)})).axes[0]
    assert axis.get_xlim()[0] > 90
    assert any("17.9" in text.get_text() for text in axis.texts)


def test_figure2_has_scipys_correlations() -> None:
    made = grid()
    document = paper_figures.figure2({"figure2": made})
    frame = table_of(document, "figure2_correlations").frame
    rho = [c.result["rho"]["value"] for c in made.cells if c.result]
    for level, name in (("gap_at1", "AT1"), ("gap_at2", "AT2")):
        gap = [c.result["generalization"]["augmentation"][level]["value"] for c in made.cells if c.result]
        rows = frame[frame["gap"] == name].set_index("over")
        for over, x in (("rho", rho), ("log10 rho", np.log10(rho))):
            expected, line = stats.pearsonr(x, gap), stats.linregress(x, gap)
            assert rows.loc[over, "pearson"] == pytest.approx(expected.statistic, abs=1e-12)
            low, high = expected.confidence_interval()
            assert rows.loc[over, "pearson_ci_low"] == pytest.approx(low, abs=1e-12)
            assert rows.loc[over, "pearson_ci_high"] == pytest.approx(high, abs=1e-12)
            assert rows.loc[over, "spearman"] == pytest.approx(stats.spearmanr(rho, gap).statistic, abs=1e-12)
            assert rows.loc[over, "slope"] == pytest.approx(line.slope, abs=1e-12)
            assert rows.loc[over, "intercept"] == pytest.approx(line.intercept, abs=1e-12)
            assert rows.loc[over, "n"] == 70
    assert len(table_of(document, "figure2_models").frame) == 70


def test_figure2_draws_every_model_and_the_trend() -> None:
    document = paper_figures.figure2({"figure2": grid()})
    row = table_of(document, "figure2_correlations").frame.iloc[0]
    axis = figure_of(document).axes[0]
    assert sum(len(line.get_xdata()) == 1 for line in axis.lines) == 70  # type: ignore[arg-type]
    (trend,) = (line for line in axis.lines if line.get_linestyle() == ":")
    x, y = (np.asarray(v, dtype=float) for v in trend.get_data())
    assert y == pytest.approx(row["intercept"] + row["slope"] * x)
    assert f"{row['pearson']:.2f}".replace("-", "−") in axis.get_title(loc="left")
    assert len({(str(line.get_marker())) for line in axis.lines if len(line.get_xdata()) == 1}) == 7  # type: ignore[arg-type]


def test_figure2_leaves_models_that_did_not_train_out_and_counts_copies_once() -> None:
    made = grid()
    dead = [
        cell(result(accuracy=0.1789, rho=0.01, gaps=(0.0, 0.0)), regularizer__mu="5", regularizer__K=f"{k}")
        for k in range(2)
    ]  # fmt: skip
    dead += [cell(result(accuracy=0.9, rho=0.01, gaps=(0.0, 1e-16)), regularizer__mu="5", regularizer__K="3")]
    first = made.cells[0].result
    assert first is not None
    copy = cell(dict(first), regularizer__mu="0.0001", regularizer__K="99")
    lost = cell(None, "diverged", regularizer__mu="9", regularizer__K="0")
    document = paper_figures.figure2({"figure2": sweep([*made.cells, *dead, copy, lost])})
    rows = table_of(document, "figure2_correlations").frame.set_index(["gap", "models", "over"])
    plain = table_of(paper_figures.figure2({"figure2": made}), "figure2_correlations").frame
    assert rows.loc[("AT1", "trained", "rho"), "pearson"] == plain["pearson"].iloc[0]
    assert rows.loc[("AT1", "trained", "rho"), "n"] == 70
    assert rows.loc[("AT1", "all", "rho"), "n"] == 72  # two of the dead are copies
    assert rows.loc[("AT1", "all", "rho"), "pearson"] != plain["pearson"].iloc[0]
    caption = caption_of(document)
    assert "3 that did not train" in caption
    assert "μ=9, K=0 (diverged)" in caption
    marks = table_of(document, "figure2_models").shown["in the correlation"].tolist()
    assert marks[70:] == ["no: did not train"] * 3 + ["no: repeated"]


def test_figure2_of_two_models_says_that_there_is_no_correlation(tmp_path: Path) -> None:
    document = paper_figures.figure2({"figure2": sweep(grid().cells[:2])})
    assert "no correlation, n = 2" in figure_of(document).axes[0].get_title(loc="left")
    save(figure_of(document), tmp_path / "two.png")
    assert set(table_of(document, "figure2_correlations").shown["Pearson"]) == {"n/a"}


def test_figure3_has_drops_with_their_intervals_and_the_papers() -> None:
    document = paper_figures.figure3({"chest": chest(["chexpert_valid", "mimic_train"])})
    frame = table_of(document, "figure3_numbers").frame.set_index("method")
    row = frame.loc["chest_spectral_radius_slow"]
    assert row["drop_chexpert_valid"] == pytest.approx(-0.06)
    assert row["drop_chexpert_valid_low"] == pytest.approx(-0.07)
    assert row["drop_chexpert_valid_high"] == pytest.approx(-0.04)
    assert row["drop_chexpert_valid_paper"] == pytest.approx(-0.0415)
    assert math.isnan(row["drop_mimic_train_paper"])
    assert "Not at hand: CheXpert train, MIMIC validate, MIMIC test" in caption_of(document)
    assert [axis.get_title() for axis in figure_of(document).axes] == ["CheXpert valid", "MIMIC train"]


def test_figure3_without_either_data_set_says_so_and_draws_nothing() -> None:
    document = paper_figures.figure3({"chest": chest([])})
    assert not [part for part in document.parts if isinstance(part, FigureOut)]
    assert "CheXpert and MIMIC-CXR were not at hand" in document.text[0]
    assert "could not be tried" in document.text[0]
    assert len(table_of(document, "figure3_numbers").shown) == len(CHEST)


def test_figure4_is_relative_to_unregularized_with_places_beside_the_papers() -> None:
    document = paper_figures.figure4({"table2": costs("covtype", COVTYPE), "figure1": costs("usps", USPS)})
    frame = table_of(document, "figure4_times").frame
    digits = frame[frame["data"] == "usps"].set_index("model")
    assert digits.loc["Unregularized", "relative"] == pytest.approx(1.0)
    assert digits.loc["K-FAC", "relative"] == pytest.approx(8.0)
    assert digits.loc["K-FAC", "relative_sd"] == pytest.approx(0.4)
    assert digits.loc["K-FAC", "place"] == digits.loc["K-FAC", "paper_place"] == 6
    assert digits["place"].notna().sum() == 6  # one model of each of the paper's methods
    assert digits.loc["μ=0.005, K=0", "paper_place"] == 5
    assert "USPS: 15 of 15 pairs" in caption_of(document)
    # Made as on USPS: K-FAC, power iteration, LOBPCG, Entropy-SGD; the paper has LOBPCG, K-FAC, Entropy-SGD, power.
    trees = frame[frame["data"] == "covtype"].set_index("model")
    assert trees.loc["μ=0.01, K=0", ["place", "paper_place"]].tolist() == [5, 6]
    assert "Forest cover: 12 of 15 pairs" in caption_of(document)


def test_figure4_without_a_base_has_a_table_and_no_picture() -> None:
    document = paper_figures.figure4({"figure1": costs("usps", USPS[1:])})
    assert not [part for part in document.parts if isinstance(part, FigureOut)]
    assert "no sweep has a finished unregularized run" in document.text[0]
    assert table_of(document, "figure4_times").shown["relative"].tolist() == ["n/a"] * (len(USPS) - 1)


def test_figure4_names_the_data_that_are_not_there() -> None:
    assert "No sweep of Forest cover is at hand." in caption_of(paper_figures.figure4({"figure1": costs("usps", USPS)}))


def test_figure5_has_shares_of_training_without_evaluation() -> None:
    document = paper_figures.figure5({"figure5": costs("usps", USPS)})
    frame = table_of(document, "figure5_shares").frame
    assert len(frame) == 4  # those with a penalty that was solved for
    row = frame.iloc[0]
    assert row[["eigensolver", "gradient of rho", "gradient", "other"]].tolist() == pytest.approx(
        [0.7, 0.2, 0.06, 0.04]
    )
    assert row["eigensolver sd"] == pytest.approx(0.0, abs=1e-12)
    assert row["solver"] == "power iteration"
    axis = figure_of(document).axes[0]
    marks = sorted(float(np.asarray(line.get_xdata())[0]) for line in axis.lines)
    assert marks == pytest.approx([0.75, 0.9])
    ends = {round(bar.get_y() + bar.get_height() / 2): bar.get_x() + bar.get_width() for bar in axis.patches}  # type: ignore[attr-defined]
    assert list(ends.values()) == pytest.approx([1.0] * 5)


def test_figure5_without_a_penalty_says_so() -> None:
    document = paper_figures.figure5({"table2": costs("covtype", ["unregularized"])})
    assert document.parts == ()
    assert "no finished run" in document.text[0]


def test_figure6_is_the_runs_own_table_and_checks_the_others(tmp_path: Path) -> None:
    first, second = histograms(tmp_path / "a"), histograms(tmp_path / "b")
    assert second.folder is not None
    other = Path(second.folder) / "constructed_distances.csv"
    other.write_text(other.read_text().replace("0.6", "0.5"))
    second = Cell({"method": "kfac", "seed": "0"}, "done", second.folder, second.result)
    document = paper_figures.figure6({"figure1": sweep([first, second])})
    assert "From the run of Unregularized, seed 0." in document.text[0]
    assert "1 of 2 finished runs have the same table" in document.text[0]
    frame = table_of(document, "figure6_numbers").frame.set_index("set")
    assert frame.loc["at1", "outside"] == pytest.approx(0.1)
    assert frame.loc["at1", "skewness"] == -1.5
    assert frame.loc["const1", "empty_bins"] == 1
    assert math.isnan(frame.loc["const1", "mean"])


def test_figure7_without_the_file_says_so(tmp_path: Path) -> None:
    document = paper_figures.figure7({"figure1": sweep([histograms(tmp_path / "a")])})
    assert document.parts == ()
    assert "constructed_cosines.csv" in document.text[0]


def test_labels_and_missing_cells_are_in_words() -> None:
    made = sweep([
        cell(None, "failed", method="mu0.01-K0-batch32", seed="0"),
        cell(result(regularizer={"mu": 0.0028, "K": 1.0}), method="lobpcg_covtype", seed="0"),
        cell(None, "missing", method="asymmetric_valley_usps", seed="0"),
        cell(result(), method="my_own", seed="0"),
    ])  # fmt: skip
    labels = [model.label for model in drawn(made)]
    assert labels == ["batch32, μ=0.01, K=0", "LOBPCG, μ=0.0028, K=1", "Asym. valley (rate for USPS)", "my_own"]
    assert not_drawn(made) == "Not drawn: batch32, μ=0.01, K=0 (failed); Asym. valley (rate for USPS) (missing)."
    assert not_drawn(sweep([cell(result(), method="kfac", seed="0")])) == ""


@pytest.mark.parametrize("name", paper_figures.__all__)
@pytest.mark.parametrize("results", [[], [None], [{"status": "failed", "error": "no"}]])
def test_a_sweep_without_a_finished_run_is_a_document_without_a_crash(
    name: str, results: list[Mapping[str, Any] | None], tmp_path: Path
) -> None:
    cells = [cell(None if r is None else dict(r), "failed", method="kfac", seed=str(i)) for i, r in enumerate(results)]
    document = getattr(paper_figures, name)({"figure1": sweep(cells)})
    write(document, tmp_path)
    said = " ".join([*document.text, *(part.caption for part in document.parts)])
    assert not cells or "failed" in said


def test_no_figure_loads_torch() -> None:
    code = "import spectral_run.reports.paper_figures, sys; raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_same_sweep_gives_the_same_bytes(tmp_path: Path) -> None:
    pictures = []
    for name in ("a.pdf", "b.pdf"):
        save(figure_of(paper_figures.figure3({"chest": chest(["mimic_train"])})), tmp_path / name)
        pictures.append((tmp_path / name).read_bytes())
    assert pictures[0] == pictures[1]
