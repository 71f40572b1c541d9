"""The line is the straight one through both ends, with statistics that belong to each place."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from spectral_run.curvature.backends import choose_backend
from spectral_run.curvature.exact_layers import swap_norms
from spectral_run.curvature.objective import Objective
from spectral_run.datasets.base import Data, DataHome, Split
from spectral_run.generalization.base import TrainedNetwork
from spectral_run.generalization.valley_probe import ValleyProbe

HOME = DataHome(Path("nowhere"), download=False)


def build() -> nn.Sequential:
    layers = nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, 3)
    return nn.Sequential(*layers).double()


@pytest.fixture(params=["cross_entropy", "mse"])
def case(request):
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model, last = swap_norms(build()), build()
    splits = []
    for rows in (23, 11):
        x = 3 * torch.randn(rows, 4, generator=generator, dtype=torch.float64) + 1
        y = torch.randint(3, (rows,), generator=generator)
        if request.param == "mse":
            y = torch.randn(rows, 3, generator=generator, dtype=torch.float64)
        splits.append(Split(x, y))
    objective = Objective(model, getattr(F, "cross_entropy" if request.param == "cross_entropy" else "mse_loss"))
    network = TrainedNetwork(
        objective=objective,
        backend=choose_backend("autograd", objective, splits[0].inputs),
        predict=lambda x: model(x).argmax(1),
        outputs=model,
        batch_size=7,
        training_batch_size=6,
        last=last.state_dict(),
    )
    return network, Data("toy", splits[0], splits[0], splits[1], {}, official=False)


def elsewhere(network: TrainedNetwork, data: Data, t: float) -> nn.Module:
    """torch's own layers at that place, statistics of all training rows at once."""
    model = build()
    average, last = dict(network.objective.model.named_parameters()), network.last
    state = {name: last[name] + t * (p.detach() - last[name]) for name, p in average.items()}
    model.load_state_dict(state, strict=False)
    inputs = model[0](data.train.inputs).detach()
    model[1].running_mean.copy_(inputs.mean(0))
    model[1].running_var.copy_(inputs.var(0))
    return model.eval()


def test_the_line_against_moved_copies(case):
    network, data = case
    before = copy.deepcopy(network.objective.model.state_dict())
    result = ValleyProbe(points=7, beyond=1.0).measure(network, data, HOME)
    table = result.tables["line"]
    assert table["t"].tolist() == pytest.approx([-1, -0.5, 0, 0.5, 1, 1.5, 2])
    ends = [p.detach() - network.last[name] for name, p in network.objective.model.named_parameters()]
    distance = math.sqrt(sum(float(end.square().sum()) for end in ends))
    assert result.details["distance"] == pytest.approx(distance)
    for _, row in table.iterrows():
        model = elsewhere(network, data, row["t"])
        assert row["distance"] == pytest.approx(row["t"] * distance)
        for name, split in (("train", data.train), ("test", data.test)):
            outputs = model(split.inputs).detach()
            assert row[f"{name}_loss"] == pytest.approx(float(network.objective.loss(outputs, split.targets)), rel=1e-9)
            if network.objective.loss is F.cross_entropy:
                right = (outputs.argmax(1) == split.targets).double().mean()
                assert row[f"{name}_accuracy"] == pytest.approx(float(right))
            else:
                assert f"{name}_accuracy" not in row
    assert all(torch.equal(value, before[name]) for name, value in network.objective.model.state_dict().items())


def test_changes_are_those_from_the_last_iterate_to_the_average(case):
    network, data = case
    result = ValleyProbe(points=2, beyond=0.0).measure(network, data, HOME)
    last, average = (row for _, row in result.tables["line"].iterrows())
    quantities = [column for column in last.index if column not in ("t", "distance")]
    assert set(result.metrics) == {f"{name}_change" for name in quantities}
    for name in quantities:
        metric = result.metrics[f"{name}_change"]
        assert metric.value == pytest.approx(average[name] - last[name], abs=1e-12)
        assert metric.ci_low <= metric.value <= metric.ci_high
    assert result.metrics["train_loss_change"].n == 23


def test_fewer_rows_and_statistics_of_all(case):
    network, data = case
    few = ValleyProbe(points=3, rows=5).measure(network, data, HOME)
    assert few.details["rows"] == {"train": 5, "test": 5}
    t = few.tables["line"]["t"][1]
    outputs = elsewhere(network, data, t)(data.test.inputs[:5]).detach()
    loss = float(network.objective.loss(outputs, data.test.targets[:5]))
    assert few.tables["line"]["test_loss"][1] == pytest.approx(loss, rel=1e-9)


def test_where_there_is_no_average_all_places_are_one(case):
    network, data = case
    same = copy.deepcopy(network.objective.model.state_dict())
    network = replace(network, last=same, batch_size=7)
    result = ValleyProbe(points=4).measure(network, data, HOME)
    assert result.details["distance"] == 0.0
    assert result.tables["line"]["train_loss"].nunique() == 1


def test_refuses_a_run_without_a_last_iterate(case):
    network, data = case
    network = replace(network, last=None)
    with pytest.raises(ValueError, match=r"ValleyProbe: a run needs its last iterate beside the average \(last.pt\)"):
        ValleyProbe().measure(network, data, HOME)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"points": 1}, "points must be at least 2, got 1"),
        ({"beyond": -1.0}, "beyond must be >= 0, got -1.0"),
        ({"rows": 1}, "rows must be at least 2 or null, got 1"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(ValueError, match=f"ValleyProbe: {message}"):
        ValleyProbe(**settings)
