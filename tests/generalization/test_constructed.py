"""Const1 and Const2: whole bins from one level each, the same bytes always."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from spectral_run.datasets.base import DataHome
from spectral_run.generalization.augmentation import Augmentation
from spectral_run.generalization.base import Measurement
from spectral_run.generalization.constructed import Constructed
from spectral_run.generalization.distances import Bins, nearest
from spectral_run.generalization.transfer import Transfer

HERE = DataHome(Path(), download=False)
NARROW = {
    "distance_bins": Bins(start=6.0, width=0.25, count=30),
    "cosine_bins": Bins(start=-0.1, width=0.025, count=20),
}
"""Bins that random pixels fall into."""


def built(test, data):
    augmented = test.augmented(data)
    near = {level: test.near(images, data) for level, images in augmented.items()}
    return augmented, near, {name: test.constructed(name, augmented, near, data.name) for name in ("const1", "const2")}


@pytest.mark.parametrize("name", ["const1", "const2"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_bin_is_taken_whole_from_one_level_or_from_none(images, name, seed):
    data = images.load(HERE)
    test = Constructed(seed=seed, **NARROW)
    augmented, near, sets = built(test, data)
    details = sets[name].details
    kind, bins = {"const1": ("distance", test.distance_bins), "const2": ("cosine", test.cosine_bins)}[name]
    expected, rows = [], []
    for level, pictures in augmented.items():
        values = getattr(near[level], kind)
        for picture, value, row in zip(pictures, values, range(len(values)), strict=True):
            home = [b for b in details["bins"] if b["low"] <= value < b["high"]]
            if home and home[0]["from"] == level:
                expected.append(picture)
                rows.append(row)
        inside = (values >= bins.edges[0]) & (values < bins.edges[-1])
        assert details["outside_all_bins"][level] == int((~inside).sum())
        assert sum(b["held"][level] for b in details["bins"]) == int(inside.sum())
    assert len(expected) > 20
    assert torch.equal(sets[name].images, torch.stack(expected))
    assert sets[name].rows.tolist() == rows
    assert sum(b["from"] is None for b in details["bins"]) == 5
    assert {b["from"] for b in details["bins"]} == {None, "at1", "at2"}
    assert details["images"] == len(expected) == sum(details["images_of_each_level"].values())
    assert details["sha256"] == hashlib.sha256(torch.stack(expected).numpy().tobytes()).hexdigest()


def test_the_levels_are_the_augmentations_first_draw_and_the_pixels_are_mapped(images):
    data = images.load(HERE)
    augmentation = Augmentation(draws=1, seed=4)
    augmented, near, _ = built(Constructed(augmentation=augmentation, pixel_range=(-2.0, 4.0)), data)
    for level, pictures in augmented.items():
        assert torch.equal(pictures, next(augmentation.perturbed(data.test.inputs, data.name, level, 0)))
        low, high = data.test.inputs.min(), data.test.inputs.max()
        a, b = ((x.double() - low) / (high - low) * 6 - 2 for x in (pictures, data.test.inputs))
        np.testing.assert_allclose(near[level].distance, nearest(a.flatten(1), b.flatten(1)).distance, atol=1e-6)


def test_unchanged_images_are_left_out_of_const2_and_counted(images):
    data = images.load(HERE)
    still = Augmentation(draws=1, levels={"still": {"padding": 0, "degrees": 0}})
    _, near, sets = built(Constructed(augmentation=still), data)
    assert np.all(near["still"].cosine == 1)
    assert np.all(near["still"].distance == 0)
    assert sets["const2"].details["outside_all_bins"] == {"still": 120}
    assert sets["const2"].details["images"] == 0
    assert sets["const1"].details["outside_all_bins"] == {"still": 0}
    metrics = (
        Constructed(augmentation=still).evaluate(lambda x: torch.zeros(len(x), dtype=torch.int64), data, HERE).metrics
    )
    assert "const2" not in metrics


def test_accuracy_and_gap_against_a_direct_computation(images, linear):
    data, predict = images.load(HERE), linear((1, 16, 16), 10)
    test = Constructed(**NARROW)
    _, _, sets = built(test, data)
    result = test.evaluate(predict, data, HERE)
    plain = float((predict(data.test.inputs) == data.test.targets).double().mean())
    for name, made in sets.items():
        accuracy = float((predict(made.images) == data.test.targets[made.rows]).double().mean())
        assert result.metrics[name].value == pytest.approx(accuracy)
        assert result.metrics[name].n == len(made.images)
        assert result.metrics[name].ci_low < accuracy < result.metrics[name].ci_high
        assert result.metrics[f"gap_{name}"].value == pytest.approx(accuracy / plain - 1)
        assert result.details[name] == made.details


def test_the_same_bytes_whatever_the_batch_size_precision_and_process(images, linear):
    data = images.load(HERE)
    hashes = []
    for dtype, batch in ((torch.float32, 7), (torch.float64, 1000)):
        result = Constructed(**NARROW).evaluate(
            linear((1, 16, 16), 10, batch=batch), data.to(torch.device("cpu"), dtype), HERE
        )
        hashes.append([result.details[name]["sha256"] for name in ("const1", "const2")])
    pixels, targets = data.test.inputs.tolist(), data.test.targets.tolist()
    program = f"""
