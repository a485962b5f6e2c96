"""Columns of ``obs`` as integer codes with named categories."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from ._names import a_few, those_there

if TYPE_CHECKING:
    import pandas as pd


def encode(
    obs: pd.DataFrame,
    key: str | None,
    known: Sequence[str] | None = None,
    what: str = "batch",
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Encode a column as codes; categories are the texts of its values.

    Parameters
    ----------
    obs
        One row per cell.
    key
        Column: categorical, text, whole numbers or booleans. None: one group, no categories.
    known
        Categories of a saved model, whose codes are kept. Without them the categories are those
        present, in pandas' order for a categorical column, else sorted.
    what
        "batch" or "label", for messages.

    Returns
    -------
    codes
        (N,) int64.
    categories
        Their names; empty where `key` is None.

    Raises
    ------
    InputError
        No such column, missing values, not categories (fractional numbers), or a value that is
        not among `known`.
    """
    option = "batch_key" if what == "batch" else "labels_key"
    if key is None:
        if known:
            raise InputError(
                f"the model was trained with {what} categories {a_few(known)}; pass {option}= "
                f"to name the obs column that holds them"
            )
        return np.zeros(len(obs), dtype=np.int64), ()
    if key not in obs.columns:
        columns = [str(column) for column in obs.columns]
        raise InputError(
            f"obs has no column {key!r} ({option}); {those_there(columns, str(key), 'no columns')}"
        )
    column = obs[key]
    if getattr(column, "ndim", 1) != 1:
        raise InputError(f"obs has several columns named {key!r} ({option}); rename all but one")
    missing = np.asarray(column.isna())
    if missing.any():
        example = str(obs.index[int(np.argmax(missing))])
        raise InputError(
            f"obs[{key!r}] ({option}) is missing for {int(missing.sum())} of {len(obs)} cells "
            f"(first: {example!r}); fill it (for example with 'unknown') or drop these cells"
        )
    codes, categories = _factorise(column, key, option)
    if known is None:
        return codes, categories
    lookup = {name: code for code, name in enumerate(known)}
    unknown = [name for name in categories if name not in lookup]
    if unknown:
        raise InputError(
            f"obs[{key!r}] has {what} categories that the model was not trained with: "
            f"{a_few(unknown)}; it knows {a_few(known, 30)}. Rename them, drop these cells, "
            "or train a model on both"
        )
    table = np.array([lookup[name] for name in categories], dtype=np.int64)
    return table[codes], tuple(known)


def _factorise(column: Any, key: str, option: str) -> tuple[np.ndarray, tuple[str, ...]]:
    import pandas as pd

    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.cat.remove_unused_categories()
        values, codes = list(column.cat.categories), column.cat.codes.to_numpy()
    elif column.dtype == object:
        # Mixed types have no order of their own; their texts have.
        codes, uniques = pd.factorize(column.astype(str), sort=True)
        values = list(uniques)
    else:
        codes, uniques = pd.factorize(column, sort=True)
        values = list(uniques)
    names = tuple(text_of(value, f"obs[{key!r}] ({option})") for value in values)
    if len(set(names)) < len(names):
        raise InputError(
            f"obs[{key!r}] ({option}) has different values with the same text; "
            "convert the column with .astype(str)"
        )
    return codes.astype(np.int64), names


def text_of(value: Any, where: str) -> str:
    """Return the name of a category; whole numbers that became floats keep theirs.

    Raises
    ------
    InputError
        A fractional number; `where` is named.
    """
    if isinstance(value, (float, np.floating)):
        if not float(value).is_integer():
            raise InputError(
                f"{where} holds fractional numbers such as {value}; expected categories"
            )
        return str(int(value))
    return str(value)
