"""The drop in AUC against scikit-learn and by hand, what is left out of it, and what is refused."""

from __future__ import annotations

import csv
import gzip
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from spectral_run.curvature.backends import choose_backend
from spectral_run.curvature.objective import Objective
from spectral_run.datasets.base import DataError, DataHome, Split
from spectral_run.datasets.chest_xray.chexpert import load_chexpert
from spectral_run.datasets.chest_xray.findings import COMMON, COMMON_COLUMNS, FINDINGS
from spectral_run.generalization.base import TrainedNetwork
from spectral_run.generalization.chest_transfer import SOURCES, ChestTransfer
from spectral_run.runner.parts import LOSSES

PART = {"chexpert": "CheXpert-v1.0-small", "mimic": "mimic-cxr-jpg"}


class Cells(nn.Module):
    """Answers by how bright a finding's cell is, in the images that the fixtures make; nothing to learn."""

    def __init__(self, sign: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(sign))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        cells = nn.functional.adaptive_avg_pool2d(x[:, :1], (3, 2)).flatten(1)
        scores = torch.full((len(x), len(FINDINGS)), 7.0, dtype=x.dtype)
        scores[:, list(COMMON_COLUMNS)] = cells
        return self.scale * scores


def network_of(model: nn.Module) -> TrainedNetwork:
    objective = Objective(model, LOSSES["binary_cross_entropy"])
    return TrainedNetwork(
        objective=objective,
        backend=choose_backend("autograd", objective, torch.zeros(2, 3, 24, 24)),
        predict=lambda x: model(x).argmax(1),
        outputs=lambda rows: torch.cat([model(rows[i : i + 7]) for i in range(0, len(rows), 7)]),
    )


@pytest.fixture
def data(xrays, home):
    return xrays.load(home)


@pytest.fixture
def own_home(home, tmp_path):
    """A copy that a test may damage."""
    shutil.copytree(home.root, tmp_path / "data")
    return DataHome(tmp_path / "data", download=False)


def chexpert_labels(home, part):
    """By another reader: names of images, and labels with NaN for -1 and blank."""
    with open(home.root / PART["chexpert"] / f"{part}.csv") as file:
        rows = list(csv.DictReader(file))
    labels = [[{"1.0": 1.0, "0.0": 0.0}.get(row[name], np.nan) for name in COMMON] for row in rows]
    return np.array(labels), [int(row["Path"].split("patient")[1][:5]) for row in rows]


def test_auc_of_each_finding_and_the_drop_against_scikit_learn(data, home):
    sources = ["chexpert_train", "chexpert_valid"]
    network = network_of(Cells())
    result = ChestTransfer(sources=sources).measure(network, data, home)
    table = result.tables["findings"].set_index(["source", "finding"])
    expected = {}
    held_out = network.outputs(data.test.inputs).detach().numpy()
    for i, name in zip(COMMON_COLUMNS, COMMON, strict=True):
        expected["heldout", name] = roc_auc_score(data.test.targets[:, i], held_out[:, i])
    for source in sources:
        part = source.partition("_")[2]
        labels, patients = chexpert_labels(home, part)
        found = load_chexpert(home, part, data.train.inputs.geometry)
        assert found.groups.tolist() == patients
        scores = network.outputs(found.inputs).detach().numpy()
        for column, (i, name) in enumerate(zip(COMMON_COLUMNS, COMMON, strict=True)):
            there = ~np.isnan(labels[:, column])
            expected[source, name] = roc_auc_score(labels[there, column], scores[there, i])
            positive = result.details["sources"][source]["positive"][name]
            assert positive == table.loc[(source, name), "positive"] == (labels[:, column] == 1).sum()
            assert result.details["sources"][source]["no label"][name] == (~there).sum()
    assert len(expected) == len(table) == 18
    for key, value in expected.items():
        assert table.loc[key, "auc"] == pytest.approx(value, abs=1e-12)
    means = {source: np.mean([expected[source, name] for name in COMMON]) for source in ("heldout", *sources)}
    for source, mean in means.items():
        assert result.metrics[source].value == pytest.approx(mean, abs=1e-12)
        assert result.metrics[source].ci_low < mean < result.metrics[source].ci_high
    for source in sources:
        drop, relative = result.metrics[f"drop_{source}"], result.metrics[f"relative_drop_{source}"]
        assert drop.value == pytest.approx(means[source] - means["heldout"], abs=1e-12)
        assert relative.value == pytest.approx(means[source] / means["heldout"] - 1, abs=1e-12)
        assert drop.value < drop.ci_high < 0  # the other hospital's images are noisier
        assert relative.ci_low < relative.value < 0
        assert result.details["sources"][source]["left_out"] == []
    assert result.details["sources"]["chexpert_train"]["no label"]["Edema"] > 0
    assert result.details["sources"]["chexpert_valid"]["patients"] == 10


