"""What a file must look like before anything in it is decoded.

The objects that will be read, and no others, are walked once: each is there, of the right kind and
shape, lies in the file itself, and is no larger than what the file can hold. `hdf5_nodes` and
`zarr_nodes` show the two formats as the same tree of nodes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from ..._memory import require_memory
from ..._words import a_few
from ...errors import InputError

_SMALL = 1 << 20  # bytes that may be declared without being stored: nobody is harmed by them
_PLAIN_ITEM = 16  # bytes of the widest number; wider items are texts of a fixed length
_DENSE_RATIO = 1032  # what deflate, the usual compression, makes of zeros
_MOST_OBJECTS = 100_000
_DEEPEST = 32
_NUMBERS = "biuf"
_COLUMN_KINDS = "biufcTMm"
_COLUMN_GROUPS = ("nullable-integer", "nullable-boolean", "nullable-string-array")


class Node(Protocol):
    """A group or an array in a file.

    Attributes
    ----------
    source
        The file, for messages.
    path
        Names from the root of the file on, joined by slashes.
    is_array
        Whether it is an array.
    """

    source: str
    path: str
    is_array: bool

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Of an array; None where it has no extent."""

    @property
    def kind(self) -> str:
        """Of an array: numpy's letter, "T" for text of any kind, "?" for what cannot be read."""

    @property
    def type_name(self) -> str:
        """What the entries of an array are, in words."""

    @property
    def item_bytes(self) -> int:
        """What an entry takes before compression, at least."""

    @property
    def stored_bytes(self) -> int | None:
        """What the entries take in the file; None where they lie in others that are trusted."""

    @property
    def ratio(self) -> int:
        """How much smaller than their entries the stored bytes can be."""

    def names(self) -> list[str]:
        """Return the names of the children, without opening them."""

    def child(self, name: str) -> Node | None:
        """Return a child or a deeper descendant, or None; raises InputError for a link out."""

    def attribute(self, name: str) -> Any:
        """Return an attribute as plain values, None where it is not there."""

    def referred(self, reference: Any) -> Node | None:
        """Return what an attribute refers to."""

    def missing_chunks(self) -> str:
        """Say which of the chunks that the shape needs are not stored; empty if none."""


def where(node: Node) -> str:
    """Return ``"obs/batch of atlas.h5ad"``."""
    return f"{node.path} of {node.source}"


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
        raise _unreadable(root, key, "it is not there")
    if frame.is_array:
        raise _unreadable(root, key, f"it is an array of {frame.type_name}, not a data frame")
    if "__categories" in frame.names():  # of anndata before 0.8; readers look into it
        frame.child("__categories")
    index_name = _text(frame, "_index") or "_index"
    order = _texts(frame, "column-order")
    if order is None:
        order = [name for name in frame.names() if name not in (index_name, "__categories")]
    index = frame.child(index_name)
    if index is None:
        raise _unreadable(root, key, f"its index {index_name!r} is not there")
    length = _check_column(frame, index, f"{key} names", None)
    total = 0
    for name in order:
        column = frame.child(name)
        what = f"{key}[{name!r}]"
        if column is None:
            raise _unreadable(root, what, "its column-order names it, but it is not there")
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
    kind = _text(column, "encoding-type") or "a group"
    if kind == "categorical":
        codes = _part(column, "codes", what)
        _check_categories(column, what)
        return _check_values(codes, what, length, held=length is None, kinds="iu")
    if kind not in _COLUMN_GROUPS:
        raise _unreadable(column, what, f"it is stored as {kind}, which is no column")
    values, mask = (_part(column, name, what) for name in ("values", "mask"))
    found = _check_values(values, what, length, held=length is None)
    _check_values(mask, what, found, held=False, kinds="b")
    return found


