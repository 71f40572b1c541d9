"""The pictures hold the numbers and pixels they are made of."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure

from spectral_run.reports.heatmap_figures import heat_map_grid, overlap_matrix

MATRIX = np.array([[1.0, 0.508, 0.192], [0.508, 1.0, np.nan], [0.192, np.nan, 1.0]])


def drawn(figure: Figure) -> bytes:
    figure.set_dpi(40)  # what is looked at is that it can be drawn
    figure.canvas.draw()
    return bytes(figure.canvas.buffer_rgba())  # type: ignore[attr-defined]


def test_overlap_matrix() -> None:
    labels = ["SpecRad", "EntropySGD", "UnReg"]
    figure = overlap_matrix(labels, MATRIX, chance=0.053, what="Jaccard index")
    axis, bar = figure.axes
    np.testing.assert_array_equal(np.ma.filled(axis.images[0].get_array(), np.nan), MATRIX)
    assert axis.images[0].get_clim() == (0.0, 1.0)  # the same colours in every figure
    texts = {text.get_position(): text.get_text() for text in axis.texts}
    assert texts[1, 0] == texts[0, 1] == "0.508"
    assert (2, 1) not in texts
    assert [tick.get_text() for tick in axis.get_yticklabels()] == labels
    assert [tick.get_text() for tick in axis.get_xticklabels()] == labels
    assert bar.get_lines()[0].get_ydata()[0] == 0.053
    assert drawn(figure)


def test_text_is_readable_on_every_square() -> None:
    values = np.linspace(0.0, 1.0, 9).reshape(3, 3)
    figure = overlap_matrix(["a", "b", "c"], values, chance=0.1, what="x")
    axis = figure.axes[0]
    for text in axis.texts:
        column, row = (int(place) for place in text.get_position())
        red, green, blue, _ = axis.images[0].cmap(values[row, column])
        light = 0.2126 * red + 0.7152 * green + 0.0722 * blue
        assert abs(light - (0.0 if text.get_color() == "black" else 1.0)) > 0.45


@pytest.mark.parametrize("count", [1, 2, 9])
@pytest.mark.parametrize("label", ["m", "regularizer=spectral_radius, weight=0.01, seed=0"])
def test_nothing_is_cut_off(count: int, label: str) -> None:
    figure = overlap_matrix([f"{label} {i}" for i in range(count)], np.eye(count), chance=0.05, what="Jaccard index")
    drawn(figure)
    whole = figure.bbox
    for axis in figure.axes:
        box = axis.get_tightbbox()
        assert box is not None
        assert whole.x0 <= box.x0
        assert whole.y0 <= box.y0
        assert box.x1 <= whole.x1
        assert box.y1 <= whole.y1


def grid() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (2, 12, 14)).astype(np.uint8)
    maps = random.random((2, 3, 12, 14)).astype(np.float16)
    maps[1, 2] = 0
    return images, maps, (maps > 0.9)


def test_heat_map_grid() -> None:
    images, maps, outlines = grid()
    columns = ["a", "b", "regularizer=spectral_radius, seed=1"]
    figure = heat_map_grid(images, maps, outlines, rows=["Edema in x", "Pneumonia in y"], columns=columns, note="note")
    axes = np.array(figure.axes[:8]).reshape(2, 4)
    assert [axis.get_title().replace("\n", " ") for axis in axes[0]] == ["image", *columns]
    assert [axes[i, 0].get_ylabel() for i in range(2)] == ["Edema in x", "Pneumonia in y"]
    for (i, j), axis in np.ndenumerate(axes):
        np.testing.assert_array_equal(axis.images[0].get_array(), images[i])
        lines = [artist for artist in axis.get_children() if isinstance(artist, QuadContourSet)]
        if j == 0 or (i, j) == (1, 3):
            assert len(axis.images) == 1
            assert not lines
        else:
            heat = maps[i, j - 1].astype(float)
            np.testing.assert_allclose(axis.images[1].get_array(), heat / heat.max())
            np.testing.assert_allclose(axis.images[1].get_alpha(), 0.65 * heat / heat.max())
            assert len(lines) == 2
    assert [text.get_text() for text in axes[1, 3].texts] == ["no heat"]
    assert drawn(figure)


def test_the_line_is_round_the_chosen_pixels() -> None:
    images, maps, outlines = grid()
    outlines[:] = False
    outlines[0, 0, 3:6, 4:9] = True
    outlines[0, 0, 0:2, 0:2] = True  # in a corner
    figure = heat_map_grid(images, maps[:, :1], outlines[:, :1], rows=["a", "b"], columns=["m"])
    contour = next(artist for artist in figure.axes[1].get_children() if isinstance(artist, QuadContourSet))
    polygons = [np.asarray(polygon) for polygon in contour.get_paths()[0].to_polygons()]
    boxes = sorted((p[:, 0].min(), p[:, 0].max(), p[:, 1].min(), p[:, 1].max()) for p in polygons)
    np.testing.assert_allclose(boxes[0][1::2], [1.5, 1.5])
    assert min(boxes[0]) >= -0.5  # on the image
    np.testing.assert_allclose(boxes[1], [3.5, 8.5, 2.5, 5.5])


def test_refusals() -> None:
    images, maps, outlines = grid()
    with pytest.raises(ValueError, match=r"overlap must be 2 by 2, at least 1, got \(3, 3\)"):
        overlap_matrix(["a", "b"], MATRIX, chance=0.05, what="x")
    with pytest.raises(ValueError, match="at least 1"):
        overlap_matrix([], np.zeros((0, 0)), chance=0.05, what="x")
    with pytest.raises(ValueError, match=r"maps and outlines must be \(2, 2, 12, 14\)"):
        heat_map_grid(images, maps, outlines, rows=["a", "b"], columns=["a", "b"])
