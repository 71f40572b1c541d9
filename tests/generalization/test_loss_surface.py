"""The surface is the loss itself, at the places it says, along the Hessian's own eigenvectors."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from spectral_run.curvature.backends import choose_backend
from spectral_run.curvature.objective import Objective
from spectral_run.datasets.base import Data, DataHome, Split
from spectral_run.generalization.base import TrainedNetwork
from spectral_run.generalization.loss_surface import LossSurface

CLASSES = 3
HOME = DataHome(Path("nowhere"), download=False)


@pytest.fixture(params=["cross_entropy", "mse"])
def case(request):
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, CLASSES)).double()
    splits = []
    for rows in (23, 11):
        x = torch.randn(rows, 4, generator=generator, dtype=torch.float64)
        y = torch.randint(CLASSES, (rows,), generator=generator)
        if request.param == "mse":
            y = torch.randn(rows, CLASSES, generator=generator, dtype=torch.float64)
        splits.append(Split(x, y))
    objective = Objective(model, getattr(F, "cross_entropy" if request.param == "cross_entropy" else "mse_loss"))
    network = TrainedNetwork(
        objective=objective,
        backend=choose_backend("autograd", objective, splits[0].inputs),
        predict=lambda x: model(x).argmax(1),
        outputs=model,
        batch_size=7,
    )
    return network, Data("toy", splits[0], splits[0], splits[1], {}, official=False)


def dense_hessian(objective, split):
    model = copy.deepcopy(objective.model).eval()
    shapes = [(name, p.shape) for name, p in model.named_parameters()]

    def loss(flat):
        pieces = flat.split([shape.numel() for _, shape in shapes])
        values = {name: piece.view(shape) for (name, shape), piece in zip(shapes, pieces, strict=True)}
        return objective.loss(torch.func.functional_call(model, values, (split.inputs,)), split.targets)

    return torch.autograd.functional.hessian(loss, parameters_to_vector(model.parameters()).detach())


def moved(objective, step):
    model = copy.deepcopy(objective.model).eval()
    vector_to_parameters(parameters_to_vector(model.parameters()) + step, model.parameters())
    return model


def test_lines_and_plane_against_moved_copies_of_the_network(case):
    network, data = case
    objective = network.objective
    result = LossSurface(points=5, plane=3, radius=0.7, eps=1e-10).measure(network, data, HOME)
    values, vectors = np.linalg.eigh(dense_hessian(objective, data.train).numpy())
    order = np.argsort(-np.abs(values))[:2]
    assert result.details["eigenvalues"] == pytest.approx(values[order], rel=1e-9)
    assert result.details["converged"]
    vectors = torch.from_numpy(vectors[:, order].T.copy())
    vectors = vectors * vectors.gather(1, vectors.abs().argmax(1, keepdim=True)).sign()
    lines = result.tables["lines"]
    assert lines["distance"].tolist()[:5] == [-0.7, -0.35, 0.0, 0.35, 0.7]
    assert len(lines) == 10
    plane = result.tables["plane"]
    assert len(plane) == 9
    places = [(row, row["distance"] * vectors[int(row["vector"]) - 1]) for _, row in lines.iterrows()]
    places += [(row, row["distance_1"] * vectors[0] + row["distance_2"] * vectors[1]) for _, row in plane.iterrows()]
    for row, step in places:
        model = moved(objective, step)
        for name, split in (("train", data.train), ("test", data.test)):
            outputs = model(split.inputs).detach()
            assert row[f"{name}_loss"] == pytest.approx(float(objective.loss(outputs, split.targets)), rel=1e-6)
            if objective.loss is F.cross_entropy:
                right = (outputs.argmax(1) == split.targets).double().mean()
                assert row[f"{name}_accuracy"] == pytest.approx(float(right))
            else:
                assert f"{name}_accuracy" not in row


def test_the_quadratic_model_is_right_to_third_order(case):
    network, data = case
    errors = []
    for radius in (1e-2, 1e-3):
        lines = LossSurface(points=3, plane=0, radius=radius, eps=1e-12).measure(network, data, HOME).tables["lines"]
        errors.append((lines["train_loss"] - lines["train_loss_quadratic"]).abs().max())
    assert errors[0] > 1e-10
    assert errors[1] < 2e-3 * errors[0]


def test_rises_are_means_over_rows_and_both_ways(case):
    network, data = case
    result = LossSurface(points=3, plane=0, vectors=1, radius=0.5, eps=1e-10).measure(network, data, HOME)
    lines = result.tables["lines"]
    for name in ("train", "test"):
        low, here, high = lines[f"{name}_loss"]
        rise = result.metrics[f"{name}_rise"]
        assert rise.value == pytest.approx((low + high) / 2 - here, rel=1e-9)
        assert rise.ci_low < rise.value < rise.ci_high
    assert result.metrics["train_rise"].n == 23
    if network.objective.loss is F.cross_entropy:
        low, _, high = lines["test_accuracy"]
        assert result.metrics["test_accuracy"].value == pytest.approx((low + high) / 2)
    else:
        assert "test_accuracy" not in result.metrics
    assert "plane" not in result.figures


def test_fewer_rows_for_the_surface_and_all_for_the_eigenvectors(case):
    network, data = case
    few = LossSurface(points=3, plane=0, rows=5).measure(network, data, HOME)
    every = LossSurface(points=3, plane=0).measure(network, data, HOME)
    assert few.details["eigenvalues"] == every.details["eigenvalues"]
    assert few.details["rows"] == {"train": 5, "test": 5}
    assert few.tables["lines"]["train_loss"][1] != every.tables["lines"]["train_loss"][1]


def test_the_smallest_end(case):
    network, data = case
    result = LossSurface(which="smallest", vectors=1, plane=0, points=3, eps=1e-10).measure(network, data, HOME)
    values = np.linalg.eigvalsh(dense_hessian(network.objective, data.train).numpy())
    assert result.details["eigenvalues"] == pytest.approx([values[0]], rel=1e-8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vectors": 0}, "vectors must be at least 1, got 0"),
        ({"radius": 0.0}, "radius must be positive, got 0.0"),
        ({"points": 4}, "points must be odd and at least 3, got 4"),
        ({"plane": 2}, "plane must be 0 or odd >= 3, got 2"),
        ({"vectors": 1}, "a plane needs vectors >= 2, got 1"),
        ({"rows": 1}, "rows must be at least 2 or null, got 1"),
        ({"eps": 0.0}, "eps must be positive"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(ValueError, match=message):
        LossSurface(**settings)
