"""The store: counts, codes and names of one data set, ready to be cut into minibatches."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import scipy.sparse as sp
import torch

from ..errors import InputError
from ._matrix import to_csr
from .genes import STRICT, Genes, MayLack, select_genes
from .keys import Key, encode, in_words
from .parts import HostPart, Part, SpareMemory, gather_rows
from .validate import Origin, canonicalise, check_axes, check_counts

if TYPE_CHECKING:
    from anndata import AnnData

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
    """

    residence: ClassVar[str]

    gene_names: np.ndarray
    batch_codes: np.ndarray
    batch_categories: tuple[str, ...]
    label_codes: np.ndarray
    label_categories: tuple[str, ...]
    log_library_mean: np.ndarray
    log_library_var: np.ndarray

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
        """Rows at which the blocks begin that are read in one piece; None: any row is as quick."""
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
        """Make ready to cut minibatches from a sequence of cells, on `device`.

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


@dataclass(frozen=True, eq=False)
class CountStore(Store):
    """Counts in the memory of this machine.

    Attributes
    ----------
    counts
        scipy CSR float32 (N, G), columns sorted, no duplicates, no stored zeros.
    cell_names
        (N,) array of str (object dtype).
    """

    residence: ClassVar[str] = "host"

    counts: sp.csr_matrix
    cell_names: np.ndarray

    @classmethod
    def from_anndata(
        cls,
        adata: AnnData,
        *,
        batch_key: Key | None = None,
        labels_key: Key | None = None,
        batch_categories: Sequence[str] | None = None,
        label_categories: Sequence[str] | None = None,
        gene_names: Sequence[str] | None = None,
        gene_ids: Sequence[str] | None = None,
        may_lack: MayLack = STRICT,
        allow_fractional: bool = False,
    ) -> CountStore:
        """Build the store from what `read` returns.

        Parameters
        ----------
        adata
            Counts in ``X``. They are shared, not copied, if they are in the form that `read`
            gives and no gene selection is asked for; any other form is converted.
        batch_key, labels_key
            Columns of ``obs``, or None.
        batch_categories, label_categories, gene_names
            Those of a saved model: codes and the order of genes follow it, other genes are
            left out.
        gene_ids
            Ids of `gene_names`, of a saved model; none where it does not know them.
        may_lack
            Which of `gene_names` may be missing; they get zero counts.
        allow_fractional
            Whether counts may be other than whole numbers.

        Returns
        -------
        CountStore
            Everything of `adata` that training needs.

        Raises
        ------
        InputError
            Values that are not counts, a missing column or value, a category the model does not
            know, a gene of the model that is not there.
        """
        origin = Origin("the data", "", adata.obs_names, adata.var_names)
        check_axes(origin)
        batch_codes, batches = encode(adata.obs, batch_key, batch_categories, "batch")
        label_codes, labels = encode(adata.obs, labels_key, label_categories, "label")
        counts = adata.X
        if counts is None:
            raise InputError("the data has no X; pass a layer to fastvae.data.read(layer=...)")
        if not _is_canonical(counts):
            counts = to_csr(counts, origin.shape, origin.where)
            canonicalise(counts)
        check_counts(counts, origin, warn=False, allow_fractional=allow_fractional)
        genes = np.asarray(adata.var_names, dtype=object)
        if gene_names is not None:
            wanted, saved = Genes.of_model(gene_names, gene_ids), gene_ids is not None
            have = Genes.of(adata.var)
            counts = select_genes(counts, have, wanted, adata.var, may_lack, warn=saved)
            genes = np.asarray(gene_names, dtype=object)
        mean, variance = log_library_statistics(counts, batch_codes, max(len(batches), 1))
        return cls(
            counts=counts,
            gene_names=genes,
            cell_names=np.asarray(adata.obs_names, dtype=object),
            batch_codes=batch_codes,
            batch_categories=batches,
            label_codes=label_codes,
            label_categories=labels,
            log_library_mean=mean,
            log_library_var=variance,
        )

    @property
    def n_stored(self) -> int:
        """Number of nonzero counts."""
        return int(self.counts.nnz)

    def lengths(self) -> np.ndarray:
        """Return the number of nonzero counts of each cell, (N,)."""
        return np.diff(self.counts.indptr)

    def part(
        self, cells: np.ndarray, device: torch.device, memory: SpareMemory | None = None
    ) -> Part:
        """See `Store`."""
        return HostPart(self, cells, self.counts, cells, device)

    def rows(self, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See `Store`."""
        return gather_rows(self.counts, cells)


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
        stacklevel=3,
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


def _is_canonical(matrix: Any) -> bool:
    return bool(
        isinstance(matrix, (sp.csr_matrix, sp.csr_array))
        and matrix.dtype == np.float32
        and matrix.has_canonical_format
        and np.all(matrix.data)
    )
