"""Zarr stores (format 2 and 3) as nodes, read from their JSON before zarr sees any of it."""

from __future__ import annotations

import functools
import itertools
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..._files import check_regular
from ...errors import InputError
from .node import Node

# What may stand between the bytes of a chunk and its entries, and how much smaller it can make
# them. Others are refused, whatever zarr makes of them: pickle runs code that the store brings.
_STRONG = 1 << 17
_CODECS = {
    "adler32": 1,
    "astype": 1,
    "bitround": 1,
    "bitshuffle": 1,
    "blosc": _STRONG,
    "bytes": 1,
    "bz2": _STRONG,
    "crc32": 1,
    "crc32c": 1,
    "delta": 1,
    "endian": 1,
    "fixedscaleoffset": 8,
    "fletcher32": 1,
    "gzip": 1032,
    "lz4": 1032,
    "lzma": _STRONG,
    "packbits": 8,
    "quantize": 1,
    "sharding_indexed": 1,
    "shuffle": 1,
    "transpose": 1,
    "vlen-bytes": 1,
    "vlen-utf8": 1,
    "zlib": 1032,
    "zstd": _STRONG,
}
_TEXT_TYPES = ("string", "variable_length_utf8", "vlen-utf8", "str")
_METADATA = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")
_LONGEST_JSON = 64 << 20
_VLEN_ITEM = 4  # a text takes its length at least


