"""Trace, diagonal and Frobenius norm of a symmetric matrix known by its products, each with its standard error.

Source: Hutchinson 1990: ``tr A = E v'Av``; Bekas, Kokiopoulou, Saad 2007: ``A_ii = E v_i (Av)_i`` for ``v_i = +-1``;
``|A|_F^2 = E |Av|^2``.  Hutch++ (Meyer, Musco, Musco, Woodruff 2021): with the rows of Q an orthonormal basis of
``A S``, S random, ``tr A = tr(Q A Q') + E g'Ag``, ``g = (1 - Q'Q) v``; the first term is exact, and the variance is
that of what the sketch leaves.
Units: those of A; for a Hessian, loss per squared parameter.
Cost: ``probes`` products in all, ``chunk`` at a time; ``O(probes^2 n)`` further work for Hutch++.
Standard errors are the samples' standard deviation over the root of their number.  They are themselves estimates: with
few probes, or one eigenvalue far above the rest (samples are then nearly chi-square), take ``interval``, and doubt it.
A product that is not finite gives nan.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from jaxtyping import Float, Int
from scipy.special import ndtri, stdtrit
from torch import Tensor

from spectral_run.curvature.solver import BlockProduct, orthonormal, without
from spectral_run.curvature.spectrum.probes import Distribution, check, draw, images, multiplied

Method: TypeAlias = Literal["hutchinson", "hutch++"]

CHUNK = 8
"""Rows multiplied at once, unless told otherwise."""


@dataclass(frozen=True)
class Estimate:
    """A number, its standard error, and the products that it took.

    ``freedom``: degrees of freedom of the standard error, one less than the samples behind it.
    """

    value: float
    standard_error: float
    products: int
    freedom: float = math.inf

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Student's interval: covers the true value with this probability where the samples are normal."""
        if not 0 < level < 1:
            raise ValueError(f"Estimate: level must be in (0, 1), got {level}.")
        tail = (1 + level) / 2
        if not self.standard_error:
            return self.value, self.value
        quantile = ndtri(tail) if math.isinf(self.freedom) else stdtrit(self.freedom, tail)
        reach = float(quantile) * self.standard_error
        return self.value - reach, self.value + reach

    def scaled(self, factor: float) -> Estimate:
        """The estimate of ``factor`` times as much."""
        return Estimate(factor * self.value, abs(factor) * self.standard_error, self.products, self.freedom)

    def shifted(self, by: float) -> Estimate:
        """The estimate of so much more."""
        return Estimate(self.value + by, self.standard_error, self.products, self.freedom)

    def root(self) -> Estimate:
        """The estimate of the square root, by the delta method: low by about ``standard_error^2 / (2 value)``."""
        value = math.sqrt(self.value)
        error = self.standard_error / (2 * value) if value else self.standard_error
        return Estimate(value, error, self.products, self.freedom)


@dataclass(frozen=True)
class DiagonalEstimate:
    """The diagonal, an estimate for each entry; on the products' device, in their dtype."""

    values: Float[Tensor, " n"]
    standard_errors: Float[Tensor, " n"]
    products: int


@dataclass(frozen=True)
class Moments:
    """What one set of products gives; every part names the same products. ``blocks``: traces of diagonal blocks."""

    trace: Estimate
    frobenius_norm: Estimate
    diagonal: DiagonalEstimate
    blocks: tuple[Estimate, ...] = ()

    @property
    def products(self) -> int:
        """Products spent on all of it."""
        return self.diagonal.products


def mean(samples: Float[Tensor, " p"], products: int) -> Estimate:
    """Mean and standard error of independent samples; of a single one the standard error is not known: nan."""
    count = len(samples)
    error = float(samples.std()) / math.sqrt(count) if count > 1 else math.nan
    return Estimate(float(samples.mean()), error, products, float(count - 1))


