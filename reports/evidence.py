"""Tests that decide a claim, each with a 95% interval and one-sided p-values, and the rule that makes them a verdict.

A claim's test has a value that means no effect (``null``) and a side on which the claim puts the truth (``sign``).

- Over seeds: Student's t of the values or paired differences. Fewer than two: no test. Equal values: no interval.
- A trend over levels (mu's, batch sizes): the mean over blocks (seeds) of Spearman's correlation; Student's t over
  blocks for the interval, permutations within blocks for p (Page 1963 in its permutation form). A single block needs
  ``LONE`` levels and has the interval of Bonett and Wright (2000).
- A correlation over models: Fisher's z, or Bonett and Wright's for Spearman's, and the jackknife over clusters of
  models with Student's t; whichever is wider. Models of one mu are a cluster: while
  rho is above every K their penalties have the same gradient, so they are no independent draws.
- A correlation over pairs of models: permutations of the models (Mantel 1967); for the interval the jackknife over
  models, with Student's t.

How often no effect comes out as supported (4,000 samples a row of Student's t, 1,000 of the others; nominal .025):
paired differences of 2, 3, 5, 10 seeds .026, .024, .027, .026 (normal), .014, .024, .027, .026 (accuracies of 2,007
images), .017, .013, .015, .017 (lognormal); a trend of 3 seeds and 3, 4, 5 levels .006, .007, .017, of 1 seed and 10
levels .024; Pearson's and Spearman's correlation over 70 models .009 and .011 (independent, rho lognormal), .020 and
.018 (a share common to the models of one mu), .023 and .016 (near copies by mu; Fisher's z alone is beyond .1), .019
and .017 (3 seeds, each with a share of its own); the partial one .016; over pairs of five models .002.

Fails: t takes differences as symmetric about their mean; three seeds show large effects only.  Nothing here sees that
a sweep has left out what would have spoken against a claim; ``judge`` is told what is missing.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import stats

SUPPORTED, CONTRADICTED, UNDECIDED, UNTESTED = "supported", "contradicted", "not decided", "not tested here"
ALPHA: Final = 0.025  # a side
LONE: Final = 8  # levels of a trend that is judged on one seed
MODELS, CLUSTERS = 10, 5  # the fewest that a correlation is judged on
PERMUTATIONS: Final = 9999
_SEED: Final = int.from_bytes(hashlib.sha256(b"evidence").digest()[:8], "big") >> 1
Floats: TypeAlias = NDArray[np.float64]
Kind: TypeAlias = Literal["Pearson", "Spearman"]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One test: ``p`` is that of the claim's side, ``p_against`` that of the other; NaN ends: no interval."""

    what: str
    value: float
    low: float
    high: float
    p: float
    p_against: float
    n: int
    of: str  # what n counts
    method: str
    null: float = 0.0
    sign: int = 1  # 1: the claim says above ``null``; -1: below

    @property
    def speaks_for(self) -> bool:
        """Whether the interval leaves out no effect on the claim's side, and p says so too."""
        beyond = self.low > self.null if self.sign > 0 else self.high < self.null
        return bool(beyond and self.p <= ALPHA)

    def speaks_against(self, tests: int = 1) -> bool:
        """Whether it does on the other side, as one of so many tests (Bonferroni)."""
        beyond = self.high < self.null if self.sign > 0 else self.low > self.null
        return bool(beyond and tests * self.p_against <= ALPHA)


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """An outcome, the test that it hangs on, and p of the claim as a whole (NaN where nothing was tested)."""

    outcome: str
    decisive: Evidence | None
    p: float


def judge(tests: Sequence[Evidence], missing: Sequence[str] = ()) -> Judgement:
    """Supported: every test speaks for it, nothing is missing. Contradicted: one speaks against it (Bonferroni).

    The probability of a wrong "supported" is at most that of the one test that is wrong (intersection-union), and of a
    wrong "contradicted" at most ``ALPHA``.
    """
    if not tests:
        return Judgement(outcome=UNTESTED, decisive=None, p=math.nan)
    against = [test for test in tests if test.speaks_against(len(tests))]
    weakest = max(tests, key=lambda test: test.p)
    if against:
        return Judgement(outcome=CONTRADICTED, decisive=min(against, key=lambda test: test.p_against), p=weakest.p)
    outcome = SUPPORTED if all(test.speaks_for for test in tests) and not missing else UNDECIDED
    return Judgement(outcome=outcome, decisive=weakest, p=weakest.p)


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p-values, in the order given; NaN is no test."""
    adjusted = [math.nan] * len(ps)
    tested = sorted((p, i) for i, p in enumerate(ps) if not math.isnan(p))
    highest = 0.0
    for rank, (p, i) in enumerate(tested):
        highest = max(highest, min(1.0, (len(tested) - rank) * p))
        adjusted[i] = highest
    return adjusted


def over_seeds(what: str, values: Mapping[str, float], *, null: float = 0.0, sign: int = 1) -> Evidence | None:
    """Student's t of a number per seed; None below two seeds."""
    x = np.array([value for value in values.values() if math.isfinite(value)])
    if len(x) < 2:
        return None
    value, spread = float(x.mean()), float(x.std(ddof=1)) / math.sqrt(len(x))
    common = {"what": what, "value": value, "n": len(x), "of": "seeds", "null": null, "sign": sign}
    if spread <= 1e-12 * float(np.abs(x).max()):
        return Evidence(low=math.nan, high=math.nan, p=1.0, p_against=1.0, method="equal values", **common)  # type: ignore[arg-type]
    t, df = (value - null) / spread, len(x) - 1
    half = float(stats.t.ppf(1 - ALPHA, df)) * spread
    p, against = float(stats.t.sf(sign * t, df)), float(stats.t.cdf(sign * t, df))
    return Evidence(low=value - half, high=value + half, p=p, p_against=against, method="Student's t", **common)  # type: ignore[arg-type]


