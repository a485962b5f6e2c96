"""One input as a set of files sees it: names, columns of obs, and rows of counts."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import InputError, size_text
from ..checks import Origin, check_axes
from ..genes import Genes
from ..keys import Key, columns_of
from .arrays import StoredArray, Watch, fast_zarr, hdf5_array, zarr_array
from .folder_layout import is_mtx
from .h5ad import read_element, read_frame, wanted_names
from .hdf5 import hdf5_root, is_zarr, kind_of, opened, reporting_damage
from .matrix import open_arrays, read_transposed, stored_layout
from .row_ranges import CompressedRows, DenseRows, MemoryRows, Rows
from .slots import RAW, Slot, Slots, stored_slots
from .structure import Node, check_anndata, is_old_layout
from .zarr_nodes import ZarrNode

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData


class CountFile:
    """A file whose counts stay where they are.

    Attributes
    ----------
    source
        What messages call it.
    rows
        Its counts.
    var_names
        (G,) array of str.
    clean
        Whether every row is sorted and without repeated or zero entries; the check sets it.
    name
        What tells it from the other files of a data set.
    batch_key
        Its own column of obs with the batch, or None.
    batch
        The batch of all of its cells, where no column of obs has it.
    """

    name: str = ""
    batch_key: Key | None = None
    batch: str | None = None

    def __init__(
        self, source: str, group: Any, rows: Rows, var_key: str, slots: Slots, slot: str
    ) -> None:
        self.source = source
        self.rows = rows
        self.clean = True
        self._group = group
        self._var_key = var_key
        self._slots = slots
        self._named = Slot()
        self._slot = slot
        self.var_names = self._index(var_key)

    @property
    def n_cells(self) -> int:
        """N."""
        return self.rows.shape[0]

    def origin(self) -> Origin:
        """Return what the checks of counts name."""
        import pandas as pd

        cells: Any = _LateNames(self.n_cells, self.cell_names)
        genes = pd.Index(self.var_names, dtype=object)
        return Origin(
            self.source, self._slot, cells, genes, lambda: self._slots.count_like(self._slot)
        )

    def columns(self) -> list[str]:
        """Return the names of the columns of obs."""
        with reporting_damage(Path(self.source)):
            frame = self._group["obs"]
            order = frame.attrs.get("column-order")
            return [str(name) for name in (list(frame) if order is None else order)]

    def column(self, key: Key | None) -> pd.DataFrame:
        """Return obs with the columns of `key` alone, or the names of all if one is not there."""
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

    def batches(self, key: Key | None) -> pd.DataFrame:
        """Return a frame with the batch of each cell in its column `key`, as in `column`."""
        import pandas as pd

        if self.batch is None or key is None:
            return self.column(self.batch_key)
        return pd.DataFrame({key: constant(self.batch, self.n_cells)})

    def joined(self, key: Key | None) -> pd.DataFrame:
        """Read obs, with the batch in its column `key` where that is not None."""
        frame = self.obs().copy()
        if key is not None and self.batch is not None:
            frame[key] = constant(self.batch, self.n_cells)
        elif isinstance(self.batch_key, str) and self.batch_key in frame.columns:
            frame[key] = frame[self.batch_key]
        return frame

    def cell_names(self) -> np.ndarray:
        """Read the names of the cells."""
        return self._index("obs")

    def obs(self) -> pd.DataFrame:
        """Read obs."""
        return read_frame(self._group, "obs", self.source)

    def var(self) -> pd.DataFrame:
        """Read var."""
        return wanted_names(
            read_frame(self._group, self._var_key, self.source), self._named, self.source
        )

    def name_genes(self, wanted: Slot) -> None:
        """Name the genes as `wanted` says."""
        self._named = wanted
        self.var_names = np.asarray(self.var().index, dtype=object)

    @cached_property
    def genes(self) -> Genes:
        """Names and ids of the genes."""
        return Genes.of(self.var())

    def index_of(self, key: str) -> Any:
        """Return the array of names of ``obs`` or ``var``, unread: an array, or values and mask."""
        with reporting_damage(Path(self.source)):
            frame = self._group[key]
            return frame[frame.attrs.get("_index", "_index")]

    def length_of(self, key: str) -> int:
        """Return the number of names of ``obs`` or ``var``."""
        index = self.index_of(key)
        return int((index["values"] if hasattr(index, "keys") else index).shape[0])

    def _index(self, key: str) -> np.ndarray:
        found = read_element(self.index_of(key), f"{key} names", self.source)
        names = np.empty(len(found), dtype=object)
        names[:] = [str(name) for name in found]
        return names


def constant(name: str, length: int) -> pd.Categorical:
    """Return a column that has `name` everywhere."""
    import pandas as pd

    return pd.Categorical.from_codes(np.zeros(length, dtype=np.int8), categories=[name])


class MemoryFile(CountFile):
    """Counts that had to be read into memory, with the same face."""

    def __init__(self, source: str, adata: AnnData) -> None:
        self._adata = adata
        self.source = source
        self.rows = MemoryRows(source, adata.X)
        self.clean = True
        self._slots = Slots(source, None, {}, None)
        self._slot = ""
        self.var_names = np.asarray(adata.var_names, dtype=object)

    def columns(self) -> list[str]:
        """See `CountFile`."""
        return [str(name) for name in self._adata.obs.columns]

    def column(self, key: Key | None) -> pd.DataFrame:
        """See `CountFile`."""
        return self._adata.obs

    def cell_names(self) -> np.ndarray:
        """See `CountFile`."""
        return np.asarray(self._adata.obs_names, dtype=object)

    def obs(self) -> pd.DataFrame:
        """See `CountFile`."""
        return self._adata.obs

    def var(self) -> pd.DataFrame:
        """See `CountFile`."""
        return self._adata.var


class _LateNames:
    """Names that are read only if a message needs one."""

    def __init__(self, length: int, names: Callable[[], np.ndarray]) -> None:
        self._length = length
        self._names = names

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, at: int) -> str:
        return str(self._names()[at])


def open_count_file(path: Path, slot: Slot, memory: int) -> CountFile:
    """Open an input without reading its counts, where its kind allows that.

    Parameters
    ----------
    path
        .h5ad or AnnData zarr; any other kind that `read` takes is read into memory.
    slot
        Where its counts are.
    memory
        Bytes that a matrix stored by gene may take, which has to be turned in memory.

    Returns
    -------
    CountFile
        Names are checked, counts are not.

    Raises
    ------
    InputError
        As `read`, or a matrix stored by gene that is too large.
    """
    from .memory import no_such_file, read_slot

    if not path.exists():
        raise no_such_file(path)
    watch = Watch(str(path))
    if is_zarr(path):
        with reporting_damage(path), fast_zarr():
            store = ZarrNode.open(path, slot.allow_links)
            group = _open_zarr(path, store)
            return _stored(group, store, slot, memory, _zarr_wrapper(path, watch))
    stored = False
    if path.is_file() and not is_mtx(path):
        with opened(path) as file, reporting_damage(path):
            root = hdf5_root(file, path, slot.allow_links)
            stored = kind_of(root) == "h5ad" and not is_old_layout(root)
    if not stored:
        return MemoryFile(str(path), read_slot(path, slot))
    import h5py

    if importlib.util.find_spec("hdf5plugin"):
        importlib.import_module("hdf5plugin")  # more ways of compression, where installed
    watch.check([path])
    file = h5py.File(path, "r")
    with reporting_damage(path):

        def wrap(array: Any, where: str) -> StoredArray:
            return hdf5_array(array, where, watch, path)

        root = hdf5_root(file, path, slot.allow_links)
        try:
            return _stored(file, root, slot, memory, wrap)
        except BaseException:
            file.close()
            raise


def _open_zarr(path: Path, root: ZarrNode) -> Any:
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


def _zarr_wrapper(path: Path, watch: Watch) -> Callable[[Any, str], StoredArray]:
    return lambda array, where: zarr_array(array, where, watch, path)


def _stored(
    group: Any,
    root: Node,
    wanted: Slot,
    memory: int,
    wrap: Callable[[Any, str], StoredArray],
) -> CountFile:
    slots = stored_slots(group, root, wanted)
    slot, matrix = slots.choose(wanted)
    where = f"{slot} of {root.source}"
    var_key = "raw/var" if slot == RAW else "var"
    shape = check_anndata(root, use_raw=slot == RAW)
    rows = _rows(matrix, where, shape, memory, wrap)
    file = CountFile(root.source, group, rows, var_key, slots, slot)
    if wanted.gene_names is not None:
        file.name_genes(wanted)
    check_axes(file.origin())
    return file


def _rows(
    matrix: Any,
    where: str,
    shape: tuple[int, int],
    memory: int,
    wrap: Callable[[Any, str], StoredArray],
) -> Rows:
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
    n_values = int(matrix["data"].shape[0])
    fix = "write it by cell once (fastvae convert FILE -o FILE.zarr) and use that"
    if n_values * 8 > memory:
        raise InputError(
            f"{where} is stored by gene (CSC), and turning it takes {size_text(n_values * 8)} of "
            f"memory, of which {size_text(memory)} may be used; {fix}"
        )
    warnings.warn(
        f"{where} is stored by gene (CSC): it cannot be streamed by cell and was turned in "
        f"memory, which is slow; {fix}",
        UserWarning,
        stacklevel=2,
    )
    return MemoryRows(where, read_transposed(matrix, shape, where))
