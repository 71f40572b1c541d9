"""The pictures hold the numbers they are made of, on axes that do not mix densities and weights."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from spectral_run.curvature.spectrum.density import SpectralDensity, spectral_density
from spectral_run.reports.spectrum_figures import density_figure, layer_figure


def density(spectrum: torch.Tensor, probes: int = 3, steps: int = 20) -> SpectralDensity:
    return spectral_density(
        lambda v: v * spectrum,
        len(spectrum),
        torch.Generator().manual_seed(0),
        probes=probes,
        steps=steps,
        like=spectrum,
    )


def outlying(top: float = 7.0) -> torch.Tensor:
    bulk = 0.01 * torch.randn(300, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return torch.cat([bulk, torch.tensor([top, 2.0], dtype=torch.float64)])


def drawn(figure: Figure) -> bytes:
    figure.set_dpi(40)  # what is looked at is that it can be drawn
    figure.canvas.draw()
    return bytes(figure.canvas.buffer_rgba())  # type: ignore[attr-defined]


def test_density_figure() -> None:
    found = {"hessian": density(outlying()), "gauss_newton": density(outlying(5.0).abs())}
    figure = density_figure(found)
    above, below = figure.axes
    assert above.get_yscale() == below.get_yscale() == "log"
    assert above.get_shared_x_axes().joined(above, below)
    assert not above.get_shared_y_axes().joined(above, below)
    assert below.get_xscale() == "asinh"
    low, high = below.get_xlim()
    assert low < -0.03
    assert high > 7.0
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "Hessian, $\\lambda_1$ = 7",
        "Gauss-Newton, $\\lambda_1$ = 5",
    ]
    for line, one in zip(above.get_lines(), found.values(), strict=True):
        x, y = (np.asarray(data, dtype=float) for data in line.get_data())
        assert np.trapezoid(y, x) == pytest.approx(1.0, abs=0.01)  # a density
        assert x[line.get_markevery()[0]] == pytest.approx(one.largest.value, rel=0.05)
    stems = [c for c in below.collections if isinstance(c, LineCollection)]
    for collection, one in zip(stems, found.values(), strict=True):
        ends = np.array([segment[1] for segment in collection.get_segments()])
        shown = one.weights > 0.02 / one.n
        np.testing.assert_allclose(ends[:, 0], one.nodes[shown].numpy())
        np.testing.assert_allclose(ends[:, 1], one.weights[shown].numpy())
        assert below.get_ylim()[0] <= ends[:, 1].min()
        assert below.get_ylim()[1] > ends[:, 1].max()
    assert len(above.collections) == 2  # a band each
    assert "loss per squared parameter" in below.get_xlabel()
    assert drawn(figure)


@pytest.mark.parametrize(
    "spectrum",
    [[0.0] * 6, [2.5], [-2.0, -1.0, -0.5], [1e-12, 2e-12, 0.0], [1e14, 1.0, 0.0, 0.0], [*[0.0] * 50, 3e5]],
    ids=["zero", "one", "negative", "tiny", "huge", "one outlier"],
)
@pytest.mark.parametrize("probes", [1, 2])
def test_density_figure_of_awkward_spectra(spectrum: list[float], probes: int) -> None:
    figure = density_figure({"hessian": density(torch.tensor(spectrum, dtype=torch.float64), probes)})
    assert drawn(figure)
    for axis in figure.axes:
        assert all(math.isfinite(end) for end in (*axis.get_xlim(), *axis.get_ylim()))
    assert len(figure.axes[0].collections) == (probes > 1)  # no band where there is no standard error
    low, high = figure.axes[1].get_xlim()
    assert low <= min(spectrum)
    assert high >= max(spectrum)


def test_linear_axis_where_nothing_is_far_out() -> None:
    figure = density_figure({"x": density(torch.linspace(-1, 2, 60, dtype=torch.float64))})
    assert figure.axes[1].get_xscale() == "linear"


def test_layer_figure() -> None:
    layers = pd.DataFrame(
        {
            "operator": ["hessian"] * 3 + ["gauss_newton"] * 2,
            "layer": ["conv", "fc", "", "conv", "fc"],
            "trace": [3.0, -1.0, 0.5, 2.0, 1.0],
            "standard_error": [0.2, 0.1, 0.0, 0.3, 0.1],
        }
    )
    figure = layer_figure(layers)
    one, other = figure.axes
    assert [bar.get_width() for bar in one.patches] == [3.0, -1.0, 0.5]
    np.testing.assert_allclose([bar.get_width() for bar in other.patches], [2.0, 1.0, np.nan])
    assert [label.get_text() for label in one.get_yticklabels()] == ["conv", "fc", "(own)"]
    assert one.get_title(loc="left") == "Hessian"
    errors = next(c for c in one.collections if isinstance(c, LineCollection)).get_segments()
    np.testing.assert_allclose([segment[:, 0] for segment in errors], [[2.6, 3.4], [-1.2, -0.8], [0.5, 0.5]])
    assert one.get_ylim()[0] > one.get_ylim()[1]  # the first layer on top
    assert drawn(figure)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="at least one density"):
        density_figure({})
    with pytest.raises(ValueError, match="at least one layer"):
        layer_figure(pd.DataFrame({"operator": [], "layer": [], "trace": [], "standard_error": []}))
