"""An .h5ad file or an AnnData zarr store: a `CountFile` whose counts stay where they are."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from ...errors import InputError, size_text
from ..checks import Origin, canonicalise, check_axes, check_counts
from ..keys import Key, columns_of
from .anndata_object import read_old
from .arrays import StoredArray, Watch, fast_zarr, hdf5_array, zarr_array
from .countfile import CountFile, LateNames
from .elements import read_element, read_frame, wanted_names
from .frame_structure import check_anndata, check_frame, is_old_layout
from .hdf5 import hdf5_root, opened, reporting_damage
from .matrix import open_arrays, read_transposed, stored_layout
from .node import Node
from .row_ranges import CompressedRows, DenseRows, MemoryRows, Rows
from .slots import RAW, Slot, Slots, stored_slots
from .zarr_nodes import ZarrNode

if TYPE_CHECKING:
    import pandas as pd


Wrap = Callable[[Any, str], StoredArray]
"""Makes an array of the file one of ours; the text names it in messages."""


class StoredFile(CountFile):
    """A file of which columns of obs and rows of counts are read when they are wanted.

    Parameters
    ----------
    source
        What messages call it.
    group
        What h5py or zarr call its root.
    rows
        Its counts.
    wanted
        How genes are named, and what counts may be.
    slots
        Its matrices.
    slot
        Which of them has the counts.
    """

    def __init__(
        self, source: str, group: Any, rows: Rows, wanted: Slot, slots: Slots, slot: str
    ) -> None:
        self.source = source
        self.rows = rows
        self._group = group
        self._var_key = "raw/var" if slot == RAW else "var"
        self._wanted = wanted
        self._slots = slots
        self._slot = slot
        own_names = wanted.gene_names is None
        self.var_names = (
            self._index(self._var_key) if own_names else np.asarray(self.var().index, dtype=object)
        )

    def origin(self) -> Origin:
        """See `CountFile`."""
        import pandas as pd

        cells: Any = LateNames(self.n_cells, self.cell_names)
        genes = pd.Index(self.var_names, dtype=object)
        return Origin(
            self.source, self._slot, cells, genes, lambda: self._slots.count_like(self._slot)
        )

    def columns(self) -> list[str]:
        """See `CountFile`."""
        with reporting_damage(Path(self.source)):
            frame = self._group["obs"]
            order = frame.attrs.get("column-order")
            return [str(name) for name in (list(frame) if order is None else order)]

    def column(self, key: Key | None) -> pd.DataFrame:
        """See `CountFile`."""
        import pandas as pd

        if key is None:
            return pd.DataFrame(index=range(self.n_cells))
        names = columns_of(key)
        if not set(names) <= set(self.columns()):
            return pd.DataFrame(columns=self.columns(), index=range(self.n_cells))
        with reporting_damage(Path(self.source)):
            obs = self._group["obs"]
            if "__categories" in obs:  # anndata before 0.8 keeps them beside the codes
                return self.obs()[names]
            values = {n: read_element(obs[n], f"obs[{n!r}]", self.source) for n in names}
            return pd.DataFrame(values, index=range(self.n_cells))

    def cell_names(self) -> np.ndarray:
        """Read the names of the cells."""
        return self._index("obs")

    def obs(self) -> pd.DataFrame:
        """Read obs."""
        return read_frame(self._group, "obs", self.source)

    def var(self) -> pd.DataFrame:
        """Read var."""
        frame = read_frame(self._group, self._var_key, self.source)
        return wanted_names(frame, self._wanted, self.source)

    def counts(self) -> sp.csr_matrix:
        """Read all counts; see `CountFile`."""
        with reporting_damage(Path(self.source)):
            counts = self.rows.whole()
            canonicalise(counts)
            check_counts(counts, self.origin(), allow_fractional=self._wanted.allow_fractional)
        return counts

    def close(self) -> None:
        """See `CountFile`; a zarr store has nothing open."""
        if hasattr(self._group, "close"):
            self._group.close()

    def _index(self, key: str) -> np.ndarray:
        with reporting_damage(Path(self.source)):
            frame = self._group[key]
            stored = frame[frame.attrs.get("_index", "_index")]
        found = read_element(stored, f"{key} names", self.source)
        names = np.empty(len(found), dtype=object)
        names[:] = [str(name) for name in found]
        return names


def open_h5ad(file: Any, path: Path, wanted: Slot, memory: int | None) -> StoredFile:
    """Return the `CountFile` of an open .h5ad file in the layout since anndata 0.7.

    Parameters
    ----------
    file
        Open ``h5py.File``.
    path
        Where it is.
    wanted
        Which matrix.
    memory
        As `open_input` has it.

    Raises
    ------
    InputError
        The matrix is not there, too large to be turned, or something is not of the structure that
        anndata writes.
    """
    watch = Watch(str(path))
    watch.check([path])

    def wrap(array: Any, where: str) -> StoredArray:
        return hdf5_array(array, where, watch, path)

    with reporting_damage(path):
        return _stored(file, hdf5_root(file, path, wanted.allow_links), wanted, memory, wrap)


def open_zarr(path: Path, wanted: Slot, memory: int | None) -> StoredFile:
    """Return the `CountFile` of a zarr store; parameters and errors are those of `open_h5ad`."""
    watch = Watch(str(path))

    def wrap(array: Any, where: str) -> StoredArray:
        return zarr_array(array, where, watch, path)

    with reporting_damage(path), fast_zarr():
        root = ZarrNode.open(path, wanted.allow_links)
        return _stored(_zarr_group(path, root), root, wanted, memory, wrap)


def _zarr_group(path: Path, root: ZarrNode) -> Any:
    import zarr

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Not the copy of all metadata at its root: what was checked is each array's own.
        group = zarr.open_group(
            path, mode="r", zarr_format=root.zarr_format, use_consolidated=False
        )
    if not {"obs", "var"} <= set(root.names()):
        raise InputError(
            f"{path} is a zarr store without obs and var; expected what AnnData.write_zarr or "
            "fastvae convert writes"
        )
    return group


def _stored(group: Any, root: Node, wanted: Slot, memory: int | None, wrap: Wrap) -> StoredFile:
    slots = stored_slots(group, root, wanted)
    slot, matrix = slots.choose(wanted)
    shape = check_anndata(root, use_raw=slot == RAW)
    rows = _rows(matrix, f"{slot} of {root.source}", shape, memory, wrap)
    file = StoredFile(root.source, group, rows, wanted, slots, slot)
    check_axes(file.origin())
    return file


def _rows(matrix: Any, where: str, shape: tuple[int, int], memory: int | None, wrap: Wrap) -> Rows:
    dense = not hasattr(matrix, "keys")
    layout, found = ("", tuple(matrix.shape)) if dense else stored_layout(matrix, where)
    if found != shape:
        raise InputError(
            f"{where} is {found[0]} x {found[1]}, but there are {shape[0]} cell names and "
            f"{shape[1]} gene names; the file is inconsistent, write it again"
        )
    if dense:
        return DenseRows(where, shape, wrap(matrix, where))
    if layout == "csr":
        indptr, data, indices = open_arrays(matrix, shape[0], where)
        return CompressedRows(
            where, shape, wrap(data, f"{where}, data"), wrap(indices, f"{where}, indices"), indptr
        )
    if memory is not None:
        _check_turning(int(matrix["data"].shape[0]) * 8, where, memory)
    return MemoryRows(where, read_transposed(matrix, shape, where))


def _check_turning(needed: int, where: str, memory: int) -> None:
    """Refuse or warn of a matrix that is to be streamed by cell and is stored by gene."""
    fix = "write it by cell once (fastvae convert FILE -o FILE.zarr) and use that"
    if needed > memory:
        raise InputError(
            f"{where} is stored by gene (CSC), and turning it takes {size_text(needed)} of "
            f"memory, of which {size_text(memory)} may be used; {fix}"
        )
    warnings.warn(
        f"{where} is stored by gene (CSC): it cannot be streamed by cell and was turned in "
        f"memory, which is slow; {fix}",
        UserWarning,
        stacklevel=2,
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
            old = read_old(root, path)
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
