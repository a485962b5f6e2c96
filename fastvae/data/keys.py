"""Columns of ``obs`` that name batches, labels or groups: one column, or several together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from .._words import a_few, those_there
from ..errors import InputError, listed, shown
from .categories import as_known, factorise, text_of

if TYPE_CHECKING:
    import pandas as pd

Key: TypeAlias = "str | tuple[str, ...]"
"""One column, or several whose combinations are the categories."""

BETWEEN = " | "
"""What stands between the names in that of a combination."""


def checked_key(key: Any, option: str) -> Key | None:
    """Return the name of a column, or a tuple of several; None stays.

    Raises
    ------
    InputError
        It is neither a name nor a list of different names; `option` is named.
    """
    if key is None or isinstance(key, str):
        return key
    wanted = "the name of a column of obs, or a list of names"
    names = [
        str(name) if isinstance(name, np.str_) else name
        for name in listed(option, key, wanted, 1000)
    ]
    if not names or not all(isinstance(name, str) for name in names):
        raise InputError(f"{option} must be {wanted}, not {shown(key)}")
    if len(set(names)) < len(names):
        raise InputError(f"{option} names a column twice: {shown(names)}; name each once")
    return names[0] if len(names) == 1 else tuple(names)


def columns_of(key: Key) -> list[str]:
    """Return the names of the columns."""
    return [key] if isinstance(key, str) else list(key)


def in_words(key: Key | None) -> str:
    """Return ``obs['a']`` or ``obs[['a', 'b']]``."""
    return f"obs[{key!r}]" if key is None or isinstance(key, str) else f"obs[{list(key)}]"


def key_column(obs: pd.DataFrame, key: Key, option: str) -> pd.Series:
    """Return the column of `key`; of several, a category for each combination that occurs.

    Parameters
    ----------
    obs
        One row per cell.
    key
        Its column or columns.
    option
        What messages call the key.

    Returns
    -------
    Series
        The column as it is. Combinations have names such as "a1 | b2", in the order of the first
        column's categories, then the second's, and are missing where any of the values is.

    Raises
    ------
    InputError
        No such column, several of one name, or different combinations of the same name.
    """
    import pandas as pd

    for name in columns_of(key):
        if name not in obs.columns:
            columns = [str(column) for column in obs.columns]
            raise InputError(
                f"obs has no column {shown(name)} ({option}); "
                f"{those_there(columns, name, 'no columns')}"
            )
        if getattr(obs[name], "ndim", 1) != 1:
            raise InputError(
                f"obs has several columns named {name!r} ({option}); rename all but one"
            )
    if isinstance(key, str):
        column: pd.Series = obs[key]
        return column
    parts = [factorise(obs[name], f"obs[{name!r}] ({option})") for name in key]
    rows = np.column_stack([codes for codes, _ in parts])
    there = (rows >= 0).all(axis=1)
    found, inverse = np.unique(rows[there], axis=0, return_inverse=True)
    names = [
        BETWEEN.join(of_column[code] for (_, of_column), code in zip(parts, row, strict=True))
        for row in found
    ]
    if len(set(names)) < len(names):
        raise InputError(
            f"{in_words(key)} ({option}) has different combinations of one name, since values "
            f"have {BETWEEN!r} in them; rename these values"
        )
    codes = np.full(len(obs), -1, dtype=np.int64)
    codes[there] = inverse.ravel()
    return pd.Series(pd.Categorical.from_codes(codes, names), index=obs.index)


_OPTIONS = {
    "batch": "batch_key",
    "label": "labels_key",
    "covariate": "categorical_covariate_keys",
}


def encode(
    obs: pd.DataFrame,
    key: Key | None,
    known: Sequence[str] | None = None,
    what: str = "batch",
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Encode a column as codes; categories are the names of its values (`category_name`).

    Parameters
    ----------
    obs
        One row per cell.
    key
        Column: categorical, text, whole numbers or booleans; or several, whose combinations are
        the categories. None: one group, no categories.
    known
        Categories of a saved model, whose codes are kept. Without them the categories are those
        present, in pandas' order for a categorical column, else sorted.
    what
        "batch", "label" or "covariate", for messages.

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
    option = _OPTIONS[what]
    if key is None:
        if known:
            raise InputError(
                f"the model was trained with {what} categories {a_few(known)}; pass {option}= "
                f"to name the obs column that holds them"
            )
        return np.zeros(len(obs), dtype=np.int64), ()
    column, words = key_column(obs, key, option), in_words(key)
    missing = np.asarray(column.isna())
    if missing.any():
        example = str(obs.index[int(np.argmax(missing))])
        raise InputError(
            f"{words} ({option}) is missing for {int(missing.sum())} of {len(obs)} cells "
            f"(first: {example!r}); fill it (for example with 'unknown') or drop these cells"
        )
    for name in columns_of(key):
        for value in obs[name].dropna().unique():
            text_of(value, f"obs[{name!r}] ({option})")
    codes, categories = factorise(column, f"{words} ({option})")
    if known is None:
        return codes, categories
    categories = as_known(categories, known)
    lookup = {name: code for code, name in enumerate(known)}
    unknown = [name for name in categories if name not in lookup]
    if unknown:
        remedy = "map these data onto the model (Model.map_query)"
        raise InputError(
            f"{words} has {what} categories that the model was not trained with: "
            f"{a_few(unknown)}; it knows {a_few(known, 30)}. Rename them, drop these cells, "
            f"or {remedy if what == 'batch' else 'train a model on both'}"
        )
    table = np.array([lookup[name] for name in categories], dtype=np.int64)
    return table[codes], tuple(known)


def join_codes(
    parts: Iterable[tuple[np.ndarray, tuple[str, ...]]], known: Sequence[str] | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Join what `encode` returned for several files.

    Parameters
    ----------
    parts
        Codes and categories of each file.
    known
        Categories of a saved model, whose codes are kept.

    Returns
    -------
    codes
        (N,) int64 of all cells.
    categories
        In the order in which the files bring them.
    """
    codes, names = [], dict.fromkeys(known or ())
    for of_file, categories in parts:
        names.update(dict.fromkeys(categories))
        lookup = {name: code for code, name in enumerate(names)}
        table = np.array([lookup[name] for name in categories] or [0], dtype=np.int64)
        codes.append(table[of_file])
    return np.concatenate(codes), tuple(names)
