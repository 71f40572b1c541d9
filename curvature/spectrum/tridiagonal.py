"""Lanczos for many start vectors side by side: what a symmetric matrix looks like from each of them.

Source: Lanczos 1950.  From each start vector v its own ``A V = V T + beta w e_m'``, V orthonormal, T tridiagonal.
The coefficients on all earlier basis vectors are taken out, and once more where the first pass removed more than it
left (Daniel, Gragg, Kaufman, Stewart 1976), so V stays orthonormal to rounding and no eigenvalue comes up twice.
A probe ends early where ``A v_j`` lies in the basis to rounding: its Krylov space is then invariant, and T exact in it.
Rounding is 100 units of the largest ``|A v_j|`` (``rounding_floor``): in float32, eigenvalues closer than 1e-5 of the
largest are one.
Dimensions: k start vectors, m steps, n entries.  Cost: ``k`` products a step in one call, fewer once probes have ended;
``O(k m^2 n)`` further work and ``k m n`` numbers of memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from spectral_run.curvature.solver import BlockProduct, rounding_floor
from spectral_run.curvature.spectrum.probes import multiplied

_CANCELLED = 0.5**0.5  # a second pass where the first left less than this part of the vector


@dataclass(frozen=True)
class Tridiagonals:
    """For each start vector: T's diagonal, the numbers beside it, and the basis.

    ``sizes``: steps made; entries beyond are zero.  ``betas[i, sizes[i] - 1]`` is what couples the basis to the rest:
    exactly 0 where it spans an invariant subspace.  A product that is not finite makes its probe's last alpha nan.
    """

    alphas: Float[Tensor, "k m"]
    betas: Float[Tensor, "k m"]
    sizes: tuple[int, ...]
    basis: Float[Tensor, "k m n"]
    products: int

    def ritz(self, probe: int) -> tuple[Float[Tensor, " s"], Float[Tensor, " s"], Float[Tensor, " s"]]:
        """Gauss's quadrature of a probe: nodes, ascending; weights, which sum to 1; residuals of the Ritz pairs.

        Golub, Welsch 1969: the weights are the squared first components of T's eigenvectors.
        """
        size = self.sizes[probe]
        alphas, betas = self.alphas[probe, :size], self.betas[probe, :size]
        if not math.isfinite(float(alphas.sum() + betas.sum())):
            nan = torch.full((size,), math.nan, dtype=torch.float64)
            return nan, torch.full_like(nan, 1 / size), nan
        small = torch.diag(alphas) + torch.diag(betas[:-1], 1) + torch.diag(betas[:-1], -1)
        nodes, vectors = torch.linalg.eigh(small)
        return nodes, vectors[0].square(), betas[-1] * vectors[-1].abs()


def tridiagonalize(matvecs: BlockProduct, starts: Float[Tensor, "k n"], steps: int) -> Tridiagonals:
    """``steps`` Lanczos steps (``n`` at most) from every row. Deterministic."""
    if steps < 1:
        raise ValueError(f"tridiagonalize: steps must be at least 1, got {steps}.")
    norms = torch.linalg.vector_norm(starts, dim=1, keepdim=True)
    if not bool((norms.isfinite() & (norms > 0)).all()):
        raise ValueError(f"tridiagonalize: starts must be finite and not zero, got norms {norms[:, 0].tolist()}.")
    count, n = starts.shape
    steps = min(steps, n)
    basis = starts.new_zeros(count, steps, n)  # an ended probe's rows go on being projected on
    basis[:, 0] = starts / norms
    alphas, betas = torch.zeros(2, count, steps, dtype=torch.float64)
    scales = [0.0] * count  # the largest |A v_j| seen: no more than A's norm
    sizes = [0] * count
    going = list(range(count))
    products = 0
    for j in range(steps):
        w = starts.new_zeros(count, n)
        w[going] = multiplied("tridiagonalize", matvecs, basis[going, j])
        products += len(going)
        w, column, before, after = _outside(w, basis[:, : j + 1])
        ahead = []
        for i in going:
            sizes[i] = j + 1
            alphas[i, j] = column[i]
            scales[i] = max(scales[i], before[i])
            if not math.isfinite(column[i] + before[i] + after[i]):
                alphas[i, j] = math.nan
            elif j + 1 < n and after[i] > rounding_floor(scales[i], starts):
                betas[i, j] = after[i]
                ahead.append(i)
        going = ahead
        if not going:
            break
        if j + 1 < steps:
            basis[going, j + 1] = w[going] / starts.new_tensor([after[i] for i in going])[:, None]
    return Tridiagonals(alphas, betas, tuple(sizes), basis, products)


def _outside(w: Tensor, basis: Tensor) -> tuple[Tensor, list[float], list[float], list[float]]:
    """What of each image lies outside its basis; its coefficient on the last vector; its norm before and after."""
    before = torch.linalg.vector_norm(w, dim=1)
    w, coefficients = _projected(w, basis)
    after = torch.linalg.vector_norm(w, dim=1)
    if bool((after < _CANCELLED * before).any()):
        w, again = _projected(w, basis)
        coefficients = coefficients + again
        after = torch.linalg.vector_norm(w, dim=1)
    columns = torch.stack((coefficients, before, after)).double().tolist()
    return w, columns[0], columns[1], columns[2]


def _projected(w: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """One pass; a probe at a time, since batched products of a matrix and a vector are several times slower."""
    parts = [torch.mv(rows, row) for rows, row in zip(basis, w, strict=True)]
    left = [torch.addmv(row, rows.T, c, alpha=-1) for row, rows, c in zip(w, basis, parts, strict=True)]
    return torch.stack(left), torch.stack([c[-1] for c in parts])
