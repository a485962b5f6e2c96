"""Highly variable genes, chosen while the counts stay where they are."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..errors import InputError
from .store import Store

_SLAB_CELLS = 1 << 13
_SPAN = 0.3


def variable_genes(store: Store, n_top: int) -> list[str]:
    """Choose the genes whose counts vary most beyond what their mean explains.

    The ``seurat_v3`` method of Stuart et al., Cell 177, 1888 (2019), as scanpy has it: in each
    batch the log variance of each gene is fitted by a loess of its log mean, counts are
    standardised with the fitted variance and clipped at the square root of the number of cells,
    and genes are ranked by their variance then; with several batches the median rank decides, and
    where that is equal the number of batches in which the gene is among the first `n_top`.

    Parameters
    ----------
    store
        All genes; it is read twice.
    n_top
        How many genes.

    Returns
    -------
    list of str
        Their names, in the order of the store.

    Raises
    ------
    InputError
        scikit-misc is not installed, or there are fewer genes, or cells in a batch, than needed.
    """
    try:
        loess = importlib.import_module("skmisc.loess").loess
    except ImportError as error:
        raise InputError(
            "choosing variable genes needs scikit-misc: pip install scikit-misc; or give a list "
            "of genes"
        ) from error
    if n_top < 2 or n_top > store.n_genes:
        raise InputError(
            f"n_top_genes must be from 2 to the {store.n_genes} genes of the data, not {n_top}"
        )
    n_groups = max(store.n_batch, 1)
    sizes = np.bincount(store.batch_codes, minlength=n_groups)[:, None]
    few = np.flatnonzero(sizes[:, 0] < 2)
    if len(few):
        raise InputError(
            f"batch {store.batch_categories[few[0]]!r} has fewer than two cells, too few to say "
            "which genes vary in it; join it to another batch, or give a list of genes"
        )
    total, squares = _moments(store, n_groups, None)
    mean = total / sizes
    variance = (squares / sizes - mean**2) * (sizes / (sizes - 1))
    spread = np.ones_like(mean)
    for group in range(n_groups):
        spread[group] = _fitted_spread(loess, mean[group], variance[group])
    clip = spread * np.sqrt(sizes) + mean
    total, squares = _moments(store, n_groups, clip)
    scaled = (sizes * mean**2 + squares - 2 * total * mean) / ((sizes - 1) * spread**2)
    chosen = np.sort(_best(scaled, n_top))
    return [str(name) for name in store.gene_names[chosen]]


def _moments(store: Store, n_groups: int, clip: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Sum and sum of squares of each gene in each batch, of counts cut at `clip`, (B, G)."""
    n_genes = store.n_genes
    total = np.zeros(n_groups * n_genes)
    squares = np.zeros(n_groups * n_genes)
    for start, stop in _slabs(store):
        crow, col, values = store.rows(np.arange(start, stop))
        at = np.repeat(store.batch_codes[start:stop] * n_genes, np.diff(crow)) + col
        x = values.astype(np.float64)
        if clip is not None:
            np.minimum(x, clip.ravel()[at], out=x)
        total += np.bincount(at, weights=x, minlength=len(total))
        squares += np.bincount(at, weights=x * x, minlength=len(total))
    return total.reshape(n_groups, n_genes), squares.reshape(n_groups, n_genes)


def _slabs(store: Store) -> Iterator[tuple[int, int]]:
    step = min(_SLAB_CELLS, store.pool_cells)
    for start in range(0, store.n_cells, step):
        yield start, min(start + step, store.n_cells)


def _fitted_spread(loess: Any, mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Standard deviation that the mean of each gene lets expect, 1 for a gene that is constant."""
    varies = variance > 0
    fitted = np.zeros(len(mean))
    try:
        model = loess(np.log10(mean[varies]), np.log10(variance[varies]), span=_SPAN, degree=2)
        model.fit()
    except ValueError as error:
        raise InputError(
            f"the variance of the genes cannot be fitted ({error}): too few genes or cells vary; "
            "give a list of genes"
        ) from error
    fitted[varies] = model.outputs.fitted_values
    return np.sqrt(10**fitted)


def _best(scaled: np.ndarray, n_top: int) -> np.ndarray:
    """Columns of the `n_top` first genes by median rank."""
    order = np.argsort(-scaled, axis=1, kind="stable")
    ranks = np.empty(scaled.shape)
    np.put_along_axis(ranks, order, np.arange(scaled.shape[1], dtype=float)[None], axis=1)
    ranks[ranks >= n_top] = np.nan
    found = np.count_nonzero(~np.isnan(ranks), axis=0)
    median = np.full(scaled.shape[1], np.inf)
    median[found > 0] = np.nanmedian(ranks[:, found > 0], axis=0)
    return np.lexsort((-found, median))[:n_top]