def test_interval_of_the_drop_has_both_sides_spread(data, home):
    """Of independent sides the variances add."""
    metrics = ChestTransfer(sources=["chexpert_valid"]).measure(network_of(Cells()), data, home).metrics

    def width(name):
        return metrics[name].ci_high - metrics[name].ci_low

    together = np.hypot(width("heldout"), width("chexpert_valid"))
    assert width("drop_chexpert_valid") == pytest.approx(together, rel=0.15)


def test_every_source_and_the_order_of_scores_is_all_that_counts(data, home):
    measure = ChestTransfer(sources=SOURCES).measure
    result = measure(network_of(Cells()), data, home)
    assert set(result.details["sources"]) == set(SOURCES)
    assert {f"drop_{source}" for source in SOURCES} <= set(result.metrics)
    assert dict(measure(network_of(Cells(3.0)), data, home).metrics) == dict(result.metrics)
    backwards = measure(network_of(Cells(-1.0)), data, home).metrics
    for source in ("heldout", *SOURCES):
        assert backwards[source].value == pytest.approx(1 - result.metrics[source].value, abs=1e-12)


def test_a_network_that_knows_nothing(data, home):
    result = ChestTransfer(sources=["mimic_test"]).measure(network_of(Cells(0.0)), data, home)
    assert result.metrics["mimic_test"].value == result.metrics["heldout"].value == 0.5
    assert result.metrics["drop_mimic_test"].value == 0.0


def only(data, finding, value):
    """The data with one label only of a finding, in the test split."""
    targets = data.test.targets.clone()
    targets[:, FINDINGS.index(finding)] = value
    return replace(data, test=Split(data.test.inputs, targets, data.test.groups))


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_one_label_only_in_the_held_out_set(value, data, home):
    network, test = network_of(Cells()), ChestTransfer(sources=["chexpert_valid"])
    whole, part = test.measure(network, data, home), test.measure(network, only(data, "Edema", value), home)
    assert part.details["sources"]["chexpert_valid"]["left_out"] == ["Edema"]
    table = whole.tables["findings"].set_index(["source", "finding"])["auc"]
    five = [name for name in COMMON if name != "Edema"]
    means = {source: np.mean([table[source, name] for name in five]) for source in ("heldout", "chexpert_valid")}
    assert part.metrics["heldout"].value == pytest.approx(means["heldout"], abs=1e-12)
    assert part.metrics["chexpert_valid"].value == pytest.approx(means["chexpert_valid"], abs=1e-12)
    drop = part.metrics["drop_chexpert_valid"].value
    assert drop == pytest.approx(means["chexpert_valid"] - means["heldout"], abs=1e-12)
    missing = part.tables["findings"].set_index(["source", "finding"])["auc"]
    assert np.isnan(missing["heldout", "Edema"])
    assert missing["chexpert_valid", "Edema"] == table["chexpert_valid", "Edema"]  # it is known there


def test_one_label_only_in_the_source(data, own_home):
    path = own_home.root / PART["mimic"] / "mimic-cxr-2.0.0-chexpert.csv.gz"
    rows = [line.split(",") for line in gzip.decompress(path.read_bytes()).decode().splitlines()]
    for row in rows[1:]:
        row[rows[0].index("Pneumonia")] = "0.0"
    path.write_bytes(gzip.compress("\n".join(",".join(row) for row in rows).encode()))
    result = ChestTransfer(sources=["mimic_validate"]).measure(network_of(Cells()), data, own_home)
    about = result.details["sources"]["mimic_validate"]
    assert about["left_out"] == ["Pneumonia"]
    assert about["heldout"] != result.metrics["heldout"].value  # that of five, and that of six
    drop = result.metrics["mimic_validate"].value - about["heldout"]
    assert result.metrics["drop_mimic_validate"].value == pytest.approx(drop, abs=1e-12)


