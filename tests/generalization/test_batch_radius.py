"""Rho of batches against the eigenvalues of their dense Hessians."""

import math
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
from spectral_run.generalization.base import TrainedNetwork, derived_seed
from spectral_run.generalization.batch_radius import BatchRadius

HOME = DataHome(Path("nowhere"), download=False)


@pytest.fixture(scope="module")
def case():
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    inputs = torch.randn(24, 4, generator=generator, dtype=torch.float64)
    train = Split(inputs, torch.randint(3, (24,), generator=generator))
    objective = Objective(model, F.cross_entropy)
    network = TrainedNetwork(
        objective=objective,
        backend=choose_backend("autograd", objective, inputs),
        predict=lambda x: model(x).argmax(1),
        outputs=model,
    )
    return network, Data("toy", train, train, train, {}, official=False)


def dense_rho(model, inputs, targets):
    named = [(name, p.shape) for name, p in model.named_parameters()]

    def loss(flat):
        pieces = flat.split([shape.numel() for _, shape in named])
        values = {name: piece.view(shape) for (name, shape), piece in zip(named, pieces, strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, values, (inputs,)), targets)

    hessian = torch.autograd.functional.hessian(loss, parameters_to_vector(model.parameters()).detach())
    return float(torch.linalg.eigvalsh(hessian).abs().max())


def test_mean_and_error_over_batches_of_the_dense_hessians(case):
    network, data = case
    model, train = network.objective.model, data.train
    test = BatchRadius(sizes=(3, 5, 24), batches=None, eps=1e-8)
    result = test.measure(network, data, HOME)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(derived_seed(0, "batch_radius", "toy")))
    for size, count in ((3, 8), (5, 4), (24, 1)):
        rhos = np.array(
            [
                dense_rho(model, train.inputs[rows], train.targets[rows])
                for rows in (order[i * size : (i + 1) * size] for i in range(count))
            ]
        )
        metric = result.metrics[f"rho_{size}"]
        assert metric.value == pytest.approx(rhos.mean(), rel=1e-9)
        assert metric.n == count
        if count > 1:
            half = 1.959963984540054 * rhos.std(ddof=1) / math.sqrt(count)
            assert metric.ci_high - metric.value == pytest.approx(half, rel=1e-7)
    # Rho is a norm: of batches that share all rows evenly, its mean is not below the whole set's.
    assert result.metrics["rho_3"].value > result.metrics["rho_24"].value
    table = result.tables["batches"]
    assert table["batch_size"].tolist() == [3, 5, 24]
    assert table["batches"].tolist() == [8, 4, 1]
    assert (table["not_converged"] == 0).all()


def test_no_more_batches_than_asked_and_larger_sizes_named(case):
    network, data = case
    result = BatchRadius(sizes=(2, 25), batches=3).measure(network, data, HOME)
    assert result.metrics["rho_2"].n == 3
    assert set(result.metrics) == {"rho_2"}
    assert result.details["left_out"] == [25]
    with pytest.raises(ValueError, match="BatchRadius: sizes must include one of at most 24, the training rows"):
        BatchRadius(sizes=(25,)).measure(network, data, HOME)


def test_a_solve_that_stops_early_is_counted(case):
    network, data = case
    result = BatchRadius(sizes=(4,), solver="power", eps=1e-12, cap=2).measure(network, data, HOME)
    assert result.details["not_converged"] == {"4": 6}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sizes": ()}, "sizes must be at least one integer >= 1"),
        ({"sizes": (0, 2)}, "sizes must be at least one integer >= 1"),
        ({"sizes": (2, 2)}, "sizes must differ"),
        ({"batches": 1}, "batches must be at least 2 or null, got 1"),
        ({"cap": 0}, "cap"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(ValueError, match=message):
        BatchRadius(**settings)
