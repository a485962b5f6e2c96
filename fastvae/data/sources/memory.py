"""Counts of a path or of an object in memory, read whole and checked."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import InputError, file_path
from ..checks import Origin
from .folder_layout import is_mtx, matrix_with_prefix
from .h5ad import assemble, from_object, joined, read_h5ad, wanted_names
from .hdf5 import hdf5_root, is_zarr, kind_of, opened, reporting_damage
from .mtx_folder import read_mtx_folder
from .slots import Slot
from .tenx import read_tenx_h5

if TYPE_CHECKING:
    from anndata import AnnData


ACCEPTED = (
    "an .h5ad file, an AnnData zarr store, a 10x .h5 file, a 10x folder with matrix.mtx, "
    "an AnnData object, a scipy sparse matrix or a 2-D numpy array (cells x genes)"
)


def read_slot(source: Any, slot: Slot) -> AnnData:
    """Read counts from where `slot` says; see `read`."""
    from anndata import AnnData

    if isinstance(source, (str, os.PathLike)):
        return _read_path(file_path("source", source), slot)
    if slot.genome is not None:
        raise InputError("genome= is for 10x files and folders; leave it out")
    if isinstance(source, AnnData):
        return from_object(source, "the AnnData object", slot)
    slot.refuse_choice("a bare matrix")
    return _read_matrix(source, slot.allow_fractional)


def no_such_file(path: Path) -> InputError:
    """Return what to raise; a prefix of names in a folder, as other tools take it, gets a hint."""
    matrix = matrix_with_prefix(path)
    meant = f"; did you mean {matrix}?" if matrix else f"; expected {ACCEPTED}"
    return InputError(f"{path} does not exist{meant}")


def _read_path(path: Path, slot: Slot) -> AnnData:
    if not path.exists():
        raise no_such_file(path)
    if is_zarr(path):
        return _read_zarr(path, slot)
    if path.is_dir() or is_mtx(path):
        slot.refuse_choice("a 10x folder")
        return _named(read_mtx_folder(path, slot.genome, slot.allow_fractional), slot, path)
    with opened(path) as file:
        with reporting_damage(path):
            kind = kind_of(hdf5_root(file, path, slot.allow_links))
        if kind == "h5ad":
            if slot.genome is not None:
                raise InputError(f"{path} is an .h5ad file; genome= is for 10x files, leave it out")
            return read_h5ad(file, path, slot)
        if kind.startswith("10x"):
            slot.refuse_choice("a 10x file")
            return _named(read_tenx_h5(file, path, kind, slot), slot, path)
    hints = {
        "loom": "a loom file; read it with anndata.io.read_loom and pass the object",
        "h5mu": "a MuData file; pass the AnnData of its RNA modality",
    }
    raise InputError(
        f"{path} is {hints.get(kind, 'an HDF5 file of unknown kind; expected ' + ACCEPTED)}"
    )


def _named(adata: AnnData, slot: Slot, path: Path) -> AnnData:
    """Name the genes of 10x data as is asked for."""
    adata.var = wanted_names(adata.var, slot, str(path))
    return adata


def _read_zarr(path: Path, slot: Slot) -> AnnData:
    from ..joint import open_files, stream
    from ..opening import load
    from ..request import Wanted

    wanted = Wanted(slot=replace(slot, genome=None))
    (file,) = open_files([path], wanted, 1 << 62)
    counts = load(stream([file], wanted, 1 << 62)).counts
    return joined(counts, file.obs(), file.var())


def _read_matrix(matrix: Any, allow_fractional: bool) -> AnnData:
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