def test_no_finding_has_both_labels(data, home):
    for name in COMMON:
        data = only(data, name, 0.0)
    with pytest.raises(ValueError, match="ChestTransfer: no finding has both labels in the held-out test split"):
        ChestTransfer(sources=["chexpert_valid"]).measure(network_of(Cells()), data, home)


def test_missing_sources(xrays, data, own_home):
    shutil.rmtree(own_home.root / PART["mimic"])
    for test in (ChestTransfer(), ChestTransfer(sources=["mimic_test"], missing="skip")):
        with pytest.raises(FileNotFoundError, match=r"ChestTransfer has no .*mimic_test.*physionet"):
            test.prepare(xrays, own_home)
    test = ChestTransfer(missing="skip")
    test.prepare(xrays, own_home)
    result = test.measure(network_of(Cells()), data, own_home)
    assert list(result.details["missing"]) == ["mimic_train", "mimic_validate", "mimic_test"]
    assert [name for name in result.metrics if name.startswith("drop")] == [
        "drop_chexpert_train",
        "drop_chexpert_valid",
    ]


def test_bad_images_are_left_out_and_named(data, own_home):
    (own_home.root / PART["chexpert"] / "valid/patient00002/study1/view1_frontal.jpg").write_bytes(b"no image")
    network = network_of(Cells())
    with pytest.raises(DataError, match=r"1 undecodable .*valid/patient00002/study1/view1_frontal\.jpg"):
        ChestTransfer(sources=["chexpert_valid"]).measure(network, data, own_home)
    result = ChestTransfer(sources=["chexpert_valid"], bad_images_limit=0.1).measure(network, data, own_home)
    about = result.details["sources"]["chexpert_valid"]
    assert about["images"] == 29
    assert about["skipped"] == {"undecodable images": 1}
    assert "patient00002" in about["notices"][0]


def test_fewer_rows_and_frontal_views(data, home):
    result = ChestTransfer(sources=["chexpert_train"], rows={"chexpert_train": 20}, views="frontal").measure(
        network_of(Cells()), data, home
    )
    assert result.details["sources"]["chexpert_train"]["images"] == 20


def test_data_sets_it_takes(xrays, findings, images, toy):
    ChestTransfer().check(xrays)
    for dataset in (findings, images, toy(toy_loss="binary_cross_entropy", toy_classes=14)):
        with pytest.raises(ValueError, match=f"ChestTransfer: .* 14 findings of ChestX-ray14 .*, got {dataset.name}"):
            ChestTransfer().check(dataset)


def test_images_that_are_no_x_rays(data, home, make_data):
    other = make_data(data.test.inputs[:], data.test.targets)
    with pytest.raises(ValueError, match="chexpert_valid: is prepared as the training images are, and those of toy"):
        ChestTransfer(sources=["chexpert_valid"]).measure(network_of(Cells()), other, home)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sources": ["chexpert"]}, r"sources must be different ones of chexpert_train, .*, got \['chexpert'\]"),
        ({"sources": []}, r"sources must be different ones .*, got \[\]"),
        ({"sources": ["mimic_test", "mimic_test"]}, "sources must be different ones"),
        ({"missing": "warn"}, "missing must be error or skip, got 'warn'"),
        ({"views": "lateral"}, "views must be one of all, frontal, got 'lateral'"),
        ({"rows": {"nih": 3}}, "rows must be of chexpert_train, .*, got nih"),
        ({"rows": {"mimic_test": 0}}, "rows must be"),
        ({"bad_images_limit": 2.0}, r"bad_images_limit must be in \[0, 1\]"),
        ({"seed": True}, "seed must be an integer >= 0, got True"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(ValueError, match=message):
        ChestTransfer(**settings)