def _check_categories(column: Node, what: str) -> None:
    categories = column.child("categories")
    if categories is None:
        raise _unreadable(column, what, "its 'categories' is not there")
    what = f"{what}, categories"
    if categories.is_array:
        _check_values(categories, what, None, held=True)
        return
    kind = _text(categories, "encoding-type") or "a group"
    if kind not in _COLUMN_GROUPS:
        raise _unreadable(categories, what, f"it is stored as {kind}, which is no column")
    length = _check_values(_part(categories, "values", what), what, None, held=True)
    _check_values(_part(categories, "mask", what), what, length, held=False, kinds="b")


def _check_old_categories(frame: Node, codes: Node, what: str) -> None:
    """Check what anndata before 0.8 kept beside the codes and named by an attribute of them."""
    reference = codes.attribute("categories")
    if reference is None:
        return
    categories = frame.referred(reference)
    if categories is None or not categories.is_array:
        raise _unreadable(frame, what, "its attribute 'categories' refers to no array")
    _check_values(categories, f"{what}, categories", None, held=True)


def _part(group: Node, name: str, what: str) -> Node:
    part = group.child(name)
    if part is None or not part.is_array:
        state = "is not there" if part is None else "is a group, not an array"
        raise _unreadable(group, what, f"its {name!r} {state}")
    return part


def _check_values(
    array: Node, what: str, length: int | None, *, held: bool, kinds: str = _COLUMN_KINDS
) -> int:
    shape = array.shape
    if shape is None or len(shape) != 1:
        raise _unreadable(array, what, f"it has shape {shape}, not one dimension")
    if length is not None and shape[0] != length:
        raise _unreadable(array, what, f"it has {shape[0]} entries, its index has {length}")
    if array.kind not in kinds:
        wanted = {"iu": "whole numbers", "b": "true and false"}.get(kinds, "numbers or text")
        raise _unreadable(array, what, f"it holds {array.type_name}, not {wanted}")
    # A zarr store leaves out chunks of the fill value alone; an index is never such a chunk.
    if held or array.item_bytes > _PLAIN_ITEM:
        check_held(array)
    if what.endswith(" names") and kinds != "b":  # a mask without a chunk is False throughout
        check_complete(array)
    return shape[0]


def check_matrix(matrix: Node, label: str) -> None:
    """Check a matrix before it is read; `label` is what messages call it.

    Raises
    ------
    InputError
        It is of another kind, its parts do not fit, or it is larger than the file can hold.
    """
    if matrix.is_array:
        found = matrix.shape
        if found is None or len(found) != 2:
            raise InputError(f"{label} has shape {found}; expected two dimensions, cells x genes")
        check_numbers(matrix, label)
        check_held(matrix, least_ratio=_DENSE_RATIO)
        return
    check_layout(matrix, label)
    check_compressed(matrix, label)


def check_layout(matrix: Node, label: str) -> None:
    """Refuse a group that is no CSR or CSC matrix.

    Raises
    ------
    InputError
        Says what it is.
    """
    kind = _text(matrix, "encoding-type") or _text(matrix, "h5sparse_format") or ""
    layout = kind.removesuffix("_matrix")
    shape = matrix.attribute("shape")
    shape = matrix.attribute("h5sparse_shape") if shape is None else shape
    if layout not in ("csr", "csc") or shape is None:
        raise InputError(
            f"{label} is stored as {kind or 'an unknown kind of group'}; "
            "expected a CSR, CSC or dense matrix"
        )
    if not _is_shape(shape):
        raise InputError(
            f"{label} is damaged: its shape is {shape!r}, not cells x genes; write the file again"
        )


