"""Open HDF5 files, tell their kinds apart, and say what is wrong with one."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..._files import check_regular
from ..._words import reason
from ...errors import InputError
from .hdf5_nodes import Hdf5Node
from .node import Node


def open_hdf5(path: Path) -> Any:
    """Return the ``h5py.File`` at `path`, read-only, which the caller is to close.

    Raises
    ------
    InputError
        It is empty, compressed, not HDF5 or truncated.
    """
    import h5py

    check_file(path)
    if not h5py.is_hdf5(path):
        with path.open("rb") as handle:
            compressed = handle.read(2) == b"\x1f\x8b"
        name = path.name.lower().removesuffix(".gz")
        hint = (
            "it may be the names of cells or genes; pass the folder or the .mtx file beside it"
            if name.endswith((".tsv", ".txt")) or name in ("cell_metadata.csv", "all_genes.csv")
            else f"it is gzip-compressed; unpack it first (gunzip {path.name})"
            if compressed
            else "expected .h5ad, 10x .h5, or a folder with matrix.mtx; "
            "if it came by download, check that it is complete"
        )
        raise InputError(f"{path} is not an HDF5 file; {hint}")
    if importlib.util.find_spec("hdf5plugin"):
        importlib.import_module("hdf5plugin")  # more ways of compression, where installed
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise InputError(
            f"{path} is damaged or truncated ({reason(error)}); copy or download it again"
        ) from error


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Yield what `open_hdf5` returns, and close it."""
    with open_hdf5(path) as file:
        yield file


@contextmanager
def reporting_damage(path: Path) -> Iterator[None]:
    """Turn low-level read errors into one that names the file.

    Raises
    ------
    InputError
        Something inside could not be read.
    """
    try:
        yield
    except (InputError, Warning):
        raise
    except Exception as error:  # h5py, zarr, their codecs and anndata raise many kinds
        raise InputError(
            f"{path} cannot be read: it is damaged or incomplete ({reason(error)}); "
            "copy or download it again"
        ) from error


def check_file(path: Path) -> None:
    """Check that `path` is a file or a folder, can be opened and is not empty.

    Raises
    ------
    InputError
        Says which it is.
    """
    check_regular(path)
    if not os.access(path, os.R_OK):
        raise InputError(f"{path} cannot be opened: no permission to read it")
    if path.is_file() and path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes); copy or download it again")


def hdf5_root(file: Any, path: Path, allow_links: bool) -> Node:
    """Return the root of an open file as a node."""
    return Hdf5Node(file, str(path), "", allow_links)


def kind_of(root: Node) -> str:
    """Return ``h5ad``, ``10x v3``, ``10x v2``, ``loom``, ``h5mu`` or ``unknown``."""
    top = set(root.names())
    if "mod" in top and "obs" in top:
        return "h5mu"
    if "obs" in top and "var" in top:
        return "h5ad"
    if "matrix" in top:
        matrix = root.child("matrix")
        return "loom" if matrix is None or matrix.is_array else "10x v3"
    return "10x v2" if genomes_v2(root) else "unknown"


def genomes_v2(root: Node) -> list[str]:
    """Names of the groups of a 10x v2 file that hold a matrix."""
    groups = ((name, root.child(name)) for name in root.names())
    return [
        name
        for name, group in groups
        if group is not None and {"data", "indptr", "barcodes"} <= set(group.names())
    ]


_ZARR_MARKS = (".zgroup", "zarr.json", ".zmetadata")


def is_zarr(path: Path) -> bool:
    """Whether `path` is the folder of a zarr store."""
    return path.is_dir() and any((path / name).exists() for name in _ZARR_MARKS)
