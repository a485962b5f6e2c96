"""`read`: every kind of input becomes checked counts in one form."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError, file_path
from ._h5 import hdf5_root, kind_of, opened, reporting_damage
from ._slots import Slot
from .countfile import is_zarr
from .folder_layout import is_mtx, matrix_with_prefix
from .h5ad import assemble, from_object, joined, read_h5ad, wanted_names
from .mtx_folder import read_mtx_folder
from .tenx import read_tenx_h5
from .validate import Origin

if TYPE_CHECKING:
    from anndata import AnnData

ACCEPTED = (
    "an .h5ad file, an AnnData zarr store, a 10x .h5 file, a 10x folder with matrix.mtx, "
    "an AnnData object, a scipy sparse matrix or a 2-D numpy array (cells x genes)"
)


def read(
    source: Any,
    *,
    layer: str | None = None,
    use_raw: bool = False,
    genome: str | None = None,
    allow_fractional: bool = False,
    gene_names: str | None = None,
    allow_links: bool = False,
) -> AnnData:
    """Read counts of any supported kind, check them, and return them in one form.

    Parameters
    ----------
    source
        Path of an .h5ad file, an AnnData zarr store, a 10x HDF5 file (Cell Ranger v2 or v3) or a
        folder with a .mtx file and the names of its cells and genes, each plain or .gz, as Cell
        Ranger, STARsolo, kb-python and Parse Biosciences write it, or one above it; where a folder
        holds several, one of its .mtx files. Or an AnnData object (backed or not), a scipy sparse
        matrix of any format, a 2-D ndarray. It is never modified, and the result shares no memory
        with it.
    layer
        Take this layer instead of X; "X" is X itself.
    use_raw
        Take ``.raw`` (its matrix and its genes) instead of X.
    genome
        Which genome of a 10x file or folder that holds several.
    gene_names
        Column of var that names the genes, in the place of its index. Genes without a value keep
        their name, values that several genes have get the suffixes -1, -2, ...; the former names
        are in ``var["var_names"]``.
    allow_fractional
        Take counts corrected for ambient RNA (CellBender, SoupX, DecontX), which are no longer
        whole numbers.
    allow_links
        Also read what a file stores in other files: external links, external storage and virtual
        data sets of HDF5, symbolic links out of a zarr store. Only for files that you trust: such a
        link can lead to any file of yours.

    Returns
    -------
    AnnData
        ``X``: CSR float32 (N, G), columns sorted, duplicate entries summed, no stored zeros;
        ``obs`` and ``var``: copies. Nothing else is kept. 10x symbols that repeat get the
        suffixes -1, -2, ...; the ids are in ``var["gene_ids"]``. Only features of type Gene
        Expression are kept, and what was dropped is said in a ``UserWarning``.

    Raises
    ------
    InputError
        Not found, not readable, an option that does not fit, too large for the memory that is
        available, duplicate genes, fewer than two cells or genes, or values that are not counts
        (negative, NaN, infinite, log-normalised unless `allow_fractional`). The message says
        where and what to do.

    Notes
    -----
    Cells without counts are kept. A minority of values that are not whole numbers gives a
    ``UserWarning`` and is used as it is. Matrices on disk are read in blocks: a dense one never
    exists densely in memory.
    """
    slot = Slot(
        layer,
        use_raw,
        genome,
        allow_fractional,
        allow_links=allow_links,
        gene_names=gene_names,
    )
    return read_slot(source, slot)


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
    from .joint import Wanted, open_files, stream
    from .opening import load

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