def check_compressed(group: Node, label: str) -> None:
    """Check ``data``, ``indices`` and ``indptr`` of a sparse matrix.

    Raises
    ------
    InputError
        They are not there, do not fit each other, or positions are not whole numbers.
    """
    parts = []
    for name in ("data", "indices", "indptr"):
        part = group.child(name)
        if part is None:
            raise InputError(f"{label} is damaged: it has no {name!r}; write the file again")
        if not part.is_array or part.shape is None or len(part.shape) != 1:
            found = f"has shape {part.shape}" if part.is_array else "is a group"
            raise InputError(
                f"{label} is damaged: its {name!r} {found}, not an array of one dimension; "
                "write the file again"
            )
        parts.append(part)
    data, indices, indptr = parts
    check_numbers(data, label)
    for part in (indices, indptr):
        if part.kind not in "iu":
            raise InputError(
                f"{label} is damaged: its {part.path.rpartition('/')[2]!r} holds "
                f"{part.type_name}; positions must be whole numbers (integers); write the file "
                "again"
            )
    n_values = _length(data)
    if _length(indices) != n_values:
        raise InputError(
            f"{label} is damaged: its row pointers do not fit its {n_values} values; "
            "write or download the file again"
        )
    for part in parts:
        check_held(part)
        check_complete(part)


def check_tenx_v3(root: Node) -> None:
    """Check a Cell Ranger file with one group ``matrix``.

    Raises
    ------
    InputError
        The first thing that is wrong.
    """
    matrix = root.child("matrix")
    assert matrix is not None, "the caller has looked"
    features = matrix.child("features")
    if features is None:
        raise InputError(f"{root.source} is damaged: matrix has no features; download it again")
    if features.is_array:
        raise _damaged_tenx(features, "is an array, not a group")
    names = ["id", "name", *(n for n in ("feature_type", "genome") if n in features.names())]
    _check_tenx(matrix, [_need(features, name) for name in names])


def check_tenx_v2(root: Node, genome: str) -> None:
    """Check the group of one genome of a Cell Ranger file.

    Raises
    ------
    InputError
        The first thing that is wrong.
    """
    matrix = root.child(genome)
    assert matrix is not None, "the caller has looked"
    _check_tenx(matrix, [_need(matrix, name) for name in ("genes", "gene_names")])


def _check_tenx(matrix: Node, features: list[Node]) -> None:
    barcodes, shape = _need(matrix, "barcodes"), _need(matrix, "shape")
    if shape.shape != (2,) or shape.kind not in "iu":
        raise _damaged_tenx(shape, f"has shape {shape.shape} of {shape.type_name}, not two numbers")
    for names in (barcodes, *features):
        if names.shape is None or len(names.shape) != 1 or names.kind != "T":
            raise _damaged_tenx(names, f"has shape {names.shape} of {names.type_name}, not texts")
        check_held(names)
        check_complete(names)
        if names is not barcodes and names.shape != features[0].shape:
            raise _damaged_tenx(
                names, f"has {_length(names)} entries, {features[0].path} {_length(features[0])}"
            )
    check_compressed(matrix, where(matrix))


def _need(group: Node, name: str) -> Node:
    found = group.child(name)
    if found is None or not found.is_array:
        state = "has no" if found is None else "has a group in place of"
        raise _damaged_tenx(group, f"{state} {name}")
    return found


def _damaged_tenx(node: Node, what: str) -> InputError:
    return InputError(
        f"{node.source} cannot be read: it is damaged or incomplete ({node.path} {what}); "
        "copy or download it again"
    )


def check_everything(root: Node) -> None:
    """Check all of a file whose reader reads it as a whole: links, sizes, depth.

    Raises
    ------
    InputError
        A link out of the file, an array larger than the file can hold, groups in a circle.
    """
    for count, node in enumerate(_descendants(root, _DEEPEST)):
        if count > _MOST_OBJECTS:
            raise _in_a_circle(root)
        if node.is_array:
            check_held(node)


def _descendants(node: Node, depth: int) -> Iterator[Node]:
    for name in node.names():
        child = node.child(name)
        if child is None:
            continue
        yield child
        if not child.is_array:
            if depth == 0:
                raise _in_a_circle(node)
            yield from _descendants(child, depth - 1)


