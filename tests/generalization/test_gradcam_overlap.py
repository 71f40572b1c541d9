"""Overlap of Grad-CAM maps: 1 with itself, more between trained networks than with an untrained one; bookkeeping."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from spectral_run.curvature.backends import choose_backend
from spectral_run.curvature.exact_layers import running_statistics, swap_norms
from spectral_run.curvature.objective import Objective
from spectral_run.datasets.base import Data, DataHome, Split
from spectral_run.datasets.chest_xray.findings import COMMON, COMMON_COLUMNS, FINDINGS
from spectral_run.generalization.base import MeasuredRun, TestResult, TrainedNetwork
from spectral_run.generalization.gradcam import choose_layer, heat_maps, top_pixels
from spectral_run.generalization.gradcam_overlap import GradCamOverlap
from spectral_run.generalization.gradcam_pairs import distinct, estimate, patient_draws
from spectral_run.runner.parts import LOSSES

SIZE = 32
STEPS = 60


def conv_net(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, stride=2, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
            nn.Linear(16, len(FINDINGS)),
        )
    return swap_norms(model)


def network_of(model: nn.Module) -> TrainedNetwork:
    objective = Objective(model, LOSSES["binary_cross_entropy"])
    return TrainedNetwork(
        objective=objective,
        backend=choose_backend("autograd", objective, torch.zeros(2, 3, SIZE, SIZE)),
        predict=lambda x: model(x).argmax(1),
        outputs=lambda rows: model(rows[:]),
    )


def blobs(rows: int, seed: int) -> Split:
    """Images of noise; each finding that is there is a blob of its own color at a random place."""
    generator = torch.Generator().manual_seed(seed)
    inputs = 0.2 * torch.randn(rows, 3, SIZE, SIZE, generator=generator)
    targets = torch.zeros(rows, len(FINDINGS))
    present = torch.rand(rows, len(COMMON), generator=generator) < 0.3
    places = torch.randint(4, SIZE - 4, (rows, len(COMMON), 2), generator=generator)
    axis = torch.arange(SIZE)
    for finding, column in enumerate(COMMON_COLUMNS):
        targets[:, column] = present[:, finding].float()
        y, x = places[:, finding, 0], places[:, finding, 1]
        distance = (axis[None, :, None] - y[:, None, None]) ** 2 + (axis[None, None, :] - x[:, None, None]) ** 2
        channel, sign = finding // 2, 1 - 2 * (finding % 2)
        inputs[:, channel] += 2 * sign * torch.exp(-distance / 12) * present[:, finding, None, None]
    return Split(inputs, targets, torch.arange(rows) // 2)


def fit(model: nn.Module, split: Split, steps: int, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), 0.03)
    model.train()
    for _ in range(steps):
        rows = torch.randint(len(split), (32,), generator=generator)
        with running_statistics(model):
            loss = nn.functional.binary_cross_entropy_with_logits(model(split.inputs[rows]), split.targets[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for parameter in model.parameters():
        parameter.grad = None
    return model.eval()


@pytest.fixture(scope="module")
def blob_data() -> Data:
    train, test = blobs(600, 0), blobs(80, 1)
    return Data("blobs", train, test, test, {"blobs": "ab"}, official=False)


@pytest.fixture(scope="module")
def measured(blob_data: Data, home) -> dict[str, MeasuredRun]:
    """Two networks trained from different seeds, and one untrained."""
    models = {f"trained {seed}": fit(conv_net(seed), blob_data.train, STEPS, seed) for seed in (1, 2)}
    models["untrained"] = conv_net(3).eval()
    accuracy = [
        ((models[name](blob_data.test.inputs) > 0).float() == blob_data.test.targets)[:, COMMON_COLUMNS]
        for name in models
    ]
    assert min(right.float().mean() for right in accuracy[:2]) > 0.9  # they have learned something
    test = GradCamOverlap(source="nih_test")
    return {name: run(name, test.measure(network_of(model), blob_data, home)) for name, model in models.items()}


def run(label: str, result: TestResult, **more) -> MeasuredRun:
    """As ``revisit`` hands it over: through a file, without pickle."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **result.arrays)
    buffer.seek(0)
    with np.load(buffer, allow_pickle=False) as arrays:
        return MeasuredRun(label=label, folder=Path(label), result=more, arrays=dict(arrays))


