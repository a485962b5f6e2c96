"""Which cells are trained on and which are kept for validation."""

from __future__ import annotations

import math

import numpy as np

from ..errors import InputError


def split_cells(n_cells: int, train_size: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split ``range(n_cells)`` at random into training and validation cells.

    Parameters
    ----------
    n_cells
        How many cells there are.
    train_size
        Share to train on, in (0, 1]; ``ceil(train_size * n_cells)`` cells are trained on.
    seed
        The same seed gives the same split.

    Returns
    -------
    tuple of ndarray
        Training and validation cells, int64, each sorted.

    Raises
    ------
    InputError
        Fewer than two training cells.
    """
    # Rounded first, so that 0.9 * 10 does not come to 10 training cells by binary rounding.
    n_train = math.ceil(round(train_size * n_cells, 6))
    if n_train < 2:
        raise InputError(
            f"training needs at least 2 cells and has {n_train} (of {n_cells} with "
            f"train_size={train_size:g}); give more cells or a larger train_size"
        )
    order = np.random.default_rng(seed).permutation(n_cells)
    return np.sort(order[:n_train]), np.sort(order[n_train:])
