r"""An exact sampler of sparse zero-inflated negative binomial counts.

Only the nonzero entries cost more than two random bytes, because zero and nonzero are told apart
before any count is drawn. A negative binomial count is the number of arrivals in :math:`[0, 1]` of
a Poisson process whose rate is :math:`\Lambda \sim \Gamma(\theta, \beta)`, with
:math:`\beta = \theta / \mu`:

1. The first arrival has :math:`P(T > t) = (1 + t / \beta)^{-\theta}`, so a uniform :math:`W` gives
   :math:`T = \beta\,((1 - W)^{-1/\theta} - 1)`, and the count is positive exactly when
   :math:`T < 1`.
2. Given :math:`T`, the rate is :math:`\Gamma(\theta + 1, \beta + T)`, and the count is
   :math:`1 + \mathrm{Poisson}(\Lambda\,(1 - T))`.

An entry survives zero inflation when :math:`V < 1 - \pi`; then :math:`W = V / (1 - \pi)` is
uniform again. The leading 16 bits of :math:`V` are drawn for every entry and compared with an upper
bound of the probability of a nonzero; the other bits are drawn only for the few that pass. The
bound decides the speed, never the distribution.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

LEVELS = 2**16
BLOCK_ENTRIES = 2**20  # entries of one block: its 16-bit numbers stay in cache
TABLE_ENTRIES = 2**24  # of the table of bounds
MAX_BINS = 64


class Block(NamedTuple):
    """Consecutive rows of the result."""

    row_counts: np.ndarray
    genes: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True)
class ZINBSampler:
    """Sampler of cells whose mean counts are `library` times a row of `rate`, that of `stratum`.

    Attributes
    ----------
    library : (N,) float64, positive
    stratum : (N,) int, rows of `rate`
    rate : (S, G) float64, positive
    theta : (G,) float64, inverse dispersion
    keep : (G,) float64, one minus the probability of an extra zero
    bound_row : (N,) int, rows of `bounds`
    bounds : (C, G) uint16; an entry may be nonzero only if its 16 bits are not above
    """

    library: np.ndarray
    stratum: np.ndarray
    rate: np.ndarray
    theta: np.ndarray
    keep: np.ndarray
    bound_row: np.ndarray
    bounds: np.ndarray

    @classmethod
    def build(
        cls,
        library: np.ndarray,
        stratum: np.ndarray,
        rate: np.ndarray,
        theta: np.ndarray,
        keep: np.ndarray,
    ) -> ZINBSampler:
        """Group the cells by stratum and library size, and bound each group by its largest."""
        n_bins = max(1, min(MAX_BINS, TABLE_ENTRIES // rate.size))
        log_library = np.log(library)
        low, high = log_library.min(), log_library.max()
        width = (high - low) / n_bins
        bins = np.minimum((log_library - low) / max(width, 1e-12), n_bins - 1).astype(np.int64)
        groups, bound_row = np.unique(stratum.astype(np.int64) * n_bins + bins, return_inverse=True)
        largest = np.zeros(len(groups))
        np.maximum.at(largest, bound_row, library)
        bounds = np.empty((len(groups), rate.shape[1]), dtype=np.uint16)
        for row, group in enumerate(groups):
            nonzero = keep * nonzero_probability(largest[row] * rate[group // n_bins], theta)
            # One level more than needed, so that rounding can never make the bound too low.
            bounds[row] = np.minimum(nonzero * LEVELS, LEVELS - 1).astype(np.uint16)
        return cls(library, stratum, rate, theta, keep, bound_row, bounds)

    def block(self, first: int, last: int, rng: np.random.Generator) -> Block:
        """Draw the rows `first` to `last` (exclusive)."""
        n_rows, n_genes = last - first, self.rate.shape[1]
        bits = rng.integers(0, LEVELS, size=(n_rows, n_genes), dtype=np.uint16)
        flat = np.flatnonzero(bits <= self.bounds[self.bound_row[first:last]])
        row = flat // n_genes
        gene = flat - row * n_genes
        mean = self.rate[self.stratum[first:last][row], gene] * self.library[first:last][row]
        theta = self.theta[gene]
        with np.errstate(divide="ignore", over="ignore"):
            uniform = (bits.ravel()[flat] + rng.random(len(flat))) / LEVELS
            uniform = np.minimum(uniform / self.keep[gene], 1.0)
            rate = theta / mean
            arrival = np.expm1(np.log1p(-uniform) / -theta) * rate
        kept = np.flatnonzero(arrival < 1)
        row, gene, arrival = row[kept], gene[kept], arrival[kept]
        later = rng.standard_gamma(theta[kept] + 1)
        later *= (1 - arrival) / (rate[kept] + arrival)
        counts = rng.poisson(later)
        counts += 1
        return Block(
            np.bincount(row, minlength=n_rows), gene.astype(np.int32), counts.astype(np.float32)
        )

    def blocks(self, seed: int) -> Iterator[Block]:
        """Draw all rows in order; threads draw a few blocks ahead.

        Each block has its own random stream, so the result does not depend on the threads.
        """
        n_cells, n_genes = len(self.library), self.rate.shape[1]
        height = max(1, BLOCK_ENTRIES // n_genes)

        def draw(number: int) -> Block:
            stream = np.random.SFC64(np.random.SeedSequence(seed, spawn_key=(1, number)))
            first = number * height
            rng = np.random.Generator(stream)
            return self.block(first, min(first + height, n_cells), rng)

        workers = processors()
        with ThreadPoolExecutor(workers) as pool:
            ahead: deque[Future[Block]] = deque()
            for number in range(-(-n_cells // height)):
                ahead.append(pool.submit(draw, number))
                if len(ahead) > 2 * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def csr(self, seed: int, expected: float) -> csr_matrix:
        """Draw everything into one matrix (N, G) float32 with about `expected` nonzeros."""
        from scipy.sparse import csr_matrix

        n_cells, n_genes = len(self.library), self.rate.shape[1]
        room = int(expected * 1.02) + 1024
        index_dtype = np.int32 if room < 2**31 - 1 else np.int64
        counts, genes = np.empty(room, np.float32), np.empty(room, index_dtype)
        starts = np.zeros(n_cells + 1, dtype=index_dtype)
        row = end = 0
        for block in self.blocks(seed):
            start, end = end, end + len(block.counts)
            if end > len(counts):
                for array in (counts, genes):
                    array.resize(end + end // 8, refcheck=False)
            counts[start:end], genes[start:end] = block.counts, block.genes
            last = row + len(block.row_counts)
            starts[row + 1 : last + 1] = start + np.cumsum(block.row_counts)
            row = last
        # views: numpy 2.5 copies an array to make it shorter
        matrix = csr_matrix((counts[:end], genes[:end], starts), shape=(n_cells, n_genes))
        matrix.has_sorted_indices = matrix.has_canonical_format = True
        return matrix


def nonzero_probability(mean: np.ndarray, theta: np.ndarray) -> np.ndarray:
    r"""Return the probability :math:`1 - (1 + \mu / \theta)^{-\theta}` of a positive NB count."""
    return -np.expm1(-theta * np.log1p(mean / theta))


def processors() -> int:
    """Return the number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
