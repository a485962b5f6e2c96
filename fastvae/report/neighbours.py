"""How well batches mix and cell types keep together among nearest neighbours.

Exact neighbours by brute force: meant for up to some ten thousand cells.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..errors import InputError

_CHUNK = 1024


def neighbours(space: np.ndarray, k: int) -> np.ndarray:
    """Return the rows of the `k` nearest other cells of each cell, nearest first: (N, k) int64.

    Parameters
    ----------
    space
        (N, L) coordinates; distances are Euclidean.
    k
        At least 1, at most N - 1.

    Raises
    ------
    InputError
        There are not so many other cells.
    """
    points = torch.from_numpy(np.ascontiguousarray(space, dtype=np.float64))
    n_cells = points.shape[0]
    if not 1 <= k < n_cells:
        raise InputError(f"k must be between 1 and {n_cells - 1} for {n_cells} cells, not {k}")
    found = np.empty((n_cells, k), dtype=np.int64)
    for start in range(0, n_cells, _CHUNK):
        stop = min(start + _CHUNK, n_cells)
        distance = torch.cdist(points[start:stop], points)
        distance[torch.arange(stop - start), torch.arange(start, stop)] = torch.inf
        found[start:stop] = distance.topk(k, largest=False).indices.numpy()
    return found


def same_share(nearest: np.ndarray, codes: np.ndarray) -> float:
    """Return the mean share of a cell's neighbours that have its code."""
    return float((codes[nearest] == codes[:, None]).mean())


def chance_share(codes: np.ndarray) -> float:
    """Return what `same_share` is when neighbours are drawn at random."""
    counts = np.bincount(codes)
    return float((counts * (counts - 1)).sum() / (len(codes) * (len(codes) - 1)))


def vote_accuracy(nearest: np.ndarray, codes: np.ndarray) -> float:
    """Return the share of cells whose code most of their neighbours have (ties: lowest code)."""
    votes = np.zeros((len(codes), int(codes.max()) + 1), dtype=np.int64)
    np.add.at(votes, (np.arange(len(codes))[:, None], codes[nearest]), 1)
    return float((votes.argmax(axis=1) == codes).mean())


def principal_components(counts: Any, n_components: int = 30) -> np.ndarray:
    """Return the usual uncorrected space: principal components of log-normalised counts.

    Parameters
    ----------
    counts
        scipy CSR (N, G). Each cell is scaled to 10,000 counts, then log(1 + x) is taken.
    n_components
        At most min(N, G) - 1 are returned.

    Returns
    -------
    ndarray
        (N, n_components) float64, the same in every call.
    """
    from scipy.sparse.linalg import LinearOperator, svds

    logs = scaled(counts).log1p()
    n_cells, n_genes = logs.shape
    mean = np.asarray(logs.mean(axis=0)).ravel()
    # Centring the sparse matrix would fill it, so only its products are centred.
    centred = LinearOperator(
        (n_cells, n_genes),
        matvec=lambda v: logs @ v.ravel() - mean @ v.ravel(),
        rmatvec=lambda u: logs.T @ u.ravel() - mean * u.sum(),
        dtype=np.float64,
    )
    wanted = min(n_components, min(n_cells, n_genes) - 1)
    left, values, _ = svds(centred, k=wanted, v0=np.ones(min(n_cells, n_genes)))
    return (left * values)[:, ::-1]


def scaled(counts: Any) -> Any:
    """Return 10,000 x / total as CSR float64; an empty cell stays empty."""
    totals = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
    result = counts.astype(np.float64)
    result.data *= np.repeat(1e4 / np.maximum(totals, 1.0), np.diff(result.indptr))
    return result