def _in_a_circle(node: Node) -> InputError:
    return InputError(
        f"{node.source} has groups within groups without end ({node.path[:60]} ...); it is "
        "damaged: write it again with a present anndata"
    )


def check_held(array: Node, *, least_ratio: int = 1) -> None:
    """Refuse an array that declares more than what is stored of it can be.

    Raises
    ------
    InputError
        Says how much of each.
    """
    stored = array.stored_bytes
    if stored is None or array.shape is None:
        return
    declared = math.prod(array.shape) * array.item_bytes
    if declared > max(_SMALL, stored * max(array.ratio, least_ratio)):
        raise InputError(
            f"{where(array)} is damaged: it declares {declared:.3g} bytes (shape {array.shape}), "
            f"and {stored} bytes of it are stored; copy or download the file again"
        )


def check_complete(array: Node) -> None:
    """Refuse an array of which chunks were never written, which would read as zeros.

    Raises
    ------
    InputError
        Says how many.
    """
    missing = array.missing_chunks()
    if missing:
        raise InputError(f"{where(array)} is incomplete: {missing}; copy or download it again")


def check_numbers(array: Node, label: str) -> None:
    """Refuse counts that are no numbers.

    Raises
    ------
    InputError
        Says what they are.
    """
    if array.kind not in _NUMBERS:
        raise InputError(
            f"{label} holds {array.type_name} values; counts must be integers or real numbers"
        )


class CheckedMatrices(Mapping[str, Any]):
    """The matrices in one group of a file, each checked before it is handed out.

    Parameters
    ----------
    group
        What h5py or zarr call the root of the file.
    root
        The same as a node.
    key
        Path of the group; "" is the root itself.
    """

    def __init__(self, group: Any, root: Node, key: str = "") -> None:
        self._group, self._root, self._key = group, root, key

    def _node(self, name: object) -> Node | None:
        return self._root.child(f"{self._key}/{name}".lstrip("/"))

    def __getitem__(self, name: str) -> Any:
        node = self._node(name)
        if node is None:
            raise KeyError(name)
        shown = f"layers[{name!r}]" if self._key == "layers" else name.replace("/", ".")
        check_matrix(node, f"{shown} of {self._root.source}")
        return self._group[f"{self._key}/{name}".lstrip("/")]

    def __contains__(self, name: object) -> bool:
        return self._node(name) is not None

    def __iter__(self) -> Iterator[str]:
        try:
            holder = self._root.child(self._key) if self._key else self._root
        except InputError:  # of what nobody has asked for
            holder = None
        return iter([] if holder is None else holder.names())

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _is_shape(shape: Any) -> bool:
    return (
        isinstance(shape, list)
        and len(shape) == 2
        and all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in shape)
    )


def _length(array: Node) -> int:
    assert array.shape is not None
    return array.shape[0]


def _bytes_of(node: Node) -> int:
    if node.is_array:
        return math.prod(node.shape or ()) * node.item_bytes
    parts = (node.child(name) for name in ("codes", "categories", "values", "mask"))
    return sum(_bytes_of(part) for part in parts if part is not None and part.is_array)


def _text(node: Node, name: str) -> str | None:
    value = node.attribute(name)
    if value is not None and not isinstance(value, str):
        raise _unreadable(node, node.path, f"its attribute {name!r} is {value!r:.60}, not a text")
    return value


def _texts(node: Node, name: str) -> list[str] | None:
    value = node.attribute(name)
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise _unreadable(node, node.path, f"its attribute {name!r} is {value!r:.60}, not names")
    if len(set(value)) < len(value):
        repeated = sorted({text for text in value if value.count(text) > 1})
        raise _unreadable(node, node.path, f"its columns {a_few(repeated)} are named twice")
    return value


def _unreadable(node: Node, what: str, reason: str) -> InputError:
    return InputError(
        f"{node.source}: {what} cannot be read ({reason}); the file is damaged or was written by "
        "a newer anndata: write it again, or update anndata"
    )