class ZarrNode:
    """A group or an array; see `Node`.

    Parameters
    ----------
    root
        Folder of the store.
    parts
        Names from there on.
    zarr_format
        2 or 3.
    allow_links
        Whether symbolic links may lead out of the store.

    Raises
    ------
    InputError
        Its metadata are not what zarr writes, or name a codec that is not known to be harmless.
    """

    def __init__(
        self, root: Path, parts: Sequence[str], zarr_format: Literal[2, 3], allow_links: bool
    ) -> None:
        self.source, self.path = str(root), "/".join(parts)
        self._root, self._parts = root, tuple(parts)
        self._format: Literal[2, 3] = zarr_format
        self._allow_links = allow_links
        self._folder = root.joinpath(*parts)
        self._metadata, self.is_array = self._read()
        if self.is_array:
            self._codecs = self._check_codecs()
            self._check_grid()
            self._stored = self._size_of(self._folder)

    @classmethod
    def open(cls, root: Path, allow_links: bool) -> ZarrNode:
        """Return the root of a store, of the format that zarr would take."""
        return cls(root, (), 3 if (root / "zarr.json").exists() else 2, allow_links)

    @property
    def zarr_format(self) -> Literal[2, 3]:
        """Of the store."""
        return self._format

    def _read(self) -> tuple[dict[str, Any], bool]:
        if self._format == 3:
            metadata = self._json("zarr.json")
            kind = metadata.get("node_type")
            if metadata.get("zarr_format") != 3 or kind not in ("array", "group"):
                raise self._damaged("zarr.json", "it describes neither an array nor a group")
            return metadata, kind == "array"
        name = ".zarray" if os.path.lexists(self._folder / ".zarray") else ".zgroup"
        metadata = self._json(name)
        if metadata.get("zarr_format") != 2:
            raise self._damaged(name, "it is not of zarr format 2")
        return metadata, name == ".zarray"

    def _json(self, name: str) -> dict[str, Any]:
        path = self._folder / name
        self._check_inside(path)
        check_regular(path)
        try:
            if path.stat().st_size > _LONGEST_JSON:
                raise ValueError("it is too large")
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise self._damaged(name, str(error)) from error
        if not isinstance(found, dict):
            raise self._damaged(name, "it is not an object")
        return found

    def _damaged(self, name: str, reason: str) -> InputError:
        return InputError(
            f"{self._folder / name} cannot be read: it is damaged or incomplete ({reason:.200}); "
            "copy or download it again"
        )

    def _check_inside(self, path: Path) -> None:
        """Refuse a symbolic link at `path` that leads out of the store."""
        if self._allow_links or not path.is_symlink():
            return
        target = path.resolve()
        if not target.is_relative_to(self._root.resolve()) or target.is_dir():
            raise InputError(
                f"{path} of {self.source} is a link to {target}, which is not read: a store from "
                "elsewhere could so reach any file of yours. Copy the data into the store, or "
                "pass allow_links=True if you trust it"
            )

    def names(self) -> list[str]:
        """See `Node`."""
        if self.is_array:
            return []
        return [name for name in sorted(os.listdir(self._folder)) if self._has(name)]

    def _has(self, name: str) -> bool:
        marks = ("zarr.json",) if self._format == 3 else (".zarray", ".zgroup")
        return any(os.path.lexists(self._folder / name / mark) for mark in marks)

    def child(self, name: str) -> Node | None:
        """See `Node`."""
        node = self
        for part in name.strip("/").split("/"):
            if node.is_array or part in ("", ".", "..") or "\0" in part or "\\" in part:
                return None
            self._check_inside(node._folder / part)
            if not node._has(part):
                return None
            node = ZarrNode(self._root, (*node._parts, part), self._format, self._allow_links)
        return node

    def attribute(self, name: str) -> Any:
        """See `Node`."""
        return self._attributes.get(name)

    @functools.cached_property
    def _attributes(self) -> dict[str, Any]:
        if self._format == 3:
            found = self._metadata.get("attributes", {})
        elif os.path.lexists(self._folder / ".zattrs"):
            found = self._json(".zattrs")
        else:
            found = {}
        if not isinstance(found, dict):
            raise self._damaged("zarr.json", "its attributes are no object")
        return found

    def referred(self, reference: Any) -> Node | None:
        """See `Node`; anndata opens the store anew for it, with the metadata at its root."""
        if not isinstance(reference, str):
            return None
        found = self.child(reference)
        if isinstance(found, ZarrNode) and not found._agrees():
            raise InputError(
                f"{self.source}: the metadata at its root and those of {found.path} disagree; "
                "write the store again, or call zarr.consolidate_metadata"
            )
        return found

    def _agrees(self) -> bool:
        """Whether the metadata agree with the copy at the root of the store, if there is one."""
        root = ZarrNode(self._root, (), self._format, self._allow_links)
        if self._format == 3:
            copies, key = root._metadata.get("consolidated_metadata"), self.path
        elif os.path.lexists(self._root / ".zmetadata"):
            copies, key = root._json(".zmetadata"), f"{self.path}/.zarray"
        else:
            return True
        entries = copies.get("metadata") if isinstance(copies, dict) else None
        return copies is None or (isinstance(entries, dict) and entries.get(key) == self._metadata)

    def _check_codecs(self) -> list[str]:
        """Return the names of all codecs; raise InputError for one that is not known."""
        if self._format == 3:
            if self._metadata.get("storage_transformers"):
                raise self._damaged("zarr.json", "it has storage transformers")
            return self._known(self._metadata.get("codecs"))
        filters = self._metadata.get("filters") or []
        compressor = self._metadata.get("compressor")
        return self._known(filters) + self._known([compressor] if compressor else [])

    def _known(self, codecs: Any) -> list[str]:
        if not isinstance(codecs, list):
            raise self._damaged("zarr.json" if self._format == 3 else ".zarray", "its codecs")
        names = []
        for codec in codecs:
            described = codec if isinstance(codec, dict) else {}
            found = described.get("name" if self._format == 3 else "id", codec)
            name = str(found).removeprefix("numcodecs.")
            if name not in _CODECS:
                raise InputError(
                    f"{self.path} of {self.source} is stored with the codec {found!r:.60}, which "
                    "is not read: it is not known to be harmless. Write the store again with "
                    "anndata's usual codecs"
                )
            names.append(name)
            if name == "sharding_indexed":
                inside = described.get("configuration")
                inside = inside if isinstance(inside, dict) else {}
                names += self._known(inside.get("codecs")) + self._known(inside.get("index_codecs"))
        return names

    def _check_grid(self) -> None:
        grid = self._metadata.get("chunk_grid")
        configuration = grid.get("configuration") if isinstance(grid, dict) else None
        chunks = configuration.get("chunk_shape") if isinstance(configuration, dict) else None
        if self._format == 2:
            chunks = self._metadata.get("chunks")
        shape = self._metadata.get("shape")
        name = "zarr.json" if self._format == 3 else ".zarray"
        lengths, pieces = _whole(shape, 0), _whole(chunks, 1)
        if lengths is None or pieces is None or len(lengths) != len(pieces):
            raise self._damaged(name, f"its shape {shape!r:.60} and chunks {chunks!r:.60}")
        self._shape, self._chunks = lengths, pieces

    @property
    def shape(self) -> tuple[int, ...] | None:
        """See `Node`."""
        return self._shape

    @functools.cached_property
    def _dtype(self) -> np.dtype | str | None:
        """Of the entries; "T" for texts of any length, None for what is no column and no matrix."""
        kind = self._metadata.get("data_type" if self._format == 3 else "dtype")
        if isinstance(kind, dict):
            configuration = kind.get("configuration")
            options = configuration if isinstance(configuration, dict) else {}
            length = options.get("length_bytes", 1)
            kind = {
                "fixed_length_utf32": f"U{length // 4}" if _whole([length], 4) else None,
                "null_terminated_bytes": f"S{length}" if _whole([length], 1) else None,
                "numpy.datetime64": "M8",
                "numpy.timedelta64": "m8",
            }.get(str(kind.get("name")))
        if self._format == 3 and kind in _TEXT_TYPES:
            return "T"
        if kind == "|O":
            return "T" if "vlen-utf8" in self._codecs else None
        try:
            return np.dtype(kind) if isinstance(kind, str) else None
        except (TypeError, ValueError, SyntaxError):
            return None

    @property
    def kind(self) -> str:
        """See `Node`."""
        dtype = self._dtype
        if dtype is None or isinstance(dtype, str):
            return dtype or "?"
        return "T" if dtype.kind in "SU" else "?" if dtype.hasobject else dtype.kind

    @property
    def type_name(self) -> str:
        """What the entries are, in words."""
        if self.kind == "T":
            return "text"
        return "odd values" if self._dtype is None else f"values of type {self._dtype}"

    @property
    def item_bytes(self) -> int:
        """See `Node`."""
        return self._dtype.itemsize if isinstance(self._dtype, np.dtype) else _VLEN_ITEM

    @property
    def stored_bytes(self) -> int:
        """See `Node`."""
        return self._stored

    def _size_of(self, folder: Path) -> int:
        """Add up the chunks; refuse links out of the store and whatever is no regular file."""
        total = 0
        with os.scandir(folder) as entries:
            for entry in entries:
                path = Path(entry.path)
                self._check_inside(path)
                if entry.is_dir():
                    total += self._size_of(path)
                    continue
                check_regular(path)
                if entry.name not in _METADATA:
                    total += entry.stat().st_size
        return total

    @property
    def ratio(self) -> int:
        """See `Node`."""
        return math.prod(_CODECS[name] for name in self._codecs)

    def missing_chunks(self) -> str:
        """See `Node`."""
        counts = [range(-(-n // chunk)) for n, chunk in zip(self._shape, self._chunks, strict=True)]
        wanted = math.prod(map(len, counts))
        if wanted > max(1, self.stored_bytes):  # each file has a byte at least
            return f"most of its {wanted} chunk files are missing"
        separator, prefix = self._key_style()
        missing = [
            (self._folder / separator.join((*prefix, *map(str, at))), at)
            for at in itertools.product(*counts)
        ]
        missing = [(path, at) for path, at in missing if not path.is_file()]
        if not missing:
            return ""
        path, at = missing[0]
        first = at[0] * self._chunks[0]
        return (
            f"{len(missing)} of its {wanted} chunk files are missing, first {path} (entries from "
            f"{first} on)"
        )

    def _key_style(self) -> tuple[str, tuple[str, ...]]:
        if self._format == 2:
            return str(self._metadata.get("dimension_separator") or "."), ()
        style = self._metadata.get("chunk_key_encoding")
        style = style if isinstance(style, dict) else {}
        configuration = style.get("configuration")
        separator = configuration.get("separator") if isinstance(configuration, dict) else None
        if style.get("name") == "v2":
            return str(separator or "."), ()
        return str(separator or "/"), ("c",)


def _whole(numbers: Any, least: int) -> tuple[int, ...] | None:
    """Return whole numbers from `least` on as a tuple, and None for anything else."""
    if not isinstance(numbers, list) or not all(
        isinstance(n, int) and not isinstance(n, bool) and least <= n < 1 << 62 for n in numbers
    ):
        return None
    return tuple(numbers)
