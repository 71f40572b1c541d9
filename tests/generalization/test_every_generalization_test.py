"""The contract of a generalization test, for every file of conf/generalization."""

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

from spectral_run.generalization.base import GeneralizationTest

SMALL_GAN = {"epochs": 1, "count": 20, "classifier_epochs": 1}
QUICK = {
    "gan1": SMALL_GAN,
    "gan2": SMALL_GAN,
    "constructed": {"others": {"gan1": SMALL_GAN, "gan2": SMALL_GAN}},
}
CONF = Path(__file__).parents[2] / "conf" / "generalization"


FILES = {path.stem: OmegaConf.load(path) for path in CONF.glob("*.yaml") if path.stem != "none"}


@cache
def composed(name):
    with initialize_config_module(version_base="1.3", config_module="spectral_run.conf"):
        (node,) = compose("config", [f"generalization={name}"]).generalization.values()
    return OmegaConf.merge(node, QUICK.get(name, {}))


def make(name):
    return hydra.utils.instantiate(composed(name), _convert_="all")


NAMES = sorted(
    name for name, node in FILES.items() if "_target_" in node and isinstance(make(name), GeneralizationTest)
)


@pytest.fixture
def data_sets(toy, features, images):
    plain = toy(toy_name="plain")
    color = toy(toy_name="color", shape=(3, 12, 10), toy_classes=4)
    values = toy(toy_name="values", toy_loss="mse")
    return [features, images, plain, color, values]


@pytest.fixture
def suitable(data_sets):
    def choose(test):
        fitting = []
        for dataset in data_sets:
            try:
                test.check(dataset)
            except ValueError:
                continue
            fitting.append(dataset)
        return fitting

    return choose


def random_states():
    # Not Python's: beartype, on in the tests, draws from it the item of a container that it checks.
    return torch.random.get_rng_state().tolist(), np.random.get_state()[1].tolist()  # noqa: NPY002


def test_every_test_is_found():
    assert {"covariate_shift", "augmentation", "transfer"} <= set(NAMES)


def test_none_is_empty():
    assert OmegaConf.load(CONF / "none.yaml") == {}
    assert (CONF / "none.yaml").read_text().startswith("# ")


@pytest.mark.parametrize("name", NAMES)
def test_check_accepts_some_and_refuses_some(name, data_sets, suitable):
    test = make(name)
    assert isinstance(test, GeneralizationTest)
    fitting = suitable(test)
    assert fitting
    for dataset in data_sets:
        if dataset not in fitting:
            with pytest.raises(ValueError, match=rf"^{type(test).__name__}: .*{dataset.name}"):
                test.check(dataset)


@pytest.mark.parametrize("name", NAMES)
def test_real_valued_targets_are_refused(name, toy):
    for shape in [(6,), (1, 16, 16)]:
        dataset = toy(shape=shape, toy_classes=10, toy_standardized=True, toy_loss="mse")
        with pytest.raises(ValueError, match=f"{type(make(name)).__name__}: data set must have classes"):
            make(name).check(dataset)


@pytest.mark.parametrize("name", NAMES)
def test_result(name, suitable, home, linear):
    test = make(name)
    for dataset in suitable(test):
        test.prepare(dataset, home)
        data = dataset.load(home)
        inputs = data.test.inputs.clone()
        predict = linear(dataset.input_shape, dataset.classes)
        before = random_states()
        result = test.evaluate(predict, data, home)
        assert random_states() == before
        assert torch.equal(data.test.inputs, inputs)
        assert result.metrics
        for metric in result.metrics.values():
            assert all(math.isfinite(v) for v in (metric.value, metric.ci_low, metric.ci_high))
            assert metric.ci_low <= metric.value <= metric.ci_high
            assert isinstance(metric.n, int)
            assert metric.n > 0
        text = json.dumps(result.details, allow_nan=False)

        torch.manual_seed(99)
        np.random.seed(99)  # noqa: NPY002
        again = make(name).evaluate(linear(dataset.input_shape, dataset.classes, batch=7), data, home)
        assert dict(again.metrics) == dict(result.metrics)
        assert json.dumps(again.details) == text


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("right", [0.0, 1.0])
def test_no_answer_or_every_answer_right(name, right, suitable, home):
    """Where a ratio has no value it is left out; nothing is NaN."""
    test = make(name)
    for dataset in suitable(test):
        data = dataset.load(home)
        lookup = {row.numpy().tobytes(): int(y) for row, y in zip(data.test.inputs, data.test.targets, strict=True)}

        def predict(x, lookup=lookup, classes=dataset.classes):
            known = [lookup.get(row.numpy().tobytes(), 0) for row in x]
            return torch.tensor([y if right else (y + 1) % classes for y in known])

        metrics = test.evaluate(predict, data, home).metrics
        assert metrics["test"].value == right
        assert all(math.isfinite(v) for m in metrics.values() for v in (m.value, m.ci_low, m.ci_high))
        if right == 0:
            assert not any("gap" in key or "relative" in key for key in metrics)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", [-1, True])
def test_seed_is_checked(name, seed):
    test = make(name)
    with pytest.raises(ValueError, match=rf"{type(test).__name__}: seed must be an integer >= 0, got {seed}"):
        type(test)(seed=seed)
