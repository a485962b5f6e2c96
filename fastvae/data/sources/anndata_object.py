"""AnnData objects, in memory or backed, and files that anndata itself has to read."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..._memory import require_memory
from ..._words import reason
from ...errors import InputError
from ..checks import Origin
from .countfile import MemoryFile, assemble
from .elements import wanted_names
from .node import Node, check_everything
from .slots import RAW, Slot, Slots

if TYPE_CHECKING:
    from anndata import AnnData


def read_old(root: Node, path: Path) -> AnnData:
    """Read a file of anndata before 0.7, of which the library itself knows the layout.

    Raises
    ------
    InputError
        It cannot be read, or something in it is not what it claims to be.
    """
    import anndata

    check_everything(root)
    try:
        return anndata.read_h5ad(path)
    except Exception as error:  # it documents none
        raise InputError(
            f"{path} cannot be read: it is damaged or incomplete ({reason(error)}); "
            "copy or download it again"
        ) from error


def from_object(adata: AnnData, source: str, wanted: Slot) -> MemoryFile:
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
    MemoryFile
        Checked counts, and the two frames.

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