def difference(
    what: str, a: Mapping[str, float], b: Mapping[str, float], *, null: float = 0.0, sign: int = 1
) -> Evidence | None:
    """``a`` less ``b`` over the seeds that both have."""
    both = {seed: a[seed] - b[seed] for seed in a if seed in b}
    size = max((abs(x) for seed in both for x in (a[seed], b[seed])), default=0.0)
    if both and max(both.values()) - min(both.values()) <= 1e-12 * size:  # equal but for rounding
        both = dict.fromkeys(both, next(iter(both.values())))
    return over_seeds(what, both, null=null, sign=sign)


def trend(what: str, blocks: Mapping[str, Sequence[tuple[float, float]]], *, sign: int) -> Evidence | None:
    """Whether the second numbers rise (or fall: ``sign`` -1) with the first, within blocks."""
    ranked = []
    for pairs in blocks.values():
        pairs = [pair for pair in pairs if all(map(math.isfinite, pair))]
        if len(pairs) < 3 or any(len(set(side)) < 2 for side in zip(*pairs, strict=True)):
            continue
        first, second = (_unit(stats.rankdata(side)) for side in zip(*pairs, strict=True))
        ranked.append((first, second))
    if not ranked or (len(ranked) == 1 and len(ranked[0][0]) < LONE):
        return None
    each = np.array([float(a @ b) for a, b in ranked])
    value = float(each.mean())
    if len(ranked) == 1:
        z, half = np.arctanh(_inside(value)), _z_width("Spearman", value, len(ranked[0][0]), 0)
        low, high, n, of = float(np.tanh(z - half)), float(np.tanh(z + half)), len(ranked[0][0]), "levels"
    else:
        half = float(stats.t.ppf(1 - ALPHA, len(each) - 1)) * float(each.std(ddof=1)) / math.sqrt(len(each))
        low, high, n, of = max(-1.0, value - half), min(1.0, value + half), len(each), "seeds"
    null = _shuffled(ranked)
    p, against = (
        (1 + float(np.count_nonzero(side * null >= side * value - 1e-12))) / (1 + len(null)) for side in (sign, -sign)
    )
    return Evidence(
        what=what, value=value, low=low, high=high, p=p, p_against=against, n=n, of=of,
        method="Spearman, permutations", sign=sign,
    )  # fmt: skip


def correlation(
    what: str,
    x: Sequence[float],
    y: Sequence[float],
    clusters: Sequence[Hashable],
    *,
    kind: Kind,
    given: Sequence[float] | None = None,
    strata: Sequence[Hashable] | None = None,
    sign: int = 1,
) -> Evidence | None:
    """Correlation over models; with ``given`` the partial one. None below ``MODELS`` models or ``CLUSTERS`` clusters.

    With ``strata`` (seeds) it is that within them: what all models of a seed share is no evidence.

    Models that are alike to the bit are one model: a penalty that never binds leaves the network as it was without.
    """
    columns = np.array([x, y, *([given] if given is not None else [])], dtype=np.float64).T
    keep = np.flatnonzero(np.isfinite(columns).all(1))
    _, first = np.unique(columns[keep], axis=0, return_index=True)
    keep = keep[np.sort(first)]
    columns, groups = columns[keep], [clusters[int(i)] for i in keep]
    layers = _numbered([strata[int(i)] for i in keep] if strata is not None else [0] * len(keep))
    names = list(dict.fromkeys(groups))
    n, constant = len(columns), len(columns) and bool((np.ptp(columns, axis=0) == 0).any())
    if n < MODELS or len(names) < CLUSTERS or constant:
        return None
    value = _correlate(columns, layers, kind)
    z = math.atanh(_inside(value))
    kept = [np.array([group != name for group in groups]) for name in names]
    left_out = np.array([math.atanh(_inside(_correlate(columns[rows], layers[rows], kind))) for rows in kept])
    count = len(names)
    spread = math.sqrt((count - 1) / count * float(((left_out - left_out.mean()) ** 2).sum()))
    fisher = _z_width(kind, value, n, columns.shape[1] - 2 + int(layers.max()))
    half = max(fisher, float(stats.t.ppf(1 - ALPHA, count - 1)) * spread)
    each = float(stats.norm.ppf(1 - ALPHA))
    p, against = (
        max(
            float(stats.norm.sf(side * z / (fisher / each))),
            float(stats.t.sf(side * z / max(spread, 1e-12), count - 1)),
        )
        for side in (sign, -sign)
    )
    return Evidence(
        what=what, value=value, low=math.tanh(z - half), high=math.tanh(z + half), p=p, p_against=against, n=n,
        of="models", method=f"{kind}{', partial' if given is not None else ''}, {count} clusters", sign=sign,
    )  # fmt: skip


