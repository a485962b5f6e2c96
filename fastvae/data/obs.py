"""obs of several files as one data frame, and as one that files can hold."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .categories import category_name

if TYPE_CHECKING:
    import pandas as pd


def joined_obs(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Put frames one below the other, with the columns that any has.

    The merge is that of ``anndata.concat(join="outer")``: missing values stay missing, categories
    are the union, booleans that a frame lacks become nullable.

    Parameters
    ----------
    frames
        One row per cell each.
    """
    import anndata

    with warnings.catch_warnings():
        # Repeated names do no harm here: cells are addressed by position.
        warnings.filterwarnings("ignore", message="Observation names are not unique")
        # pandas on columns that are missing throughout in one of the frames
        warnings.filterwarnings("ignore", category=FutureWarning)
        objects = [anndata.AnnData(obs=frame) for frame in frames]
        joined: pd.DataFrame = anndata.concat(objects, join="outer").obs
    return joined


def storable(frame: pd.DataFrame) -> pd.DataFrame:
    """Return `frame` with an index and columns of types that every anndata writes and reads.

    Texts in the index become Python objects, which all versions write as plain texts; in columns
    they become categories, truth values and numbers kept as Python objects nullable ones, and
    mixtures the names of their values (`category_name`). Missing values stay missing.
    """
    import pandas as pd

    columns = {number: _storable(frame.iloc[:, number]).array for number in range(frame.shape[1])}
    index = frame.index.astype(object) if _is_text(frame.index) else frame.index
    result = pd.DataFrame(columns, index=index)
    result.columns = frame.columns
    return result


def _is_text(values: pd.Index | pd.Series) -> bool:
    """Whether the dtype is one of pandas' own for text."""
    import pandas as pd

    return isinstance(values.dtype, pd.StringDtype)


def _storable(column: pd.Series) -> pd.Series:
    import pandas as pd

    if isinstance(column.dtype, pd.CategoricalDtype):
        return _with_plain_categories(column)
    if isinstance(column.dtype, (pd.Float32Dtype, pd.Float64Dtype)):
        return column.astype(column.dtype.numpy_dtype)
    if column.dtype != object and not _is_text(column):
        return column
    kind = pd.api.types.infer_dtype(column, skipna=True)
    types = {"boolean": "boolean", "integer": "Int64"}
    types |= {"floating": "float64", "mixed-integer-float": "float64"}
    if kind in types:
        return column.astype(types[kind])
    if kind not in ("string", "empty"):
        column = column.map(category_name, na_action="ignore")
    return column.astype(object).astype("category")


def _with_plain_categories(column: pd.Series) -> pd.Series:
    """Name the categories of a column that are neither all texts, all numbers nor all bools."""
    import pandas as pd

    categories = column.cat.categories
    plain = ("string", "boolean", "integer", "floating", "empty")
    if pd.api.types.infer_dtype(categories, skipna=False) in plain:
        if not _is_text(categories):
            return column
        return column.cat.rename_categories(categories.astype(object))
    names = [category_name(value) for value in categories]
    if len(set(names)) == len(names):
        return column.cat.rename_categories(names)
    return column.astype(object).map(category_name, na_action="ignore").astype("category")
