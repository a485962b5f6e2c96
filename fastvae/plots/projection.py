"""A latent space in two dimensions: UMAP, or principal components where UMAP cannot be had."""

from __future__ import annotations

import importlib.util
import warnings
from dataclasses import dataclass

import numpy as np

from ..errors import InputError, number_array, one_of, whole_number

UMAP_CELLS = (15, 200_000)  # fewer have no neighbourhoods; more take UMAP many minutes
NEIGHBOURS = 15
MIN_DIST = 0.3


@dataclass(frozen=True, eq=False)
class Projection:
    """Cells in two dimensions.

    Attributes
    ----------
    coordinates
        (N, 2) float64.
    axis_names
        Of the two dimensions.
    note
        What a title says of the method, such as "UMAP".
    """

    coordinates: np.ndarray
    axis_names: tuple[str, str]
    note: str


def project(latent: np.ndarray, *, method: str = "auto", seed: int = 0) -> Projection:
    """Return `latent` (N, L) in two dimensions.

    Raises
    ------
    InputError
        If `latent` is not a finite matrix, or `method` is unknown or cannot be used.

    Warns
    -----
    UserWarning
        With ``"auto"``, if principal components are taken in the place of UMAP.
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
    obstacle = None if method == "pca" else _obstacle(len(points), asked_for=method == "umap")
    if method == "umap" and obstacle is not None:
        raise InputError(f'UMAP cannot be drawn: {obstacle}; give method="pca"')
    if method == "umap" or (method == "auto" and obstacle is None and points.shape[1] > 2):
        return umap_projection(umap_coordinates(points, seed))
    coordinates, shares = principal_components(points)
    first, second = (
        f"PC {number} ({share:.0%} of variance)" for number, share in enumerate(shares, start=1)
    )
    note = "principal components"
    if method == "auto" and points.shape[1] > 2:
        note += f": {obstacle}"
        warnings.warn(
            f"the latent space is drawn as principal components, not as UMAP: {obstacle}",
            UserWarning,
            stacklevel=3,
        )
    return Projection(coordinates, (first, second), note)


def umap_projection(coordinates: np.ndarray) -> Projection:
    """Return UMAP coordinates (N, 2) with the names that go with them."""
    return Projection(coordinates, ("UMAP 1", "UMAP 2"), "UMAP")


def umap_of(latent: np.ndarray) -> np.ndarray | None:
    """Return the UMAP (N, 2) that `project` takes by default, None where it takes none."""
    points = np.asarray(latent, dtype=np.float64)
    suits = points.shape[1] > 2 and _obstacle(len(points), asked_for=False) is None
    return umap_coordinates(points, seed=0) if suits and np.isfinite(points).all() else None


def _obstacle(n_cells: int, *, asked_for: bool) -> str | None:
    """Say what stands against UMAP, if anything; who asks for it by name may wait long."""
    if not any(importlib.util.find_spec(name) for name in ("scranpy", "umap")):
        return "UMAP is not installed (pip install umap-learn)"
    least, most = UMAP_CELLS
    if n_cells < least:
        return f"UMAP needs {least} cells or more, there are {n_cells}"
    if n_cells > most and not asked_for:
        return f"UMAP takes long for more than {most:,} cells"
    return None


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
    """Return the UMAP (N, 2) float64 of `points` (N, L); repeatable with the seed.

    scranpy (libscran's C++) computes it, or umap-learn where scranpy is not installed. Coordinates
    do not depend on the number of threads.
    """
    centred = points - points.mean(axis=0)
    centred = centred / max(float(np.abs(centred).max()), 1e-300)
    n_neighbors = min(NEIGHBOURS, len(points) - 1)
    if importlib.util.find_spec("scranpy") is None:
        return _with_umap_learn(centred, n_neighbors, seed)
    import torch
    from scranpy import run_umap

    found = run_umap(
        np.asfortranarray(centred.T),
        num_neighbors=n_neighbors,
        min_dist=MIN_DIST,
        initialize_seed=seed,
        optimize_seed=seed,
        num_threads=torch.get_num_threads(),
    )
    return np.asarray(found, dtype=np.float64)


def _with_umap_learn(points: np.ndarray, n_neighbors: int, seed: int) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from umap import UMAP

        reducer = UMAP(n_neighbors=n_neighbors, min_dist=MIN_DIST, random_state=seed, n_jobs=1)
        return np.asarray(reducer.fit_transform(points.astype(np.float32)), dtype=np.float64)
