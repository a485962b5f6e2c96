"""What a matrix of counts in a file must look like before it is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ...errors import InputError
from .node import Node, check_complete, check_held, length_of, text_attribute

_DENSE_RATIO = 1032  # what deflate, the usual compression, makes of zeros
_NUMBERS = "biuf"


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
    kind = (
        text_attribute(matrix, "encoding-type") or text_attribute(matrix, "h5sparse_format") or ""
    )
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
    n_values = length_of(data)
    if length_of(indices) != n_values:
        raise InputError(
            f"{label} is damaged: its row pointers do not fit its {n_values} values; "
            "write or download the file again"
        )
    for part in parts:
        check_held(part)
        check_complete(part)


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
