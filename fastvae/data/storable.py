"""obs and var in a form that .h5ad files and zarr stores can hold."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from .._words import a_few, make_unique
from .categories import category_name

if TYPE_CHECKING:
    import pandas as pd

RESERVED = "_index"
"""The name under which the files keep the names of the rows."""


def storable(frame: pd.DataFrame, where: str) -> pd.DataFrame:
    """Return a frame that can be written; `frame` itself is left as it is.

    Numbers and booleans are kept, texts become categories, numbers and booleans that came as
    Python objects nullable ones. Other columns (lists, mixed objects, intervals, periods, dates,
    complex numbers ...) become the names of their values (`category_name`). Missing values stay
    missing. Names of columns become texts that are unique and have no slash.

    Parameters
    ----------
    frame
        One row per cell or gene.
    where
        "obs" or "var", for the warning.

    Warns
    -----
    UserWarning
        Once, naming the columns that are written as text and the names that are changed.
    """
    import pandas as pd

    names = _names(frame)
    columns, as_text = [], []
    for position, name in enumerate(names):
        column = frame.iloc[:, position]
        kept = _kept(column)
        if kept is None:
            as_text.append(name)
            kept = _texts(column)
        columns.append(kept)
    index = pd.Index([_text(value) for value in frame.index], dtype=object)
    index.name = frame.index.name if _fits(frame.index.name, names) else None
    data = {name: column.set_axis(index) for name, column in zip(names, columns, strict=True)}
    result = pd.DataFrame(data, index=index, columns=names)
    renamed = [f"{old!s} -> {new}" for old, new in zip(frame.columns, names, strict=True)
               if not isinstance(old, str) or old != new]  # fmt: skip
    said = []
    if as_text:
        said.append(
            f"columns that these files cannot hold are written as text: {a_few(as_text, 30)}"
        )
    if renamed:
        said.append(f"columns are renamed: {a_few(renamed, 30)}")
    if said:
        warnings.warn(f"{where}: {'; '.join(said)}", UserWarning, stacklevel=3)
    return result


def _names(frame: pd.DataFrame) -> list[str]:
    names = []
    for name in frame.columns:
        text = _text(name).replace("/", "_")
        text = text if text.strip(".") or not text else "_" * len(text)
        names.append({"": "unnamed", RESERVED: "index"}.get(text, text))
    return make_unique(names)


def _fits(name: Any, taken: list[str]) -> bool:
    taken = [*taken, RESERVED, ""]
    return isinstance(name, str) and name == _text(name) and name not in taken and "/" not in name


def _kept(column: pd.Series) -> Any:
    """The column in a type that can be written, or None."""
    import pandas as pd

    dtype = column.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        return _with_plain_categories(column)
    if isinstance(dtype, (pd.Float32Dtype, pd.Float64Dtype)):
        return column.astype(dtype.numpy_dtype)
    if _plain(dtype) or isinstance(dtype, (pd.BooleanDtype, pd.core.dtypes.dtypes.BaseMaskedDtype)):
        return column
    if _are_texts(column):
        return column.astype(object).astype("category")
    if dtype.kind != "O" or not isinstance(dtype, np.dtype):
        return None
    kind = pd.api.types.infer_dtype(column, skipna=True)
    types = {"boolean": "boolean", "integer": "Int64"}
    types |= {"floating": "float64", "mixed-integer-float": "float64"}
    try:
        if kind in types:
            return column.astype(types[kind])
    except (TypeError, ValueError, OverflowError):  # numbers beyond 64 bits
        return None
    # Files that disagree about a column give such mixtures; their values have names.
    return _texts(column) if column.dropna().map(_has_name).all() else None


def _has_name(value: Any) -> bool:
    return isinstance(value, (str, bool, int, float, np.bool_, np.number)) and (
        not isinstance(value, (complex, np.complexfloating)) and str(value) == _text(str(value))
    )


def _with_plain_categories(column: pd.Series) -> Any:
    import pandas as pd

    categories = column.cat.categories
    if isinstance(categories.dtype, pd.StringDtype) and _are_texts(categories):
        return column.cat.rename_categories(categories.astype(object))  # as all versions write it
    if _plain(categories.dtype) or _are_texts(categories):
        return column
    names = [_text(value) for value in categories]
    return column.cat.rename_categories(names) if len(set(names)) == len(names) else None


def _plain(dtype: Any) -> bool:
    return isinstance(dtype, np.dtype) and dtype.kind in "biuf" and dtype != np.longdouble


def _are_texts(values: Any) -> bool:
    import pandas as pd

    if values.dtype != object and not isinstance(values.dtype, pd.StringDtype):
        return False
    return all(
        isinstance(value, str) and value == _text(value)
        for value in values[~np.asarray(pd.isna(values), dtype=bool)]
    )


def _texts(column: pd.Series) -> pd.Series:
    """The texts of the values as categories; missing ones stay missing."""
    import pandas as pd

    missing = np.asarray(column.isna(), dtype=bool)
    texts = np.array([_text(value) for value in column], dtype=object)
    texts[missing] = None
    return pd.Series(pd.Categorical(texts), index=column.index)


def _text(value: Any) -> str:
    try:
        text = category_name(value)
        if "\0" in text or not text.isascii():
            text = text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
        return text
    except Exception:  # an object in a table may raise anything
        return f"<{type(value).__name__}>"
