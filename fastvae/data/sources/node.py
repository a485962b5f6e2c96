"""A group or an array in a file, and whether the file can hold what it declares.

`hdf5_nodes` and `zarr_nodes` show the two formats as the same tree of nodes. What is read of it is
checked first: `frame_structure`, `matrix_structure` and `tenx_structure` walk the objects that
will be read, and no others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Protocol

from ...errors import InputError

_SMALL = 1 << 20  # bytes that may be declared without being stored: nobody is harmed by them
_MOST_OBJECTS = 100_000
_DEEPEST = 32


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


def text_attribute(node: Node, name: str) -> str | None:
    """Return an attribute that has to be text, None where it is not there.

    Raises
    ------
    InputError
        It is something else.
    """
    value = node.attribute(name)
    if value is not None and not isinstance(value, str):
        raise unreadable(node, node.path, f"its attribute {name!r} is {value!r:.60}, not a text")
    return value


def unreadable(node: Node, what: str, reason: str) -> InputError:
    """Return the error for `what` of a file that is not as anndata writes it."""
    return InputError(
        f"{node.source}: {what} cannot be read ({reason}); the file is damaged or was written by "
        "a newer anndata: write it again, or update anndata"
    )


def length_of(array: Node) -> int:
    """Return the number of entries along the first dimension."""
    assert array.shape is not None
    return array.shape[0]


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
