"""Pictures of a curvature matrix's spectrum: its density, the Ritz values under it, and the trace layer by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter

from spectral_run.curvature.spectrum.density import SpectralDensity
from spectral_run.reports.figures import COLOURS, DPI, STYLE

_UNIT = "loss per squared parameter"
_DRAWN: tuple[dict[str, Any], ...] = tuple(
    {"color": COLOURS[i], "linestyle": dash, "marker": marker}
    for i, dash, marker in ((5, "-", "o"), (4, "--", "s"), (3, "-.", "^"), (0, ":", "D"))
)
_POINTS = 1500
_BULK = 0.9  # the share of eigenvalues that the linear part of the axis is for
_LONG = 30.0  # the axis is linear throughout where the bulk takes more than one part in so many
_FAINT = 0.02  # Ritz values, and densities, below this part of a single eigenvalue's are left out


def density_figure(densities: Mapping[str, SpectralDensity], width: float | None = None) -> Figure:
    """Density above, Ritz values with their weights below: two panels, since a density and a weight share no scale.

    Where the spectrum reaches far beyond its bulk the eigenvalues are on an asinh axis, linear over the bulk and
    logarithmic beyond, along which the densities are smoothed too (``SpectralDensity.density``; ``width`` is on that
    axis).  Band: mean over probes ± its standard error.  Triangle: the largest Ritz value.  A weight is the share of
    eigenvalues that a Ritz value stands for, by one probe; the dotted line is a single eigenvalue's.
    """
    if not densities:
        raise ValueError("density_figure: there must be at least one density, got none.")
    drawn = list(densities.values())
    scale = _scale(drawn)
    if width is None:
        width = max(density.default_width(scale) for density in drawn)
    ends = torch.tensor([end for d in drawn for end in (d.smallest.value, d.largest.value)], dtype=torch.float64)
    places = ends if scale is None else torch.asinh(ends / scale)
    grid = torch.linspace(float(places.min()) - 5 * width, float(places.max()) + 5 * width, _POINTS)
    grid = grid.double() if scale is None else scale * torch.sinh(grid.double())
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4.6), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        several, height = len(densities) > 1, 0.0
        for (name, density), style in zip(densities.items(), cycle(_DRAWN), strict=False):
            height = max(
                height, _density(above, density, grid, width, scale, style, f"{_title(name)}, " if several else "")
            )
            _weights(below, density, style)
        above.set_yscale("log")
        above.set_ylim(_FAINT * min(_single(density, width, scale) for density in drawn), 3 * height)
        above.set_ylabel("density (share per unit)")
        below.set_yscale("log")
        below.set_ylim(min(_FAINT / density.n for density in drawn), 3.0 * max(float(d.weights.max()) for d in drawn))
        below.set_ylabel("weight (share)")
        below.set_xlabel(f"eigenvalue ({_UNIT})")
        _eigenvalues(below, scale, float(grid[0]), float(grid[-1]))
        figure.legend(*above.get_legend_handles_labels(), loc="outside upper center", frameon=False, handlelength=3.0,
                      ncols=2 if several else 1)  # fmt: skip
    return figure


def layer_figure(layers: pd.DataFrame) -> Figure:
    """Each layer's trace as a horizontal bar, a panel per operator; error bars are two standard errors.

    Columns: ``operator``, ``layer``, ``trace``, ``standard_error``; layers from top to bottom as they come.
    """
    if layers.empty:
        raise ValueError("layer_figure: there must be at least one layer, got none.")
    names = list(dict.fromkeys(layers["layer"]))
    operators = list(dict.fromkeys(layers["operator"]))
    size = (max(4.6, 1.4 + 2.9 * len(operators)), 1.0 + 0.26 * len(names))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        axes = list(figure.subplots(1, len(operators), squeeze=False, sharey=True).flat)
        for axis, operator, style in zip(axes, operators, cycle(_DRAWN), strict=False):
            rows = layers[layers["operator"] == operator].set_index("layer").reindex(names)
            values, errors = rows["trace"].to_numpy(dtype=float), 2 * rows["standard_error"].to_numpy(dtype=float)
            places = np.arange(len(names))
            axis.barh(places, values, height=0.62, color=style["color"], alpha=0.55, linewidth=0)
            axis.errorbar(values, places, xerr=errors, fmt="none", ecolor="black", elinewidth=1.0, capsize=2.5)
            axis.axvline(0.0, color="black", linewidth=0.8)
            axis.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
            axis.grid(False, axis="y")
            if len(operators) > 1:
                axis.set_title(_title(operator), loc="left")
        axes[0].set_yticks(np.arange(len(names)), [name or "(own)" for name in names])
        axes[0].set_ylim(len(names) - 0.5, -0.5)
        for axis in axes:
            axis.tick_params(axis="y", length=0)
        figure.supxlabel(f"trace of the layer's block ({_UNIT}); bars: ± 2 standard errors", fontsize="medium")
    return figure


def _title(operator: str) -> str:
    """An operator's name as people write it."""
    known = {"hessian": "Hessian", "gauss_newton": "Gauss-Newton", "residual": "Hessian less Gauss-Newton"}
    return known.get(operator, operator.replace("_", " ").replace("fisher", "Fisher"))


