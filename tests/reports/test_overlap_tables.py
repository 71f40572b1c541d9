"""Tables 6 and 7 from comparisons whose indices are known."""

import json
import math
from dataclasses import replace

import pytest

from spectral_run.reports.overlap_tables import overlaps, table6, table7
from spectral_run.reports.sweeps import Cell, Sweep


def metric(value, half=0.0):
    return {"value": value, "ci_low": value - half, "ci_high": value + half, "n": 40}


def run(method, seed, rho=5.0, **tests):
    rho = {"value": rho, "converged": True}
    return {"status": "done", "seed": seed, "config_hash": method, "rho": rho, "generalization": tests}


def table(document, name=None):
    return {part.name: part for part in document.parts}[name or document.name]


def row(part, label):
    return part.shown[part.shown.iloc[:, 0] == label].iloc[0]


CHEST = ("chest_unregularized", "chest_entropy_sgd", "chest_spectral_radius_slow")


@pytest.fixture
def chest(tmp_path):
    """Three methods and two seeds, compared on a source: index .1 * (i + j) + .01 * seed."""

    def make(source, drop="chexpert_valid", **settings):
        cells = []
        for method in CHEST:
            for seed in range(2):
                test = {"chest_transfer": {f"drop_{drop}": metric(-0.1 + 0.01 * seed, 0.02)}} if drop else {}
                cells.append(Cell({"method": method, "seed": str(seed)}, "done", None, run(method, seed, **test)))
        folder = tmp_path / "results" / "paper_small" / "sweeps" / "2026"
        sweep = Sweep("chest_finetune", "small", folder, tuple(cells))
        if source:
            compared(sweep, source, **settings)
        return sweep

    return make


def compared(sweep, source, shift=0.0, finished="2026-01-01", **settings):
    runs = [{"config_hash": cell.result["config_hash"], "seed": cell.result["seed"]} for cell in sweep.cells]
    names = [f"run {i}" for i in range(len(runs))]
    metrics = {}
    for i, first in enumerate(runs):
        for j in range(i + 1, len(runs)):
            value = 0.1 * (i // 2 + j // 2) + 0.01 * first["seed"] + shift
            value = value if first["seed"] == runs[j]["seed"] else 99.0  # other seeds are not compared
            metrics[f"jaccard: {names[i]} | {names[j]}"] = metric(value, 0.05)
    details = {"source": source, "models": names, "images": 40, "chance": 0.0526}
    one = {"runs": runs, "metrics": metrics, "details": details, "settings": {"share": 0.1} | settings}
    name = f"gradcam_overlap-{len(list(sweep.folder.parents[1].rglob('comparison.json')))}"
    folder = sweep.folder.parents[1] / "chest" / "comparisons" / name
    folder.mkdir(parents=True)
    (folder / "comparison.json").write_text(json.dumps(one | {"finished": finished}))


def test_table6_compares_seed_by_seed(chest):
    document = table6({"chest_finetune": chest("chexpert_valid")})
    part = table(document)
    labels = part.shown.loc[part.shown["from"] == "here", "model"].tolist()
    assert labels == ["SpecRad", "EntropySGD", "UnReg", "KFAC", "AsymValley"]
    spectral = row(part, "SpecRad")  # third in the sweep
    assert spectral[["rho", "SpecRad", "runs"]].tolist() == ["5 ± 0", "1", "2"]
    assert spectral["EntropySGD"] == "0.3050 ± 0.0071"
    assert spectral["AUC drop (points)"] == "-9.50 ± 0.71"
    exact = part.frame.set_index("model")
    assert exact.loc["SpecRad", "mean overlap"] == pytest.approx((0.305 + 0.205) / 2)
    assert exact.loc["UnReg", "mean overlap"] == pytest.approx((0.105 + 0.205) / 2)
    assert math.isnan(exact.loc["KFAC", "mean overlap"])
    assert part.shown.iloc[1].tolist() == [
        "", "paper", "", "38.92", "1.000", "0.508", "0.192", "0.342", "-4.15",
    ]  # fmt: skip
    assert row(part, "KFAC")["mean"] == "not run"
    assert "CheXpert's validation part" in part.caption
    assert "not at hand" not in part.caption
    apart = table(document, "table6_differences")
    assert apart.frame.set_index("model").loc["SpecRad", "mean overlap"] == pytest.approx(0.1)
    assert [(part.shown.iloc[r, 0], part.shown.columns[c]) for r, c in part.bold] == [("SpecRad", "mean")]


def test_a_model_that_was_not_compared_does_not_count_in_the_mean(chest):
    sweep = chest("chexpert_valid")
    late = Cell({"method": "chest_kfac", "seed": "0"}, "done", None, run("chest_kfac", 0, rho=1.0))
    part = table(table6({"chest_finetune": replace(sweep, cells=(*sweep.cells, late))}))
    assert row(part, "SpecRad")[["KFAC", "mean"]].tolist() == ["n/a", "0.2550 ± 0.0071"]
    assert row(part, "KFAC")[["rho", "SpecRad", "mean"]].tolist() == ["1", "n/a", "n/a"]


def test_where_only_nih_images_were_compared_the_caption_says_so(chest):
    part = table(table7({"chest_finetune": chest("nih_test", drop=None)}))
    assert "ChestX-ray14's held-out test split" in part.caption
    assert "which was not at hand" in part.caption
    assert row(part, "SpecRad")[["mean", "AUC drop (points)"]].tolist() == ["0.2550 ± 0.0071", "n/a"]


def test_without_a_comparison_the_overlap_is_absent(chest):
    part = table(table6({"chest_finetune": chest(None)}))
    assert row(part, "SpecRad")[["rho", "UnReg", "mean"]].tolist() == ["5 ± 0", "n/a", "n/a"]
    assert "No comparison of Grad-CAM maps" in part.caption


def test_comparisons_with_older_settings_are_left_out(chest):
    sweep = chest("chexpert_valid", shift=5.0, share=0.2)
    compared(sweep, "chexpert_valid", finished="2026-02-01")
    compared(sweep, "mimic_validate", shift=7.0)
    found = overlaps(sweep, "chexpert_valid")
    assert found.left_out == 1
    assert max(value for (a, b), (value, _, _) in found.pairs.items() if a[1] == b[1]) == pytest.approx(0.31)