import torch
from spectral_run.datasets.base import Data, Split
from spectral_run.generalization.constructed import Constructed
from spectral_run.generalization.distances import Bins
torch.set_num_threads(2)
split = Split(torch.tensor({pixels}), torch.tensor({targets}))
data = Data("{data.name}", split, split, split, {{}}, official=False)
test = Constructed(distance_bins={NARROW["distance_bins"]}, cosine_bins={NARROW["cosine_bins"]})
augmented = test.augmented(data)
near = {{level: test.near(images, data) for level, images in augmented.items()}}
print(*(test.constructed(name, augmented, near, data.name).details["sha256"] for name in ("const1", "const2")))
"""
    ran = subprocess.run([sys.executable, "-"], input=program, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    hashes.append(ran.stdout.split())
    assert hashes[0] == hashes[1] == hashes[2]
    other = Constructed(seed=1, **NARROW).evaluate(linear((1, 16, 16), 10), data, HERE)
    assert other.details["const1"]["sha256"] != hashes[0][0]


def test_histograms_count_every_image_of_every_set(images, home, linear):
    data = images.load(home)
    test = Constructed(others={"mnist": Transfer(), "nothing": None})
    result = test.evaluate(linear((1, 16, 16), 10), data, home)
    assert set(result.figures) == set(result.tables) == {"distances", "cosines"}
    for kind, constructed in (("distances", "const1"), ("cosines", "const2")):
        table = result.tables[kind]
        assert list(dict.fromkeys(table["set"])) == ["at1", "at2", constructed, "mnist"]
        totals = table.groupby("set")["images"].sum()
        assert (totals["at1"], totals["at2"], totals["mnist"]) == (120, 120, 60)
        assert totals[constructed] == result.details[constructed]["images"]
        ends = table[table["set"] == "at1"].iloc[[0, -1]]
        assert ends[["low", "high"]].isna().to_numpy().tolist() == [[True, False], [False, True]]
        for bin_ in result.details[constructed]["bins"]:
            row = table[(table["set"] == constructed) & (table["low"] == bin_["low"])]
            assert row["images"].item() == (bin_["held"][bin_["from"]] if bin_["from"] else 0)
    assert result.details["mnist"]["source"] == "mnist"
    assert result.details["distances"]["mnist"]["images"] == 60


def test_what_the_sources_need_is_asked_of_them(images, features, toy, tmp_path):
    test = Constructed(others={"mnist": Transfer()})
    with pytest.raises(FileNotFoundError, match="t10k-images"):
        test.prepare(images, DataHome(tmp_path, download=False))
    with pytest.raises(ValueError, match=r"Constructed: augmentation: Augmentation: inputs must be images .* features"):
        test.check(features)
    with pytest.raises(ValueError, match=r"Constructed: others.mnist: Transfer: .*10 classes, got toy"):
        test.check(toy(shape=(3, 8, 8)))
    Constructed(others={"mnist": None}).check(toy(shape=(3, 8, 8)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"augmentation": Augmentation()}, "augmentation.draws must be 1, got 10"),
        ({"pixel_range": (1.0, 1.0)}, r"pixel_range must be two rising numbers, got \[1.0, 1.0\]"),
        ({"pixel_range": (1.0,)}, r"pixel_range must be two rising numbers, got \[1.0\]"),
        ({"emptied": 19}, r"emptied must be in \[0, 18\], the number of distance_bins, got 19"),
        ({"emptied": -1}, "emptied must be in"),
        ({"others": {"at1": Transfer()}}, "none of others may be called at1"),
        ({"others": {"const2": None}}, "none of others may be called const2"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(ValueError, match=f"^Constructed: {message}"):
        Constructed(**settings)


@pytest.mark.skipif("SPECTRAL_DATA" not in os.environ, reason="usps: SPECTRAL_DATA is not set")
def test_usps_has_the_shapes_of_the_figures():
    from spectral_run.datasets.usps import USPS

    home = DataHome(Path(os.environ["SPECTRAL_DATA"]), download=False)
    data = USPS().load(home)
    test = Constructed()
    assert isinstance(test, Measurement)
    augmented, near, sets = built(test, data)
    for level in augmented:
        counts = test.distance_bins.counts(near[level].distance)
        assert counts[0] == counts[-1] == 0
        inner = counts[4:-1]  # unchanged images lie apart, in the first bin
        peak = int(inner.argmax())
        assert np.all(np.diff(inner[: peak + 1]) > 0)
        assert np.all(np.diff(inner[peak:]) <= 0)
    assert near["at1"].distance.mean() < near["at2"].distance.mean()
    assert near["at1"].cosine.mean() > near["at2"].cosine.mean()
    for made in sets.values():
        assert 500 < len(made.images) < 3000
