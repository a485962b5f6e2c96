"""Counts in memory, and the minibatches cut from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import scipy.sparse as sp
import torch

from ..._covariates import CellCovariates
from ...errors import InputError
from ...functional.gather import gather_rows
from ..checks import Origin, canonicalise, check_axes, check_counts
from ..covariates import CovariateKeys, covariates_of_cells
from ..csr import csr_tensor, on_device
from ..genes import STRICT, Genes, MayLack, select_genes
from ..keys import Key, encode
from ..sources.matrix import to_csr
from .minibatch import Minibatch, Part, SpareMemory
from .store import Store, log_library_statistics

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData


class HostPart:
    """Cells whose counts are rows of a CSR matrix in memory.

    Parameters
    ----------
    store
        Where the codes and the library statistics are.
    cells
        (M,) int64 rows of the store, in the order of the minibatches.
    counts
        CSR float32.
    rows
        (M,) row of `counts` for each of `cells`.
    device
        Where the tensors go; to a GPU through pinned memory, without waiting.
    memory
        Where the arrays of `counts` go when all minibatches have been cut.
    """

    def __init__(
        self,
        store: Store,
        cells: np.ndarray,
        counts: sp.csr_matrix,
        rows: np.ndarray,
        device: torch.device,
        memory: SpareMemory | None = None,
    ) -> None:
        self.store = store
        self.cells = cells
        self.counts = counts
        self.rows = rows
        self.device = device
        self.memory = memory

    def minibatch(self, start: int, stop: int) -> Minibatch:
        """Gather the rows; see `Part`."""
        store, device = self.store, self.device
        cells = self.cells[start:stop]
        crow, col, values = gather_rows(self.counts, self.rows[start:stop])
        batches = store.batch_codes[cells]

        def column(values: np.ndarray) -> torch.Tensor:
            return on_device(values, device).unsqueeze(1)

        return Minibatch(
            x=csr_tensor(crow, col, values, (len(cells), store.n_genes), device),
            batch_index=column(batches),
            y=column(store.label_codes[cells]),
            local_l_mean=column(store.log_library_mean[batches]),
            local_l_var=column(store.log_library_var[batches]),
            cells=cells,
            covariates=covariates_on(store.covariates.rows(cells), device),
        )

    def done(self) -> None:
        """See `Part`."""
        if self.memory is not None:
            self.memory.give_back(self.counts.indices, self.counts.data)
            self.memory = None


def covariates_on(covariates: CellCovariates, device: torch.device) -> CellCovariates:
    """Copy arrays to `device`."""
    return covariates.each(lambda values: on_device(values, device))


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
        counts = adata.X
        if counts is None:
            raise InputError("the data has no X; pass a layer to fastvae.data.read(layer=...)")
        if not _is_canonical(counts):
            counts = to_csr(counts, origin.shape, origin.where)
            canonicalise(counts)
        check_counts(counts, origin, warn=False, allow_fractional=allow_fractional)
        return cls.of_checked(
            counts,
            adata.obs,
            adata.var,
            batch_key=batch_key,
            labels_key=labels_key,
            batch_categories=batch_categories,
            label_categories=label_categories,
            gene_names=gene_names,
            gene_ids=gene_ids,
            may_lack=may_lack,
        )

    @classmethod
    def of_checked(
        cls,
        counts: sp.csr_matrix,
        obs: pd.DataFrame,
        var: pd.DataFrame,
        *,
        batch_key: Key | None = None,
        labels_key: Key | None = None,
        batch_categories: Sequence[str] | None = None,
        label_categories: Sequence[str] | None = None,
        gene_names: Sequence[str] | None = None,
        gene_ids: Sequence[str] | None = None,
        may_lack: MayLack = STRICT,
        covariates: CovariateKeys | None = None,
        covariate_categories: Sequence[Sequence[str]] | None = None,
    ) -> CountStore:
        """Build the store from counts that have been checked.

        Parameters
        ----------
        counts
            CSR float32 (N, G), canonical; shared, not copied, if no gene selection is asked for.
        obs, var
            Their frames.
        batch_key, labels_key, batch_categories, label_categories, gene_names, gene_ids, may_lack
            As in `from_anndata`.
        covariates
            Columns of `obs` with covariates; None is none.
        covariate_categories
            Those of a saved model.

        Raises
        ------
        InputError
            A missing column or value, a category the model does not know, a number that is not
            finite, a gene of the model that is not there.
        """
        batch_codes, batches = encode(obs, batch_key, batch_categories, "batch")
        label_codes, labels = encode(obs, labels_key, label_categories, "label")
        more, categories = covariates_of_cells(obs, covariates, covariate_categories)
        genes = np.asarray(var.index, dtype=object)
        if gene_names is not None:
            wanted, saved = Genes.of_model(gene_names, gene_ids), gene_ids is not None
            counts = select_genes(counts, Genes.of(var), wanted, var, may_lack, warn=saved)
            genes = np.asarray(gene_names, dtype=object)
        mean, variance = log_library_statistics(counts, batch_codes, max(len(batches), 1))
        return cls(
            counts=counts,
            gene_names=genes,
            cell_names=np.asarray(obs.index, dtype=object),
            batch_codes=batch_codes,
            batch_categories=batches,
            label_codes=label_codes,
            label_categories=labels,
            log_library_mean=mean,
            log_library_var=variance,
            covariates=more,
            covariate_categories=categories,
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


def _is_canonical(matrix: Any) -> bool:
    return bool(
        isinstance(matrix, (sp.csr_matrix, sp.csr_array))
        and matrix.dtype == np.float32
        and matrix.has_canonical_format
        and np.all(matrix.data)
    )
