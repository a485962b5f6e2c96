"""HDF5 files as nodes: no link out of the file is followed, no array is read."""

from __future__ import annotations

import functools
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from ..._words import reason
from ...errors import InputError
from .node import Node

# Filters of HDF5 and of hdf5plugin that pack bytes, by their registered numbers, and how much
# smaller they can make an array. Others are refused: some run code that the file brings.
_STRONG = 1 << 17
_FILTERS = {
    1: 1032,  # deflate
    2: 1,  # shuffle
    3: 1,  # fletcher32
    4: _STRONG,  # szip
    5: _STRONG,  # nbit
    6: _STRONG,  # scaleoffset
    307: _STRONG,  # bzip2
    32000: 1032,  # lzf
    32001: _STRONG,  # blosc
    32004: 1032,  # lz4
    32008: _STRONG,  # bitshuffle
    32015: _STRONG,  # zstd
    32026: _STRONG,  # blosc2
}
_MOST_HOPS = 16
_FAULTS = (OSError, KeyError, RuntimeError, ValueError, TypeError, NotImplementedError)


class Hdf5Node:
    """A group or a dataset; see `Node`.

    Parameters
    ----------
    item
        What h5py calls it.
    source, path
        For messages.
    allow_links
        Whether what lies in other files may be used.
    """

    def __init__(self, item: Any, source: str, path: str, allow_links: bool) -> None:
        import h5py

        self.item, self.source, self.path = item, source, path
        self._allow_links = allow_links
        self.is_array = isinstance(item, h5py.Dataset)
        if self.is_array:
            self._check_storage()
        elif not isinstance(item, h5py.Group):
            raise InputError(f"{path} of {source} is a data type, not data; write the file again")

    def names(self) -> list[str]:
        """See `Node`."""
        return [] if self.is_array else [str(name) for name in self.item]

    def child(self, name: str) -> Node | None:
        """See `Node`."""
        node: Hdf5Node = self
        pending, hops = _parts(name), 0
        if name.startswith("/"):
            node = self._node(self.item.file, "")
        while pending:
            part = pending.pop()
            target = None if node.is_array else node._target(part)
            if target is None:
                if hops:
                    raise self._broken(name, "to nothing")
                return None
            if isinstance(target, Hdf5Node):
                node = target
                continue
            hops += 1
            if hops > _MOST_HOPS:
                raise self._broken(name, "in a circle")
            if target.startswith("/"):
                node = self._node(self.item.file, "")
            pending += _parts(target)
        return node

    def _broken(self, name: str, what: str) -> InputError:
        path = f"{self.path}/{name}".lstrip("/")
        return InputError(
            f"{path} of {self.source} is a link {what}; the file is damaged: write it again"
        )

    def _target(self, name: str) -> Hdf5Node | str | None:
        """Return what a name stands for: an object, the path that a soft link has, or None."""
        import h5py

        links, encoded = self.item.id.links, name.encode("utf-8", "surrogateescape")
        path = f"{self.path}/{name}".lstrip("/")
        try:
            if not links.exists(encoded):
                return None
            kind = links.get_info(encoded).type
            if kind == h5py.h5l.TYPE_SOFT:
                return str(os.fsdecode(links.get_val(encoded)))
            if kind != h5py.h5l.TYPE_HARD:
                self._check_external(os.fsdecode(links.get_val(encoded)[0]), path)
            return self._node(self.item[name], path)
        except _FAULTS as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{path} of {self.source} cannot be read ({reason(error)}); it is damaged: copy or "
                "download the file again"
            ) from error

    def _node(self, item: Any, path: str) -> Hdf5Node:
        return Hdf5Node(item, self.source, path, self._allow_links)

    def _check_external(self, target: str, path: str) -> None:
        if not self._allow_links:
            raise _linked(path, self.source, f"is a link to another file ({target})")
        self._check_regular(target, path)

    def _check_storage(self) -> None:
        import h5py

        plan = self.item.id.get_create_plist()
        external = [os.fsdecode(plan.get_external(i)[0]) for i in range(plan.get_external_count())]
        virtual = plan.get_layout() == h5py.h5d.VIRTUAL
        if virtual:
            external += [source.file_name for source in self.item.virtual_sources()]
        if external or virtual:
            if not self._allow_links:
                what = f"is stored in another file ({', '.join(external[:3])})"
                raise _linked(self.path, self.source, what)
            for target in external:
                if target != ".":
                    self._check_regular(target, self.path)
        for i in range(plan.get_nfilters()):
            code = plan.get_filter(i)[0]
            if code not in _FILTERS:
                raise InputError(
                    f"{self.path} of {self.source} is compressed with the HDF5 filter {code}, "
                    "which is not one that fastvae uses; write the file again with gzip, lzf or "
                    "blosc"
                )

    def _check_regular(self, target: str, path: str) -> None:
        for found in (Path(self.source).parent / target, Path(target)):
            if found.exists() and not found.is_file():
                raise InputError(
                    f"{path} of {self.source} lies in {found}, which is no regular file"
                )

    @property
    def shape(self) -> tuple[int, ...] | None:
        """See `Node`."""
        shape = self.item.shape
        return None if shape is None else tuple(int(n) for n in shape)

    @functools.cached_property
    def _dtype(self) -> np.dtype | None:
        try:
            return np.dtype(self.item.dtype)
        except _FAULTS:
            return None

    @property
    def kind(self) -> str:
        """See `Node`."""
        import h5py

        dtype = self._dtype
        if dtype is None or dtype.subdtype is not None:
            return "?"
        if dtype.kind in "OSU":
            return "T" if h5py.check_string_dtype(dtype) is not None or dtype.kind != "O" else "?"
        return dtype.kind

    @property
    def type_name(self) -> str:
        """What the entries are, in words."""
        import h5py

        dtype = self._dtype
        if dtype is not None and h5py.check_ref_dtype(dtype) is not None:
            return "references"
        return "text" if self.kind == "T" else f"values of type {dtype}" if dtype else "odd values"

    @property
    def item_bytes(self) -> int:
        """See `Node`."""
        return int(self.item.id.get_type().get_size())

    @property
    def stored_bytes(self) -> int | None:
        """See `Node`; None where it lies in other files that the user trusts."""
        if self.item.external or self.item.is_virtual:
            return None
        size = os.stat(self.item.file.filename).st_size
        return min(int(self.item.id.get_storage_size()), size)

    @property
    def ratio(self) -> int:
        """See `Node`."""
        plan = self.item.id.get_create_plist()
        return math.prod(_FILTERS[plan.get_filter(i)[0]] for i in range(plan.get_nfilters()))

    def missing_chunks(self) -> str:
        """See `Node`."""
        shape, chunks = self.shape, self.item.chunks
        if not shape or self.stored_bytes is None or not math.prod(shape):
            return ""
        if chunks is None:
            return "" if self.stored_bytes else "its entries are not stored"
        wanted = math.prod(-(-n // chunk) for n, chunk in zip(shape, chunks, strict=True))
        missing = wanted - int(self.item.id.get_num_chunks())
        return f"{missing} of its {wanted} chunks are not stored" if missing > 0 else ""

    def attribute(self, name: str) -> Any:
        """See `Node`."""
        try:
            if name not in self.item.attrs:
                return None
            return _plain(self.item.attrs[name])
        except (*_FAULTS, MemoryError) as error:
            raise InputError(
                f"{self.path or 'the root'} of {self.source} cannot be read (its attribute "
                f"{name!r}: {reason(error)}); it is damaged: write the file again"
            ) from error

    def referred(self, reference: Any) -> Node | None:
        """See `Node`."""
        import h5py

        if isinstance(reference, str):
            return self.child(reference)
        if not isinstance(reference, h5py.Reference) or not reference:
            return None
        try:
            item = self.item[reference]
        except _FAULTS:
            return None
        return self._node(item, str(item.name))


def _parts(path: str) -> list[str]:
    """Return the names in a path, the last first."""
    return [part for part in path.split("/")[::-1] if part not in ("", ".")]


def _plain(value: Any) -> Any:
    """Return numbers, texts, and lists of them in place of numpy's."""
    if isinstance(value, np.ndarray):
        return [_plain(item) for item in value.tolist()] if value.ndim else _plain(value.item())
    if isinstance(value, np.generic):
        value = value.item()
    return value.decode() if isinstance(value, bytes) else value


def _linked(path: str, source: str, what: str) -> InputError:
    return InputError(
        f"{path} of {source} {what}, which is not read: a file from elsewhere could so reach any "
        "file of yours. Copy the data into one file, or pass allow_links=True if "
        "you trust it"
    )
