"""`read`: every kind of input becomes checked counts in one form."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from ._h5 import kind_of, opened, reporting_damage
from .countfile import is_zarr
from .folder_layout import is_mtx
from .h5ad import assemble, from_object, joined, read_h5ad
from .mtx_folder import read_mtx_folder
from .tenx import read_tenx_h5

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
        Take this layer instead of X.
    use_raw
        Take ``.raw`` (its matrix and its genes) instead of X.
    genome
        Which genome of a 10x file or folder that holds several.

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
        (negative, NaN, infinite, log-normalised). The message says where and what to do.

    Notes
    -----
    Cells without counts are kept. A minority of values that are not whole numbers gives a
    ``UserWarning`` and is used as it is. Matrices on disk are read in blocks: a dense one never
    exists densely in memory.
    """
    from anndata import AnnData

    if layer is not None and use_raw:
        raise InputError("layer= and use_raw=True exclude each other; pass one of them")
    if isinstance(source, (str, os.PathLike)):
        return _read_path(Path(source).expanduser(), layer, use_raw, genome)
    if genome is not None:
        raise InputError("genome= is for 10x files and folders; leave it out")
    if isinstance(source, AnnData):
        return from_object(source, "the AnnData object", layer, use_raw)
    _refuse_slots("a bare matrix", layer, use_raw)
    return _read_matrix(source)


def _read_path(path: Path, layer: str | None, use_raw: bool, genome: str | None) -> AnnData:
    if not path.exists():
        raise InputError(f"{path} does not exist; expected {ACCEPTED}")
    if is_zarr(path):
        return _read_zarr(path, layer, use_raw)
    if path.is_dir() or is_mtx(path):
        _refuse_slots("a 10x folder", layer, use_raw)
        return read_mtx_folder(path, genome)
    with opened(path) as file:
        with reporting_damage(path):
            kind = kind_of(file)
        if kind == "h5ad":
            if genome is not None:
                raise InputError(f"{path} is an .h5ad file; genome= is for 10x files, leave it out")
            return read_h5ad(file, path, layer, use_raw)
        if kind.startswith("10x"):
            _refuse_slots("a 10x file", layer, use_raw)
            return read_tenx_h5(file, path, kind, genome)
    hints = {
        "loom": "a loom file; read it with anndata.io.read_loom and pass the object",
        "h5mu": "a MuData file; pass the AnnData of its RNA modality",
    }
    raise InputError(
        f"{path} is {hints.get(kind, 'an HDF5 file of unknown kind; expected ' + ACCEPTED)}"
    )


def _read_zarr(path: Path, layer: str | None, use_raw: bool) -> AnnData:
    from .joint import Wanted, open_files, stream
    from .opening import load

    wanted = Wanted(layer=layer, use_raw=use_raw)
    (file,) = open_files([path], wanted, 1 << 62)
    counts = load(stream([file], wanted, 1 << 62)).counts
    return joined(counts, file.obs(), file.var())


def _read_matrix(matrix: Any) -> AnnData:
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
    return assemble(matrix, obs, var, name, "")


def _refuse_slots(kind: str, layer: str | None, use_raw: bool) -> None:
    if layer is not None or use_raw:
        option = "use_raw=True" if layer is None else f"layer={layer!r}"
        raise InputError(f"{kind} has one matrix only; leave out {option}")
