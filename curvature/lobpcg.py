"""Locally optimal block preconditioned conjugate gradient (Knyazev 2001).

Rayleigh-Ritz on ``span{X, T R, P}``: X the block's iterates (one row for one pair), ``R = HX - lambda X`` by rows, T a
preconditioner (identity by default), P the last directions.  The Ritz values at the wanted end are taken, so either end
of an indefinite spectrum is found, and the largest modulus.  A block of b rows finds up to b copies of a repeated
eigenvalue.
Cost: one product a step and row that has not converged; three blocks and their images, nothing grows.  The images of X
and P are updated by the same linear combination as the vectors, never by a product of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from spectral_run.curvature.solver import (
    BlockProduct,
    EigenPairs,
    EigenResult,
    EigenSolver,
    Product,
    Reason,
    orthonormal,
    rounding_floor,
    unit,
    without,
)


@final
@dataclass(frozen=True, kw_only=True)
class LOBPCG(EigenSolver):
    """The real one, as opposed to the paper's algorithm 2."""

    def solve(
        self, product: Product, start: Float[Tensor, " n"], *, preconditioner: Product | None = None
    ) -> EigenResult:
        """The eigenpair at the wanted end."""
        first = unit(start)[None]
        pairs = self.several(lambda rows: product(rows[0])[None], first, first[:0], preconditioner=preconditioner)
        return EigenResult(
            float(pairs.values[0]), pairs.vectors[0], float(pairs.residuals[0]), pairs.products, pairs.reason
        )

    def several(
        self,
        product: BlockProduct,
        starts: Float[Tensor, "k n"],
        locked: Float[Tensor, "m n"],
        *,
        preconditioner: Product | None = None,
        floor: float = 0.0,
    ) -> EigenPairs:
        """``k`` pairs as one block, stopped when all of them meet the tolerance."""
        basis = orthonormal(starts[: self.cap], locked)
        images = product(basis)
        rows = products = len(basis)  # the basis is the iterates x, the last directions p, the new search directions
        while True:
            small = (basis @ images.T).to("cpu", torch.float64)
            if not bool(torch.isfinite(small).all()):
                none = torch.full((rows,), torch.nan, dtype=torch.float64)
                return EigenPairs(none, basis[:rows], none, products, "nan")
            ritz, vectors = torch.linalg.eigh((small + small.T) / 2)
            s = vectors[:, self.ranking(ritz.tolist(), rows)].T.to(basis)
            tail = s.clone()
            tail[:, :rows] = 0
            p, hp = tail @ basis, tail @ images
            x, hx = s @ basis, s @ images
            norms = torch.linalg.vector_norm(x, dim=1, keepdim=True)
            x, hx = x / norms, hx / norms
            scale = (hx * x).sum(1)
            whole = hx - scale[:, None] * x
            r = without(whole, locked)
            lengths = torch.linalg.vector_norm(torch.stack((r, whole)), dim=2)
            values, inside, residuals = torch.cat((scale[None], lengths)).to("cpu", torch.float64)
            floor = max(floor, rounding_floor(float(ritz.abs().max()), x))
            pairs = zip(values.tolist(), inside.tolist(), strict=True)
            verdicts = [self.verdict(value, residual, floor) for value, residual in pairs]
            active = [i for i, verdict in enumerate(verdicts) if verdict is None]
            reason: Reason | None = None if active else verdicts[0]
            if active and products + len(active) > self.cap:
                reason = "cap"
            if reason is None:
                p, hp = _orthonormal_with_images(p[active], hp[active], x, hx)
                kept = torch.cat([x, p])
                search = r[active] if preconditioner is None else torch.stack([preconditioner(r[i]) for i in active])
                search = orthonormal(search, torch.cat([locked, kept]))
                if not len(search):  # the residuals lie in the span already: nothing better is to be had from them
                    reason = "stalled"
            if reason is not None:
                return EigenPairs(values, x, residuals, products, reason)
            products += len(search)
            basis, images = torch.cat([kept, search]), torch.cat([hx, hp, product(search)])


def _orthonormal_with_images(p: Tensor, hp: Tensor, x: Tensor, hx: Tensor) -> tuple[Tensor, Tensor]:
    """Directions p made orthonormal to x and each other, with the same combinations applied to their images."""
    kept, images = x, hx
    for row, image in zip(p, hp, strict=True):
        for _ in range(2):
            scale = row.norm()
            if not float(scale) > 0:
                break
            row, image = row / scale, image / scale
            overlap = kept @ row
            row, image = row - overlap @ kept, image - overlap @ images
        norm = row.norm()
        if float(norm) > 10 * torch.finfo(row.dtype).eps:
            kept, images = torch.cat([kept, (row / norm)[None]]), torch.cat([images, (image / norm)[None]])
    return kept[len(x) :], images[len(x) :]