def test_trained_networks_agree_more_than_with_an_untrained_one(measured, home):
    result = GradCamOverlap().compare(list(measured.values()), home)
    names = [" | ".join(pair) for pair in itertools.combinations(measured, 2)]
    pair = {name: result.metrics[f"jaccard: {name}"] for name in names}
    both = pair.pop("trained 1 | trained 2")
    assert both.value > 0.3
    for other in pair.values():
        assert other.ci_high < both.ci_low
    assert result.details["chance"] == pytest.approx(0.1 / 1.9)
    means = {name: result.metrics[f"mean: {name}"].value for name in measured}
    assert min(means, key=means.get) == "untrained"
    expected = (both.value + pair["trained 1 | untrained"].value) / 2
    assert means["trained 1"] == pytest.approx(expected, abs=1e-12)


def test_a_network_with_itself(measured, blob_data, home):
    one = measured["trained 1"]
    result = GradCamOverlap().compare([one, one], home)
    assert result.details["models"] == ["trained 1", "trained 1 (2)"]
    assert result.metrics["jaccard: trained 1 | trained 1 (2)"].value == 1.0
    table = result.tables["matrix"]
    assert table[["trained 1", "trained 1 (2)"]].to_numpy().tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert (result.tables["findings"][["jaccard", "ci_low", "ci_high"]].to_numpy() == 1.0).all()
    same = fit(conv_net(1), blob_data.train, STEPS, 1)
    again = run("again", GradCamOverlap(source="nih_test").measure(network_of(same), blob_data, home))
    assert GradCamOverlap().compare([one, again], home).metrics["jaccard: trained 1 | again"].value == 1.0


def test_numbers_by_hand(measured, home):
    one, other = measured["trained 1"], measured["untrained"]
    result = GradCamOverlap().compare([one, other], home)
    table = result.tables["findings"].set_index("finding")
    assert list(table.index) == list(COMMON)
    means = []
    for finding, name in enumerate(COMMON):
        values = []
        for image in range(80):
            a, b = (set(np.flatnonzero(np.unpackbits(r.arrays["masks"][image, finding]))) for r in (one, other))
            if a and b:
                assert len(a) == len(b) == 103  # ceil of a tenth of 32 x 32
                values.append(len(a & b) / len(a | b))
        assert table.loc[name, "images"] == len(values)
        assert table.loc[name, "jaccard"] == pytest.approx(np.mean(values), abs=1e-12)
        means.append(np.mean(values))
    metric = result.metrics["jaccard: trained 1 | untrained"]
    assert metric.value == pytest.approx(np.mean(means), abs=1e-12)
    assert metric.ci_low < metric.value < metric.ci_high


