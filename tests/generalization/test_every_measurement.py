"""The contract of whatever can be asked of a trained network, for every file of conf/generalization."""

import copy
import json
import math
from functools import cache
from pathlib import Path

import hydra.utils
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from torch import nn

from spectral_run.curvature.backends import choose_backend
from spectral_run.curvature.objective import Objective
from spectral_run.generalization.base import Measurement, TrainedNetwork
from spectral_run.runner.parts import LOSSES

CONF = Path(__file__).parents[2] / "conf" / "generalization"
FILES = {path.stem: OmegaConf.load(path) for path in CONF.glob("*.yaml") if path.stem != "none"}
NAMES = sorted(name for name, node in FILES.items() if "_target_" in node)
LISTS = sorted(set(FILES) - set(NAMES))
SMALL_GAN = {"epochs": 1, "count": 20, "classifier_epochs": 1}
QUICK = {
    "gan1": SMALL_GAN,
    "gan2": SMALL_GAN,
    "constructed": {"others": {"gan1": SMALL_GAN, "gan2": SMALL_GAN}},
    "loss_surface": {"points": 5, "plane": 3},
    "valley_probe": {"points": 4},
    "spectrum": {"steps": 6, "probes": 2, "layer_probes": 2},
}


@cache
def composed(choice):
    with initialize_config_module(version_base="1.3", config_module="spectral_run.conf"):
        return compose("config", [f"generalization={choice}"]).generalization


def make(name):
    (node,) = composed(name).values()
    return hydra.utils.instantiate(OmegaConf.merge(node, QUICK.get(name, {})), _convert_="all")


@pytest.fixture
def trained():
    def make(dataset):
        with torch.random.fork_rng():
            torch.manual_seed(5)
            # Of color images maps are made, too.
            maps = [nn.Conv2d(3, 3, 3, padding=1), nn.Tanh()] if dataset.input_shape[0] == 3 else []
            model = nn.Sequential(
                *maps,
                nn.Flatten(),
                nn.Linear(math.prod(dataset.input_shape), 4),
                nn.Tanh(),
                nn.Linear(4, dataset.classes),
            )
        objective = Objective(model, LOSSES[dataset.loss])
        example = torch.zeros(2, *dataset.input_shape)
        return TrainedNetwork(
            objective=objective,
            backend=choose_backend("auto", objective, example),
            predict=lambda inputs: model(inputs).argmax(1),
            outputs=lambda rows: model(rows[:]),
            batch_size=50,
            last={name: 0.9 * value for name, value in model.state_dict().items()},
        )

    return make


def fitting(measurement, data_sets):
    for dataset in data_sets:
        try:
            measurement.check(dataset)
        except ValueError:
            continue
        return dataset
    raise AssertionError("no data set that it takes")


@pytest.mark.parametrize("name", NAMES)
def test_head_of_the_file(name):
    package, description = (CONF / f"{name}.yaml").read_text().splitlines()[:2]
    # A variant (augmentation_8x8) takes the place of what it varies.
    assert package.startswith("# @package generalization.")
    assert f"{name}_".startswith(package.rpartition(".")[2] + "_")
    assert description.startswith("# ")
    assert description.endswith(".")


@pytest.mark.parametrize("name", LISTS)
def test_a_list_chooses_what_it_names(name):
    together = composed(name)
    assert len(FILES[name].defaults) > 1
    assert together == {key: node for choice in FILES[name].defaults for key, node in composed(choice).items()}


@pytest.mark.parametrize("name", NAMES)
def test_of_findings_it_measures_or_refuses_by_name(name, findings, home, trained):
    """Several labels a row, of patients."""
    measurement = make(name)
    try:
        measurement.check(findings)
    except ValueError as error:
        assert str(error).startswith(f"{type(measurement).__name__}: ")  # noqa: PT017  (most refuse)
        assert "findings" in str(error)  # noqa: PT017
        return
    it_measures_and_leaves_no_trace(name, findings, home, trained)


@pytest.mark.parametrize("name", NAMES)
def test_it_measures_and_leaves_no_trace(name, features, images, xrays, home, trained):
    measurement = make(name)
    assert isinstance(measurement, Measurement)
    it_measures_and_leaves_no_trace(name, fitting(measurement, [features, images, xrays]), home, trained)


def it_measures_and_leaves_no_trace(name, dataset, home, trained):
    measurement = make(name)
    measurement.prepare(dataset, home)
    data = dataset.load(home)
    network = trained(dataset)
    model = network.objective.model
    model.train()
    before, torch_state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    numpy_state = np.random.get_state()[1].tolist()  # noqa: NPY002
    result = measurement.measure(network, data, home)
    assert torch.equal(torch.random.get_rng_state(), torch_state)
    assert np.random.get_state()[1].tolist() == numpy_state  # noqa: NPY002
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert result.metrics
    for metric in result.metrics.values():
        assert all(math.isfinite(v) for v in (metric.value, metric.ci_low, metric.ci_high))
        assert metric.ci_low <= metric.value <= metric.ci_high
        assert metric.n > 0
    text = json.dumps(result.details, allow_nan=False)
    for table in result.tables.values():
        assert len(table)
        assert not any(column.startswith("Unnamed") for column in table)
    torch.manual_seed(99)
    again = make(name).measure(network, data, home)
    assert dict(again.metrics) == dict(result.metrics)
    assert json.dumps(again.details) == text
    assert all(again.tables[key].equals(table) for key, table in result.tables.items())
    assert set(again.figures) == set(result.figures)
    assert set(again.arrays) == set(result.arrays)
    assert all(np.array_equal(again.arrays[key], array) for key, array in result.arrays.items())


@pytest.mark.parametrize("name", NAMES)
def test_seed_is_checked(name):
    kind = type(make(name))
    with pytest.raises(ValueError, match=rf"{kind.__name__}: seed must be an integer >= 0, got -1"):
        kind(seed=-1)
