"""Spectral density of a symmetric matrix by stochastic Lanczos quadrature.

Source: Golub, Welsch 1969; Ubaru, Chen, Saad 2017; smoothing: Lin, Saad, Yang 2016.  For a unit vector v the measure
``sum_i (v'u_i)^2 delta(x - lambda_i)`` has, over random directions, the mean ``(1/n) sum_i delta(x - lambda_i)``.  m
Lanczos steps from v give m nodes and weights that integrate polynomials up to degree ``2m - 1`` against it exactly.
Units: nodes are eigenvalues (for a Hessian: loss per squared parameter); a probe's weights sum to 1; ``density`` is
per unit of eigenvalue, so never to be drawn on the scale of the weights.
Cost: ``probes * steps`` products, ``steps`` calls per chunk of probes; memory ``chunk * steps * n`` numbers.
Standard errors are over probes: they don't see what m steps can't resolve.  An isolated eigenvalue is found nearly
exactly, and its weight is 1/n on average, but with a spread of about 1.4/n from probe to probe; a node inside a bulk
stands for its neighbourhood.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from spectral_run.curvature.solver import BlockProduct, rounding_floor
from spectral_run.curvature.spectrum.estimates import Estimate, mean
from spectral_run.curvature.spectrum.probes import Distribution, check, draw
from spectral_run.curvature.spectrum.tridiagonal import tridiagonalize

BASES = 2**31
"""Bytes that the bases of probes side by side may take, unless told otherwise."""


@dataclass(frozen=True)
class Ritz:
    """A Ritz value; some eigenvalue of A is no farther from it than ``residual``."""

    value: float
    residual: float


@dataclass(frozen=True)
class Curve:
    """A smoothed density on a grid: mean over probes and its standard error, per unit of eigenvalue."""

    grid: Float[Tensor, " g"]
    heights: Float[Tensor, " g"]
    standard_errors: Float[Tensor, " g"]
    width: float


@dataclass(frozen=True)
class SpectralDensity:
    """A quadrature for each probe: nodes, ascending; weights, which sum to 1; residuals of the Ritz pairs.

    All float64 on the CPU.  A probe that ended early is padded with its largest node, at weight 0.
    ``n`` is the matrix's size; ``products`` those of all probes; ``rounding`` what a Ritz value may be off by where its
    residual is smaller than that.
    """

    nodes: Float[Tensor, "p m"]
    weights: Float[Tensor, "p m"]
    residuals: Float[Tensor, "p m"]
    n: int
    products: int
    rounding: float = 0.0

    @property
    def degree(self) -> float:
        """Up to what order ``moment`` is each probe's own: ``2m - 1``, or infinity where all Krylov spaces ended."""
        return math.inf if not self.residuals.any() else 2.0 * self.nodes.shape[1] - 1

    def function(self, f: Callable[[Tensor], Tensor]) -> Estimate:
        """``tr f(A) / n``, f applied entrywise; exact per probe for polynomials up to ``degree``."""
        values = torch.where(self.weights > 0, f(self.nodes), 0.0)
        return mean((self.weights * values).sum(1), self.products)

    def moment(self, order: int) -> Estimate:
        """``tr A^order / n``, unbiased; ``moment(0)`` is 1."""
        if not 0 <= order <= self.degree:
            raise ValueError(f"SpectralDensity: order must be in [0, {self.degree:g}], got {order}.")
        return self.function(lambda x: x**order)

    @property
    def trace(self) -> Estimate:
        """``tr A``, unbiased."""
        return self.moment(1).scaled(float(self.n))

    @property
    def frobenius_norm(self) -> Estimate:
        """``|A|_F``, the root of ``n`` times the second moment (``Estimate.root`` says how it is biased)."""
        return self.moment(2).scaled(float(self.n)).root()

    def mass(self, low: float, high: float) -> Estimate:
        """The share of eigenvalues in ``[low, high]``.

        Where an end lies inside a bulk the quadrature is uncertain by about the weight of the node next to it, in
        every probe: zero is such an end more often than not.
        """
        if not low <= high:
            raise ValueError(f"SpectralDensity: low must be at most high, got {low} and {high}.")
        return self.function(lambda x: ((x >= low) & (x <= high)).to(x) + 0 * x)  # nan stays nan

    @property
    def largest(self) -> Ritz:
        """The largest Ritz value of all probes: never above the largest eigenvalue, but for rounding."""
        return self._extreme(self.nodes)

    @property
    def smallest(self) -> Ritz:
        """The smallest Ritz value of all probes: never below the smallest eigenvalue, but for rounding."""
        found = self._extreme(-self.nodes)
        return Ritz(-found.value, found.residual)

    def _extreme(self, nodes: Float[Tensor, "p m"]) -> Ritz:
        place = nodes.argmax()
        residual = max(float(self.residuals.flatten()[place]), self.rounding)
        return Ritz(float(nodes.flatten()[place]), residual)

    def default_width(self, scale: float | None = None) -> float:
        """The range of the nodes over their number: about what as many steps can resolve inside a bulk.

        On the axis that ``scale`` says; 1 where all nodes are zero, and a part of the value where all are equal.
        """
        nodes = self.nodes if scale is None else torch.asinh(self.nodes / scale)
        reach = float(nodes.max() - nodes.min()) or float(nodes.abs().max()) or self.nodes.shape[1]
        return reach / self.nodes.shape[1]

    def density(self, grid: Float[Tensor, " g"], width: float | None = None, scale: float | None = None) -> Curve:
        """The density at the grid's points, each node smoothed to a normal curve of standard deviation ``width``.

        With ``scale``, smoothed along ``asinh(x / scale)``, on which ``width`` is a pure number: kernels are
        ``width * scale`` wide near zero and ``width * |x|`` far from it, so that a narrow bulk and outliers hundreds
        of times as large are both seen.  The density stays one per unit of x; its area is 1 in either case.
        """
        if scale is not None and not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"SpectralDensity: scale must be positive, got {scale}.")
        if width is None:
            width = self.default_width(scale)
        if not (math.isfinite(width) and width > 0):
            raise ValueError(f"SpectralDensity: width must be positive, got {width}.")
        grid = grid.to("cpu", torch.float64)
        places, centres, stretch = grid, self.nodes, torch.ones_like(grid)
        if scale is not None:
            places, centres = torch.asinh(grid / scale), torch.asinh(self.nodes / scale)
            stretch = 1 / torch.sqrt(grid.square() + scale**2)
        curves = torch.stack([
            weights @ torch.exp(-0.5 * ((places - nodes[:, None]) / width).square())
            for nodes, weights in zip(centres, self.weights, strict=True)
        ])  # fmt: skip
        curves = curves * stretch / (width * math.sqrt(2 * math.pi))
        count = len(curves)
        errors = curves.std(0) / math.sqrt(count) if count > 1 else torch.full_like(grid, math.nan)
        return Curve(grid, curves.mean(0), errors, width)