def over_pairs(
    what: str, model: Mapping[str, float], pairs: Mapping[frozenset[str], float], *, sign: int
) -> Evidence | None:
    """Spearman's correlation of a number per pair with the mean of the two models' own; None below five models."""
    names = sorted(model)
    if len(names) < CLUSTERS or any(frozenset(two) not in pairs for two in itertools.combinations(names, 2)):
        return None
    size = np.array([model[name] for name in names])
    overlap = np.array([[math.nan if a == b else pairs[frozenset((a, b))] for b in names] for a in names])

    def spearman(of: Floats, among: NDArray[np.intp]) -> float:
        i, j = (among[side] for side in np.triu_indices(len(among), 1))
        return float(_unit(stats.rankdata(of[i] + of[j])) @ _unit(stats.rankdata(overlap[i, j])))

    everyone = np.arange(len(names))
    value = spearman(size, everyone)
    orders: Sequence[tuple[int, ...]] | NDArray[np.intp]
    if len(names) <= 7:
        orders = list(itertools.permutations(range(len(names))))
    else:
        random = np.random.default_rng(_SEED)
        orders = np.array([everyone, *(random.permutation(len(names)) for _ in range(PERMUTATIONS))])
    null = np.array([spearman(size[list(order)], everyone) for order in orders])
    p, against = (float(np.mean(side * null >= side * value - 1e-12)) for side in (sign, -sign))
    count = len(names)
    left_out = np.array([math.atanh(_inside(spearman(size, np.delete(everyone, i)))) for i in everyone])
    spread = math.sqrt((count - 1) / count * float(((left_out - left_out.mean()) ** 2).sum()))
    z, half = math.atanh(_inside(value)), float(stats.t.ppf(1 - ALPHA, count - 1)) * spread
    return Evidence(
        what=what, value=value, low=math.tanh(z - half), high=math.tanh(z + half), p=p, p_against=against, n=count,
        of="models", method="Spearman over pairs, permutations of the models", sign=sign,
    )  # fmt: skip


def renamed(test: Evidence | None, what: str) -> Evidence | None:
    """The same test under another name."""
    return None if test is None else replace(test, what=what)


def _correlate(columns: Floats, layers: NDArray[np.intp], kind: Kind) -> float:
    """Of the first two columns, given the others, within layers."""
    held = columns.copy()
    for layer in np.unique(layers):
        rows = layers == layer
        if kind == "Spearman":
            held[rows] = np.apply_along_axis(stats.rankdata, 0, held[rows])
        held[rows] -= held[rows].mean(0)
    x, y, *given = held.T
    if given:
        design = np.column_stack(given)
        x, y = (side - design @ np.linalg.lstsq(design, side, rcond=None)[0] for side in (x, y))
    return float(_unit(x) @ _unit(y))


def _numbered(names: Sequence[Hashable]) -> NDArray[np.intp]:
    order = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([order[name] for name in names], dtype=np.intp)


def _z_width(kind: Kind, value: float, n: int, given: int) -> float:
    more = 1 + value**2 / 2 if kind == "Spearman" else 1.0
    return float(stats.norm.ppf(1 - ALPHA)) * math.sqrt(more / (n - 3 - given))


def _shuffled(ranked: Sequence[tuple[Floats, Floats]]) -> Floats:
    """Mean correlations under random permutations within blocks."""
    random = np.random.default_rng(_SEED)

    def correlations(first: Floats, second: Floats) -> Floats:
        return np.asarray(random.permuted(np.tile(second, (PERMUTATIONS, 1)), axis=1) @ first, dtype=np.float64)

    return np.asarray(np.mean([correlations(*block) for block in ranked], axis=0), dtype=np.float64)


def _unit(x: NDArray[np.float64]) -> Floats:
    """Centred, of length 1; zeros where it is constant."""
    centred = np.asarray(x, dtype=np.float64) - np.mean(x)
    length = float(np.linalg.norm(centred))
    return centred / length if length > 0 else centred


def _inside(r: float) -> float:
    return min(max(r, -1 + 1e-9), 1 - 1e-9)
