"""Highly variable genes, chosen while the counts stay where they are."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..errors import InputError
from .stores.store import Store

_SLAB_CELLS = 1 << 13
_SPANS = (0.3, 0.5, 0.75, 1.0)
"""Share of the genes that each local fit sees: scanpy's, then what its users try by hand."""

_LEAST_POINTS = 3
"""A local parabola needs so many genes; on less than one, scikit-misc ends the process."""


def variable_genes(store: Store, n_top: int) -> list[str]:
    """Choose the genes whose counts vary most beyond what their mean explains.

    The ``seurat_v3`` method of Stuart et al., Cell 177, 1888 (2019), as scanpy has it: in each
    batch the log variance of each gene is fitted by a loess of its log mean, counts are
    standardised with the fitted variance and clipped at the square root of the number of cells,
    and genes are ranked by their variance then; with several batches the median rank decides, and
    where that is equal the number of batches in which the gene is among the first `n_top`.

    In a batch of few cells many genes have the same mean, and the local fit may have too little
    to go by. A wider one is tried then, up to all genes, and last a parabola through all genes,
    which is what the loess comes to as its span grows.

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

    Warns
    -----
    UserWarning
        Batches whose genes could not be fitted with the usual span, and what was done instead.
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
    other_fits = []
    for group in range(n_groups):
        spread[group], fit = _fitted_spread(loess, mean[group], variance[group])
        if fit is not None:
            name = repr(store.batch_categories[group]) if store.n_batch else "all cells"
            other_fits.append(f"{name} ({sizes[group, 0]} cells): {fit}")
    if other_fits:
        warnings.warn(
            "variable genes: too few cells or genes for the usual fit of variance to mean (loess, "
            f"span {_SPANS[0]}), so another was taken for {'; '.join(other_fits)}",
            UserWarning,
            stacklevel=2,
        )
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


def _fitted_spread(
    loess: Any, mean: np.ndarray, variance: np.ndarray
) -> tuple[np.ndarray, str | None]:
    """Standard deviation expected from the mean of each gene, 1 for a constant gene.

    The second value describes the fit, if it is not the usual one.
    """
    varies = variance > 0
    x, y = np.log10(mean[varies]), np.log10(variance[varies])
    log_variance = np.zeros(len(mean))
    for span in _SPANS:
        fitted = _loess(loess, x, y, span)
        if fitted is not None:
            log_variance[varies] = fitted
            return np.sqrt(10**log_variance), None if span == _SPANS[0] else f"span {span}"
    log_variance[varies] = _parabola(x, y)
    return np.sqrt(10**log_variance), "one parabola through all genes"


def _loess(loess: Any, x: np.ndarray, y: np.ndarray, span: float) -> np.ndarray | None:
    """Return the fitted values, or None where the fit breaks down."""
    if span * len(x) < _LEAST_POINTS:
        return None
    try:
        model = loess(x, y, span=span, degree=2)
        model.fit()
    except ValueError:
        return None
    fitted = np.asarray(model.outputs.fitted_values)
    return fitted if np.isfinite(fitted).all() else None


def _parabola(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Least squares of degree two, or of less where `x` has fewer than three values."""
    if len(x) == 0:
        return y
    x = x - x.mean()
    powers = x[:, None] ** np.arange(3)
    # By singular values, so that values of x that coincide leave terms out and nothing fails.
    coefficients, *_ = np.linalg.lstsq(powers, y, rcond=None)
    return np.asarray(powers @ coefficients)


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
