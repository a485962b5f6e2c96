"""The order of the cells in an epoch, which depends on the seed and the epoch alone."""

from __future__ import annotations

from typing import Protocol

import numpy as np

_GOLDEN = (5**0.5 - 1) / 2


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

    Whoever reads takes many blocks at a time and shuffles them together (`shuffled`). Cells often
    lie in the file by type or by sample, and blocks taken wholly at random would then have some
    kinds twice as often in one pool as in the next, which the end of an epoch shows. So the file
    is cut into as many stretches as a pool has blocks, and blocks come from the stretches in turn,
    from each in a random order of its own: every pool is a sample of the whole file.

    Parameters
    ----------
    cells
        (M,) rows to use, sorted.
    edges
        (B + 1,) rows at which the blocks begin and end.
    seed, epoch
        Of the order.
    pool
        Cells that are read at a time.
    """

    def __init__(
        self, cells: np.ndarray, edges: np.ndarray, seed: int, epoch: int, pool: int
    ) -> None:
        found = np.searchsorted(cells, edges)
        first, last = found[:-1], found[1:]
        filled = np.flatnonzero(last > first)
        per_pool = round(pool * len(filled) / max(1, len(cells)))
        order = filled[_in_stretches(len(filled), per_pool, np.random.default_rng([seed, epoch]))]
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


def _in_stretches(n_blocks: int, n_stretches: int, rng: np.random.Generator) -> np.ndarray:
    """Permute 0..n_blocks-1 so that any `n_stretches` in a row lie all over the range.

    A block's place is the round in which its stretch gives it, then the place of its stretch
    within a round. Where a stretch has a block less than there are rounds, it misses any one.
    """
    n_stretches = max(1, min(n_stretches, n_blocks))
    n_rounds = -(-n_blocks // n_stretches)
    # Which stretches are the shorter ones is drawn too: else the same kinds would be missing.
    sizes = np.full(n_stretches, n_blocks // n_stretches)
    sizes[rng.permutation(n_stretches)[: n_blocks % n_stretches]] += 1
    ticket = rng.random((n_stretches, n_rounds)).argsort(axis=1)
    rounds = np.concatenate([row[:size] for row, size in zip(ticket, sizes, strict=True)])
    stretch = np.repeat(np.arange(n_stretches), sizes)
    # Golden-ratio steps: a part of a round lies all over the file too.
    place = (np.arange(n_stretches) * _GOLDEN + rng.random()) % 1.0
    return np.lexsort([place[stretch], rounds])


def shuffled(cells: np.ndarray, seed: int, epoch: int, pool: int) -> np.ndarray:
    """Shuffle the cells of one pool of an epoch."""
    return np.random.default_rng([seed, epoch, pool]).permutation(cells)
