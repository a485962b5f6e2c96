"""What the counts of a model's data say of cells and genes, in one pass over them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from ..data import Minibatches
from ..data.stores.minibatch import Minibatch
from ..errors import InputError
from ..model.selection import gene_columns

if TYPE_CHECKING:
    from ..model.model import Model


SCALED_TOTAL = 1e4
CELLS_AT_A_TIME = 4096


@dataclass(frozen=True, eq=False)
class CountMoments:
    """Sums over cells, of each gene, and the total of each cell.

    Attributes
    ----------
    mean, variance, zeros
        (G,) float64: of the counts; the share of cells without a count.
    library
        (N,) float64: counts of each cell.
    """

    mean: np.ndarray
    variance: np.ndarray
    zeros: np.ndarray
    library: np.ndarray


def minibatches(model: Model, cells: np.ndarray | None = None) -> Minibatches:
    """Return the model's own data, or some of its cells, in minibatches in order."""
    store = model._own_store()
    rows = np.arange(store.n_cells) if cells is None else cells
    return model._minibatches(store, rows, CELLS_AT_A_TIME)


def scipy_csr(batch: Minibatch) -> sp.csr_matrix:
    """Return the counts of a minibatch (B, G) float32."""
    x = batch.x
    parts = (x.values(), x.col_indices(), x.crow_indices())
    return sp.csr_matrix(tuple(part.cpu().numpy() for part in parts), shape=tuple(x.shape))


def counts_of(model: Model, cells: np.ndarray) -> sp.csr_matrix:
    """Return the counts of some cells of the model's data, (M, G) float32."""
    return sp.vstack([scipy_csr(batch) for batch in minibatches(model, cells)], format="csr")


def scaled_expression(model: Model, genes: list[str]) -> dict[str, np.ndarray]:
    """Return the counts of some genes, scaled to a total of 1e4 in each cell: (N,) float32 each.

    Totals are those of the model's genes; a cell without counts has zeros.

    Raises
    ------
    InputError
        The model has no data, or not these genes.
    """
    if not genes:
        return {}
    columns = gene_columns(genes, model.gene_names)
    assert columns is not None
    parts = []
    for batch in minibatches(model):
        x = scipy_csr(batch)
        totals = np.asarray(x.sum(axis=1, dtype=np.float64))
        scaled = SCALED_TOTAL * x[:, columns].toarray() / np.maximum(totals, 1e-300)
        parts.append(scaled.astype(np.float32))
    found = np.concatenate(parts)
    return {gene: found[:, place] for place, gene in enumerate(genes)}


def count_moments(model: Model, cells: np.ndarray) -> CountMoments:
    """Return the moments of the counts of some cells.

    Raises
    ------
    InputError
        The model has no data, or there are fewer than two cells.
    """
    if len(cells) < 2:
        raise InputError(f"moments need two cells or more, there are {len(cells)}")
    n_genes = len(model.gene_names)
    sums, squares, nonzero = np.zeros(n_genes), np.zeros(n_genes), np.zeros(n_genes)
    library = []
    for batch in minibatches(model, cells):
        x = scipy_csr(batch).astype(np.float64)
        sums += np.asarray(x.sum(axis=0)).ravel()
        squares += np.asarray(x.multiply(x).sum(axis=0)).ravel()
        nonzero += np.bincount(x.indices, x.data > 0, minlength=n_genes)
        library.append(np.asarray(x.sum(axis=1)).ravel())
    return moments_from(sums, squares, nonzero, np.concatenate(library))


def moments_from(
    sums: np.ndarray, squares: np.ndarray, nonzero: np.ndarray, library: np.ndarray
) -> CountMoments:
    """Return the moments of genes from their sums over the cells that `library` (N,) has."""
    n_cells = len(library)
    mean = sums / n_cells
    variance = np.maximum(squares - n_cells * mean**2, 0.0) / (n_cells - 1)
    return CountMoments(mean, variance, 1.0 - nonzero / n_cells, library)
