"""The two populations of each comparison: which cells they are, and draws from them."""

from __future__ import annotations

import warnings

import numpy as np

from ..data import Minibatches
from ..errors import InputError
from ..vae import VAE
from . import inference
from .differential_draws import Picked

Sides = tuple[np.ndarray, np.ndarray]


def pick(
    sides: Sides,
    told: tuple[list[int] | None, list[int] | None],
    own_batch: np.ndarray,
    n_samples: int,
    n_latent: int,
    seed: int,
    *,
    evenly: bool = False,
) -> tuple[Picked, Picked]:
    """Draw cells and noise for both sides; it depends on no other comparison."""
    one, two = (
        Picked.of(
            cells,
            batches,
            own_batch,
            n_samples,
            n_latent,
            np.random.default_rng([seed, number]),
            evenly=evenly,
        )
        for number, (cells, batches) in enumerate(zip(sides, told, strict=True))
    )
    return one, two


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
    module: VAE, batches: Minibatches, cells: np.ndarray, sides: list[Sides], seed: int
) -> list[Sides]:
    """Leave the outliers out of each side; every cell is encoded once.

    Parameters
    ----------
    batches, cells
        Minibatches over the cells of all sides, and their rows, ascending.
    """
    latent = inference.latent(module, batches, len(cells), give_mean=True, seed=seed)

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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of covariances without full rank
            try:
                kept: np.ndarray = cells[envelope.fit_predict(latent) == 1]
                return kept
            except ValueError:
                pass
    warnings.warn(
        f"a population of {len(cells)} cells has no covariance in {latent.shape[1]} latent "
        "dimensions; none of its cells is left out as an outlier",
        UserWarning,
        stacklevel=4,
    )
    return cells
