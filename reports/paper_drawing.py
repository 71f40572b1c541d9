"""What the paper's figures share: the widths of a printed page, a sweep's models, means over seeds, missing cells."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from spectral_run.reports.collect import number
from spectral_run.reports.document import Document, about
from spectral_run.reports.figures import COLOURS, DPI, STYLE
from spectral_run.reports.seeds import Model, models
from spectral_run.reports.tables import mean_and_spread

if TYPE_CHECKING:
    from spectral_run.reports.sweeps import Sweep

DOUBLE: Final = 170.0  # mm, both columns of a page
PRINT: Final[Any] = STYLE | {  # points, at the width the figure is made in: none below 7
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "legend.title_fontsize": 7.5,
}
FAMILIES: Final[Mapping[str, tuple[str, str, str]]] = {  # name, colour, marker
    "unregularized": ("Unregularized", COLOURS[0], "o"),
    "asymmetric_valley": ("Asym. valley", COLOURS[1], "v"),
    "entropy_sgd": ("Entropy-SGD", COLOURS[3], "^"),
    "kfac": ("K-FAC", COLOURS[4], "D"),
    "lobpcg": ("LOBPCG", COLOURS[6], "P"),
    "penalty": ("Penalty", COLOURS[5], "s"),
    "other": ("Other", "#777777", "X"),
}
ABSENT: Final = "n/a"
DATA: Final = {"covtype": "Forest cover", "usps": "USPS"}
SOLVERS: Final = {
    "power": "power iteration",
    "lobpcg_paper": "LOBPCG as printed",
    "lobpcg": "LOBPCG",
    "lanczos": "Lanczos",
}
_NAMED = 12  # cells at most in a caption
_PENALTY = ("regularizer.mu", "regularizer.K")
_MU_K = re.compile(r"^mu(?P<mu>[\d.e-]+?)-K(?P<K>[\d.]+)(?P<rest>.*)$")


@dataclass(frozen=True)
class Drawn:
    """A model of a sweep and how it is drawn; ``family``: of ``FAMILIES``, which has colour and marker."""

    model: Model
    label: str
    family: str
    mu: float  # NaN where there is no penalty, as K
    K: float

    @property
    def method(self) -> str:
        """What ``method=`` calls it; empty where the sweep is not one over methods."""
        return self.model.overrides.get("method", "")

    @property
    def results(self) -> list[Mapping[str, Any]]:
        """Of the cells that are done, in the order of the seeds."""
        return list(self.model.results.values())

    @property
    def look(self) -> dict[str, Any]:
        """Colour and marker, for matplotlib."""
        return {"color": FAMILIES[self.family][1], "marker": FAMILIES[self.family][2]}


@dataclass(frozen=True)
class Spread:
    """A mean over seeds; ``low`` and ``high`` are what is drawn as its bar: ± sd, or one run's own 95% interval."""

    mean: float
    sd: float
    low: float
    high: float
    n: int

    def text(self, share: bool) -> str:
        """For a cell of a table; a ``share`` in percent."""
        if not self.n:
            return ABSENT
        scale = 100.0 if share else 1.0
        if self.n > 1:
            return mean_and_spread(scale * self.mean, scale * self.sd, share) + "%" * share
        return f"{scale * self.mean:.2f}%" if share else f"{self.mean:.3g}"


def drawn(sweep: Sweep) -> list[Drawn]:
    """The sweep's models in the order of its cells."""
    return [_drawn(model) for model in models(sweep)]


def one(sweeps: Mapping[str, Sweep], experiment: str) -> Sweep:
    """The experiment's sweep, or the only one that there is."""
    return sweeps[experiment] if experiment in sweeps else next(iter(sweeps.values()))


def over_seeds(results: Iterable[Mapping[str, Any]], *path: str, key: str = "value") -> Spread:
    """The number at a path of each result that has it; ``key`` is its name there, beside ``ci_low``, ``ci_high``."""
    rows = [[number(result, *path, end) for end in (key, "ci_low", "ci_high")] for result in results]
    values = [row for row in rows if math.isfinite(row[0])]
    spread = spread_of([row[0] for row in values])
    if spread.n == 1:
        low, high = (end if math.isfinite(end) else spread.mean for end in values[0][1:])
        return Spread(spread.mean, math.nan, min(low, spread.mean), max(high, spread.mean), 1)
    return spread


def spread_of(values: Sequence[float]) -> Spread:
    """Mean and standard deviation; of one value no spread."""
    if not len(values):
        return Spread(math.nan, math.nan, math.nan, math.nan, 0)
    mean = float(np.mean(values))
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    reach = sd if math.isfinite(sd) else 0.0
    return Spread(mean, sd, mean - reach, mean + reach, len(values))


