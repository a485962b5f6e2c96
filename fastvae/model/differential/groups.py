"""Which cells are compared with which."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..._words import a_few, is_no_category, those_there
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

    The names are None where the cells were given by row. `within` names the cells that both groups
    are of; None is all cells.
    """

    first: tuple[int, ...]
    second: tuple[int, ...]
    group1: str | None = None
    group2: str | None = None
    within: str | None = None

    @property
    def names(self) -> tuple[str, str]:
        """What messages call both sides."""
        return self.group1 or "the first cells", self.group2 or "the second cells"

    @property
    def title(self) -> str:
        """What the table calls the comparison."""
        text = f"{self.group1} vs {self.group2}"
        return text if self.within is None else f"{self.within}: {text}"


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
    within: Any,
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
    within
        What divides the cells, in each part of which groups are compared; None is all cells.
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
        asked = Asked.of(groupby, *groups, obs)
        if within is not None:
            return within_parts(asked, within, obs, min_cells)
        return by_groups(asked, min_cells)
    if within is not None:
        raise InputError("within divides groups by name; give groupby, not cells (idx1, idx2)")
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


@dataclass(frozen=True, eq=False)
class Asked:
    """Groups of cells, and which of them are asked for.

    Attributes
    ----------
    codes
        (N,) the group of each cell, -1 where the value is missing.
    names
        Of the groups that have cells.
    words
        What messages call them together.
    wanted
        Groups to test; None is all.
    against
        What they are tested against; None is all other cells.
    """

    codes: np.ndarray
    names: list[str]
    words: str
    wanted: list[str] | None
    against: str | None

    @classmethod
    def of(cls, groupby: Any, group1: Any, group2: Any, obs: pd.DataFrame) -> Asked:
        """Read the arguments of `Model.differential_expression`.

        Parameters
        ----------
        groupby
            The group of each cell: one or more columns of obs, an array, or a Series whose index
            names the cells.

        Raises
        ------
        InputError
            No such column or group, a single group, or one compared with itself.
        """
        codes, names, words = _groups("groupby", groupby, obs)
        if len(names) < 2:
            raise InputError(
                f"{words} has {len(names)} group{'' if len(names) == 1 else 's'} "
                f"({a_few(names) or 'every value is missing'}); a comparison needs two"
            )
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
        if against is not None and wanted is not None and against[0] in wanted:
            raise InputError(f"group1 and group2 are both {against[0]!r}; compare different groups")
        return cls(codes, names, words, wanted, None if against is None else against[0])

    def tested(self) -> list[str]:
        """Return the groups to test; those that say "unknown" only if they are asked for.

        Warns
        -----
        UserWarning
            Which are left out.
        """
        if self.wanted is not None:
            return self.wanted
        others = [name for name in self.names if name != self.against]
        unnamed = [name for name in others if is_no_category(name)]
        if not unnamed or len(unnamed) == len(others):
            return others
        cells = int(np.isin(self.codes, [self.names.index(name) for name in unnamed]).sum())
        warnings.warn(
            f"{a_few(unnamed)} of {self.words} ({cells:,} cells) is not tested, since it names no "
            "group; name it in group1 to test it",
            UserWarning,
            stacklevel=6,
        )
        return [name for name in others if name not in unnamed]


def by_groups(groups: Asked, min_cells: int) -> Comparisons:
    """Compare groups by name; without ``group2``, each with all other cells.

    Raises
    ------
    InputError
        A group has too few cells.
    """
    codes, names, words = groups.codes, groups.names, groups.words
    sizes = np.bincount(codes[codes >= 0], minlength=len(names))
    wanted, against = groups.tested(), groups.against
    if groups.wanted is None:
        wanted = _large_enough(words, wanted, sizes[[names.index(n) for n in wanted]], min_cells)
    for name in [*wanted, *([] if against is None else [against])]:
        _enough(f"group {name!r} of {words}", int(sizes[names.index(name)]), min_cells)

    # Cells that are in no group asked for share one code: they are told apart by nobody.
    asked = list(dict.fromkeys([*wanted, *([] if against is None else [against])]))
    coded = _codes_among(asked, groups)
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
            else (asked.index(against),)
        )
        if against is None:
            n_others = len(coded) - int(sizes[names.index(name)])
            _enough(f"the rest beside group {name!r} of {words}", n_others, min_cells)
        listed.append(Comparison((own,), others, name, "Rest" if against is None else against))
    return Comparisons(coded, len(asked) + 1, tuple(listed))


