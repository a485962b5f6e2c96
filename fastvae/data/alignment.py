"""Values of cells in the order of a store's cells, matched by the names of the cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .._words import a_few
from ..errors import InputError, shown

if TYPE_CHECKING:
    import pandas as pd


def positions_of(names: Sequence[str] | np.ndarray, index: Any) -> tuple[np.ndarray, list[str]]:
    """Find each of `names` in `index`.

    Parameters
    ----------
    names
        (N,) names of cells.
    index
        (M,) names in any order.

    Returns
    -------
    positions
        (N,) int64, -1 where a name is not there.
    missing
        The names that are not there, or that several entries have.
    """
    import pandas as pd

    wanted = pd.Index(np.asarray(names, dtype=object), dtype=object)
    there = pd.Index(np.asarray(index, dtype=object), dtype=object)
    if len(wanted) == len(there) and bool((wanted == there).all()):
        return np.arange(len(wanted)), []
    unclear = there[there.duplicated(keep=False)].union(wanted[wanted.duplicated()])
    found = there.drop_duplicates(keep=False).get_indexer(wanted)
    single = np.flatnonzero(~there.duplicated(keep=False))
    positions = np.full(len(wanted), -1, dtype=np.int64)
    known = (found >= 0) & ~np.asarray(wanted.isin(unclear))
    positions[known] = single[found[known]]
    return positions, [str(name) for name in wanted[~known]]


def in_order_of(names: np.ndarray, values: pd.Series, option: str) -> pd.Series:
    """Bring a Series into the order of the cells that have `names`.

    A Series with pandas' default index names no cells, so it is taken as an array.

    Parameters
    ----------
    names
        (N,) names of the cells.
    values
        One value per cell, and perhaps others.
    option
        What messages call it.

    Raises
    ------
    InputError
        A cell has no value, or several.
    """
    import pandas as pd

    if isinstance(values.index, pd.RangeIndex) and len(values) == len(names):
        return values
    positions, missing = positions_of(names, values.index)
    if missing:
        raise InputError(
            f"{option} has no value, or several, for {len(missing):,} of {len(names):,} cells "
            f"({a_few(missing)}); its index must hold the name of each cell once. For values in "
            "the order of the cells give an array (.to_numpy())"
        )
    return values.iloc[positions]


def is_array_of_cells(value: Any) -> bool:
    """Whether `value` is an array with a value for each cell, and not the name of a column."""
    import pandas as pd

    return isinstance(value, (np.ndarray, pd.Series, pd.api.extensions.ExtensionArray))


def values_of_cells(names: np.ndarray, values: Any, option: str) -> pd.Series:
    """Return an array or a Series as one value for each cell.

    Parameters
    ----------
    names
        (N,) names of the cells.
    values
        See `is_array_of_cells`.
    option
        What messages call it.

    Raises
    ------
    InputError
        The number of values is another, or a Series does not name the cells.
    """
    import pandas as pd

    if isinstance(values, pd.Series):
        return in_order_of(names, values, option)
    if np.shape(values) != (len(names),):
        raise InputError(
            f"{option} must have one value for each of the {len(names):,} cells, not "
            f"{shown(values)}"
        )
    return pd.Series(values)
