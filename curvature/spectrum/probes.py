"""Random rows that estimators multiply: independent entries of mean 0 and variance 1.

Rademacher entries are +1 or -1: ``v_i^2 = 1`` takes the diagonal out of the variance of ``v'Av``, which is
``2 (|A|_F^2 - sum_i A_ii^2)`` for a symmetric matrix, against ``2 |A|_F^2`` for Gaussian ones (Hutchinson 1990).
Gaussian rows point in every direction alike, so that nothing depends on the basis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, TypeAlias, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from spectral_run.curvature.solver import BlockProduct

Distribution: TypeAlias = Literal["rademacher", "gaussian"]


def draw(
    generator: torch.Generator, count: int, n: int, *, distribution: Distribution, like: Tensor
) -> Float[Tensor, "k n"]:
    """``count`` rows, drawn on the CPU one after the other (so that no row depends on how many are drawn at once)."""
    rows = like.new_empty(count, n)
    for row in rows:
        if distribution == "rademacher":
            row.copy_(2 * torch.randint(2, (n,), generator=generator) - 1)
        else:
            row.copy_(torch.randn(n, generator=generator, dtype=torch.float64))
    return rows


def multiplied(who: str, matvecs: BlockProduct, rows: Float[Tensor, "k n"]) -> Float[Tensor, "k n"]:
    """The rows' products, or a ``ValueError`` where they are not rows of the same shape."""
    images = matvecs(rows)
    if images.shape != rows.shape:
        raise ValueError(f"{who}: matvecs must keep the shape {tuple(rows.shape)}, got {tuple(images.shape)}.")
    return images


def images(
    who: str,
    matvecs: BlockProduct,
    n: int,
    generator: torch.Generator,
    *,
    probes: int,
    distribution: Distribution,
    chunk: int,
    like: Tensor,
    change: Callable[[Tensor], Tensor] = lambda rows: rows,
) -> Iterator[tuple[Float[Tensor, "k n"], Float[Tensor, "k n"]]]:
    """``chunk`` probes at a time, after ``change``, and their products."""
    for start in range(0, probes, chunk):
        rows = change(draw(generator, min(chunk, probes - start), n, distribution=distribution, like=like))
        yield rows, multiplied(who, matvecs, rows)


def check(
    who: str, n: int, generator: torch.Generator, *, probes: int, least: int, distribution: str, like: Tensor
) -> None:
    """Refuse what no estimator can work with."""
    if n < 1:
        raise ValueError(f"{who}: n must be at least 1, got {n}.")
    if probes < least:
        raise ValueError(f"{who}: probes must be at least {least}, got {probes}.")
    if distribution not in get_args(Distribution):
        raise ValueError(f"{who}: distribution must be one of rademacher, gaussian, got {distribution!r}.")
    if generator.device.type != "cpu":
        raise ValueError(f"{who}: generator must be a CPU generator, got one on {generator.device}.")
    if like.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{who}: like must be float32 or float64, got {like.dtype}.")
