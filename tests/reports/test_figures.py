"""Figures: what is drawn, counted on matplotlib's own objects; every awkward set of runs draws or is left out."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from PIL import Image

from spectral_run.reports.collect import read_results
from spectral_run.reports.figures import DPI, gap_against_rho, models, save, training_curves

Write = Callable[..., Path]


def results(write: Write, *runs: tuple[dict[str, Any], str]) -> list[dict[str, Any]]:
    return read_results([write(content, record) for content, record in runs])


def legend_texts(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def bars(axis: Axes) -> list[ErrorbarContainer]:
    return [container for container in axis.containers if isinstance(container, ErrorbarContainer)]


def ticks(axis: Axes, name: str) -> list[str]:
    axis.figure.canvas.draw()
    low, high = sorted(axis.get_xlim() if name == "x" else axis.get_ylim())
    side = axis.xaxis if name == "x" else axis.yaxis
    return [t.get_text() for t, at in zip(side.get_ticklabels(), side.get_ticklocs(), strict=True) if low <= at <= high]


def test_a_line_is_the_mean_over_seeds(write: Write, make: SimpleNamespace) -> None:
    runs = results(
        write, *((make.result(seed=s), make.lines(4, loss, validation__accuracy=[0.5] * 4))
                 for s, loss in enumerate((1.0, 3.0, 8.0)))
    )  # fmt: skip
    figure = training_curves(runs)
    assert figure is not None
    loss, accuracy = figure.axes
    (line,) = loss.get_lines()
    np.testing.assert_allclose(line.get_xdata(), [1, 2, 3, 4])
    np.testing.assert_allclose(line.get_ydata(), [4.0, 2.0, 4 / 3, 1.0])
    (band,) = loss.collections
    low, high = band.get_paths()[0].vertices[:, 1].min(), band.get_paths()[0].vertices[:, 1].max()
    np.testing.assert_allclose([low, high], [0.25, 8.0])
    assert ticks(accuracy, "y")[0].endswith("%")
    assert figure.legends[0].get_title().get_text() == "mean over seeds; band: smallest to largest"


@pytest.mark.parametrize("count", [2, 7, 12, 30])
def test_models_are_told_apart(write: Write, make: SimpleNamespace, count: int) -> None:
    runs = results(
        write, *((make.result(seed=s, regularizer=f"r{m}"), make.lines(3)) for m in range(count) for s in range(3))
    )
    figure = training_curves(runs)
    assert figure is not None
    lines = figure.axes[0].get_lines()
    assert len(lines) == count  # one style per model, not per seed
    assert len({tuple(np.atleast_1d(line.get_color()).tolist()) for line in lines}) == count
    looks = [(line.get_linestyle(), line.get_marker()) for line in lines]
    assert all(a != b for a, b in itertools.pairwise(looks))  # in black and white, neighbours differ
    assert legend_texts(figure) == [f"r{m}" for m in range(count)]
    assert bool(figure.axes[0].collections) == (count <= 4)


@pytest.mark.parametrize("count", [1, 2, 12])
def test_nothing_lies_outside_the_picture_or_on_the_axes(
    write: Write, make: SimpleNamespace, count: int, tmp_path: Path
) -> None:
    runs = results(
        write, *((make.result(seed=s, regularizer=f"a model with a rather long name {m}"),
                  make.lines(3, train__full_rho=[1.0, 50.0, 100.0])) for m in range(count) for s in range(3))
    )  # fmt: skip
    for draw in (training_curves, gap_against_rho):
        figure = draw(runs)
        assert figure is not None
        path = tmp_path / "figure.png"
        save(figure, path)
        with Image.open(path) as image:
            np.testing.assert_allclose(image.size, figure.get_size_inches() * DPI, atol=1)
            assert len(np.unique(np.asarray(image.convert("L")))) > 10  # not blank
        renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
        width, height = figure.canvas.get_width_height()
        below = min(axis.get_tightbbox(renderer).y0 for axis in figure.axes)
        for legend in figure.legends:
            box = legend.get_window_extent(renderer)
            assert box.x0 >= 0
            assert box.y0 >= 0
            assert box.x1 <= width
            assert box.y1 <= below
        assert below < height / 2


def test_runs_that_are_not_done_are_named_in_the_legend(write: Write, make: SimpleNamespace) -> None:
    runs = results(
        write,
        (make.result(regularizer="a"), make.lines(2)),
        (make.failed("diverged", seed=1, regularizer="a"), make.lines(1)),
        (make.failed("failed", regularizer="b"), ""),
    )
    figure = training_curves(runs)
    assert figure is not None
    assert legend_texts(figure) == ["a (1 of 2 runs)", "b (0 of 1 runs)"]
    assert len(figure.axes[0].get_lines()) == 1
    assert [len(model.runs) for model in models(runs)] == [1, 0]


def test_nothing_to_draw(write: Write, make: SimpleNamespace) -> None:
    bare = make.result(generalization={}, rho={})
    for runs in ([], results(write, (make.failed(), "")), results(write, (bare, ""))):
        assert training_curves(runs) is None
        assert gap_against_rho(runs) is None


def test_a_single_epoch_is_a_visible_point(write: Write, make: SimpleNamespace) -> None:
    figure = training_curves(results(write, (make.result(), make.lines(1))))
    assert figure is not None
    (line,) = figure.axes[0].get_lines()
    assert line.get_marker() not in ("", "None")
    assert ticks(figure.axes[0], "x") == ["1"]
    assert not figure.legends  # one model needs none


def test_areas_have_a_panel_of_their_own(write: Write, make: SimpleNamespace) -> None:
    figure = training_curves(results(write, (make.result(), make.lines(2, validation__auc=[0.6, 0.7]))))
    assert figure is not None
    assert figure.axes[1].get_title(loc="left") == "validation AUC, mean over findings"
    np.testing.assert_allclose(figure.axes[1].get_lines()[0].get_xydata(), [[1.0, 0.6], [2.0, 0.7]])
    assert not ticks(figure.axes[1], "y")[0].endswith("%")


def test_missing_values_leave_gaps(write: Write, make: SimpleNamespace) -> None:
    record = make.lines(3, train__full_rho=[None, None, None], train__rho=[None, 2.0, None])
    figure = training_curves(results(write, (make.result(), record)))
    assert figure is not None
    assert [axis.get_title(loc="left") for axis in figure.axes] == [
        "training loss",
        "spectral radius, mean over batches",
    ]
    np.testing.assert_allclose(figure.axes[1].get_lines()[0].get_xydata(), [[2.0, 2.0]])


@pytest.mark.parametrize(
    ("rho", "scale", "shown"),
    [
        ([1.0, 30.0], "log", ["1", "2", "5", "10", "20"]),
        ([1.0, 1e4], "log", ["1", "10", "100", "1000", "10000"]),
        ([5.1, 5.9], "linear", ["5.2", "5.4", "5.6", "5.8"]),
        ([0.0, 100.0], "linear", ["0", "20", "40", "60", "80", "100"]),
    ],
)
def test_axis_of_rho(write: Write, make: SimpleNamespace, rho: list[float], scale: str, shown: list[str]) -> None:
    figure = training_curves(results(write, (make.result(), make.lines(2, train__full_rho=rho))))
    assert figure is not None
    axis = figure.axes[1]
    assert axis.get_yscale() == scale
    assert ticks(axis, "y") == shown


def test_gap_of_single_runs_has_their_intervals(write: Write, make: SimpleNamespace) -> None:
    runs = results(write, *((make.result(regularizer=r, rho={"value": v}), "") for r, v in (("a", 2.0), ("b", 8.0))))
    figure = gap_against_rho(runs)
    assert figure is not None
    (axis,) = figure.axes
    assert axis.get_title(loc="left") == "augmentation: gap mild"
    points = [bar[0].get_xydata()[0].tolist() for bar in bars(axis)]
    assert points == [[2.0, -0.4], [8.0, -0.4]]
    (segment,) = bars(axis)[0][2][0].get_segments()
    np.testing.assert_allclose(segment, [[2.0, -0.45], [2.0, -0.35]])
    assert figure.legends[0].get_title().get_text() == "bars: 95% interval of the one run"


def test_gap_of_seeds_has_mean_and_standard_deviation(write: Write, make: SimpleNamespace) -> None:
    def one(seed: int, rho: float, gap: float) -> tuple[dict[str, Any], str]:
        tests = {"shift": {"relative_change": make.metric(gap, gap - 1, gap + 1)}}
        return make.result(seed=seed, rho={"value": rho}, generalization=tests), ""

    figure = gap_against_rho(results(write, one(0, 1.0, -0.1), one(1, 2.0, -0.2), one(2, 3.0, -0.3)))
    assert figure is not None
    (bar,) = bars(figure.axes[0])
    np.testing.assert_allclose(bar[0].get_xydata(), [[2.0, -0.2]])
    np.testing.assert_allclose(bar[2][0].get_segments()[0][:, 1], [-0.3, -0.1])
    faint = [line for line in figure.axes[0].get_lines() if line.get_alpha()]
    np.testing.assert_allclose(faint[0].get_xydata(), [[1.0, -0.1], [2.0, -0.2], [3.0, -0.3]])


def test_gap_without_rho_interval_or_test(write: Write, make: SimpleNamespace) -> None:
    no_interval = {"augmentation": {"gap_mild": {"value": -0.2}}}
    nothing = {"augmentation": {"gap_mild": make.metric(None)}}
    runs = results(
        write,
        (make.result(regularizer="no rho", rho={}), ""),
        (make.result(regularizer="null", rho={"value": None}), ""),
        (make.result(regularizer="zero", rho={"value": 0.0}), ""),
        (make.result(regularizer="no interval", generalization=no_interval), ""),
        (make.result(regularizer="no gap", generalization=nothing), ""),
        (make.result(regularizer="no test", generalization=None), ""),
    )
    figure = gap_against_rho(runs)
    assert figure is not None
    (axis,) = figure.axes
    assert [bar[0].get_xydata()[0].tolist() for bar in bars(axis)] == [[0.0, -0.4], [8.0, -0.2]]
    assert axis.get_xscale() == "linear"
    signs = [handle.get_marker() for handle in figure.legends[0].get_lines()]
    assert [sign != "None" for sign in signs] == [False, False, True, True, False, False]


def test_panels_wrap_after_three(write: Write, make: SimpleNamespace) -> None:
    tests = {f"test_{i}": {"gap": make.metric(-0.1, -0.2, 0.0)} for i in range(5)}
    figure = gap_against_rho(results(write, (make.result(generalization=tests), "")))
    assert figure is not None
    assert len(figure.axes) == 5
    assert len({round(axis.get_position().y0, 2) for axis in figure.axes}) == 2