def _codes_among(asked: list[str], groups: Asked) -> np.ndarray:
    """Return the place of each cell's group in `asked` (N,); the last is every other cell."""
    place = np.full(len(groups.names) + 1, len(asked), dtype=np.int64)  # the last is "no group"
    for code, name in enumerate(asked):
        place[groups.names.index(name)] = code
    return place[groups.codes]


def within_parts(groups: Asked, within: Any, obs: pd.DataFrame, min_cells: int) -> Comparisons:
    """Compare groups in each part of the cells by itself, such as in each cell type.

    Parts that name no category, and comparisons with too few cells, are left out with a warning.

    Raises
    ------
    InputError
        No such column, or no comparison has enough cells.
    """
    part_codes, parts, words = _groups("within", within, obs)
    wanted, against = groups.tested(), groups.against
    asked = list(dict.fromkeys([*wanted, *([] if against is None else [against])]))
    own = _codes_among(asked, groups)
    n_each = len(asked) + 1
    coded = np.where(part_codes >= 0, part_codes * n_each + own, -1)
    sizes = np.bincount(coded[coded >= 0], minlength=n_each * len(parts)).reshape(-1, n_each)
    listed, left_out = [], [name for name in parts if is_no_category(name)]
    for number, part in enumerate(parts):
        for name in () if part in left_out else wanted:
            code = asked.index(name)
            others = [c for c in range(n_each) if c != code]
            others = others if against is None else [asked.index(against)]
            rest = "Rest" if against is None else against
            if min(sizes[number, code], sizes[number, others].sum()) < min_cells:
                left_out.append(f"{part}: {name} vs {rest}")
                continue
            first = number * n_each
            second = tuple(first + other for other in others)
            listed.append(Comparison((first + code,), second, name, rest, part))
    if not listed:
        raise InputError(
            f"no part of {words} has min_cells={min_cells} cells or more in both groups of "
            f"{groups.words}; leave out within, or lower min_cells"
        )
    if left_out:
        warnings.warn(
            f"not compared within {words}, for fewer than min_cells={min_cells} cells in a group "
            f"or no name: {a_few(left_out, 8)}",
            UserWarning,
            stacklevel=5,
        )
    used = {code for one in listed for code in (*one.first, *one.second)}
    coded[~np.isin(coded, list(used))] = -1
    return Comparisons(coded, n_each * len(parts), tuple(listed))


def _groups(option: str, groupby: Any, obs: pd.DataFrame) -> tuple[np.ndarray, list[str], str]:
    """Return codes (N,), -1 where the value is missing; the groups with cells; their source."""
    if groupby is None:
        raise InputError(
            "nothing to compare: give groupby (a column of obs), or the cells of idx1 (and idx2)"
        )
    if is_array_of_cells(groupby):
        column, words = values_of_cells(obs.index.to_numpy(), groupby, option), option
        codes, found = factorise(column, words)
    else:
        key = _key_of(option, groupby, obs)
        column, words = key_column(obs, key, option), in_words(key)
        codes, found = factorise(column, f"{words} ({option})")
    return codes, list(found), words


def _key_of(option: str, groupby: Any, obs: pd.DataFrame) -> Key:
    """Return the columns that `groupby` names; all of them are there."""
    key = checked_key(groupby, option)
    assert key is not None
    columns = [str(name) for name in obs.columns]
    for name in columns_of(key):
        if name not in columns:
            raise InputError(
                f"{option} {shown(name)} is not a column of obs; a column of another AnnData can "
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


def _large_enough(words: str, names: list[str], sizes: np.ndarray, min_cells: int) -> list[str]:
    """All groups that have enough cells, and a warning that names the others."""
    large = [name for name, size in zip(names, sizes, strict=True) if size >= min_cells]
    small = [name for name in names if name not in large]
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