def trace(
    matvecs: BlockProduct,
    n: int,
    generator: torch.Generator,
    *,
    probes: int,
    like: Tensor,
    method: Method = "hutchinson",
    distribution: Distribution = "rademacher",
    sketch: int | None = None,
    chunk: int = CHUNK,
) -> Estimate:
    """The trace, unbiased, from ``probes`` products at most, on rows like ``like``.

    ``hutch++`` spends two products on each of ``sketch`` directions (default: a third of ``probes``) and the rest on
    the residual; where ``n`` products are affordable it takes the diagonal itself, and the standard error is 0.
    """
    if method not in get_args(Method):
        raise ValueError(f"trace: method must be one of {', '.join(get_args(Method))}, got {method!r}.")
    _check("trace", n, generator, probes, distribution, chunk, like)
    if method == "hutchinson":
        if sketch is not None:
            raise ValueError(f"trace: only hutch++ takes a sketch, got {sketch}.")
        pairs = images("trace", matvecs, n, generator, probes=probes, distribution=distribution, chunk=chunk, like=like)
        return mean(torch.cat([_dots(v, av) for v, av in pairs]), probes)
    if sketch is None:
        sketch = max(1, probes // 3)
    if sketch < 1 or probes - 2 * sketch < 2:
        raise ValueError(
            f"trace: hutch++ needs a sketch of at least 1 and 2 probes more than twice that, got {probes} and {sketch}."
        )
    if n <= probes:
        everything = torch.eye(n, dtype=like.dtype, device=like.device)
        parts = [_dots(v, multiplied("trace", matvecs, v)) for v in torch.split(everything, chunk)]
        return Estimate(float(torch.cat(parts).sum()), 0.0, n, math.inf)
    basis, image = _sketched("trace", matvecs, n, generator, sketch, distribution, chunk, like)
    residual = probes - 2 * sketch
    pairs = images(
        "trace", matvecs, n, generator, probes=residual, distribution=distribution, chunk=chunk, like=like,
        change=lambda rows: without(rows, basis),
    )  # fmt: skip
    samples = torch.cat([_dots(g, ag) for g, ag in pairs])
    return mean(samples, sketch + len(basis) + residual).shifted(float(_dots(basis, image).sum()))


def frobenius_norm(
    matvecs: BlockProduct,
    n: int,
    generator: torch.Generator,
    *,
    probes: int,
    like: Tensor,
    distribution: Distribution = "rademacher",
    chunk: int = CHUNK,
) -> Estimate:
    """``|A|_F``, the root of the mean of ``|Av|^2``.

    The square is unbiased.  The norm is low by about ``standard_error^2 / (2 |A|_F)``, at most ``1 / (4 probes)`` of
    it with Rademacher and Gaussian probes alike: far less than its standard error, and of order ``1 / probes``.
    """
    _check("frobenius_norm", n, generator, probes, distribution, chunk, like)
    pairs = images(
        "frobenius_norm", matvecs, n, generator, probes=probes, distribution=distribution, chunk=chunk, like=like
    )
    return mean(torch.cat([_squares(av) for _, av in pairs]), probes).root()


def diagonal(
    matvecs: BlockProduct,
    n: int,
    generator: torch.Generator,
    *,
    probes: int,
    like: Tensor,
    chunk: int = CHUNK,
) -> DiagonalEstimate:
    """Every diagonal entry, unbiased, from Rademacher probes: the variance of the i-th is ``sum_(j != i) A_ij^2``."""
    return moments(matvecs, n, generator, probes=probes, like=like, chunk=chunk).diagonal


def moments(
    matvecs: BlockProduct,
    n: int,
    generator: torch.Generator,
    *,
    probes: int,
    like: Tensor,
    sketch: int = 0,
    blocks: Sequence[Int[Tensor, " _"]] = (),
    chunk: int = CHUNK,
) -> Moments:
    """Trace, Frobenius norm and diagonal from the same ``probes + 2 sketch`` products at most, by Rademacher probes.

    ``sketch``: directions Q taken out exactly, as by Hutch++.  With ``P = 1 - Q'Q``, ``W = Q A``, ``T = W Q'``:
    ``A = Q'W + W'Q - Q'TQ + PAP``, so ``diag A`` is ``sum_s Q_s (2W - TQ)_s`` and ``diag PAP``; ``|A|_F^2`` is
    ``2 |W|_F^2 - |T|_F^2`` and ``|PAP|_F^2``; the probes see ``PAP`` only.
    ``blocks``: positions of the entries of diagonal blocks (a layer's parameters); each one's trace is estimated too,
    unbiased, though with the variance of whole rows: the probes are not restricted to the block.
    """
    _check("moments", n, generator, probes, "rademacher", chunk, like)
    if sketch < 0:
        raise ValueError(f"moments: sketch must be at least 0, got {sketch}.")
    basis, image = _sketched("moments", matvecs, n, generator, sketch, "rademacher", chunk, like)
    small = image @ basis.T
    known = (basis * (2 * image - small @ basis)).sum(0)
    known_square = float(2 * _squares(image).sum() - _squares(small).sum())
    traces, squares, parts, seen = [], [], [], 0
    values, spread = like.new_zeros(n), like.new_zeros(n)
    for start in range(0, probes, chunk):
        v = draw(generator, min(chunk, probes - start), n, distribution="rademacher", like=like)
        av = without(multiplied("moments", matvecs, without(v, basis)), basis)
        traces.append(_dots(v, av))
        squares.append(_squares(av))
        parts.append([_dots(v[:, where], av[:, where]) for where in blocks])
        for sample in v * av:  # Welford 1962: a row at a time, so that the chunk makes no difference
            seen += 1
            change = sample - values
            values = values + change / seen
            spread = spread + change * (sample - values)
    spent = sketch + len(basis) + probes
    return Moments(
        mean(torch.cat(traces), spent).shifted(float(_dots(basis, image).sum())),
        mean(torch.cat(squares), spent).shifted(known_square).root(),
        DiagonalEstimate(known + values, (spread / (probes * (probes - 1))).sqrt(), spent),
        tuple(
            mean(torch.cat(samples), spent).shifted(float(known[where].sum(dtype=torch.float64)))
            for where, samples in zip(blocks, zip(*parts, strict=True), strict=True)
        ),
    )


def _sketched(
    who: str,
    matvecs: BlockProduct,
    n: int,
    generator: torch.Generator,
    sketch: int,
    distribution: Distribution,
    chunk: int,
    like: Tensor,
) -> tuple[Float[Tensor, "s n"], Float[Tensor, "s n"]]:
    """An orthonormal basis of ``A S``, S random rows, and its products; fewer rows where A has a smaller rank."""
    none = like.new_empty(0, n)
    pairs = images(who, matvecs, n, generator, probes=sketch, distribution=distribution, chunk=chunk, like=like)
    basis = orthonormal(torch.cat([none, *(av for _, av in pairs)]), none)
    parts = [multiplied(who, matvecs, basis[first : first + chunk]) for first in range(0, len(basis), chunk)]
    return basis, torch.cat([none, *parts])


def _check(
    who: str, n: int, generator: torch.Generator, probes: int, distribution: str, chunk: int, like: Tensor
) -> None:
    check(who, n, generator, probes=probes, least=2, distribution=distribution, like=like)
    if chunk < 1:
        raise ValueError(f"{who}: chunk must be at least 1, got {chunk}.")


def _dots(v: Float[Tensor, "k n"], w: Float[Tensor, "k n"]) -> Float[Tensor, " k"]:
    return (v * w).sum(1, dtype=torch.float64).cpu()


def _squares(rows: Float[Tensor, "k n"]) -> Float[Tensor, " k"]:
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    return norms.square().cpu()
