"""Columns of ``obs`` as integer codes with named categories."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError, shown

if TYPE_CHECKING:
    import pandas as pd

_WHOLE_AS_FLOAT = re.compile(r"([+-]?\d+)\.0+")


def category_name(value: Any) -> str:
    """Return the name of a category: its text, and of a whole number that of the integer.

    1, 1.0, ``np.float32(1)`` and the text "1" have the name "1"; True has the name "True".
    """
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return str(int(value))
    try:
        return str(value)
    except Exception:  # the object's own method may raise anything: it names no category
        return shown(value)


class CategoryNames:
    """Names of categories, found by the values that users have for them.

    Parameters
    ----------
    names
        The categories, in the order of their codes.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._codes = {name: code for code, name in enumerate(names)}
        # Models saved by older versions may have "1.0" where the rule says "1".
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
    """Return `names`, each in the spelling of `known` where it has one; no two become equal."""
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
