"""Reading AnnData: .h5ad files without loading what is not asked for, and objects in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..._memory import require_memory
from ..._words import reason
from ...errors import InputError
from ..checks import Origin, canonicalise, check_axes, check_counts
from ..genes import named
from .hdf5 import hdf5_root, opened, reporting_damage
from .matrix import to_csr
from .slots import RAW, Slot, Slots, stored_slots
from .structure import Node, check_anndata, check_everything, check_frame, is_old_layout

if TYPE_CHECKING:
    import pandas as pd
    import scipy.sparse as sp
    from anndata import AnnData


def read_h5ad(file: Any, path: Path, wanted: Slot) -> AnnData:
    """Read one matrix, ``obs`` and ``var`` of an open .h5ad file; nothing else is loaded.

    Parameters
    ----------
    file
        Open ``h5py.File``.
    path
        Its name, for messages.
    wanted
        Which matrix.

    Returns
    -------
    AnnData
        Checked counts.

    Raises
    ------
    InputError
        The matrix is not there, damaged, or not counts; something that is needed is not of the
        structure that anndata writes.
    """
    root = hdf5_root(file, path, wanted.allow_links)
    if is_old_layout(root):
        return from_object(_read_old(root, path), str(path), wanted)
    slots = stored_slots(file, root, wanted)
    slot, matrix = slots.choose(wanted)
    check_anndata(root, use_raw=slot == RAW)
    obs = read_frame(file, "obs", str(path))
    var = read_frame(file, "raw/var" if slot == RAW else "var", str(path))
    var = wanted_names(var, wanted, str(path))
    origin = Origin(str(path), slot, obs.index, var.index, partial(slots.count_like, slot))
    with reporting_damage(path):
        return assemble(matrix, obs, var, origin, wanted.allow_fractional)


def read_outline(path: Path, wanted: Slot) -> Outline:
    """Read what an .h5ad has beside its matrices.

    Raises
    ------
    InputError
        It cannot be read.
    """
    with opened(path) as file, reporting_damage(path):
        root = hdf5_root(file, path, wanted.allow_links)
        if is_old_layout(root):
            old = _read_old(root, path)
            n_raw = None if old.raw is None else int(old.raw.shape[1])
            return Outline(old.obs, old.var, [str(name) for name in old.layers if name], n_raw)
        check_anndata(root, use_raw=False)
        slots = stored_slots(file, root, wanted)
        return Outline(
            read_frame(file, "obs", str(path)),
            read_frame(file, "var", str(path)),
            slots.layer_names(),
            None if slots.raw is None else check_frame(root, "raw/var"),
        )


@dataclass(frozen=True, eq=False)
class Outline:
    """What an .h5ad has beside its matrices.

    Attributes
    ----------
    obs, var
        Their frames.
    layers
        Names.
    n_raw_genes
        Genes of ``raw``, None where there is none.
    """

    obs: pd.DataFrame
    var: pd.DataFrame
    layers: list[str]
    n_raw_genes: int | None


def _read_old(root: Node, path: Path) -> AnnData:
    """Read a file of anndata before 0.7, of which the library itself knows the layout."""
    import anndata

    check_everything(root)
    try:
        return anndata.read_h5ad(path)
    except Exception as error:  # it makes no promise of which
        raise InputError(
            f"{path} cannot be read: it is damaged or incomplete ({reason(error)}); "
            "copy or download it again"
        ) from error


def from_object(adata: AnnData, source: str, wanted: Slot) -> AnnData:
    """Copy one matrix, ``obs`` and ``var`` out of an AnnData, backed or not.

    Parameters
    ----------
    adata
        Not modified; the result shares no memory with it.
    source
        What messages call it.
    wanted
        Which matrix.

    Returns
    -------
    AnnData
        Checked counts.

    Raises
    ------
    InputError
        The matrix is not there, or not counts.
    """

    def raw() -> Any:
        return _stored(adata, "raw/X", lambda: adata.raw.X)

    x = _stored(adata, "X", lambda: adata.X)
    slots = Slots(
        source=source,
        x=None if x is None else lambda: x,
        layers=adata.layers,
        raw=raw if adata.raw is not None else None,
    )
    slot, matrix = slots.choose(wanted)
    obs, var = adata.obs.copy(), (adata.raw.var if slot == RAW else adata.var).copy()
    var = wanted_names(var, wanted, source)
    origin = Origin(source, slot, obs.index, var.index, partial(slots.count_like, slot))
    return assemble(matrix, obs, var, origin, wanted.allow_fractional)


def wanted_names(var: pd.DataFrame, wanted: Slot, source: str) -> pd.DataFrame:
    """Return `var` with the genes named as is asked for.

    Raises
    ------
    InputError
        As `named`.
    """
    return named(var, wanted.gene_names, source, required=wanted.names_asked_for)


def assemble(
    matrix: Any, obs: pd.DataFrame, var: pd.DataFrame, origin: Origin, allow_fractional: bool
) -> AnnData:
    """Check names, read the matrix, check the counts, and join the three.

    Raises
    ------
    InputError
        As `check_axes`, `to_csr` and `check_counts`.
    """
    check_axes(origin)
    counts = to_csr(matrix, origin.shape, origin.where)
    return checked(counts, obs, var, origin, allow_fractional)


def checked(
    counts: sp.csr_matrix,
    obs: pd.DataFrame,
    var: pd.DataFrame,
    origin: Origin,
    allow_fractional: bool,
) -> AnnData:
    """Bring `counts` (owned by the caller) to canonical form, check them, wrap them.

    Raises
    ------
    InputError
        As `check_counts`.
    """
    canonicalise(counts)
    check_counts(counts, origin, allow_fractional=allow_fractional)
    return joined(counts, obs, var)


def joined(counts: sp.csr_matrix, obs: pd.DataFrame, var: pd.DataFrame) -> AnnData:
    """Wrap checked counts."""
    import warnings

    from anndata import AnnData

    with warnings.catch_warnings():
        # Repeated barcodes (joined samples) do no harm here: cells are addressed by position.
        warnings.filterwarnings("ignore", message="Observation names are not unique")
        return AnnData(X=counts, obs=obs, var=var)


def _stored(adata: AnnData, key: str, in_memory: Callable[[], Any]) -> Any:
    """Return the matrix `key` in the file behind a backed AnnData, else what `in_memory` does.

    A view of a backed object is loaded by anndata at once, since it cannot be cut into blocks.
    """
    if not adata.isbacked:
        return in_memory()
    if not adata.file.is_open:
        adata.file.open()
    if key not in adata.file:
        return None
    stored = adata.file[key]
    if not adata.is_view:
        return stored
    if hasattr(stored, "dtype"):
        n_genes = adata.n_vars if key == "X" else stored.shape[1]
        require_memory(
            adata.n_obs * n_genes * stored.dtype.itemsize,
            f"reading a view of the dense matrix {key} of {adata.filename}",
            "write the view to a file of its own, in parts, and pass its path",
        )
    return in_memory()


def read_frame(group: Any, key: str, source: str) -> pd.DataFrame:
    """Read a data frame of an HDF5 file or a zarr store, as ``anndata.read_h5ad`` does.

    Raises
    ------
    InputError
        It cannot be read.
    """
    from pandas.api.types import is_string_dtype

    frame = read_element(group[key], key, source)
    if not is_string_dtype(frame.index):
        frame.index = frame.index.astype(str)
    return frame


def read_element(element: Any, what: str, source: str) -> Any:
    """Read anything that anndata can.

    Raises
    ------
    InputError
        It cannot be read.
    """
    try:
        from anndata.io import read_elem
    except ImportError:  # anndata < 0.11
        from anndata.experimental import read_elem

    try:
        return read_elem(element)
    except Exception as error:  # anndata wraps what its readers raise in types of its own
        raise InputError(
            f"{source}: {what} cannot be read ({reason(error)}); the file is damaged or was "
            "written by a newer anndata: write it again, or update anndata"
        ) from error
