"""Changes of the metadata and the chunks of a zarr store."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_hdf5 import ENCODINGS

Rng = np.random.Generator
JSON = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")
CODECS = [
    *("pickle", "json2", "msgpack2", "zstd", "gzip", "blosc", "lz4", "bz2", "lzma", "zlib"),
    *("crc32c", "vlen-utf8", "vlen-bytes", "vlen-array", "delta", "shuffle", "bytes", "transpose"),
    *("sharding_indexed", "adler32", "fletcher32", "packbits", "numcodecs.pickle", "x", ""),
]
DTYPES = [
    *("<f4", "<f8", "<i4", "<i8", "|b1", "|O", "<U3", "|S3", "<c8", "|V4", "<M8[ns]", "x", 7),
    *("float32", "float64", "int8", "int32", "uint64", "bool", "string", "complex64", "bytes"),
]
ODD = [None, True, -1, 0, 1, 5, 13, 41, 2**31, 2**63, 10**12, 1.5, "", "x", [], [0], [-1], {}]
ODD += [[10**12], [2**62], [40, 13], [[1]], {"name": "x"}, "NaN", float("nan"), "\ud800", 10**400]


def change(rng: Rng, path: Path) -> None:
    """Make one change; a choice that does not fit leaves the store as it is."""
    files = sorted(file for file in path.rglob("*") if file.is_file() and not file.is_symlink())
    needed = [f for f in files if f.relative_to(path).parts[0] in ("obs", "var", "X")]
    files = needed if rng.random() < 0.85 and needed else files
    texts = [file for file in files if file.name in JSON]
    chunks = [file for file in files if file.name not in JSON]
    made = CHANGES[int(rng.integers(len(CHANGES)))]
    pool = (texts if made in OF_METADATA else chunks) or files
    if not pool:
        return
    try:
        made(rng, pool[int(rng.integers(len(pool)))], path)
    except Exception:  # of json and the file system, for a choice that does not fit
        return


def pick(rng: Rng, options: list[Any]) -> Any:
    return options[int(rng.integers(len(options)))]


def inside(rng: Rng, value: Any) -> tuple[Any, Any]:
    """Return a container within a document and a key of it."""
    places = []

    def walk(part: Any) -> None:
        keys = (
            part if isinstance(part, dict) else range(len(part)) if isinstance(part, list) else ()
        )
        for key in keys:
            places.append((part, key))
            walk(part[key])

    walk(value)
    return pick(rng, places)


def edited(rng: Rng, file: Path, edit: Callable[[Any, Any], None]) -> None:
    document = json.loads(file.read_text())
    edit(*inside(rng, document))
    file.write_text(json.dumps(document))


def odd_value(rng: Rng, file: Path, path: Path) -> None:
    edited(rng, file, lambda part, key: part.__setitem__(key, pick(rng, ODD)))


def without(rng: Rng, file: Path, path: Path) -> None:
    edited(rng, file, lambda part, key: part.__delitem__(key))


def key_value(rng: Rng, file: Path, path: Path) -> None:
    """Set one of the keys that matter to one of the values that it can have somewhere."""
    document = json.loads(file.read_text())
    three = file.name == "zarr.json"
    codec = str(pick(rng, CODECS))
    options: list[tuple[str, Any]] = [
        ("shape", pick(rng, ODD)),
        ("chunks", pick(rng, ODD)),
        ("dtype", pick(rng, DTYPES)),
        ("data_type", pick(rng, DTYPES)),
        ("fill_value", pick(rng, ODD)),
        ("compressor", {"id": codec, "level": 1}),
        ("filters", [{"id": codec}]),
        ("codecs", [{"name": codec, "configuration": {}}]),
        ("codecs", [{"name": "bytes"}, {"name": codec, "configuration": {"level": 1}}]),
        ("zarr_format", pick(rng, ODD)),
        ("node_type", pick(rng, ["array", "group", "x"])),
        ("order", pick(rng, ["C", "F", "x"])),
        ("dimension_separator", pick(rng, [".", "/", "x", "../"])),
        ("chunk_grid", {"name": "regular", "configuration": {"chunk_shape": pick(rng, ODD)}}),
        ("chunk_key_encoding", {"name": pick(rng, ["v2", "default", "x"])}),
        ("storage_transformers", [{"name": "x"}]),
        ("attributes", pick(rng, ODD)),
    ]
    fitting = [option for option in options if option[0] in document] or options
    key, value = pick(rng, fitting)
    document[key] = value
    if three and rng.random() < 0.1:
        document.pop("consolidated_metadata", None)
    file.write_text(json.dumps(document))


def attributes(rng: Rng, file: Path, path: Path) -> None:
    file = file if file.name == "zarr.json" else file.with_name(".zattrs")
    document = json.loads(file.read_text())
    attrs = document.setdefault("attributes", {}) if file.name == "zarr.json" else document
    key = pick(rng, [*attrs, "categories", "shape", "_index", "column-order", "encoding-type"])
    attrs[key] = pick(rng, [*ENCODINGS, *ODD, ["depth"], ["depth", "depth"]])
    file.write_text(json.dumps(document))


def no_json(rng: Rng, file: Path, path: Path) -> None:
    content = file.read_bytes()
    kind = int(rng.integers(5))
    made = [b"", content[: len(content) // 2], b"[" * 100_000, b"\xff\xfe" + content, b"null"]
    file.write_bytes(made[kind])


def remove(rng: Rng, file: Path, path: Path) -> None:
    if rng.random() < 0.5:
        file.unlink()
    else:
        shutil.rmtree(file.parent)


def exchange(rng: Rng, file: Path, path: Path) -> None:
    """Put another file of the store in its place."""
    files = sorted(
        p for p in path.rglob("*") if p.is_file() and (p.name in JSON) == (file.name in JSON)
    )
    shutil.copy(pick(rng, files), file)


def linked(rng: Rng, file: Path, path: Path) -> None:
    outside = path.with_name("outside")
    target = file if rng.random() < 0.6 else file.parent
    kind = int(rng.integers(5))
    if kind == 0:
        target.rename(outside)
        target.symlink_to(outside)
        return
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink()
    if kind == 1:
        target.symlink_to(
            pick(rng, ["/dev/zero", "/etc/passwd", "nowhere", ".", "..", target.name])
        )
    elif kind in (2, 3):
        os.mkfifo(target)
    else:
        target.mkdir()


def as_other_kind(rng: Rng, file: Path, path: Path) -> None:
    shutil.rmtree(file.parent)
    file.parent.write_text("a file")


def damaged_chunk(rng: Rng, file: Path, path: Path) -> None:
    content = bytearray(file.read_bytes())
    kind = int(rng.integers(4))
    if kind == 0:
        content = content[: int(rng.integers(len(content) + 1))]
    elif kind == 1:
        content += rng.bytes(int(rng.integers(1, 50)))
    elif kind == 2:
        content = bytearray(rng.bytes(len(content)))
    else:
        content[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
    file.write_bytes(content)


def both_formats(rng: Rng, file: Path, path: Path) -> None:
    other = ".zgroup" if (path / "zarr.json").exists() else "zarr.json"
    zarr_format = 2 if other == ".zgroup" else 3
    (file.parent / other).write_text(json.dumps({"zarr_format": zarr_format, "node_type": "group"}))


OF_METADATA = (odd_value, without, key_value, attributes, no_json, both_formats, as_other_kind)
CHANGES: list[Callable[[Rng, Path, Path], None]] = [
    *(*OF_METADATA, odd_value, key_value, key_value, attributes),
    *(remove, exchange, linked, linked, damaged_chunk, damaged_chunk),
]
