"""What ``obs`` and ``var`` of a file must look like before anything in them is decoded."""

from __future__ import annotations

import math

from ..._memory import require_memory
from ..._words import a_few
from .node import Node, check_complete, check_held, text_attribute, unreadable

_PLAIN_ITEM = 16  # bytes of the widest number; wider items are texts of a fixed length
_COLUMN_KINDS = "biufcTMm"
_COLUMN_GROUPS = ("nullable-integer", "nullable-boolean", "nullable-string-array")


def check_anndata(root: Node, use_raw: bool) -> tuple[int, int]:
    """Check ``obs`` and ``var`` (of ``raw`` if asked) of a file.

    Returns
    -------
    tuple of int
        How many cells and genes they name.

    Raises
    ------
    InputError
        The first thing that is wrong.
    """
    return check_frame(root, "obs"), check_frame(root, "raw/var" if use_raw else "var")


def is_old_layout(root: Node) -> bool:
    """Whether obs is one table, as anndata before 0.7 wrote it."""
    obs = root.child("obs")
    return obs is not None and obs.is_array and obs.kind == "V"


def check_frame(root: Node, key: str) -> int:
    """Check a data frame, every column of it, and return its length.

    Raises
    ------
    InputError
        A part is missing, of another kind or length, or larger than the file can hold.
    """
    frame = root.child(key)
    if frame is None:
        raise unreadable(root, key, "it is not there")
    if frame.is_array:
        raise unreadable(root, key, f"it is an array of {frame.type_name}, not a data frame")
    if "__categories" in frame.names():  # of anndata before 0.8; readers look into it
        frame.child("__categories")
    index_name = text_attribute(frame, "_index") or "_index"
    order = _texts(frame, "column-order")
    if order is None:
        order = [name for name in frame.names() if name not in (index_name, "__categories")]
    index = frame.child(index_name)
    if index is None:
        raise unreadable(root, key, f"its index {index_name!r} is not there")
    length = _check_column(frame, index, f"{key} names", None)
    total = 0
    for name in order:
        column = frame.child(name)
        what = f"{key}[{name!r}]"
        if column is None:
            raise unreadable(root, what, "its column-order names it, but it is not there")
        _check_column(frame, column, what, length)
        total += _bytes_of(column)
    require_memory(total, f"reading {key} of {frame.source} ({length} x {len(order)})")
    return length


def _check_column(frame: Node, column: Node, what: str, length: int | None) -> int:
    """Check one column, or the index where `length` is None; return its length."""
    if column.is_array:
        found = _check_values(column, what, length, held=length is None)
        _check_old_categories(frame, column, what)
        return found
    kind = text_attribute(column, "encoding-type") or "a group"
    if kind == "categorical":
        codes = _part(column, "codes", what)
        _check_categories(column, what)
        return _check_values(codes, what, length, held=length is None, kinds="iu")
    if kind not in _COLUMN_GROUPS:
        raise unreadable(column, what, f"it is stored as {kind}, which is no column")
    values, mask = (_part(column, name, what) for name in ("values", "mask"))
    found = _check_values(values, what, length, held=length is None)
    _check_values(mask, what, found, held=False, kinds="b")
    return found


def _check_categories(column: Node, what: str) -> None:
    categories = column.child("categories")
    if categories is None:
        raise unreadable(column, what, "its 'categories' is not there")
    what = f"{what}, categories"
    if categories.is_array:
        _check_values(categories, what, None, held=True)
        return
    kind = text_attribute(categories, "encoding-type") or "a group"
    if kind not in _COLUMN_GROUPS:
        raise unreadable(categories, what, f"it is stored as {kind}, which is no column")
    length = _check_values(_part(categories, "values", what), what, None, held=True)
    _check_values(_part(categories, "mask", what), what, length, held=False, kinds="b")


def _check_old_categories(frame: Node, codes: Node, what: str) -> None:
    """Check what anndata before 0.8 kept beside the codes and named by an attribute of them."""
    reference = codes.attribute("categories")
    if reference is None:
        return
    categories = frame.referred(reference)
    if categories is None or not categories.is_array:
        raise unreadable(frame, what, "its attribute 'categories' refers to no array")
    _check_values(categories, f"{what}, categories", None, held=True)


def _part(group: Node, name: str, what: str) -> Node:
    part = group.child(name)
    if part is None or not part.is_array:
        state = "is not there" if part is None else "is a group, not an array"
        raise unreadable(group, what, f"its {name!r} {state}")
    return part


def _check_values(
    array: Node, what: str, length: int | None, *, held: bool, kinds: str = _COLUMN_KINDS
) -> int:
    shape = array.shape
    if shape is None or len(shape) != 1:
        raise unreadable(array, what, f"it has shape {shape}, not one dimension")
    if length is not None and shape[0] != length:
        raise unreadable(array, what, f"it has {shape[0]} entries, its index has {length}")
    if array.kind not in kinds:
        wanted = {"iu": "whole numbers", "b": "true and false"}.get(kinds, "numbers or text")
        raise unreadable(array, what, f"it holds {array.type_name}, not {wanted}")
    # A zarr store leaves out chunks of the fill value alone; an index is never such a chunk.
    if held or array.item_bytes > _PLAIN_ITEM:
        check_held(array)
    if what.endswith(" names") and kinds != "b":  # a mask without a chunk is False throughout
        check_complete(array)
    return shape[0]


def _bytes_of(node: Node) -> int:
    if node.is_array:
        return math.prod(node.shape or ()) * node.item_bytes
    parts = (node.child(name) for name in ("codes", "categories", "values", "mask"))
    return sum(_bytes_of(part) for part in parts if part is not None and part.is_array)


def _texts(node: Node, name: str) -> list[str] | None:
    value = node.attribute(name)
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise unreadable(node, node.path, f"its attribute {name!r} is {value!r:.60}, not names")
    if len(set(value)) < len(value):
        repeated = sorted({text for text in value if value.count(text) > 1})
        raise unreadable(node, node.path, f"its columns {a_few(repeated)} are named twice")
    return value
