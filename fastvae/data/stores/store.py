"""The store: counts, codes and names of one data set, ready to be cut into minibatches."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import scipy.sparse as sp
import torch

from ..._covariates import NO_COVARIATES, CellCovariates
from ..keys import Key, in_words
from .minibatch import Part, SpareMemory

# The local encoder cannot express less (its variance head adds this much), and a batch whose
# cells all have one depth would otherwise give an infinite KL divergence.
_MIN_VARIANCE = 1e-4

_SHOWN = 10


@dataclass(frozen=True, eq=False)
class Store:
    """What minibatches need to know of N cells x G genes, wherever the counts are.

    `Minibatches` uses `part`, the codes and the library statistics only.

    Attributes
    ----------
    gene_names
        (G,) array of str (object dtype).
    batch_codes, label_codes
        (N,) int64; zeros where there is no key.
    batch_categories, label_categories
        Names of the codes; empty where there is no key.
    log_library_mean, log_library_var
        (max(n_batch, 1),) float32: mean and population variance, per batch, of the log of the
        total count per cell. Cells without counts are left out; a batch with no other cells has
        the values of the whole data set; the variance is at least 1e-4.
    covariates
        Covariates beside the batch, as arrays of the shapes and dtypes that `Minibatch` has, for
        all N cells.
    covariate_categories
        Names of the codes of each categorical covariate.
    """

    residence: ClassVar[str]

    gene_names: np.ndarray
    batch_codes: np.ndarray
    batch_categories: tuple[str, ...]
    label_codes: np.ndarray
    label_categories: tuple[str, ...]
    log_library_mean: np.ndarray
    log_library_var: np.ndarray
    covariates: CellCovariates = field(default=NO_COVARIATES, kw_only=True)
    covariate_categories: tuple[tuple[str, ...], ...] = field(default=(), kw_only=True)

    if TYPE_CHECKING:  # a field of one store, a property of the others

        @property
        def cell_names(self) -> np.ndarray:
            """(N,) array of str (object dtype)."""

    @property
    def n_cells(self) -> int:
        """N."""
        return len(self.batch_codes)

    @property
    def n_genes(self) -> int:
        """G."""
        return len(self.gene_names)

    @property
    def n_batch(self) -> int:
        """Number of batch categories; 0 without a batch key."""
        return len(self.batch_categories)

    @property
    def n_labels(self) -> int:
        """Number of label categories; 0 without a label key."""
        return len(self.label_categories)

    @property
    def n_stored(self) -> int:
        """Number of nonzero counts."""
        raise NotImplementedError

    @property
    def n_empty_cells(self) -> int:
        """Cells without a single count; they are kept, and every result for them is finite."""
        return int(np.count_nonzero(self.lengths() == 0))

    @property
    def block_edges(self) -> np.ndarray | None:
        """First rows of the blocks that are read in one piece; None if any row is as quick."""
        return None

    @property
    def pool_cells(self) -> int:
        """How many cells a part may have."""
        return self.n_cells

    @property
    def workers(self) -> int:
        """Threads that prepare parts in advance."""
        return 0

    def lengths(self) -> np.ndarray:
        """Return the number of nonzero counts of each cell, (N,)."""
        raise NotImplementedError

    def part(
        self, cells: np.ndarray, device: torch.device, memory: SpareMemory | None = None
    ) -> Part:
        """Prepare to cut minibatches from a sequence of cells, on `device`.

        Counts that have to be read go to `memory`, where that is given.
        """
        raise NotImplementedError

    def rows(self, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Gather rows as CSR arrays.

        Parameters
        ----------
        cells
            (B,) row numbers, any order.

        Returns
        -------
        crow, col, values
            (B+1,) int32, (nnz,) int32, (nnz,) float32; fresh arrays.
        """
        x = self.part(np.asarray(cells), torch.device("cpu")).minibatch(0, len(cells)).x
        return x.crow_indices().numpy(), x.col_indices().numpy(), x.values().numpy()


FEW_CELLS = 3
"""What is particular to a batch of fewer cells cannot be learned."""


def warn_of_small_batches(store: Store, key: Key | None) -> None:
    """Warn once of batches with fewer than three cells, by name and size."""
    sizes = np.bincount(store.batch_codes, minlength=store.n_batch)
    small = [code for code in range(store.n_batch) if 0 < sizes[code] < FEW_CELLS]
    if not small:
        return
    shown = ", ".join(
        f"{store.batch_categories[code]!r} ({sizes[code]} cell{'s' if sizes[code] > 1 else ''})"
        for code in small[:_SHOWN]
    )
    more = f" and {len(small) - _SHOWN} more" if len(small) > _SHOWN else ""
    warnings.warn(
        f"batches of {in_words(key)} with fewer than {FEW_CELLS} cells: {shown}{more}; what is "
        "particular to a batch cannot be learned from so few: join them to others, or leave these "
        "cells out",
        UserWarning,
        stacklevel=4,
    )


def log_library_statistics(
    counts: sp.csr_matrix, batch_codes: np.ndarray, n_groups: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and population variance of log total counts per batch, as float32 (n_groups,).

    Cells without counts are left out. A batch with no other cells has the overall values. The
    variance is at least 1e-4.
    """
    totals = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
    return library_statistics(totals, batch_codes, n_groups)


def library_statistics(
    totals: np.ndarray, batch_codes: np.ndarray, n_groups: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return `log_library_statistics` from the total counts of the cells, (N,) float64."""
    filled = totals > 0
    logs, groups = np.log(totals[filled]), batch_codes[filled]
    overall = (logs.mean(), logs.var()) if len(logs) else (0.0, 0.0)
    sizes = np.bincount(groups, minlength=n_groups)
    means = np.bincount(groups, weights=logs, minlength=n_groups) / np.maximum(sizes, 1)
    squares = np.bincount(groups, weights=(logs - means[groups]) ** 2, minlength=n_groups)
    variances = squares / np.maximum(sizes, 1)
    means[sizes == 0], variances[sizes == 0] = overall
    return means.astype(np.float32), np.maximum(variances, _MIN_VARIANCE).astype(np.float32)
