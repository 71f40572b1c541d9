"""One seed, a generator per purpose: seeded by (seed, data set, purpose), never by regularizer or model.

So the rows of a table are paired: same initialization, same batches.  The numbers of a step or an epoch go into its
own generator's seed, so that a resumed run needs no saved state to draw what an unbroken one would.
"""

from __future__ import annotations

import hashlib

import torch


def derive(seed: int, dataset: str, purpose: str, *numbers: int) -> int:
    """A seed of 63 bits for a purpose: ``initialization``, ``order``, ``forward``, ``eigensolver``, ``measure``."""
    text = ":".join([str(seed), dataset, purpose, *map(str, numbers)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, dataset: str, purpose: str, *numbers: int) -> torch.Generator:
    """A CPU generator for a purpose."""
    return torch.Generator().manual_seed(derive(seed, dataset, purpose, *numbers))
