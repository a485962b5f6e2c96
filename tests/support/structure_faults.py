"""Bad inputs whose objects are not what their format wants, or that lead out of their file."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
from count_data import annotated, dense_counts, write_v3_h5

from fastvae.data import read


def _edited(change: Callable[[h5py.File], Any]) -> Callable[[Path], Any]:
    def run(folder: Path) -> Any:
        annotated().write_h5ad(folder / "cells.h5ad")
        with h5py.File(folder / "cells.h5ad", "r+") as file:
            change(file)
        return read(folder / "cells.h5ad")

    return run


def _in_place(name: str, make: Callable[[Any], Any]) -> Callable[[Path], Any]:
    """Put what `make` makes of an array in its place."""

    def change(file: h5py.File) -> None:
        made = make(file[name][()])
        del file[name]
        file[name] = made

    return _edited(change)


def _without_entries(file: h5py.File) -> None:
    del file["obs/_index"]
    file.create_dataset("obs/_index", (10**12,), h5py.string_dtype(), chunks=(1000,))


def _chunks_missing(file: h5py.File) -> None:
    n = len(file["X/data"])
    del file["X/data"]
    file.create_dataset("X/data", (n,), "f4", chunks=(100,))[:100] = 1


def _stored_elsewhere(file: h5py.File) -> None:
    codes = file["obs/batch/codes"][:]
    del file["obs/batch/codes"]
    file.create_dataset("obs/batch/codes", codes.shape, "i1", external=[("secret", 0, codes.size)])


def _linked(file: h5py.File) -> None:
    del file["X"]
    file["X"] = h5py.ExternalLink("other.h5ad", "/X")


def _in_a_circle(file: h5py.File) -> None:
    del file["X"]
    file["X"] = h5py.SoftLink("/Y")
    file["Y"] = h5py.SoftLink("/X")


def _pipe(folder: Path) -> None:
    os.mkfifo(folder / "cells.h5ad")
    read(folder / "cells.h5ad")


def _tenx(folder: Path) -> None:
    path = write_v3_h5(folder / "run.h5", dense_counts(), ["Gene Expression"] * 13)
    with h5py.File(path, "r+") as file:
        del file["matrix/barcodes"]
        file["matrix/barcodes"] = b"AAAC1-1"
    read(path)


def _store(folder: Path) -> Path:
    with warnings.catch_warnings(), anndata.settings.override(zarr_write_format=3):
        warnings.simplefilter("ignore")
        annotated().write_zarr(folder / "cells.zarr")
    return folder / "cells.zarr"


def _pickled(folder: Path) -> None:
    path = _store(folder) / "X" / "data" / "zarr.json"
    codecs = [{"name": "numcodecs.pickle"}]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"codecs": codecs}))
    read(folder / "cells.zarr")


def _linked_chunk(folder: Path) -> None:
    chunk = _store(folder) / "X" / "data" / "c" / "0"
    chunk.rename(folder / "secret")
    chunk.symlink_to(folder / "secret")
    read(folder / "cells.zarr")


CASES: list[tuple[str, Callable[[Path], Any]]] = [
    ("a column that is a single value", _in_place("obs/batch/codes", lambda values: values[0])),
    ("a column that is too long", _in_place("obs/batch/codes", lambda v: np.append(v, v))),
    ("a column without its array", _edited(lambda file: file.__delitem__("obs/cell_type"))),
    ("counts that are a single value", _in_place("X/data", lambda values: values[0])),
    ("column numbers that are floats", _in_place("X/indices", lambda v: v.astype("f8"))),
    ("row pointers that are booleans", _in_place("X/indptr", lambda v: v > 0)),
    ("more names than the file can hold", _edited(_without_entries)),
    ("counts of which chunks are missing", _edited(_chunks_missing)),
    (
        "a link to another file",
        _edited(_linked),
    ),
    ("a column stored in another file", _edited(_stored_elsewhere)),
    ("links in a circle", _edited(_in_a_circle)),
    ("a pipe for a file", _pipe),
    ("a 10x file with a single barcode for all", _tenx),
    ("a zarr store with a codec that runs code", _pickled),
    ("a zarr store with a link out of it", _linked_chunk),
]