def spectral_density(
    matvecs: BlockProduct,
    n: int,
    generator: torch.Generator,
    *,
    probes: int,
    steps: int,
    like: Tensor,
    distribution: Distribution = "gaussian",
    chunk: int | None = None,
) -> SpectralDensity:
    """``steps`` Lanczos steps from each of ``probes`` random directions, on rows like ``like``.

    ``chunk`` probes go side by side (default: as many as keep their bases within ``BASES`` bytes).  Gaussian probes
    depend on no basis; Rademacher ones give the trace of a nearly diagonal matrix with less spread.
    """
    check("spectral_density", n, generator, probes=probes, least=1, distribution=distribution, like=like)
    if steps < 1:
        raise ValueError(f"spectral_density: steps must be at least 1, got {steps}.")
    if chunk is None:
        chunk = max(1, BASES // (min(steps, n) * n * like.element_size()))
    if chunk < 1:
        raise ValueError(f"spectral_density: chunk must be at least 1, got {chunk}.")
    rules, products = [], 0
    for first in range(0, probes, chunk):
        starts = draw(generator, min(chunk, probes - first), n, distribution=distribution, like=like)
        found = tridiagonalize(matvecs, starts, steps)
        rules += [found.ritz(i) for i in range(len(starts))]
        products += found.products
        del found, starts  # the bases, before the next ones
    longest = max(len(nodes) for nodes, _, _ in rules)
    nodes, weights, residuals = torch.zeros(3, probes, longest, dtype=torch.float64)
    for i, (places, shares, bounds) in enumerate(rules):
        nodes[i], residuals[i] = places[-1], bounds[-1]
        nodes[i, : len(places)], weights[i, : len(places)], residuals[i, : len(places)] = places, shares, bounds
    rounding = rounding_floor(float(nodes.abs().max()), like)
    return SpectralDensity(nodes, weights, residuals, n, products, rounding)