def test_what_a_run_leaves(blob_data, home):
    model = fit(conv_net(4), blob_data.train, 20, 4)
    result = GradCamOverlap(source="nih_test", shown=7, batch_size=9).measure(network_of(model), blob_data, home)
    inputs, targets = blob_data.test.inputs, blob_data.test.targets
    maps = heat_maps(model, choose_layer(model, inputs[:1], None), inputs, list(COMMON_COLUMNS)).float().numpy()
    masks = top_pixels(maps, 0.1)
    assert np.array_equal(np.unpackbits(result.arrays["masks"], axis=-1, count=SIZE**2).astype(bool), masks)
    assert result.details["layer"] == "5"
    assert result.details["images"] == result.details["of"] == 80
    assert result.details["patients"] == 40
    assert result.arrays["patients"].tolist() == [row // 2 for row in range(80)]
    assert result.metrics["empty"].value == pytest.approx((~masks.any(-1)).mean(), abs=1e-12)
    assert result.details["empty"] == {name: int((~masks.any(-1))[:, i].sum()) for i, name in enumerate(COMMON)}
    pixels = maps.reshape(masks.shape)
    assert result.details["filled"] == ((pixels > 0).any(-1) & ((pixels > 0).sum(-1) < 103)).sum()
    shown = result.arrays["shown"].tolist()
    assert [finding for _, finding in shown] == [0, 1, 2, 3, 4, 5, 0]  # in turn
    assert len({image for image, _ in shown}) == 7
    for place, (image, finding) in enumerate(shown):
        assert targets[image, COMMON_COLUMNS[finding]] == 1  # the image has it
        heat = maps[image, finding] / max(maps[image, finding].max(), 1e-30)
        np.testing.assert_allclose(result.arrays["heat"][place], heat, atol=1e-3)
        grey = result.arrays["grey"][place]
        assert (grey.min(), grey.max()) == (0, 255)
        assert np.corrcoef(grey.ravel(), inputs[image].mean(0).ravel())[0, 1] > 0.999


def test_a_sample_is_the_same_for_every_network(blob_data, home):
    test = GradCamOverlap(source="nih_test", images=11, shown=0)
    first, second = (test.measure(network_of(conv_net(seed)), blob_data, home) for seed in (5, 6))
    assert first.arrays["names"].tolist() == second.arrays["names"].tolist()
    assert len(set(first.arrays["names"])) == first.details["images"] == 11
    assert first.details["of"] == 80
    other = GradCamOverlap(source="nih_test", images=11, seed=1).measure(network_of(conv_net(5)), blob_data, home)
    assert first.arrays["names"].tolist() != other.arrays["names"].tolist()
    row = int(first.arrays["names"][3].split()[-1])
    assert first.arrays["patients"][3] == row // 2
    result = test.compare([run("a", first), run("b", second)], home)
    assert "heat_maps" not in result.figures  # none to show
    with pytest.raises(ValueError, match="images must be the same in all runs, and c, d had others than a"):
        test.compare([run("a", first), run("b", second), run("c", other), run("d", other)], home)


def test_images_of_another_hospital(xrays, home):
    data = xrays.load(home)
    test = GradCamOverlap(source="chexpert_valid", images=12)
    test.prepare(xrays, home)
    result = test.measure(network_of(conv_net(1)), data, home)
    assert result.arrays["names"].tolist() == sorted(result.arrays["names"].tolist(), key=lambda n: n.split("/")[1:])
    assert all(name.startswith("valid/patient") for name in result.arrays["names"])
    assert [int(name[13:18]) for name in result.arrays["names"]] == result.arrays["patients"].tolist()
    assert result.details["of"] == 30
    assert any("valid.csv" in name for name in result.details["source_files"])
    assert result.details["size"] == [24, 24]


def test_the_layer_can_be_named(blob_data, home):
    network = network_of(conv_net(1))
    result = GradCamOverlap(source="nih_test", layer="2").measure(network, blob_data, home)
    assert str(result.arrays["layer"]) == "2"
    with pytest.raises(ValueError, match="layer must be one of Sequential's 0, 1, 2, 3, 4, 5, got 'features'"):
        GradCamOverlap(source="nih_test", layer="features").measure(network, blob_data, home)


def empty_maps(one: MeasuredRun, label: str, images: slice) -> MeasuredRun:
    masks = one.arrays["masks"].copy()
    masks[images] = 0
    return MeasuredRun(label=label, folder=Path(label), result={}, arrays={**one.arrays, "masks": masks})


def test_maps_without_heat_are_left_out_and_counted(measured, home):
    one, other = measured["trained 1"], measured["trained 2"]
    whole = GradCamOverlap().compare([one, other], home).tables["findings"].set_index("finding")
    half = GradCamOverlap().compare([one, empty_maps(other, "half", slice(40, None))], home)
    assert half.details["maps_left_out"]["trained 1 | half"] >= 40 * 6
    assert half.tables["findings"]["images"].max() <= 40
    assert half.metrics["jaccard: trained 1 | half"].n <= 40
    assert half.metrics["jaccard: trained 1 | half"].value > 0.3  # left out, not counted as 0
    assert whole["images"].min() > 40
    none = GradCamOverlap().compare([one, other, empty_maps(other, "none", slice(None))], home)
    assert sorted(none.metrics) == ["jaccard: trained 1 | trained 2", "mean: trained 1", "mean: trained 2"]
    row = none.tables["matrix"].set_index("model").loc["none"]
    assert row[["trained 1", "trained 2", "none", "mean"]].isna().all()


def test_a_network_without_heat_is_a_result(blob_data, home):
    model = conv_net(1)
    with torch.no_grad():
        model[-1].weight.zero_()
    result = GradCamOverlap(source="nih_test").measure(network_of(model), blob_data, home)
    assert result.metrics["empty"].value == 1.0
    assert "between_findings" not in result.metrics
    nothing = [run("a", result), run("b", result)]
    assert not GradCamOverlap().compare(nothing, home).metrics


def test_weights_that_are_no_numbers(blob_data, home):
    model = conv_net(1)
    with torch.no_grad():
        model[0].bias.fill_(torch.nan)
    with pytest.raises(ValueError, match="GradCamOverlap: the network's maps are not finite"):
        GradCamOverlap(source="nih_test").measure(network_of(model), blob_data, home)


def test_table_and_figures(measured, home):
    about = {
        "trained 1": {"rho": {"value": 38.92}, "generalization": {"x": {"drop_nih_test": {"value": -0.04}}}},
        "trained 2": {"rho": None, "generalization": {}},
        "untrained": {"rho": {"value": 2.0}},
    }
    runs = [
        MeasuredRun(label=name, folder=one.folder, result=about[name], arrays=one.arrays)
        for name, one in measured.items()
    ]
    result = GradCamOverlap().compare(runs, home)
    table = result.tables["matrix"]
    assert list(table) == ["model", "rho", *measured, "mean", "drop"]
    assert table["rho"].tolist()[::2] == [38.92, 2.0]
    assert table["drop"][0] == -0.04
    assert table[["rho", "drop"]].isna().sum().tolist() == [1, 2]
    matrix = table[list(measured)].to_numpy()
    assert np.array_equal(matrix, matrix.T)
    np.testing.assert_allclose(table["mean"], (matrix.sum(1) - 1) / 2)
    assert len(result.tables["findings"]) == 3 * 6
    shown = result.figures["heat_maps"]
    assert [axis.get_title().replace("\n", " ") for axis in shown.axes[:4]] == ["image", *measured]
    assert "Atelectasis in nih_test row" in shown.axes[0].get_ylabel().replace("\n", " ")
    np.testing.assert_array_equal(result.figures["matrix"].axes[0].images[0].get_array(), matrix)


def changed(one: MeasuredRun, label: str, **arrays: object) -> MeasuredRun:
    return MeasuredRun(label=label, folder=one.folder, result={}, arrays={**one.arrays, **arrays})


def test_runs_that_do_not_compare(measured, home):
    one = measured["trained 1"]
    compare = GradCamOverlap().compare
    with pytest.raises(ValueError, match="there must be at least 2 runs, got 1"):
        compare([one], home)
    for name, array, word in (
        ("share", np.array(0.2), "share"),
        ("source", np.array("mimic_test"), "source"),
        ("files", np.array(["blobs: cd"]), "files"),
        ("patients", one.arrays["patients"] + 1, "patients of the images"),
        ("grey", 255 - one.arrays["grey"], "pixels of the same images"),
    ):
        with pytest.raises(ValueError, match=f"GradCamOverlap: {word} must be the same in all runs, and b had others"):
            compare([one, changed(one, "b", **{name: array})], home)
    # The same images, decoded on another machine or in another precision.
    compare([one, changed(one, "b", grey=one.arrays["grey"] // 2 * 2)], home)


def test_the_bootstrap_draws_patients():
    random = np.random.default_rng(0)
    patients = np.repeat(np.arange(50), 8)
    values = np.repeat(random.random((50, 1)), 8, axis=0)  # images of a patient are all alike
    whole, sample = estimate(values, patient_draws(patients, 1))
    expected = values[::8].std(ddof=1) / np.sqrt(50)
    assert sample.std() == pytest.approx(expected, rel=0.1)
    alone = estimate(values, patient_draws(np.arange(400), 1))[1]
    assert alone.std() == pytest.approx(expected / np.sqrt(8), rel=0.1)
    assert whole.n == 400


def test_mean_over_findings_of_what_is_there():
    values = np.array([[1.0, np.nan, np.nan], [0.0, 0.4, np.nan], [0.5, np.nan, np.nan]])
    metric, sample = estimate(values, patient_draws(np.arange(3), 0))
    assert metric.value == pytest.approx((0.5 + 0.4) / 2)
    assert metric.n == 3
    assert np.isfinite(sample).all()


def test_labels_that_repeat():
    assert distinct(["a", "b", "a", "a", "rho", "a (2)"]) == ["a", "b", "a (2)", "a (3)", "rho (2)", "a (2) (2)"]


def test_data_sets_it_takes(xrays, findings, images):
    GradCamOverlap().check(xrays)
    for dataset in (findings, images):
        with pytest.raises(
            ValueError, match=f"GradCamOverlap: data set must have the 14 findings .*, got {dataset.name}"
        ):
            GradCamOverlap().check(dataset)


def test_files_that_are_missing(xrays, tmp_path):
    nowhere = DataHome(tmp_path, download=False)
    with pytest.raises(FileNotFoundError, match="CheXpert"):
        GradCamOverlap().prepare(xrays, nowhere)
    GradCamOverlap(source="nih_test").prepare(xrays, nowhere)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "nih"}, "source must be one of nih_test, chexpert_train, .*, got 'nih'"),
        ({"share": 0.0}, r"share must be in \(0, 1\), got 0.0"),
        ({"share": 1.0}, r"share must be in \(0, 1\), got 1.0"),
        ({"images": 0}, "images must be at least 1, got 0"),
        ({"shown": -1}, "shown must be at least 0, got -1"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"views": "AP"}, "views must be one of all, frontal, got 'AP'"),
        ({"bad_images_limit": -1.0}, "bad_images_limit must be in"),
        ({"seed": -1}, "seed must be an integer >= 0, got -1"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(ValueError, match=message):
        GradCamOverlap(**settings)
