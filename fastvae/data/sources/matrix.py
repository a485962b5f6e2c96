"""Any matrix of counts, in memory or in an HDF5 file, copied to CSR float32 in bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse as sp

from ..._memory import require_memory
from ...errors import InputError

_BLOCK_BYTES = 64 << 20
ENTRY_BYTES = 8
"""What an entry of a sparse matrix takes in memory: float32 value and int32 column."""


def to_csr(matrix: Any, shape: tuple[int, int], where: str) -> sp.csr_matrix:
    """Copy `matrix` as CSR float32; nothing dense of its full size is ever made.

    Parameters
    ----------
    matrix
        scipy sparse, ndarray, dense h5py dataset, or h5py group of a CSR or CSC matrix (as
        .h5ad stores them).
    shape
        What it must have: (cells, genes).
    where
        Names it in messages ("X of atlas.h5ad").

    Returns
    -------
    scipy.sparse.csr_matrix
        float32 (N, G), never sharing memory with `matrix`; indices may be unsorted.

    Raises
    ------
    InputError
        Wrong shape, not numbers, a damaged group, or too large for the memory available.
    """
    import h5py

    if isinstance(matrix, h5py.Group):
        layout, found = stored_layout(matrix, where)
    elif sp.issparse(matrix) or isinstance(matrix, (np.ndarray, h5py.Dataset)):
        layout = "sparse" if sp.issparse(matrix) else "rows"
        found = _shape_of(matrix, where)
    else:
        raise InputError(_no_matrix(matrix, where))
    if found != shape:
        raise InputError(
            f"{where} is {found[0]} x {found[1]}, but there are {shape[0]} cell names and "
            f"{shape[1]} gene names; the file or object is inconsistent, write it again"
        )
    if layout == "csr":
        return read_compressed(*open_arrays(matrix, shape[0], where), shape, where)
    if layout == "csc":
        return read_transposed(matrix, shape, where)
    if layout == "sparse":
        return _from_sparse(matrix, where)
    return read_dense(matrix, shape, where)


def read_compressed(
    indptr: np.ndarray, data: Any, indices: Any, shape: tuple[int, int], where: str
) -> sp.csr_matrix:
    """Read a matrix stored by row in bounded memory.

    Parameters
    ----------
    indptr, data, indices
        What `open_arrays` returns, or stands for it.
    shape, where
        As in `to_csr`.

    Raises
    ------
    InputError
        As `to_csr`.
    """
    n_values = int(indptr[-1])
    require_memory(n_values * ENTRY_BYTES + 2 * indptr.nbytes, _reading(where, shape, n_values))
    values = np.empty(n_values, dtype=np.float32)
    columns = np.empty(n_values, dtype=np.int32)
    for start, stop in _spans(n_values, 2 * ENTRY_BYTES):
        columns[start:stop] = _read_indices(indices, start, stop, shape[1], where)
        values[start:stop] = _as_float32(data[start:stop])
    return sp.csr_matrix((values, columns, indptr), shape=shape)


def sample(matrix: Any, limit: int = 20_000) -> np.ndarray:
    """Return up to `limit` entries (stored ones where sparse) from the start of a matrix."""
    if hasattr(matrix, "keys"):  # a group of an HDF5 file or a zarr store
        return np.asarray(matrix["data"][:limit])
    if sp.issparse(matrix):
        return np.asarray(matrix.tocoo(copy=False).data[:limit])
    return np.asarray(matrix[: max(1, limit // max(1, matrix.shape[1]))]).reshape(-1)[:limit]


def _from_sparse(matrix: Any, where: str) -> sp.csr_matrix:
    _check_kind(matrix.dtype, where)
    for name in ("indices", "indptr"):
        if hasattr(matrix, name):
            _check_positions(getattr(matrix, name), name, where)
    n_values = matrix.nnz
    if matrix.format != "csr":
        # The conversion keeps the source's dtype, and the cast follows.
        entry = matrix.dtype.itemsize + 2 * ENTRY_BYTES
        require_memory(n_values * entry, _copying(where, matrix.shape, n_values))
        matrix = matrix.tocsr()
    else:
        require_memory(n_values * ENTRY_BYTES, _copying(where, matrix.shape, n_values))
    values = np.array(_as_float32(matrix.data), copy=matrix.dtype == np.float32)
    parts = (values, matrix.indices.copy(), matrix.indptr.copy())
    try:
        csr = sp.csr_matrix(parts, shape=matrix.shape)
        csr.check_format(full_check=True)
    except ValueError as error:
        raise InputError(f"{where} is not a sound sparse matrix: {error}") from error
    return csr


def read_dense(matrix: Any, shape: tuple[int, int], where: str) -> sp.csr_matrix:
    """Read a dense matrix, an array or on disk, in blocks of rows.

    Raises
    ------
    InputError
        As `to_csr`.
    """
    n_rows, n_columns = shape
    _check_kind(matrix.dtype, where)
    step = max(1, _BLOCK_BYTES // max(1, n_columns * matrix.dtype.itemsize))
    chunks = getattr(matrix, "chunks", None)
    if chunks and chunks[0] <= 4 * step:
        # Whole HDF5 chunks, so that none is decompressed twice.
        step = -(-step // chunks[0]) * chunks[0]
    entries = Entries(n_rows, lambda expected: _reading(where, shape, expected))
    indptr = np.zeros(n_rows + 1, dtype=np.int64)
    for start in range(0, n_rows, step):
        block = np.ascontiguousarray(matrix[start : start + step])
        filled = np.flatnonzero(block != 0)
        entries.add(filled % n_columns, _as_float32(block.reshape(-1)[filled]), len(block))
        indptr[start + 1 : start + len(block) + 1] = np.count_nonzero(block, axis=1)
    columns, values = entries.finished()
    np.cumsum(indptr, out=indptr)
    return sp.csr_matrix((values, columns, indptr), shape=shape)


class Entries:
    """Columns and values of a matrix that comes in pieces, rows in order.

    Parameters
    ----------
    n_rows
        Of the whole matrix.
    reading
        Says what is being done, given how many entries are expected.
    most
        There can hardly be more entries; None where nobody knows.
    """

    def __init__(self, n_rows: int, reading: Callable[[int], str], most: int | None = None) -> None:
        self._n_rows = n_rows
        self._reading = reading
        self._most = most
        self._rows = self._stored = 0
        self._columns = np.empty(0, dtype=np.int32)
        self._values = np.empty(0, dtype=np.float32)

    def add(self, columns: np.ndarray, values: np.ndarray, n_rows: int) -> None:
        """Copy the entries of the next `n_rows` rows; raises InputError if they do not fit."""
        start, stop = self._stored, self._stored + len(values)
        self._rows += n_rows
        if stop > len(self._values):
            expected = int(1.05 * stop * self._n_rows / self._rows) + 1
            if self._most is not None:
                expected = max(stop, min(expected, self._most))
            needed = (expected - len(self._values)) * ENTRY_BYTES
            require_memory(needed, self._reading(expected))
            self._resize(expected)
        self._columns[start:stop] = columns
        self._values[start:stop] = values
        self._stored = stop

    def finished(self) -> tuple[np.ndarray, np.ndarray]:
        """Return all columns and values, no longer than they are."""
        self._resize(self._stored)
        return self._columns, self._values

    def _resize(self, length: int) -> None:
        # Nothing else refers to the two arrays, and the system can extend them in place.
        self._values.resize(length, refcheck=False)
        self._columns.resize(length, refcheck=False)


def read_transposed(group: Any, shape: tuple[int, int], where: str) -> sp.csr_matrix:
    """Read a stored CSC matrix: count per row first, then place blocks of columns.

    Raises
    ------
    InputError
        As `to_csr`.
    """
    n_rows, n_columns = shape
    indptr, data, indices = open_arrays(group, n_columns, where)
    n_values = int(indptr[-1])
    require_memory(n_values * ENTRY_BYTES + n_rows * 24, _reading(where, shape, n_values))
    lengths = np.zeros(n_rows, dtype=np.int64)
    for start, stop in _spans(n_values, 8):
        rows = _read_indices(indices, start, stop, n_rows, where)
        lengths += np.bincount(rows, minlength=n_rows)
    row_starts = np.zeros(n_rows + 1, dtype=np.int64)
    np.cumsum(lengths, out=row_starts[1:])
    cursor = row_starts[:-1].copy()
    values = np.empty(n_values, dtype=np.float32)
    columns = np.empty(n_values, dtype=np.int32)
    first = 0
    while first < n_columns:
        limit = indptr[first] + _BLOCK_BYTES // 16
        last = max(first + 1, int(np.searchsorted(indptr, limit, side="right")) - 1)
        start, stop = int(indptr[first]), int(indptr[last])
        block = sp.csc_matrix(
            (_as_float32(data[start:stop]), indices[start:stop], indptr[first : last + 1] - start),
            shape=(n_rows, last - first),
        ).tocsr()
        block_lengths = np.diff(block.indptr)
        target = np.arange(block.nnz) + np.repeat(cursor - block.indptr[:-1], block_lengths)
        values[target] = block.data
        columns[target] = block.indices + first
        cursor += block_lengths
        first = last
    return sp.csr_matrix((values, columns, row_starts), shape=shape)


def open_arrays(group: Any, n_major: int, where: str) -> tuple[np.ndarray, Any, Any]:
    """Return ``indptr`` (n_major + 1,) int64 in memory, and ``data`` and ``indices`` unread.

    Raises
    ------
    InputError
        They do not fit each other.
    """
    missing = [name for name in ("data", "indices", "indptr") if name not in group]
    if missing:
        raise InputError(f"{where} is damaged: it has no {missing[0]!r}; write the file again")
    data, indices = group["data"], group["indices"]
    _check_kind(data.dtype, where)
    for name in ("indices", "indptr"):
        _check_positions(group[name], name, where)
    stored = group["indptr"]
    # Its length first: nothing is allocated that is merely declared.
    fitting = stored.shape == (n_major + 1,)
    indptr = np.asarray(stored[:] if fitting else [], dtype=np.int64)
    if (
        not fitting
        or indptr[0] != 0
        or np.any(np.diff(indptr) < 0)
        or not indptr[-1] == data.shape[0] == indices.shape[0]
    ):
        raise InputError(
            f"{where} is damaged: its row pointers do not fit its {data.shape[0]} values; "
            "write or download the file again"
        )
    return indptr, data, indices


def _read_indices(indices: Any, start: int, stop: int, bound: int, where: str) -> np.ndarray:
    found = indices[start:stop]
    if len(found) and (found.min() < 0 or found.max() >= bound):
        raise InputError(
            f"{where} is damaged: an index lies outside 0..{bound - 1}; "
            "write or download the file again"
        )
    return found


def _check_kind(dtype: np.dtype, where: str) -> None:
    if dtype.kind not in "biuf":
        raise InputError(f"{where} holds {dtype} values; counts must be integers or real numbers")


def _check_positions(array: Any, name: str, where: str) -> None:
    kind = getattr(getattr(array, "dtype", None), "kind", "")
    if kind not in ("i", "u"):
        raise InputError(
            f"{where} is damaged: its {name!r} holds {getattr(array, 'dtype', 'no')} values; "
            "positions must be whole numbers (integers)"
        )


def _as_float32(values: np.ndarray) -> np.ndarray:
    # A float64 beyond float32's range becomes inf here, which validation then reports.
    with np.errstate(over="ignore"):
        return values.astype(np.float32, copy=False)


def stored_layout(group: Any, where: str) -> tuple[str, tuple[int, int]]:
    """Return "csr" or "csc", and the shape, of a sparse matrix in a file.

    Raises
    ------
    InputError
        It is neither.
    """
    kind = str(group.attrs.get("encoding-type", group.attrs.get("h5sparse_format", "")))
    layout = kind.removesuffix("_matrix")
    shape = group.attrs.get("shape", group.attrs.get("h5sparse_shape"))
    if layout not in ("csr", "csc") or shape is None:
        raise InputError(
            f"{where} is stored as {kind or 'an unknown kind of group'}; "
            "expected a CSR, CSC or dense matrix"
        )
    return layout, (int(shape[0]), int(shape[1]))


def _no_matrix(matrix: Any, where: str) -> str:
    """Return what is wrong with something that holds no counts yet, or none at all."""
    kind = type(matrix)
    if kind.__module__.partition(".")[0] == "dask":  # as read_lazy gives it
        return (
            f"{where} is a dask array, which is read when it is needed; give the path of its file "
            "in place of the object (counts are streamed from disk where they do not fit into "
            "memory), or load it first (adata.to_memory())"
        )
    return (
        f"{where} is of type {kind.__name__}; expected a scipy sparse matrix or a numpy array: "
        "load it into memory first (adata.to_memory())"
    )


def _shape_of(matrix: Any, where: str) -> tuple[int, int]:
    shape = tuple(matrix.shape)
    if len(shape) != 2:
        raise InputError(f"{where} has shape {shape}; expected two dimensions, cells x genes")
    return int(shape[0]), int(shape[1])


def _spans(n_values: int, entry_bytes: int) -> list[tuple[int, int]]:
    step = _BLOCK_BYTES // entry_bytes
    return [(start, min(start + step, n_values)) for start in range(0, n_values, step)]


def _reading(where: str, shape: tuple[int, int], n_values: int) -> str:
    return f"reading {where} ({shape[0]} cells x {shape[1]} genes, {n_values} non-zero values)"


def _copying(where: str, shape: tuple[int, int], n_values: int) -> str:
    return f"copying {where} ({shape[0]} cells x {shape[1]} genes, {n_values} stored values)"
