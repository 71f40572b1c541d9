"""What the measurement records is the spectrum of the dense matrices over the training set."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parameters_to_vector

from spectral_run.curvature.backends import choose_backend
from spectral_run.curvature.objective import Objective
from spectral_run.datasets.base import Data, DataHome, Split
from spectral_run.generalization.base import TrainedNetwork
from spectral_run.generalization.spectrum import Spectrum

CLASSES = 3
HOME = DataHome(Path("nowhere"), download=False)


@pytest.fixture(scope="module", params=["autograd", "native"])
def case(request):
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, CLASSES)).double()
    train, test = (
        Split(
            torch.randn(rows, 4, generator=generator, dtype=torch.float64),
            torch.randint(CLASSES, (rows,), generator=generator),
        )
        for rows in (23, 11)
    )
    objective = Objective(model, F.cross_entropy)
    network = TrainedNetwork(
        objective=objective,
        backend=choose_backend(request.param, objective, train.inputs),
        predict=lambda x: model(x).argmax(1),
        outputs=model,
        batch_size=7,
    )
    return network, Data("toy", train, train, test, {}, official=False)


def dense(network, split):
    """Hessian and Gauss-Newton matrix by double backward through plain functions."""
    model = copy.deepcopy(network.objective.model)
    named = [(name, p.shape) for name, p in model.named_parameters()]

    def outputs(flat):
        pieces = flat.split([shape.numel() for _, shape in named])
        values = {name: piece.view(shape) for (name, shape), piece in zip(named, pieces, strict=True)}
        return torch.func.functional_call(model, values, (split.inputs,))

    w = parameters_to_vector(model.parameters()).detach()
    hessian = torch.autograd.functional.hessian(lambda flat: F.cross_entropy(outputs(flat), split.targets), w)
    jacobian = torch.autograd.functional.jacobian(outputs, w)
    p = outputs(w).softmax(1).detach()
    inner = (torch.diag_embed(p) - p[:, :, None] * p[:, None, :]) / len(p)
    return {"hessian": hessian, "gauss_newton": torch.einsum("nci,ncd,ndj->ij", jacobian, inner, jacobian)}


def test_ends_traces_and_layers_of_the_dense_matrices(case):
    network, data = case
    result = Spectrum(steps=43, probes=2, layer_probes=400, sketch=5).measure(network, data, HOME)
    layers = result.tables["layers"]
    for kind, matrix in dense(network, data.train).items():
        values = np.linalg.eigvalsh(matrix.numpy())
        largest = result.metrics[f"{kind}_largest"]
        assert largest.value == pytest.approx(values[-1], rel=1e-9)
        assert largest.ci_low <= values[-1] + 1e-12
        assert (f"{kind}_smallest" in result.metrics) == (kind == "hessian")
        for name, true in (("trace", values.sum()), ("frobenius_norm", np.linalg.norm(values))):
            metric = result.metrics[f"{kind}_{name}"]
            assert abs(metric.value - true) <= 1.5 * (metric.ci_high - metric.ci_low) / 2
            assert metric.ci_high - metric.ci_low < 0.2 * true
        part = layers[layers["operator"] == kind]
        assert part["layer"].tolist() == ["0", "2"]
        assert part["parameters"].tolist() == [25, 18]
        diagonal = matrix.diagonal().numpy()
        for row, true in zip(part.itertuples(), (diagonal[:25].sum(), diagonal[25:].sum()), strict=True):
            assert abs(row.trace - true) <= 3 * row.standard_error
            assert 0 < row.standard_error < 0.2 * true
        assert part["share"].sum() == pytest.approx(1.0)
    assert result.metrics["hessian_smallest"].value == pytest.approx(
        np.linalg.eigvalsh(dense(network, data.train)["hessian"].numpy())[0], rel=1e-9
    )


def test_the_nodes_written_down_are_each_probes_quadrature(case):
    network, data = case
    result = Spectrum(steps=6, probes=3, layer_probes=0).measure(network, data, HOME)
    nodes = result.tables["nodes"]
    assert set(result.figures) == {"density"}
    assert nodes.groupby(["operator", "probe"])["weight"].sum().to_numpy() == pytest.approx(np.ones(6))
    assert result.details["products"] == {"hessian": 18, "gauss_newton": 18}
    for kind in ("hessian", "gauss_newton"):
        part = nodes[nodes["operator"] == kind]
        traces = 43 * (part["node"] * part["weight"]).groupby(part["probe"]).sum()
        assert result.metrics[f"{kind}_trace"].value == pytest.approx(traces.mean())


def test_the_same_directions_for_every_network_and_operator(case):
    network, data = case
    once, again = (Spectrum(steps=3, layer_probes=0).measure(network, data, HOME) for _ in range(2))
    assert once.metrics == again.metrics
    other = Spectrum(steps=3, layer_probes=0, seed=1).measure(network, data, HOME)
    assert other.metrics["hessian_trace"] != once.metrics["hessian_trace"]


def test_fewer_rows_and_other_operators(case):
    network, data = case
    result = Spectrum(operators=["fisher", "gradient_covariance"], steps=30, layer_probes=0, rows=9).measure(
        network, data, HOME
    )
    few = Split(data.train.inputs[:9], data.train.targets[:9])
    largest = np.linalg.eigvalsh(dense(network, few)["gauss_newton"].numpy())[-1]
    assert result.metrics["fisher_largest"].value == pytest.approx(largest, rel=1e-9)  # they are equal
    assert result.metrics["gradient_covariance_largest"].value > 0
    assert result.details["rows"] == 9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"operators": ["hesian"]}, r"operators must be of hessian, .*got \['hesian'\]"),
        ({"operators": []}, "operators must be of hessian"),
        ({"operators": ["hessian", "hessian"]}, "operators must differ"),
        ({"steps": 1}, "steps must be at least 2, got 1"),
        ({"probes": 1}, "probes must be at least 2"),
        ({"layer_probes": 1}, "layer_probes must be 0 or at least 2, got 1"),
        ({"sketch": -1}, "sketch must be at least 0, got -1"),
        ({"rows": 0}, "rows must be at least 1 or null, got 0"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(ValueError, match=message):
        Spectrum(**settings)
