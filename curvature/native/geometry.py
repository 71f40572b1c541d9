"""Which input position meets which output position under which tap: the tables that the kernels walk.

Positions are pixels, or 1 for a layer on vectors.  A table of lists is stored as ``starts`` (one more than lists), then
the entries; starts count entries.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from spectral_run.curvature.native.operations import Table

_BLOCK = 8


def table(lists: Sequence[Sequence[Sequence[int]]]) -> Table:
    """Lists of entries (numbers or pairs) in the kernels' form."""
    starts = list(itertools.accumulate((len(entries) for entries in lists), initial=0))
    return np.array([*starts, *itertools.chain.from_iterable(itertools.chain.from_iterable(lists))], dtype=np.int32)


@final
@dataclass(frozen=True)
class Contraction:
    """Triples (output position, input position, tap) of a layer that is linear in its weights."""

    positions_in: int
    positions_out: int
    taps: int
    blocks: int
    forward: Table  # per output position: (input position, tap)
    transposed: Table  # per input position: (output position, tap)
    weights: Table  # per block of output positions and tap: (output position, input position)

    @staticmethod
    def of(triples: Sequence[tuple[int, int, int]], positions_in: int, positions_out: int, taps: int) -> Contraction:
        """The three tables of a list of triples."""
        blocks = -(-positions_out // _BLOCK)
        forward: list[list[tuple[int, int]]] = [[] for _ in range(positions_out)]
        transposed: list[list[tuple[int, int]]] = [[] for _ in range(positions_in)]
        weights: list[list[tuple[int, int]]] = [[] for _ in range(blocks * taps)]
        for p, q, tap in triples:
            forward[p].append((q, tap))
            transposed[q].append((p, tap))
            weights[p // _BLOCK * taps + tap].append((p, q))
        return Contraction(positions_in, positions_out, taps, blocks, *map(table, (forward, transposed, weights)))


def affine(positions: int) -> Contraction:
    """A layer on vectors; after a flattened image its taps are the pixels."""
    return Contraction.of([(0, q, q) for q in range(positions)], positions, 1, positions)


Axis = tuple[int, int, int, int, int]
"""Of one axis: input size, kernel size, stride, padding before, dilation."""


def outputs(axis: Axis, after: int, *, ceiling: bool = False) -> int:
    """Output size of a kernel along one axis, ``after`` being the padding behind it, as torch counts it."""
    size, kernel, stride, before, dilation = axis
    room = size + before + after - dilation * (kernel - 1) - 1
    count = (room + stride - 1 if ceiling else room) // stride + 1
    # A last window that would begin in the padding behind is left out.
    return count - 1 if ceiling and (count - 1) * stride >= size + before else count


def under(axis: Axis, i: int) -> list[tuple[int, int]]:
    """(input place, tap) under the kernel at output place i, without the padding."""
    size, kernel, stride, before, dilation = axis
    places = ((i * stride - before + tap * dilation, tap) for tap in range(kernel))
    return [(place, tap) for place, tap in places if 0 <= place < size]


def convolution(rows: Axis, columns: Axis, after: tuple[int, int]) -> tuple[Contraction, tuple[int, int]]:
    """A convolution over an image, and the size it gives."""
    high, wide = outputs(rows, after[0]), outputs(columns, after[1])
    triples = [
        (y * wide + x, qy * columns[0] + qx, ty * columns[1] + tx)
        for y, x in itertools.product(range(high), range(wide))
        for qy, ty in under(rows, y)
        for qx, tx in under(columns, x)
    ]
    return Contraction.of(triples, rows[0] * columns[0], high * wide, rows[1] * columns[1]), (high, wide)


@final
@dataclass(frozen=True)
class Windows:
    """Input positions under each window of a pooling layer."""

    positions_in: int
    positions_out: int
    table: Table
    disjoint: bool  # every input position is in exactly one window

    @staticmethod
    def of(rows: Sequence[Sequence[int]], columns: Sequence[Sequence[int]], size: tuple[int, int]) -> Windows:
        """Every pair of a list of rows and a list of columns, in the order in which ties are decided."""
        lists = [[y * size[1] + x for y in ys for x in xs] for ys in rows for xs in columns]
        positions = size[0] * size[1]
        disjoint = sorted(itertools.chain.from_iterable(lists)) == list(range(positions))
        return Windows(positions, len(lists), table([[(q,) for q in window] for window in lists]), disjoint)
