"""Cells that lie far from the others of their group, left out of the draws."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from ...data import Minibatches
from ...errors import InputError
from ...vae.vae import VAE
from ..posterior import encode

Sides = tuple[np.ndarray, np.ndarray]
"""Rows of the cells of both groups of a comparison."""


def check_outlier_filter() -> None:
    """Refuse to look for outliers where scikit-learn is missing."""
    try:
        import sklearn.covariance  # noqa: F401
    except ImportError as error:
        raise InputError(
            "filter_outlier_cells needs scikit-learn, which is not installed: "
            "pip install scikit-learn"
        ) from error


def inlying_sides(
    module: VAE, batches: Minibatches, cells: np.ndarray, sides: Sequence[Sides], seed: int
) -> list[Sides]:
    """Leave the outliers out of each group; every cell is encoded once.

    Parameters
    ----------
    batches, cells
        Minibatches over the cells of all groups, and their rows, ascending.
    """
    latent = encode.latent(module, batches, len(cells), give_mean=True, seed=seed)

    def kept(rows: np.ndarray) -> np.ndarray:
        return without_outliers(rows, latent[np.searchsorted(cells, rows)], seed)

    return [(kept(one), kept(two)) for one, two in sides]


def without_outliers(cells: np.ndarray, latent: np.ndarray, seed: int) -> np.ndarray:
    """Leave out the tenth of a population that lies farthest from its middle.

    Distances are those of Mahalanobis by the minimum covariance determinant (Rousseeuw & Van
    Driessen 1999), as scikit-learn's ``EllipticEnvelope`` has it.

    Parameters
    ----------
    cells, latent
        Rows (M,) and their latent positions (M, L).

    Warns
    -----
    UserWarning
        There are too few cells for a covariance; all are kept.
    """
    from sklearn.covariance import EllipticEnvelope

    if len(cells) > latent.shape[1] + 1:
        envelope = EllipticEnvelope(random_state=seed % 2**32)
        points = latent.astype(np.float64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of covariances without full rank
            try:
                inside = envelope.fit(points).decision_function(points)
                # a cell may lie exactly on the threshold, where rounding must not decide
                kept: np.ndarray = cells[inside >= -1e-9 * abs(envelope.offset_)]
                return kept
            except ValueError:
                pass
    warnings.warn(
        f"a population of {len(cells)} cells has no covariance in {latent.shape[1]} latent "
        "dimensions; none of its cells is left out as an outlier",
        UserWarning,
        stacklevel=7,
    )
    return cells
