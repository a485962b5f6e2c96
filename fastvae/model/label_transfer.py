"""Labels of query cells: a weighted vote of the nearest reference cells in the latent space."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, number_array

BLOCK_VALUES = 1 << 21
"""Most distances that are in memory at once, 16 MB: larger blocks leave the cache."""


class Vote(NamedTuple):
    """What the neighbours of each query cell say.

    Attributes
    ----------
    code
        (M,) int64: the label with most of the weight.
    uncertainty
        (M,) float64 from 0 to 1: 1 minus its share of the weight.
    """

    code: np.ndarray
    uncertainty: np.ndarray


def transferred_labels(
    latent_reference: np.ndarray, codes: np.ndarray, latent_query: np.ndarray, n_neighbors: int
) -> Vote:
    r"""Let the nearest reference cells vote on the label of each query cell.

    A neighbour at distance :math:`d_i` has the weight of a Gaussian kernel,

    .. math::
        w_i = \exp\left(-\frac{d_i^2}{2 s^2}\right), \qquad s^2 = \frac{1}{k} \sum_{j=1}^k d_j^2 ,

    whose scale is that of the k neighbours, so that nothing depends on the unit of the latent space
    or on how densely cells lie there. Of labels with equal weight the first wins.

    Parameters
    ----------
    latent_reference
        (N, L).
    codes
        (N,) int64: the label of each reference cell, from 0; those below 0 have no vote.
    latent_query
        (M, L).
    n_neighbors
        Neighbours that vote, k; all there are where there are fewer.

    Raises
    ------
    InputError
        No reference cell has a label, or a position is not finite.
    """
    voters = np.flatnonzero(codes >= 0)
    if not len(voters):
        raise InputError("no cell of the reference has a label; name a column with labels")
    reference = _positions("the reference", latent_reference)[voters]
    query = _positions("the query", latent_query)
    if reference.shape[1] != query.shape[1]:
        raise InputError(
            f"the reference lies in {reference.shape[1]} latent dimensions and the query in "
            f"{query.shape[1]}; both must come from one model"
        )
    labels = torch.from_numpy(np.ascontiguousarray(codes[voters], dtype=np.int64))
    n_labels = int(labels.max()) + 1
    k = min(n_neighbors, len(voters))
    code = np.empty(len(query), dtype=np.int64)
    uncertainty = np.empty(len(query))
    for rows, nearest, squared in _neighbours(query, reference, k):
        weight = gaussian_weights(squared)
        votes = weight.new_zeros(len(weight), n_labels)
        votes.scatter_add_(1, labels[nearest], weight)
        most, label = votes.max(dim=1)
        code[rows] = label.numpy()
        uncertainty[rows] = (1.0 - most).clamp(0.0, 1.0).numpy()
    return Vote(code, uncertainty)


def gaussian_weights(squared: Tensor) -> Tensor:
    """Return the weights (M, k) of neighbours at these squared distances; they sum to 1."""
    scale = squared.mean(dim=1, keepdim=True)
    ratio = torch.where(scale > 0, squared / scale, 0.0)  # all at the same place: equal weights
    weight = torch.exp(-0.5 * ratio)
    return weight / weight.sum(dim=1, keepdim=True)


def _neighbours(query: Tensor, reference: Tensor, k: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield rows of the query, their nearest reference cells (B, k) and squared distances."""
    step = max(1, BLOCK_VALUES // len(reference))
    lengths = reference.square().sum(dim=1)
    for start in range(0, len(query), step):
        rows = slice(start, min(start + step, len(query)))
        # But for the length of the query's own position, which changes no order.
        distance = torch.addmm(lengths, query[rows], reference.T, alpha=-2.0)
        nearest = distance.topk(k, largest=False).indices
        # The sum above loses digits where cells lie far from zero; here none are lost.
        yield rows, nearest, (reference[nearest] - query[rows, None]).square().sum(dim=2)


def _positions(whose: str, latent: np.ndarray) -> Tensor:
    points = number_array("latent", latent, "an array (cells, dimensions) of numbers")
    if points.ndim != 2:
        raise InputError(
            f"the latent space of {whose} has shape {points.shape}; expected (cells, dimensions)"
        )
    if not np.isfinite(points).all():
        cell = int(np.flatnonzero(~np.isfinite(points).all(axis=1))[0])
        raise InputError(f"the latent position of cell {cell} of {whose} is not finite")
    return torch.from_numpy(np.ascontiguousarray(points))
