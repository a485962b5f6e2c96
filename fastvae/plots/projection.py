"""A latent space in two dimensions: UMAP or principal components."""

from __future__ import annotations

import importlib.util
import warnings

import numpy as np

from ..errors import InputError, number_array, one_of, whole_number

UMAP_CELLS = (15, 200_000)  # fewer have no neighbourhoods; more take UMAP over half an hour
NEIGHBOURS = 15


def project(
    latent: np.ndarray, *, method: str = "auto", seed: int = 0
) -> tuple[np.ndarray, tuple[str, str]]:
    """Return coordinates (N, 2) float64 of `latent` (N, L), and the names of the two axes.

    Raises
    ------
    InputError
        If `latent` is not a finite matrix, or `method` is unknown or cannot be used.
    """
    points = number_array("latent", latent, "an array (cells, dimensions) of numbers")
    one_of("method", method, ("auto", "umap", "pca"))
    seed = whole_number("seed", seed, minimum=0, maximum=2**32 - 1)
    if points.ndim != 2 or points.size == 0:
        raise InputError(
            f"the latent space has shape {points.shape}; expected (cells, dimensions), not empty"
        )
    if not np.isfinite(points).all():
        cell = int(np.flatnonzero(~np.isfinite(points).all(axis=1))[0])
        raise InputError(f"the latent space of cell {cell} is not finite; leave such cells out")
    installed = importlib.util.find_spec("umap") is not None
    if method == "umap" and not installed:
        raise InputError('UMAP is not installed; pip install "fastvae[umap]", or give method="pca"')
    if method == "umap" and len(points) < UMAP_CELLS[0]:
        raise InputError(
            f'UMAP needs {UMAP_CELLS[0]} cells or more, there are {len(points)}; give method="pca"'
        )
    suits = UMAP_CELLS[0] <= len(points) <= UMAP_CELLS[1] and points.shape[1] > 2
    if method == "umap" or (method == "auto" and installed and suits):
        return umap_coordinates(points, seed), ("UMAP 1", "UMAP 2")
    coordinates, shares = principal_components(points)
    first, second = (
        f"PC {number} ({share:.0%} of variance)" for number, share in enumerate(shares, start=1)
    )
    return coordinates, (first, second)


def principal_components(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the first two principal coordinates (N, 2) and their shares of the variance (2,).

    The sign is such that the largest weight of each component is positive. With fewer than two
    dimensions the second coordinate is zero.
    """
    centred = points - points.mean(axis=0)
    # The eigenvectors of the L x L covariance: N may be millions, L is small.
    variances, vectors = np.linalg.eigh(centred.T @ centred)
    vectors = vectors[:, ::-1][:, :2]
    variances = np.maximum(variances[::-1], 0.0)
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(axis=0), range(vectors.shape[1])])
    coordinates = np.zeros((len(points), 2))
    coordinates[:, : vectors.shape[1]] = centred @ vectors
    shares = np.zeros(2)
    total = variances.sum()
    if total > 0:
        shares[: min(2, len(variances))] = variances[:2] / total
    return coordinates, shares


def umap_coordinates(points: np.ndarray, seed: int) -> np.ndarray:
    """Return the UMAP (N, 2); repeatable with the seed, and silent."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from umap import UMAP

        reducer = UMAP(
            n_components=2,
            n_neighbors=min(NEIGHBOURS, len(points) - 1),
            min_dist=0.3,
            random_state=seed,
            n_jobs=1,
        )
        return np.asarray(reducer.fit_transform(points.astype(np.float32)), dtype=np.float64)