def _scale(densities: Sequence[SpectralDensity]) -> float | None:
    """How far the bulk reaches, or None where a linear axis shows everything."""
    reach = max(max(abs(d.largest.value), abs(d.smallest.value)) for d in densities)
    bulk = 0.0
    for density in densities:
        moduli, order = density.nodes.abs().flatten().sort()
        shares = density.weights.flatten()[order].cumsum(0) / len(density.nodes)
        bulk = max(bulk, float(moduli[int((shares < _BULK).sum())]))
    bulk = max(bulk, 1e-4 * reach)
    return bulk if reach > _LONG * bulk else None


def _single(density: SpectralDensity, width: float, scale: float | None) -> float:
    """The height of one eigenvalue's peak, where the axis is most compressed."""
    reach = max(abs(density.largest.value), abs(density.smallest.value))
    stretch = 1.0 if scale is None else 1 / math.hypot(reach, scale)
    return stretch / (density.n * width * math.sqrt(2 * math.pi))


def _density(
    axis: Axes,
    density: SpectralDensity,
    grid: torch.Tensor,
    width: float,
    scale: float | None,
    style: Mapping[str, Any],
    label: str,
) -> float:
    """Draw it, and say how high it goes."""
    curve = density.density(grid, width, scale)
    x, mean, error = (part.numpy() for part in (curve.grid, curve.heights, curve.standard_errors))
    largest = density.largest.value
    axis.plot(
        x,
        mean,
        linewidth=1.4,
        color=style["color"],
        linestyle=style["linestyle"],
        marker="v",
        markersize=6,
        markeredgecolor="white",
        markevery=[int(np.abs(x - largest).argmin())],
        label=f"{label}$\\lambda_1$ = {_short(largest)}",
    )
    if len(density.nodes) > 1:
        low = np.maximum(mean - error, mean * 1e-6)  # a logarithmic axis has no place for 0
        axis.fill_between(x, low, mean + error, color=style["color"], alpha=0.25, linewidth=0)
    return float((mean + np.nan_to_num(error)).max())


def _weights(axis: Axes, density: SpectralDensity, style: Mapping[str, Any]) -> None:
    least = _FAINT / density.n
    shown = density.weights > least
    faint = max(0.25, 0.9 / len(density.nodes))
    x, y = density.nodes[shown].numpy(), density.weights[shown].numpy()
    axis.vlines(x, least, y, color=style["color"], linewidth=0.6, alpha=0.6 * faint)
    axis.plot(x, y, linestyle="none", marker=style["marker"], markersize=3, alpha=max(0.5, faint),
              color=style["color"], markeredgewidth=0)  # fmt: skip
    axis.axhline(1 / density.n, color="black", linewidth=0.7, linestyle=(0, (1, 2)))
    axis.annotate("$1/n$", (1.0, 1 / density.n), (3, 0), xycoords=("axes fraction", "data"), va="center",
                  textcoords="offset points", fontsize="small", annotation_clip=False)  # fmt: skip


def _eigenvalues(axis: Axes, scale: float | None, low: float, high: float) -> None:
    """The eigenvalues' axis: zero, and every decade beyond the bulk."""
    if scale is None:
        axis.set_xlim(low, high)
        axis.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))
        return
    axis.set_xscale("asinh", linear_width=scale)
    axis.set_xlim(low, high)
    first, last = math.ceil(math.log10(scale)), math.floor(math.log10(max(-low, high)))
    decades = [10.0**k for k in range(first, last + 1)]
    ticks = [t for t in [*(-d for d in reversed(decades)), 0.0, *decades] if low <= t <= high]
    axis.xaxis.set_major_locator(FixedLocator(ticks))
    minor = [s * d * k for d in [decades[0] / 10, *decades] for k in range(2, 10) for s in (-1, 1)]
    axis.xaxis.set_minor_locator(FixedLocator([t for t in minor if low <= t <= high]))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, position: _short(value)))
    axis.xaxis.set_minor_formatter(NullFormatter())


def _short(value: float) -> str:
    """Three digits, with a power of ten where it is shorter."""
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.3g}".replace("-", "−") if abs(value) < 1000 else f"{value:.0f}".replace("-", "−")
    mantissa, exponent = f"{value:.2e}".split("e")
    mantissa = mantissa.rstrip("0").rstrip(".")
    power = f"10^{{{int(exponent)}}}"
    if mantissa in ("1", "-1"):
        return f"${mantissa.replace('1', '')}{power}$"
    return f"${mantissa}\\times{power}$"
