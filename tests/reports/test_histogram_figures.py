"""Step lines are the shares, told apart by more than colour; what lies outside is said."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import StepPatch

from spectral_run.reports.histogram_figures import histogram_figure


def table(**shares: list[float]) -> pd.DataFrame:
    """Per set: below all bins, the bins, above all."""
    rows = []
    for name, numbers in shares.items():
        edges = [np.nan, *np.arange(len(numbers) - 1.0), np.nan]
        rows += [
            {"set": name, "low": low, "high": high, "images": int(100 * share), "share": share}
            for low, high, share in zip(edges[:-1], edges[1:], numbers, strict=True)
        ]
    return pd.DataFrame(rows)


SHARES = {
    "at1": [0, 0.5, 0.2, 0.1, 0.2],
    "const1": [0, 1.0, 0, 0, 0],
    "mnist": [0.001, 0.3, 0.3, 0.399, 0],
    "gan1": [0, 0, 0.5, 0.5, 0],
    "gan2": [0, 0, 0, 1.0, 0],
}  # fmt: skip


def test_lines_are_the_shares() -> None:
    figure = histogram_figure(table(**SHARES), "distance", "const1")
    (axes,) = figure.axes
    steps = [patch for patch in axes.patches if isinstance(patch, StepPatch)]
    drawn = [step.get_data() for step in steps]
    assert [list(data.values) for data in drawn] == [
        SHARES[name][1:-1] for name in ("at1", "mnist", "gan1", "gan2", "const1")
    ]
    assert all(list(data.edges) == [0.0, 1.0, 2.0, 3.0] for data in drawn)
    assert axes.get_xlim() == (0.0, 3.0)
    assert axes.get_xlabel() == "distance"
    assert steps[-1].get_fill()
    looks = {(to_hex(step.get_edgecolor()), str(step.get_linestyle())) for step in steps[:-1]}
    assert len(looks) == len({colour for colour, _ in looks}) == len({dash for _, dash in looks}) == 4
    markers = [line.get_marker() for line in axes.get_lines()]
    assert len(set(markers)) == len(markers) == 4
    figure.set_dpi(40)
    figure.canvas.draw()


def test_the_legend_says_what_is_not_in_the_picture() -> None:
    figure = histogram_figure(table(**SHARES), "distance", "const1")
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["AT1 (20.0% outside)", "MNIST (0.1% outside)", "GAN1", "GAN2", "Const1"]


@pytest.mark.parametrize("sets", [2, 12])
def test_any_number_of_sets(sets: int) -> None:
    figure = histogram_figure(table(**{f"set{i}": [0.0, 0.5, 0.5, 0.0] for i in range(sets)}), "similarity", "set0")
    assert len(figure.legends[0].get_texts()) == sets
