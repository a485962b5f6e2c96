"""Means of the counts of groups of cells, from one pass over the cells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from ...data import Minibatches

NORMALISED_TOTAL = 1e4


@dataclass(frozen=True, eq=False)
class GroupSums:
    """Sums over the cells of each code, (codes, G) float64.

    Attributes
    ----------
    n_cells
        (codes,) number of cells.
    counts, nonzero, normalised
        Counts, number of cells with a count, and counts scaled to a total of 1e4 per cell.
    """

    n_cells: np.ndarray
    counts: np.ndarray
    nonzero: np.ndarray
    normalised: np.ndarray

    def mean(self, codes: tuple[int, ...]) -> np.ndarray:
        """Return the mean count of the cells with these codes, (G,)."""
        return self._mean(self.counts, codes)

    def statistics(self, first: tuple[int, ...], second: tuple[int, ...]) -> dict[str, np.ndarray]:
        """Return the columns that describe the counts of the two groups."""
        named = {
            "raw_mean": self.counts,
            "non_zeros_proportion": self.nonzero,
            "raw_normalized_mean": self.normalised,
        }
        return {
            f"{name}{number}": self._mean(sums, codes)
            for name, sums in named.items()
            for number, codes in ((1, first), (2, second))
        }

    def _mean(self, sums: np.ndarray, codes: tuple[int, ...]) -> np.ndarray:
        chosen = list(codes)
        mean: np.ndarray = sums[chosen].sum(axis=0) / self.n_cells[chosen].sum()
        return mean


def sum_groups(batches: Minibatches, codes: np.ndarray, n_codes: int, n_genes: int) -> GroupSums:
    """Add up the counts of the cells in `batches` by their codes (N,); memory is codes x G.

    A cell without counts adds nothing, not even to the normalised counts.
    """
    sums = [np.zeros((n_codes, n_genes)) for _ in range(3)]
    n_cells = np.zeros(n_codes)
    for batch in batches:
        x = batch.x
        crow, col = x.crow_indices().cpu().numpy(), x.col_indices().cpu().numpy()
        counts = x.values().cpu().numpy().astype(np.float64)
        code = codes[batch.cells]
        n_here = len(code)
        n_cells += np.bincount(code, minlength=n_codes)
        total = np.add.reduceat(np.append(counts, 0.0), crow[:-1]) * (np.diff(crow) > 0)
        factor = np.divide(NORMALISED_TOTAL, total, out=np.zeros(n_here), where=total > 0)
        normalised = counts * np.repeat(factor, np.diff(crow))
        rows = sp.csr_matrix((np.ones(n_here), (code, np.arange(n_here))), (n_codes, n_here))
        for into, values in zip(sums, (counts, np.ones_like(counts), normalised), strict=True):
            part = rows @ sp.csr_matrix((values, col, crow), (n_here, n_genes))
            group = np.repeat(np.arange(n_codes), np.diff(part.indptr))
            into[group, part.indices] += part.data
    return GroupSums(n_cells, *sums)
