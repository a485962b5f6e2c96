"""Columns of ``obs`` as integer codes with named categories."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from ._names import a_few, those_there

if TYPE_CHECKING:
    import pandas as pd

_WHOLE_AS_FLOAT = re.compile(r"([+-]?\d+)\.0+")


def category_name(value: Any) -> str:
    """Return the name of a category: its text, and of a whole number that of the integer.

    1, 1.0, ``np.float32(1)`` and the text "1" have the name "1"; True has the name "True".
    """
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return str(int(value))
    return str(value)


class CategoryNames:
    """Names of categories, found by the values that users have for them.

    Parameters
    ----------
    names
        The categories, in the order of their codes.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._codes = {name: code for code, name in enumerate(names)}
        # Models saved before may have "1.0" where the rule says "1".
        counts = Counter(map(_as_whole, self._codes))
        self._as_whole = {
            _as_whole(name): code
            for name, code in self._codes.items()
            if counts[_as_whole(name)] == 1
        }

    def code(self, value: Any) -> int | None:
        """Return the code of the category that `value` stands for, None if there is none."""
        name = category_name(value)
        found = self._codes.get(name)
        return self._as_whole.get(_as_whole(name)) if found is None else found


def as_known(names: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """Return `names`, each written as in `known` where it is one of these; no two become one."""
    lookup = CategoryNames(known)
    taken = set(names)
    spelled = []
    for name in names:
        code = lookup.code(name)
        other = name if code is None else known[code]
        spelled.append(name if other in taken else other)
    return tuple(spelled)


def _as_whole(name: str) -> str:
    found = _WHOLE_AS_FLOAT.fullmatch(name)
    return name if found is None else found[1]


def encode(
    obs: pd.DataFrame,
    key: str | None,
    known: Sequence[str] | None = None,
    what: str = "batch",
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Encode a column as codes; categories are the names of its values (`category_name`).

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
    option_of = f"obs[{key!r}] ({option})"
    codes, categories = factorise(column, option_of)
    for value in column.dropna().unique():
        text_of(value, option_of)
    if known is None:
        return codes, categories
    categories = as_known(categories, known)
    lookup = {name: code for code, name in enumerate(known)}
    unknown = [name for name in categories if name not in lookup]
    if unknown:
        remedy = "map these data onto the model (Model.map_query)"
        raise InputError(
            f"obs[{key!r}] has {what} categories that the model was not trained with: "
            f"{a_few(unknown)}; it knows {a_few(known, 30)}. Rename them, drop these cells, "
            f"or {remedy if what == 'batch' else 'train a model on both'}"
        )
    table = np.array([lookup[name] for name in categories], dtype=np.int64)
    return table[codes], tuple(known)


def factorise(column: pd.Series, where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the categories of a column that cells have, by name, and the code of each cell.

    Parameters
    ----------
    column
        (N,) of any dtype.
    where
        What messages call it.

    Returns
    -------
    codes
        (N,) int64, -1 where the value is missing.
    names
        In pandas' order for a categorical column, else sorted: numbers by value, objects by name.

    Raises
    ------
    InputError
        Different values have the same name.
    """
    import pandas as pd

    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.cat.remove_unused_categories()
        values, codes = list(column.cat.categories), column.cat.codes.to_numpy()
    else:
        if column.dtype == object:
            # Mixed types have no order of their own; their names have.
            column = column.map(category_name, na_action="ignore")
        codes, uniques = pd.factorize(column, sort=True)
        values = list(uniques)
    names = tuple(category_name(value) for value in values)
    if len(set(names)) < len(names):
        raise InputError(
            f"{where} has different values with the same text; convert the column with .astype(str)"
        )
    return codes.astype(np.int64), names


def text_of(value: Any, where: str) -> str:
    """Return `category_name`, and refuse numbers that name no category.

    Raises
    ------
    InputError
        A fractional number; `where` is named.
    """
    if isinstance(value, (float, np.floating)) and not float(value).is_integer():
        raise InputError(f"{where} holds fractional numbers such as {value}; expected categories")
    return category_name(value)
