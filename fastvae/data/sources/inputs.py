"""Every kind of input, opened once as a `CountFile`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError, file_path
from ..checks import Origin
from .anndata_object import from_object, read_old
from .countfile import CountFile, MemoryFile, assemble
from .elements import wanted_names
from .folder_layout import is_mtx, matrix_with_prefix
from .frame_structure import is_old_layout
from .hdf5 import hdf5_root, is_zarr, kind_of, open_hdf5, reporting_damage
from .mtx_folder import read_mtx_folder
from .slots import Slot
from .stored_file import open_h5ad, open_zarr
from .tenx import read_tenx_h5

ACCEPTED = (
    "an .h5ad file, an AnnData zarr store, a 10x .h5 file, a 10x folder with matrix.mtx, "
    "an AnnData object, a scipy sparse matrix or a 2-D numpy array (cells x genes)"
)
_OTHER_KINDS = {
    "loom": "a loom file; read it with anndata.io.read_loom and pass the object",
    "h5mu": "a MuData file; pass the AnnData of its RNA modality",
    "unknown": f"an HDF5 file of unknown kind; expected {ACCEPTED}",
}


def open_input(source: Any, slot: Slot, memory: int | None = None) -> CountFile:
    """Open an input; its counts are read later where its kind allows that.

    Parameters
    ----------
    source
        What `read` takes.
    slot
        Where its counts are.
    memory
        Bytes that a matrix stored by gene may take, which cannot be streamed by cell and has to be
        turned in memory; None where all counts are to be in memory anyway.

    Returns
    -------
    CountFile
        Names are checked. Counts are too where they had to be read, that is of anything but an
        .h5ad file or a zarr store.

    Raises
    ------
    InputError
        As `read`, or a matrix stored by gene that is too large.
    """
    if isinstance(source, (str, os.PathLike)):
        return _open_path(file_path("source", source), slot, memory)
    from anndata import AnnData

    if slot.genome is not None:
        raise InputError("genome= is for 10x files and folders; leave it out")
    if isinstance(source, AnnData):
        return from_object(source, "the AnnData object", slot)
    slot.refuse_choice("a bare matrix")
    return _matrix(source, slot.allow_fractional)


def read_whole(file: CountFile, slot: Slot) -> MemoryFile:
    """Read all of an opened input into memory, check its counts, and close it.

    Raises
    ------
    InputError
        As `CountFile.counts`, or a genome is asked for of an .h5ad file.
    """
    try:
        if file.is_h5ad and slot.genome is not None:
            raise InputError(
                f"{file.source} is an .h5ad file; genome= is for 10x files, leave it out"
            )
        obs, var = file.obs(), file.var()
        return MemoryFile(file.source, file.counts(), obs, var)
    finally:
        file.close()


def _open_path(path: Path, slot: Slot, memory: int | None) -> CountFile:
    if not path.exists():
        matrix = matrix_with_prefix(path)  # as other tools take it
        meant = f"; did you mean {matrix}?" if matrix else f"; expected {ACCEPTED}"
        raise InputError(f"{path} does not exist{meant}")
    if is_zarr(path):
        return open_zarr(path, slot, memory)
    if path.is_dir() or is_mtx(path):
        slot.refuse_choice("a 10x folder")
        return _named(read_mtx_folder(path, slot.genome, slot.allow_fractional), slot, path)
    file = open_hdf5(path)
    opened = None
    try:
        opened = _open_hdf5_kind(file, path, slot, memory)
    finally:
        if opened is None or opened.checked:  # nothing more is read from it
            file.close()
    return opened


def _open_hdf5_kind(file: Any, path: Path, slot: Slot, memory: int | None) -> CountFile:
    opened: CountFile
    with reporting_damage(path):
        root = hdf5_root(file, path, slot.allow_links)
        kind = kind_of(root)
        old = kind == "h5ad" and is_old_layout(root)
    if kind == "h5ad":
        if old:
            opened = from_object(read_old(root, path), str(path), slot)
        else:
            opened = open_h5ad(file, path, slot, memory)
        opened.is_h5ad = True
        return opened
    if kind.startswith("10x"):
        slot.refuse_choice("a 10x file")
        return _named(read_tenx_h5(file, path, kind, slot), slot, path)
    raise InputError(f"{path} is {_OTHER_KINDS[kind]}")


def _named(file: MemoryFile, slot: Slot, path: Path) -> MemoryFile:
    """Name the genes of 10x data as is asked for, and the data as the user does."""
    var = wanted_names(file.var(), slot, str(path))
    return MemoryFile(str(path), file.counts(), file.obs(), var)


def _matrix(matrix: Any, allow_fractional: bool) -> MemoryFile:
    import pandas as pd
    import scipy.sparse as sp

    if not (sp.issparse(matrix) or isinstance(matrix, np.ndarray)):
        raise InputError(f"cannot read a {type(matrix).__name__}; expected {ACCEPTED}")
    if matrix.ndim != 2:
        raise InputError(f"the array has shape {matrix.shape}; expected cells x genes")
    n_cells, n_genes = matrix.shape
    obs = pd.DataFrame(index=pd.Index([f"cell_{i}" for i in range(n_cells)], dtype=object))
    var = pd.DataFrame(index=pd.Index([f"gene_{i}" for i in range(n_genes)], dtype=object))
    name = "the sparse matrix" if sp.issparse(matrix) else "the array"
    return assemble(matrix, obs, var, Origin(name, "", obs.index, var.index), allow_fractional)
