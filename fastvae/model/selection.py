"""Which cells, genes and batches a user means."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .._words import a_few, those_there
from ..data.alignment import in_order_of, positions_of
from ..data.categories import CategoryNames, category_name
from ..data.keys import Key
from ..errors import MOST_NAMES, InputError, listed, shown

if TYPE_CHECKING:
    from ..data.stores.store import Store


def cell_rows(cells: Any, store: Store) -> np.ndarray:
    """Return row numbers (M,) int64 of cells given by number, mask or name; None is all cells.

    Raises
    ------
    InputError
        As `rows_of_cells`, or no cell at all.
    """
    if cells is None:
        return np.arange(store.n_cells)
    rows = rows_of_cells("cells", cells, store.n_cells, lambda: store.cell_names)
    if rows.size == 0:
        raise InputError("cells selects no cell; give at least one")
    return rows


def rows_of_cells(
    option: str, cells: Any, n_cells: int, names: Callable[[], np.ndarray]
) -> np.ndarray:
    """Return row numbers (M,) int64.

    Parameters
    ----------
    option
        What messages call `cells`.
    cells
        Row numbers, names of cells, or a mask: a boolean array in the order of the cells, or a
        boolean Series, whose index names them.
    n_cells
        Number of cells.
    names
        Gives their names (N,), which may have to be read from files.

    Raises
    ------
    InputError
        A mask of another length, numbers out of range, unknown names, or anything else.
    """
    import pandas as pd

    if isinstance(cells, pd.Series) and pd.api.types.is_bool_dtype(cells.dtype):
        cells = in_order_of(names(), cells, option).to_numpy(dtype=bool, na_value=False)
    rows = row_array(option, cells)
    if rows.dtype == bool:
        if rows.shape != (n_cells,):
            raise InputError(
                f"{option} is a mask of shape {rows.shape}; expected ({n_cells},), one per cell"
            )
        rows = np.flatnonzero(rows)
    elif _are_names(rows):
        rows = _rows_named(option, rows, names())
    if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
        raise InputError(
            f"{option} must be row numbers or a boolean mask, not {rows.dtype} of shape "
            f"{rows.shape}; names of cells are taken too"
        )
    if rows.size and (rows.min() < 0 or rows.max() >= n_cells):
        raise InputError(
            f"{option} has row {rows.max() if rows.max() >= n_cells else rows.min()}; there are "
            f"rows 0 to {n_cells - 1}"
        )
    return rows.astype(np.int64)


def _are_names(rows: np.ndarray) -> bool:
    if rows.ndim != 1 or not rows.size:
        return False
    return rows.dtype.kind == "U" or all(isinstance(name, str) for name in rows)


def _rows_named(option: str, wanted: np.ndarray, names: np.ndarray) -> np.ndarray:
    each, inverse = np.unique(wanted.astype(str), return_inverse=True)
    positions, missing = positions_of(each, names)
    if missing:
        raise InputError(
            f"{option} has names that no cell has, or that several have: {a_few(missing)}; cells "
            f"have names such as {a_few(names, 2)}"
        )
    return positions[inverse]


def row_array(option: str, cells: Any) -> np.ndarray:
    """Return row numbers, names or a mask as an array of any shape.

    Raises
    ------
    InputError
        It is neither; `option` is what the message calls it.
    """
    wanted = f"{option} must be row numbers, names of cells or a boolean mask, not {shown(cells)}"
    if isinstance(cells, (str, bytes, bytearray, dict, set, frozenset)):
        raise InputError(wanted)
    if isinstance(cells, range) and len(cells) > MOST_NAMES:
        raise InputError(wanted)
    try:
        rows = np.asarray(cells)
    except Exception as error:  # nested lists, tensors, objects: each raises its own
        raise InputError(wanted) from error
    if rows.ndim == 0:
        raise InputError(f"{wanted}; for one cell give a list of one")
    return rows


def gene_list(genes: Any) -> list[str]:
    """Return a list of names of genes; a single name may be given by itself.

    Raises
    ------
    InputError
        Something in it is not a name.
    """
    if is_name(genes):
        return [name_of("genes", genes)]
    return [name_of("genes", gene) for gene in listed("genes", genes, "names of genes")]


def name_of(option: str, value: Any, what: str = "names") -> str:
    """Return a name as text; `what` says what the option has to be.

    Raises
    ------
    InputError
        It is not a name.
    """
    if is_name(value):
        try:
            return category_name(value)
        except ValueError:  # a number of thousands of digits
            pass
    raise InputError(f"{option} must be {what}, not {shown(value)}")


def is_name(value: Any) -> bool:
    """Whether a value can name one gene, batch or group: a text, a number, a date, an interval."""
    import pandas as pd

    return bool(pd.api.types.is_scalar(value))


def gene_columns(genes: Any, names: Sequence[str]) -> np.ndarray | None:
    """Return columns (K,) int64 of the genes named, in that order; None is all genes.

    Raises
    ------
    InputError
        Names that the model does not have, or none at all.
    """
    if genes is None:
        return None
    wanted = gene_list(genes)
    if not wanted:
        raise InputError("genes is empty; name at least one gene, or leave it out for all")
    position = {name: column for column, name in enumerate(names)}
    missing = [name for name in wanted if name not in position]
    if missing:
        # Only in another case: genes whose names are one letter apart are different genes.
        by_case = {name.lower(): name for name in names}
        meant = dict.fromkeys(by_case[name.lower()] for name in missing if name.lower() in by_case)
        raise InputError(
            f"genes asked for that the model was not trained on: {a_few(missing)}; "
            f"its genes are model.gene_names{f'; did you mean {a_few(meant)}?' if meant else ''}"
        )
    return np.array([position[name] for name in wanted], dtype=np.int64)


def batch_codes(
    wanted: Any, categories: Sequence[str], key: Key | None, option: str = "transform_batch"
) -> list[int | None]:
    """Return the codes to decode as; [None], each cell's own batch, if nothing is wanted.

    `option` is what messages call it.

    Raises
    ------
    InputError
        The model has no batches, or does not know a category.
    """
    if wanted is None:
        return [None]
    if key is None:
        raise InputError(f"{option} needs a model with batches; this one has no batch_key")
    named = [wanted] if is_name(wanted) else listed(option, wanted, "names of batches")
    values = [name_of(option, value) for value in named]
    if not values:
        raise InputError(f"{option} is empty; name a batch, or leave it out")
    known = CategoryNames(categories)
    codes: list[int | None] = []
    for name in values:
        code = known.code(name)
        if code is None:
            raise InputError(
                f"{option} {shown(name)} is not a category of {_named(key)}; "
                f"{those_there(list(categories), name)}"
            )
        codes.append(code)
    return codes


def _named(key: Key) -> str:
    return repr(key if isinstance(key, str) else list(key))
