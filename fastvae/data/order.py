"""The order of the cells in an epoch: a function of the seed and the epoch's number alone."""

from __future__ import annotations

from typing import Protocol

import numpy as np


class Order(Protocol):
    """Positions 0..M-1 of an epoch, and which cell stands at each."""

    def at(self, start: int, stop: int) -> np.ndarray:
        """Return the cells at positions `start` to `stop`, int64."""


class WholeOrder:
    """Cells as given, or a permutation in which every order is equally likely."""

    def __init__(self, cells: np.ndarray, shuffle: bool, seed: int, epoch: int) -> None:
        self._cells = np.random.default_rng([seed, epoch]).permutation(cells) if shuffle else cells

    def at(self, start: int, stop: int) -> np.ndarray:
        """See `Order`."""
        return self._cells[start:stop]


class BlockOrder:
    """Blocks of neighbouring cells in a random order; each block as it lies in the file.

    Whoever reads takes many blocks at a time and shuffles them together (`shuffled`).

    Parameters
    ----------
    cells
        (M,) rows to use, sorted.
    edges
        (B + 1,) rows at which the blocks begin and end.
    seed, epoch
        Of the order.
    """

    def __init__(self, cells: np.ndarray, edges: np.ndarray, seed: int, epoch: int) -> None:
        found = np.searchsorted(cells, edges)
        first, last = found[:-1], found[1:]
        filled = np.flatnonzero(last > first)
        order = np.random.default_rng([seed, epoch]).permutation(filled)
        self._cells = cells
        self._first = first[order]
        self._ends = np.cumsum(last[order] - self._first)

    def at(self, start: int, stop: int) -> np.ndarray:
        """See `Order`."""
        block = int(np.searchsorted(self._ends, start, side="right"))
        pieces = [self._cells[:0]]
        while start < stop:
            end = int(self._ends[block])
            begin = int(self._ends[block - 1]) if block else 0
            offset = int(self._first[block]) + start - begin
            taken = min(stop, end) - start
            pieces.append(self._cells[offset : offset + taken])
            start += taken
            block += 1
        return np.concatenate(pieces)


def shuffled(cells: np.ndarray, seed: int, epoch: int, pool: int) -> np.ndarray:
    """Shuffle the cells of one pool of an epoch."""
    return np.random.default_rng([seed, epoch, pool]).permutation(cells)
