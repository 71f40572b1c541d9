"""Networks with several labels a row: loss and weights, areas and selection, and rows that are no tensor."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import nn

from spectral_run.curvature.backends import choose_backend
from spectral_run.curvature.objective import Objective, flatten
from spectral_run.datasets.base import Data, DataError, DataHome, Split, check_data
from spectral_run.datasets.synthetic_multilabel import SyntheticMultilabel
from spectral_run.runner.evaluate import evaluate
from spectral_run.runner.labels import balanced_weights, each_area, frequent_outputs, labels_of, weighted_loss
from spectral_run.runner.settings import Training

HOME = DataHome(Path("nowhere"), download=False)
TIMES = {"seconds", "seconds_by_phase", "finished", "started"}
FINDINGS = ("dataset=synthetic_multilabel", "curvature.eps=0.1", "model.widths=[8]", "dataset.patients=60")


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in TIMES}
    return value


# Loss and weights


def equation_one(z: torch.Tensor, t: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
    """Rajpurkar et al. 2017, as it is printed, with probabilities; the mean over rows and findings."""
    p = 1 / (1 + torch.exp(-z))
    return (-positive * t * torch.log(p) - negative * (1 - t) * torch.log(1 - p)).mean()


def labelled() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(12, 4, generator=generator, dtype=torch.float64)
    targets = (torch.rand(12, 3, generator=generator) < 0.3).double()
    targets[:, 2] = 0  # a finding without a positive
    return inputs, targets


def test_balanced_weights_are_equation_one() -> None:
    inputs, targets = labelled()
    positive, negative = balanced_weights(targets)
    count = targets.sum(0)
    assert torch.allclose(positive, (12 - count) / 12, rtol=1e-15)
    assert torch.allclose(positive + negative, torch.ones(3).double(), atol=0, rtol=1e-15)
    assert torch.allclose(positive * count, negative * (12 - count), rtol=1e-12)  # the same part of the loss
    z = inputs[:, :3]
    got = weighted_loss(positive, negative)(z, targets)
    assert got == pytest.approx(equation_one(z, targets, positive, negative).item(), rel=1e-12)
    z = z.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(weighted_loss(positive, negative)(z, targets), z)
    assert not gradient[:, 2].any()  # it has no part of the loss
    flipped = weighted_loss(*balanced_weights(1 - targets))(-z, 1 - targets)
    assert flipped.item() == pytest.approx(got.item(), rel=1e-12)


@pytest.mark.parametrize("backend", ["native", "rop", "autograd"])
def test_curvature_of_the_weighted_loss(backend: str) -> None:
    """Hv and the gradient of v'Hv against dense derivatives of equation (1)."""
    inputs, targets = labelled()
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    weights = balanced_weights(targets)
    objective = Objective(model, weighted_loss(*weights))
    problem = choose_backend(backend, objective, inputs[:2])(objective, inputs, targets)
    shapes = [p.shape for p in objective.parameters]

    def loss(w: torch.Tensor) -> torch.Tensor:
        a, b, c, d = (x.view(s) for x, s in zip(w.split([s.numel() for s in shapes]), shapes, strict=True))
        return equation_one(torch.tanh(inputs @ a.T + b) @ c.T + d, targets, *weights)

    point = flatten([p.detach() for p in objective.parameters])
    hessian = torch.func.hessian(loss)
    v = torch.randn(len(point), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert torch.allclose(problem.grad(), torch.func.grad(loss)(point), rtol=1e-9, atol=1e-14)
    assert torch.allclose(problem.hvp(v), hessian(point) @ v, rtol=1e-9, atol=1e-14)
    third = torch.func.grad(lambda w: v @ hessian(w) @ v)(point)
    assert torch.allclose(problem.quadratic_grad(v), third, rtol=1e-9, atol=1e-14)


# Areas


def measured(patients: int = 40, **changed: Any) -> tuple[SyntheticMultilabel, Split, Objective]:
    dataset = SyntheticMultilabel(prevalences=(0.4, 0.2), patients=patients, **changed)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(12, 2).double()
    return dataset, dataset.load(HOME).train, Objective(model, F.binary_cross_entropy_with_logits)


def test_evaluation_equals_scikit_learns() -> None:
    dataset, split, objective = measured()
    numbers = evaluate(objective, split, dataset).numbers()
    scores = objective.model(split.inputs).detach().numpy()
    want = [roc_auc_score(split.targets[:, j], scores[:, j]) for j in range(2)]
    assert [metric["value"] for metric in numbers["auc_by_output"].values()] == pytest.approx(want, abs=1e-12)
    assert list(numbers["auc_by_output"]) == ["label_1", "label_2"]
    assert numbers["auc"] == pytest.approx(np.mean(want), abs=1e-12)
    assert numbers["ci_low"] < numbers["auc"] < numbers["ci_high"]
    assert numbers["n"] == 120
    positives = [metric["positives"] for metric in numbers["auc_by_output"].values()]
    assert positives == split.targets.sum(0).tolist()
    assert numbers["left_out"] == {}
    loss = F.binary_cross_entropy_with_logits(torch.from_numpy(scores), split.targets)
    assert numbers["loss"] == pytest.approx(loss.item(), rel=1e-12)
    point = evaluate(objective, split, dataset, interval=False).numbers()
    assert point == {"loss": numbers["loss"], "auc": pytest.approx(numbers["auc"], abs=1e-15)}


def test_frequent_findings_have_a_mean_of_their_own() -> None:
    dataset, split, objective = measured()
    alone = evaluate(objective, split, dataset, frequent=["label_2"]).numbers()
    assert alone["auc_frequent"]["outputs"] == ["label_2"]
    assert alone["auc_frequent"]["value"] == alone["auc_by_output"]["label_2"]["value"] != alone["auc"]
    both = evaluate(objective, split, dataset, frequent=["label_1", "label_2"]).numbers()
    assert both["auc_frequent"] == {
        "value": both["auc"], "ci_low": both["ci_low"], "ci_high": both["ci_high"], "n": both["n"],
        "outputs": ["label_1", "label_2"],
    }  # fmt: skip
    one = Split(split.inputs, split.targets * torch.tensor([1.0, 0.0]), split.groups)
    assert "auc_frequent" not in evaluate(objective, one, dataset, frequent=["label_2"]).numbers()  # no positive
    record = {"positives": {"train": {"a": 20, "b": 29}, "test": {"a": 10, "b": 0}}}
    assert frequent_outputs(record) == ["a"]
    assert frequent_outputs({}) == []


def test_patients_make_the_interval_wider() -> None:
    """Their rows have most in common here."""
    dataset, split, objective = measured(patients=100, share=0.99, rows_each=6)
    grouped = evaluate(objective, split, dataset).numbers()
    rows = evaluate(objective, Split(split.inputs, split.targets), dataset).numbers()
    assert grouped["auc"] == rows["auc"]
    assert grouped["ci_high"] - grouped["ci_low"] > 1.2 * (rows["ci_high"] - rows["ci_low"])


def test_what_has_no_area() -> None:
    dataset, split, objective = measured()
    one = Split(split.inputs, split.targets * torch.tensor([1.0, 0.0]), split.groups)
    numbers = evaluate(objective, one, dataset).numbers()
    assert numbers["left_out"] == {"label_2": "no positive"}
    assert numbers["auc"] == numbers["auc_by_output"]["label_1"]["value"]
    assert each_area(numbers).startswith("label_1 0.")
    assert each_area(numbers).endswith(f" ({int(one.targets[:, 0].sum())}); left out: label_2 (no positive)")
    none = evaluate(objective, Split(split.inputs, torch.zeros_like(split.targets)), dataset).numbers()
    assert math.isnan(none["auc"])
    assert "ci_low" not in none
    assert none["left_out"] == {"label_1": "no positive", "label_2": "no positive"}
    assert math.isnan(evaluate(objective, Split(split.inputs, none_of(split)), dataset, interval=False).details["auc"])
    objective.model.weight.data.fill_(math.nan)
    broken = evaluate(objective, split, dataset).numbers()
    assert math.isnan(broken["auc"])
    assert set(broken["left_out"].values()) == {"outputs not finite"}
    assert math.isnan(evaluate(objective, split, dataset, interval=False).details["auc"])


def none_of(split: Split) -> torch.Tensor:
    return torch.zeros_like(split.targets)


def test_what_the_data_must_be() -> None:
    dataset = SyntheticMultilabel(prevalences=(0.4, 0.2), patients=20)
    good = dataset.load(HOME)

    def broken(**change: Any) -> Data:
        test = good.test
        values = {"inputs": test.inputs, "targets": test.targets, "groups": test.groups} | change
        return Data("x", good.train, good.validation, Split(**values), {}, official=False)

    check_data(good, dataset)
    half = good.test.targets.clone()
    half[3, 1] = 0.5
    for change, message in (
        ({"targets": half}, "test split: targets must be 0 or 1, and row 3 has others"),
        ({"targets": good.test.targets[:, :1]}, r"targets must be floating-point numbers of shape \(15, 2\)"),
        ({"targets": good.test.targets.long()}, "targets must be floating-point numbers of shape"),
        ({"targets": half * math.nan}, "row 0 holds a number that is not finite"),
        ({"groups": torch.arange(3)}, r"groups must have the shape \(15,\), got \(3,\)"),
    ):
        with pytest.raises(DataError, match=message):
            check_data(broken(**change), dataset)


def test_notices_say_what_each_split_lacks() -> None:
    dataset = SyntheticMultilabel(prevalences=(0.4, 0.2), patients=20)
    good = dataset.load(HOME)
    bare = Split(good.train.inputs, good.train.targets * torch.tensor([1.0, 0.0]), good.train.groups)
    data = Data("x", bare, good.validation, bare, {}, official=False)
    plain = labels_of(data, dataset, Training(select_by="auc"))
    assert plain.loss is None
    assert plain.notices == tuple(
        f"synthetic_multilabel, {name} split: label_2 has no positive; left out of the AUC"
        for name in ("train", "test")
    )
    weighted = labels_of(data, dataset, Training(select_by="auc", class_weights="balanced"))
    assert weighted.notices[0] == "synthetic_multilabel, train split: label_2 has no positive; no part of the loss"
    assert weighted.record["class_weights"]["label_2"] == {"positive": 1.0, "negative": 0.0}
    assert weighted.record["positives"]["validation"]["label_2"] == int(good.validation.targets[:, 1].sum())
    assert weighted.record["groups"] == {"train": 20, "validation": 5, "test": 20}
    nothing = Split(bare.inputs, torch.zeros_like(bare.targets))
    data = Data("x", good.train, nothing, good.test, {}, official=False)
    with pytest.raises(ValueError, match="no finding has both labels in the validation split, so there is no AUC"):
        labels_of(data, dataset, Training(select_by="auc"))
    assert labels_of(data, dataset, Training(select_by="loss")).loss is None


# Whole runs


def test_a_run_selects_by_auc_and_records_it(command: Callable[..., Any]) -> None:
    ran = command(*FINDINGS, "training.epochs=3", "training.class_weights=balanced", "optimizer.lr=0.05")
    assert ran.code == 0, ran.err
    assert "val auc 0." in ran.out
    assert "test AUC, 95% interval (positives): label_1 0." in ran.out
    assert "test AUC" in ran.out.partition("(positives)")[2]  # in the table too
    assert "accuracy" not in ran.out
    result = ran.result()
    for split in ("train", "val", "test"):
        assert result[split]["ci_low"] <= result[split]["auc"] <= result[split]["ci_high"]
        assert result[split]["auc_frequent"]["outputs"] == frequent_outputs(result["data"]) != []
    record = [json.loads(line) for line in next(ran.folder.rglob("metrics.jsonl")).read_text().splitlines()]
    areas = [line["value"] for line in record if (line["split"], line["name"]) == ("validation", "auc")]
    assert len(areas) == 3
    assert result["train"]["best_epoch"] == 1 + int(np.argmax(areas))
    assert result["val"]["auc"] == pytest.approx(max(areas), abs=1e-9)
    assert result["data"]["positives"]["train"]["label_1"] > 0
    share = result["data"]["positives"]["train"]["label_1"] / 180
    weights = result["data"]["class_weights"]["label_1"]
    assert weights == pytest.approx({"positive": 1 - share, "negative": share}, rel=1e-12)
    assert "compiled" in result["backend"]["why"] or "rule for every layer" in result["backend"]["why"]


def test_weights_decide_the_run_and_their_absence_no_hash(command: Callable[..., Any]) -> None:
    """Runs from before there were weights keep their folder."""
    ran = command(*FINDINGS, "training.epochs=1", "regularizer=none")
    again = command(*FINDINGS, "training.epochs=1", "regularizer=none", "training.class_weights=none")
    assert "skipped, finished before" in again.out
    assert "class_weights" not in ran.result()["config"]["training"]
    weighted = command(*FINDINGS, "training.epochs=1", "regularizer=none", "training.class_weights=balanced")
    losses = {json.loads(path.read_text())["train"]["loss"] for path in weighted.results()}
    assert len(losses) == 2


def test_a_sweep_by_auc_beside_a_data_set_with_classes(command: Callable[..., Any]) -> None:
    ran = command("--multirun", "dataset=synthetic_multilabel,digits", "training.select_by=loss", "generalization=none",
                  "training.max_steps=2", "model.widths=[4]", "curvature.eps=0.1", "regularizer=none")  # fmt: skip
    assert ran.code == 0, ran.err
    (table,) = ran.folder.rglob("table.md")
    lines = {line.split("|")[1].strip(): line for line in table.read_text().splitlines() if line.startswith("|")}
    assert lines["test accuracy"].count("n/a") == lines["test AUC"].count("n/a") == 1
    assert "%" in lines["test accuracy"]
    assert "%" not in lines["test AUC"]
    ran = command(*FINDINGS, "training.max_steps=2", "regularizer=none", "optimized_metric=test.auc",
                  "results_dir=other")  # fmt: skip
    assert ran.code == 0, ran.err


def test_a_finished_run_is_measured_at_its_weighted_loss(command: Callable[..., Any]) -> None:
    ran = command(*FINDINGS, "training.max_steps=5", "regularizer=none", "training.class_weights=balanced")
    (path,) = ran.results()
    ran = command(f"run_dir={path.parent}", "generalization=[loss_surface]", "generalization.loss_surface.points=3",
                  "generalization.loss_surface.plane=0")  # fmt: skip
    assert ran.code == 0, ran.err
    result = json.loads(path.read_text())
    table = (path.parent / "loss_surface_lines.csv").read_text().splitlines()
    middle = dict(zip(table[0].split(","), map(float, table[2].split(",")), strict=True))
    assert middle["distance"] == 0.0
    assert middle["train_loss"] == pytest.approx(result["train"]["loss"], rel=1e-5)
    assert "test_accuracy" not in middle


def test_stored_rows_train_to_the_same_bytes(command: Callable[..., Any], scans: Callable[..., Any]) -> None:
    """Stored images, a batch at a time, against the same images in memory: the whole record, BatchNorm's included."""
    common = (*scans(), "model=scans", "optimizer=gadam", "curvature.eps=0.1", "training.epochs=2",
              "training.batch_size=16", "training.class_weights=balanced", "curvature.batch_size=16",
              "curvature.every_epochs=1", "generalization=[loss_surface,spectrum,valley_probe]",
              "generalization.loss_surface.points=3", "generalization.loss_surface.plane=0",
              "generalization.spectrum.steps=4", "generalization.spectrum.layer_probes=0")  # fmt: skip
    records = []
    for stored in ("true", "false"):
        ran = command(*common, f"dataset.stored={stored}", f"name=stored-{stored}")
        assert ran.code == 0, ran.err
        (folder,) = (path.parent for path in ran.results() if f"stored-{stored}" in str(path))
        result = without_times(json.loads((folder / "result.json").read_text()))
        for key in ("config", "config_hash", "run_id", "name"):
            del result[key]
        tables = [path.read_text() for path in sorted(folder.glob("*_*.csv"))]
        records.append(((folder / "metrics.jsonl").read_text(), json.dumps(result), tables))
    assert records[0] == records[1]
    assert len(records[0][2]) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dataset=synthetic_multilabel", "training.select_by=accuracy"],
         "training.select_by must be auc or loss for data set synthetic_multilabel, which has several labels a row"),
        (["training.select_by=auc"], "training.select_by must be accuracy or loss for data set digits"),
        (["dataset=synthetic", "training.select_by=auc"], "training.select_by must be loss for data set synthetic"),
        (["training.class_weights=balanced"], "training.class_weights must be none for data set digits"),
        (["training.class_weights=balance"], "training.class_weights must be one of none, balanced; got 'balance'."),
    ],
)  # fmt: skip
def test_refusals(command: Callable[..., Any], arguments: list[str], message: str) -> None:
    ran = command(*arguments)
    assert ran.code == 2
    assert message in ran.err
    assert len(ran.err.strip().splitlines()) == 1
    assert not ran.results()