def not_drawn(*sweeps: Sweep) -> str:
    """A sentence that names the cells without a number, by what became of each; empty where there are none."""
    parts = []
    for sweep in sweeps:
        for model in drawn(sweep):
            several = len(model.model.cells) > 1
            for status, seeds in model.model.trouble.items():
                parts.append(f"{model.label}{', seed ' + ', '.join(seeds) if several else ''} ({status})")
    if len(parts) > _NAMED:  # the report's first paragraphs name every cell
        parts = [*parts[:_NAMED], f"and {len(parts) - _NAMED} more, all named in the text"]
    return f"Not drawn: {'; '.join(parts)}." if parts else ""


def bars(*model_lists: Sequence[Drawn]) -> str:
    """What the bars mean, for a caption: of the numbers of runs that are there."""
    counts = {len(model.results) for found in model_lists for model in found if model.results}
    several = sorted(n for n in counts if n > 1)
    parts = []
    if several:
        n = f"{several[0]}" if len(several) == 1 else f"{several[0]} to {several[-1]}"
        parts.append(f"mean ± standard deviation over {n} seeds")
    if 1 in counts:
        parts.append("of one run its own 95% interval, where it has one")
    return "; ".join(parts)


def data_of(sweep: Sweep) -> str:
    """The data set's name, of the first result that has it."""
    names = (((cell.result or {}).get("data") or {}).get("name") for cell in sweep.cells)
    return next((str(name) for name in names if name), "")


def solver_of(model: Drawn) -> str:
    """Of the runs that are done: the solver, and the mode where it does not converge in every step."""
    result = model.results[0] if model.results else {}
    settings = (result.get("config") or {}).get("regularizer") or {}
    if settings.get("mode") == "track":
        return f"power iteration, {settings.get('track', 1)} product a step"
    return SOLVERS.get(str(settings.get("solver")), str(settings.get("solver")))


def few_ticks(axis: Axes) -> None:
    """At most three round numbers on the x-axis, as many as a narrow panel has room for."""
    low, high = sorted(axis.get_xlim())
    for step in (0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 5.0, 10.0, 20.0, 50.0):
        ticks = np.arange(math.ceil(low / step), math.floor(high / step) + 1) * step
        if len(ticks) <= 3:
            axis.set_xticks(ticks, [f"{tick:g}".replace("-", "−") for tick in ticks])
            return


def no_runs(name: str, title: str, sweeps: Sequence[Sweep]) -> Document:
    """What a report is where there is nothing to draw."""
    return Document(name, title, ("There is no picture: no run is done.", *about(sweeps)), (), tuple(sweeps))


def canvas(width: float, height: float) -> Figure:
    """An empty figure of so many mm, to be made within ``mpl.rc_context(PRINT)``."""
    figure = Figure(figsize=(width / 25.4, height / 25.4), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def sentences(*parts: str) -> str:
    """The parts that are there, a space between them."""
    return " ".join(part for part in parts if part)


def _drawn(model: Model) -> Drawn:
    chosen = dict(model.overrides)
    found = next((cell.result for cell in model.cells.values() if cell.result is not None), {})
    method = chosen.pop("method", "").removeprefix("chest_")
    mu, K = (_setting(name, chosen, method, found) for name in ("mu", "K"))
    family = _family(method, math.isfinite(mu))
    more = [f"{name.rpartition('.')[2]} {value}" for name, value in chosen.items() if name not in _PENALTY]
    label = ", ".join(part for part in (_label(method, family, mu, K), *more) if part)
    return Drawn(model, label, family, mu, K)


def _setting(name: str, chosen: Mapping[str, str], method: str, result: Mapping[str, Any]) -> float:
    """mu or K: the command's, the method's name's, or the result's own."""
    if f"regularizer.{name}" in chosen:
        return float(chosen[f"regularizer.{name}"])
    if match := _MU_K.match(method):
        return float(match[name])
    return number(result, "config", "regularizer", name)


def _family(method: str, penalized: bool) -> str:
    for family in FAMILIES:
        if method.startswith(family):
            return family
    if penalized or method.startswith(("power", "lanczos", "spectral_radius")):
        return "penalty"
    return "other" if method else "unregularized"


def _label(method: str, family: str, mu: float, K: float) -> str:
    penalty = f"μ={mu:g}, K={K:g}" if math.isfinite(mu) and math.isfinite(K) else ""
    if family == "penalty":
        match = _MU_K.match(method)
        extra = match["rest"].strip("-") if match else method.replace("_", " ")
        return ", ".join(part for part in (extra, penalty) if part)
    name = FAMILIES[family][0] if family != "other" else method
    rest = method.removeprefix(family).strip("_").replace("_", " ") if family != "other" else ""
    rest = {"covtype": "", "usps": "rate for USPS"}.get(rest, rest)
    return name + f" ({rest})" * bool(rest) + f", {penalty}" * bool(penalty)
