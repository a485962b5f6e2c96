"""Which cells are compared with which."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..._words import a_few, those_there
from ...data.alignment import is_array_of_cells, values_of_cells
from ...data.categories import CategoryNames, factorise
from ...data.keys import Key, checked_key, columns_of, in_words, key_column
from ...errors import InputError, listed, shortened, shown
from ..selection import is_name, name_of, rows_of_cells

if TYPE_CHECKING:
    import pandas as pd


MOST_GROUPS = 500
"""A column with more values than this most likely holds no groups."""


@dataclass(frozen=True)
class Comparison:
    """Cells whose code is one of `first` against cells whose code is one of `second`.

    The names are None where the cells were given by row.
    """

    first: tuple[int, ...]
    second: tuple[int, ...]
    group1: str | None = None
    group2: str | None = None

    @property
    def names(self) -> tuple[str, str]:
        """What messages call both sides."""
        return self.group1 or "the first cells", self.group2 or "the second cells"


@dataclass(frozen=True, eq=False)
class Comparisons:
    """A code for every cell, and what is to be compared.

    Attributes
    ----------
    codes
        (N,) int64; a cell with -1 takes part in no comparison.
    n_codes
        Number of codes from 0 on.
    listed
        In the order of the results.
    """

    codes: np.ndarray
    n_codes: int
    listed: tuple[Comparison, ...]

    def cells(self, codes: tuple[int, ...]) -> np.ndarray:
        """Return the rows of the cells with one of these codes, ascending."""
        return np.flatnonzero(np.isin(self.codes, codes))

    def all_cells(self) -> np.ndarray:
        """Return the rows of the cells that take part in any comparison."""
        return np.flatnonzero(self.codes >= 0)


def comparisons(
    groupby: Any,
    groups: tuple[Any, Any],
    cells: tuple[Any, Any],
    obs: pd.DataFrame,
    min_cells: int,
) -> Comparisons:
    """Return what is to be compared: groups by name, or cells.

    Parameters
    ----------
    groupby
        The group of each cell; see `by_groups`.
    groups
        ``group1`` and ``group2``.
    cells
        ``idx1`` and ``idx2``, in the place of groups.
    obs
        One row per cell.
    min_cells
        Fewest cells in a group.

    Raises
    ------
    InputError
        Groups and cells are both given, or as `by_rows` and `by_groups`.
    """
    idx1, idx2 = cells
    if idx1 is None:
        if idx2 is not None:
            raise InputError("idx2 is given without idx1; give idx1, or both")
        return by_groups(groupby, *groups, obs, min_cells)
    if any(group is not None for group in groups):
        raise InputError("give groups (group1, group2) or cells (idx1, idx2), not both")
    return by_rows(idx1, idx2, obs, min_cells)


def by_rows(idx1: Any, idx2: Any, obs: pd.DataFrame, min_cells: int) -> Comparisons:
    """Compare cells, as `rows_of_cells` takes them; without `idx2`, with all others.

    Raises
    ------
    InputError
        Cells that do not exist, cells in both groups, or too few cells.
    """
    first = _mask("idx1", idx1, obs)
    second = ~first if idx2 is None else _mask("idx2", idx2, obs)
    both = int(np.count_nonzero(first & second))
    if both:
        raise InputError(
            f"idx1 and idx2 have {both:,} cell{'' if both == 1 else 's'} in common; a cell can "
            "be in one of them only"
        )
    for name, mask in (("idx1", first), ("idx2 (all other cells)", second)):
        name = "idx2" if idx2 is not None and name != "idx1" else name
        _enough(name, int(np.count_nonzero(mask)), min_cells)
    codes = np.where(first, 0, np.where(second, 1, -1))
    return Comparisons(codes, 2, (Comparison((0,), (1,)),))


def by_groups(
    groupby: Any, group1: Any, group2: Any, obs: pd.DataFrame, min_cells: int
) -> Comparisons:
    """Compare groups by name; without `group2`, each with all other cells.

    Parameters
    ----------
    groupby
        The group of each cell: one or more columns of obs, an array, or a Series whose index
        names the cells.

    Raises
    ------
    InputError
        No such column or group, a single group, one compared with itself, or too few cells.
    """
    codes, names, words = _groups(groupby, obs)
    wanted = _names("group1", group1, names)
    if wanted is None and len(names) > MOST_GROUPS:
        raise InputError(
            f"{words} has {len(names):,} different values; name those to compare "
            "(group1=), or use a column with groups of cells"
        )
    if wanted == []:
        raise InputError("group1 is empty; name at least one group, or leave it out for all")
    against = _names("group2", group2, names)
    if against is not None and len(against) != 1:
        raise InputError(
            f"group2 must be one group, or left out for all other cells; not {shown(group2)}"
        )
    for option, asked in (("group1", wanted), ("group2", against)):
        for name in asked or ():
            if name not in names:
                raise InputError(
                    f"{option} {shown(name)} is not in {words}; {those_there(names, name)}"
                )
    sizes = np.bincount(codes[codes >= 0], minlength=len(names))
    if wanted is None:
        wanted = _large_enough(words, names, sizes, min_cells, but=against)
    for name in [*wanted, *(against or ())]:
        _enough(f"group {name!r} of {words}", int(sizes[names.index(name)]), min_cells)
    if against is not None and against[0] in wanted:
        raise InputError(f"group1 and group2 are both {against[0]!r}; compare different groups")

    # Cells in none of the groups asked for share one code: no comparison tells them apart.
    asked = list(dict.fromkeys([*wanted, *(against or ())]))
    place = np.full(len(names) + 1, len(asked), dtype=np.int64)  # the last is "no group"
    for code, name in enumerate(asked):
        place[names.index(name)] = code
    coded = place[codes]
    everyone = range(len(asked) + 1)
    if against is not None:
        coded[coded == len(asked)] = -1
        everyone = range(len(asked))
    listed = []
    for name in wanted:
        own = asked.index(name)
        others = (
            tuple(code for code in everyone if code != own)
            if against is None
            else (asked.index(against[0]),)
        )
        rest = "Rest" if against is None else against[0]
        if against is None:
            n_others = len(coded) - int(sizes[names.index(name)])
            _enough(f"the rest beside group {name!r} of {words}", n_others, min_cells)
        listed.append(Comparison((own,), others, name, rest))
    return Comparisons(coded, len(asked) + 1, tuple(listed))


def _groups(groupby: Any, obs: pd.DataFrame) -> tuple[np.ndarray, list[str], str]:
    """Return codes (N,), -1 where the value is missing; the groups with cells; their source."""
    if groupby is None:
        raise InputError(
            "nothing to compare: give groupby (a column of obs), or the cells of idx1 (and idx2)"
        )
    if is_array_of_cells(groupby):
        column, words = values_of_cells(obs.index.to_numpy(), groupby, "groupby"), "groupby"
        codes, found = factorise(column, words)
    else:
        key = _key_of(groupby, obs)
        column, words = key_column(obs, key, "groupby"), in_words(key)
        codes, found = factorise(column, f"{words} (groupby)")
    names = list(found)
    if len(names) < 2:
        raise InputError(
            f"{words} has {len(names)} group{'' if len(names) == 1 else 's'} "
            f"({a_few(names) or 'every value is missing'}); a comparison needs two"
        )
    return codes, names, words


def _key_of(groupby: Any, obs: pd.DataFrame) -> Key:
    """Return the columns that `groupby` names; all of them are there."""
    key = checked_key(groupby, "groupby")
    assert key is not None
    columns = [str(name) for name in obs.columns]
    for name in columns_of(key):
        if name not in columns:
            raise InputError(
                f"groupby {shown(name)} is not a column of obs; a column of another AnnData can "
                f"be given itself (adata.obs[{shown(name)}]); {those_there(columns, name)}"
            )
    return key


def _names(option: str, given: Any, known: list[str]) -> list[str] | None:
    """Return the names of the groups asked for, as `known` writes them."""
    if given is None:
        return None
    groups, names = CategoryNames(known), []
    for value in [given] if is_name(given) else listed(option, given, "names of groups"):
        name = name_of(option, value)
        code = groups.code(name)
        names.append(name if code is None else known[code])
    return list(dict.fromkeys(names))


def _large_enough(
    words: str, names: list[str], sizes: np.ndarray, min_cells: int, but: list[str] | None
) -> list[str]:
    """Return the groups with enough cells; a warning names the others."""
    asked = [name for name in names if name not in (but or ())]
    small = [name for name in asked if sizes[names.index(name)] < min_cells]
    large = [name for name in asked if name not in small]
    if not large:
        raise InputError(f"no group of {words} has {min_cells} cells or more (min_cells)")
    if small:
        warnings.warn(
            f"groups of {words} with fewer than {min_cells} cells are not compared: "
            f"{a_few(small)} (min_cells)",
            UserWarning,
            stacklevel=6,
        )
    return large


def _enough(what: str, n_cells: int, min_cells: int) -> None:
    if n_cells < min_cells:
        raise InputError(
            f"{what} has {n_cells:,} cell{'' if n_cells == 1 else 's'}, fewer than "
            f"min_cells={min_cells}; take a larger group or lower min_cells"
        )


def _mask(name: str, given: Any, obs: pd.DataFrame) -> np.ndarray:
    """Return cells as a mask (N,); a text is a condition on the columns of obs."""
    if isinstance(given, str):
        return _condition(name, given, obs)
    given = given.ravel() if isinstance(given, np.ndarray) else given
    rows = rows_of_cells(name, given, len(obs), obs.index.to_numpy)
    mask = np.zeros(len(obs), dtype=bool)
    mask[rows] = True
    return mask


def _condition(name: str, given: str, obs: pd.DataFrame) -> np.ndarray:
    try:
        mask = np.asarray(obs.eval(given))
    except Exception as error:
        # pandas raises whatever the expression runs into
        raise InputError(
            f"{name}={shown(given)} cannot be evaluated on obs ({shortened(str(error))}); "
            f"there are the columns {a_few(obs.columns, 30)}"
        ) from error
    if mask.dtype != bool:
        raise InputError(
            f"{name}={shown(given)} is not a condition; compare a column, as in 'a > 1'"
        )
    if mask.shape != (len(obs),):
        raise InputError(f"{name} is a mask of {mask.size} values for {len(obs)} cells")
    return mask
