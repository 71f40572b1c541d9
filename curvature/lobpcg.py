"""Locally optimal block preconditioned conjugate gradient with block size one (Knyazev 2001).

Rayleigh-Ritz on ``span{v, T r, p}``: v the iterate, ``r = Hv - lambda v``, T a preconditioner (identity by default), p
the last direction.  The Ritz value of largest modulus is taken, so either end of an indefinite spectrum is found.
Cost: one product a step, three vectors and their images; nothing grows.  The images of v and p are updated by the same
linear combination as the vectors, never by a product of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from spectral_run.curvature.solver import EigenResult, EigenSolver, Product, Reason, unit


@final
@dataclass(frozen=True, kw_only=True)
class LOBPCG(EigenSolver):
    """The real one, as opposed to the paper's algorithm 2."""

    def solve(
        self, product: Product, start: Float[Tensor, " n"], *, preconditioner: Product | None = None
    ) -> EigenResult:
        """The eigenpair of largest modulus."""
        v = unit(start)
        hv = product(v)
        products = 1
        direction: tuple[Tensor, Tensor] | None = None  # p and H p
        while True:
            value = float(hv @ v)
            r = hv - value * v
            residual = float(r.norm())
            reason: Reason | None = self.verdict(value, residual)
            if reason is None and products >= self.cap:
                reason = "cap"
            if reason is not None:
                return EigenResult(value, v, residual, products, reason)
            vectors, images = [v], [hv]
            if direction is not None:
                _append(vectors, images, *direction)
            search = _orthogonalize(r if preconditioner is None else preconditioner(r), vectors)
            if search is None:  # the residual lies in the span already: nothing better is to be had from it
                return EigenResult(value, v, residual, products, "stalled")
            vectors.append(search)
            images.append(product(search))
            products += 1
            basis, mapped = torch.stack(vectors), torch.stack(images)
            small = (basis @ mapped.T).to("cpu", torch.float64)
            values, coefficients = torch.linalg.eigh((small + small.T) / 2)
            s = coefficients[:, int(values.abs().argmax())].to(basis)
            tail = torch.cat([s.new_zeros(1), s[1:]])
            direction = (tail @ basis, tail @ mapped)
            v, hv = s @ basis, s @ mapped
            norm = v.norm()
            v, hv = v / norm, hv / norm


def _orthogonalize(x: Tensor, vectors: list[Tensor]) -> Tensor | None:
    """X made orthonormal to the vectors, twice over; None where nothing but rounding is left."""
    x = x / x.norm()
    for _ in range(2):
        for y in vectors:
            x = x - (x @ y) * y
    norm = float(x.norm())
    return x / norm if norm > 10 * torch.finfo(x.dtype).eps else None


def _append(vectors: list[Tensor], images: list[Tensor], p: Tensor, hp: Tensor) -> None:
    """Add direction p, made orthonormal to v, with the same combination applied to its image."""
    v, hv = vectors[0], images[0]
    for _ in range(2):
        scale = p.norm()
        if not float(scale) > 0:
            return
        p, hp = p / scale, hp / scale
        overlap = p @ v
        p, hp = p - overlap * v, hp - overlap * hv
    norm = p.norm()
    if float(norm) > 10 * torch.finfo(p.dtype).eps:
        vectors.append(p / norm)
        images.append(hp / norm)
