"""Changes of the objects in an HDF5 file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

Rng = np.random.Generator
DTYPES = ["f2", "f4", "f8", "i1", "i4", "i8", "u1", "u8", "?", "S3", "c8", "V4"]
NUMBERS = [-1, 0, 1, 7, 12, 13, 39, 40, 41, 2**31, 2**63 - 1, 10**12]
ENCODINGS = [
    *("array", "csr_matrix", "csc_matrix", "dataframe", "dict", "categorical", "string-array"),
    *("nullable-integer", "nullable-boolean", "nullable-string-array", "awkward-array", "raw"),
    *("anndata", "string", "numeric-scalar", "null", "", "rec-array", "../x"),
]
NEEDED = ("obs", "var", "X", "matrix", "hg19", "raw", "layers")


def change(rng: Rng, path: Path) -> None:
    """Make one change; a choice that does not fit its object leaves the file as it is."""
    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visit_links(names.append)
        needed = [name for name in names if name.startswith(NEEDED)]
        name = str(rng.choice(needed if rng.random() < 0.9 and needed else names or ["none"]))
        made = CHANGES[int(rng.integers(len(CHANGES)))]
        try:
            made(rng, file, name, path)
        except Exception:  # of h5py and numpy, for a choice that does not fit
            return


def put(file: h5py.File, name: str, value: Any, **options: Any) -> None:
    """Put an array in the place of an object, with its attributes."""
    attrs = dict(file[name].attrs)
    del file[name]
    file.create_dataset(name, data=value, **options).attrs.update(attrs)


def retype(rng: Rng, file: h5py.File, name: str, path: Path) -> None:
    values = file[name][()]
    kind = int(rng.integers(len(DTYPES) + 3))
    if kind < len(DTYPES):
        put(file, name, values.astype(DTYPES[kind]))
    elif kind == len(DTYPES):
        put(file, name, np.array([file.ref] * len(values), dtype=h5py.ref_dtype))
    elif kind == len(DTYPES) + 1:
        put(file, name, np.array([str(v) for v in values], dtype=h5py.string_dtype()))
    else:
        put(file, name, np.zeros(len(values), dtype=[("a", "i4"), ("b", "S3")]))


def resize(rng: Rng, file: h5py.File, name: str, path: Path) -> None:
    values = file[name][()]
    kind = int(rng.integers(7))
    if kind == 0:
        put(file, name, values[:-1])
    elif kind == 1:
        put(file, name, np.concatenate([values, values[:1]]))
    elif kind == 2:
        put(file, name, values[:0])
    elif kind == 3:
        put(file, name, values[0])
    elif kind == 4:
        put(file, name, values[None])
    elif kind == 5:
        put(file, name, h5py.Empty(values.dtype))
    else:
        put(file, name, values[:, None])


def remove(rng: Rng, file: h5py.File, name: str, path: Path) -> None:
    del file[name]


def replace(rng: Rng, file: h5py.File, name: str, path: Path) -> None:
    kind = int(rng.integers(5))
    names: list[str] = []
    file.visit(names.append)
    other = str(rng.choice(names))
    attrs = dict(file[name].attrs)
    del file[name]
    if kind == 0:
        file.create_group(name)
    elif kind == 1:
        file[name] = 3
    elif kind == 2:
        file[name] = np.dtype("f4")
    elif kind == 3:
        file.copy(file[other], file, name)
    else:
        file[name] = np.arange(40)
    if rng.random() < 0.5 and kind != 2:
        file[name].attrs.update(attrs)


def hard_link(rng: Rng, file: h5py.File, name: str, path: Path) -> None:
    names: list[str] = ["/"]
    file.visit(names.append)
    other = file[str(rng.choice(names))]
    if rng.random() < 0.5 and isinstance(file[name], h5py.Group):
        name = f"{name}/again"
    else:
        del file[name]
    file[name] = other


def link(rng: Rng, file: h5py.File, name: str, path: Path) -> None:
    kind = int(rng.integers(7))
    if kind == 0:
        file.move(name, "kept")
        file[name] = h5py.SoftLink("/kept")
        return
    values = file[name][()] if isinstance(file[name], h5py.Dataset) else None
    del file[name]
    if kind == 1:
        file[name] = h5py.SoftLink(f"/{name}")
    elif kind == 2:
        file[name] = h5py.SoftLink("/nowhere")
    elif kind == 3:
        pipe = path.with_name("pipe")
        if not pipe.exists():
            os.mkfifo(pipe)
        file[name] = h5py.ExternalLink("pipe", "/x")
    elif kind == 4:
        file[name] = h5py.ExternalLink(str(rng.choice(["/dev/zero", "nowhere", path.name])), "/x")
    elif kind == 5:
        size = values.nbytes
        file.create_dataset(name, values.shape, values.dtype, external=[("/dev/zero", 0, size)])
    else:
        layout = h5py.VirtualLayout(values.shape, values.dtype)
        layout[:] = h5py.VirtualSource("nowhere", "x", values.shape)
        file.create_virtual_dataset(name, layout)


def odd(rng: Rng) -> Any:
    """Something that an attribute should not be."""
    return [
        *(
            7,
            -1.5,
            True,
            b"\xff\xfe",
            "x" * 40_000,
            h5py.Empty("f4"),
            np.zeros(3),
            np.zeros((2, 2)),
        ),
        *(
            np.array(["a", "b"], dtype=h5py.string_dtype()),
            "nan",
            "\x00",
            "\ud800".encode("utf-8", "surrogatepass"),
        ),
        *(np.array(list(ENCODINGS[:3]), dtype="S9"), np.void(b"abc"), 1j),
    ][int(rng.integers(15))]


def attribute(rng: Rng, file: h5py.File, name: str, path: Path) -> None:
    item = file[name]
    keys = list(item.attrs)
    key = str(rng.choice([*keys, *keys, "categories", "shape", "ordered", "_index"]))
    kind = int(rng.integers(5))
    if kind == 0:
        del item.attrs[key]
    elif kind == 1:
        item.attrs[key] = str(rng.choice(ENCODINGS))
    elif kind == 2:
        item.attrs[key] = file[str(rng.choice(["X", "obs", "var", name]))].ref
    elif kind == 3 and isinstance(item.attrs[key], np.ndarray):
        values = item.attrs[key].copy()
        at = int(rng.integers(len(values)))
        values[at] = rng.choice(NUMBERS) if values.dtype.kind in "iu" else values[at - 1]
        item.attrs[key] = values
    else:
        item.attrs[key] = odd(rng)


def values(rng: Rng, file: h5py.File, name: str, path: Path) -> None:
    item = file[name]
    found = item[()]
    at = int(rng.integers(len(found)))
    if found.dtype.kind in "OS":
        texts = [b"", b"\xff\xfe", b"a\x00b", b"x" * 5000, b"nan", b"\xed\xa0\x80", b"\n|\x1b[31m"]
        put(
            file,
            name,
            [texts[int(rng.integers(len(texts)))] if i == at else v for i, v in enumerate(found)],
        )
        return
    info = [-1, 0, 1, 13, 40, 2**31 - 1, 0.5, np.nan, np.inf, -np.inf, 1e30]
    with np.errstate(all="ignore"):
        found.reshape(-1)[at] = np.array(info[int(rng.integers(len(info)))]).astype(found.dtype)
    put(file, name, found)


def exchange(rng: Rng, file: h5py.File, name: str, path: Path) -> None:
    found = file[name][()]
    put(file, name, rng.permutation(found) if rng.random() < 0.5 else found[::-1])


def declare(rng: Rng, file: h5py.File, name: str, path: Path) -> None:
    """Keep the type of an array, and give it a shape without entries."""
    item = file[name]
    attrs, dtype, shape = dict(item.attrs), item.dtype, item.shape
    size = int(rng.choice([10**5, 10**9, 10**12, 2**62]))
    shape = shape if rng.random() < 0.3 else (size,) * len(shape)
    chunks = (1000,) * len(shape) if max(shape) > 1000 and rng.random() < 0.7 else None
    del file[name]
    file.create_dataset(name, shape, dtype=dtype, chunks=chunks).attrs.update(attrs)


def pack(rng: Rng, file: h5py.File, name: str, path: Path) -> None:
    options: list[dict[str, Any]] = [
        {"compression": "gzip", "shuffle": True},
        {"compression": "lzf"},
        {"fletcher32": True},
        {"chunks": True},
        {"compression": "gzip", "maxshape": (None,)},
        {"scaleoffset": 0},
    ]
    put(file, name, file[name][()], **options[int(rng.integers(len(options)))])


def half_written(rng: Rng, file: h5py.File, name: str, path: Path) -> None:
    """An array of which only the first chunk was written."""
    found = file[name][()]
    attrs = dict(file[name].attrs)
    del file[name]
    made = file.create_dataset(name, found.shape, found.dtype, chunks=(5, *found.shape[1:]))
    made[:5] = found[:5]
    made.attrs.update(attrs)


def add(rng: Rng, file: h5py.File, name: str, path: Path) -> None:
    holder = file[name] if isinstance(file[name], h5py.Group) else file
    extra = str(
        rng.choice(["X", "raw", "layers", "uns", "mod", "__categories", "a/b", "..", "é", " "])
    )
    holder[extra] = np.arange(int(rng.choice([1, 13, 40])))


def unneeded(rng: Rng, file: h5py.File, name: str, path: Path) -> None:
    """Break what nobody reads."""
    slot = str(rng.choice(["uns", "obsm", "varm", "obsp", "varp"]))
    if slot in file and rng.random() < 0.5:
        file[slot].attrs["encoding-type"] = str(rng.choice(ENCODINGS))
        file[slot].attrs["encoding-version"] = "9"
        return
    if slot in file:
        del file[slot]
    file[slot] = [np.zeros(3), h5py.SoftLink("/nowhere"), h5py.ExternalLink("pipe", "/x")][
        int(rng.integers(3))
    ]


CHANGES: list[Callable[[Rng, h5py.File, str, Path], None]] = [
    *(retype, resize, remove, replace, hard_link, link, attribute, attribute, values, exchange),
    *(declare, pack, half_written, add, unneeded),
]
