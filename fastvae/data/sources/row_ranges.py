"""Counts of one file, read by ranges of cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sp

from ...errors import InputError
from .arrays import StoredArray, read_spans
from .matrix import read_compressed, read_dense

Piece = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Rows: their lengths (R,) int64, columns and values (nnz,)."""

_ENTRY_BYTES = 16  # what an entry takes while it is read: index and value, and their conversion


class Rows(Protocol):
    """A matrix of cells by genes of which ranges of rows can be read."""

    where: str
    shape: tuple[int, int]

    @property
    def natural_rows(self) -> int:
        """About how many rows to read at once, so that no chunk is decoded for a few rows."""

    def bytes_before(self, row: int | np.ndarray) -> Any:
        """Return about how much memory reading the first `row` rows takes."""

    @property
    def kept_as_used(self) -> bool:
        """Whether columns are stored as int32 and values as float32, so that `into` can be used."""

    def read(
        self,
        ranges: Sequence[tuple[int, int]],
        into: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> list[Piece]:
        """Return what is in each range of rows, in the memory of `into` if that is given."""

    def whole(self) -> sp.csr_matrix:
        """Return all rows as CSR float32 that the caller may change; indices may be unsorted."""


class CompressedRows:
    """A CSR matrix on disk: ``data``, ``indices``, and ``indptr`` in memory.

    Parameters
    ----------
    data, indices
        Values and columns; of any number type.
    indptr
        (N + 1,) int64.
    """

    def __init__(
        self,
        where: str,
        shape: tuple[int, int],
        data: StoredArray,
        indices: StoredArray,
        indptr: np.ndarray,
    ) -> None:
        self.where = where
        self.shape = shape
        self._data = data
        self._indices = indices
        self._indptr = indptr

    @property
    def natural_rows(self) -> int:
        """See `Rows`."""
        entries = 4 * max(self._data.chunk, self._indices.chunk, 1 << 13)
        mean = max(1.0, self._indptr[-1] / max(1, self.shape[0]))
        return max(1, int(entries / mean))

    def bytes_before(self, row: int | np.ndarray) -> Any:
        """See `Rows`."""
        return self._indptr[row] * _ENTRY_BYTES

    @property
    def kept_as_used(self) -> bool:
        """See `Rows`."""
        return self._indices.dtype == np.int32 and self._data.dtype == np.float32

    def read(
        self,
        ranges: Sequence[tuple[int, int]],
        into: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> list[Piece]:
        """See `Rows`."""
        spans = [(int(self._indptr[first]), int(self._indptr[last])) for first, last in ranges]
        all_columns, all_values = read_spans([self._indices, self._data], spans, into)
        pieces = []
        for i, (first, last) in enumerate(ranges):
            columns = all_columns[i]
            if len(columns) and (columns.min() < 0 or columns.max() >= self.shape[1]):
                self._refuse_column(spans[i][0], columns)
            pieces.append((np.diff(self._indptr[first : last + 1]), columns, all_values[i]))
        return pieces

    def whole(self) -> sp.csr_matrix:
        """See `Rows`."""
        return read_compressed(self._indptr, self._data, self._indices, self.shape, self.where)

    def _refuse_column(self, start: int, columns: np.ndarray) -> None:
        at = int(np.argmax((columns < 0) | (columns >= self.shape[1])))
        row = int(np.searchsorted(self._indptr, start + at, side="right")) - 1
        raise InputError(
            f"{self.where} is damaged at entry {start + at} (row {row}): its column "
            f"{int(columns[at])} lies outside 0..{self.shape[1] - 1}; write or download the file "
            "again"
        )


class _RangeByRange:
    """What is common to rows that are read one range after the other, into memory of their own."""

    @property
    def kept_as_used(self) -> bool:
        """See `Rows`."""
        return False

    def read(
        self,
        ranges: Sequence[tuple[int, int]],
        into: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> list[Piece]:
        """See `Rows`."""
        return [self._read(first, last) for first, last in ranges]

    def _read(self, first: int, last: int) -> Piece:
        raise NotImplementedError


class DenseRows(_RangeByRange):
    """A dense matrix on disk."""

    def __init__(self, where: str, shape: tuple[int, int], array: StoredArray) -> None:
        self.where = where
        self.shape = shape
        self._array = array
        self._row_bytes = shape[1] * (array.dtype.itemsize + 5)

    @property
    def natural_rows(self) -> int:
        """See `Rows`."""
        return max(self._array.chunk, (1 << 20) // self._row_bytes, 1)

    def bytes_before(self, row: int | np.ndarray) -> Any:
        """See `Rows`."""
        return row * self._row_bytes

    def whole(self) -> sp.csr_matrix:
        """See `Rows`."""
        return read_dense(self._array, self.shape, self.where)

    def _read(self, first: int, last: int) -> Piece:
        block = self._array.read(first, last)
        filled = block != 0
        lengths = np.count_nonzero(filled, axis=1).astype(np.int64)
        return lengths, np.nonzero(filled)[1], block[filled]


class MemoryRows(_RangeByRange):
    """A CSR matrix in memory, where a file cannot be read by rows."""

    def __init__(self, where: str, counts: sp.csr_matrix) -> None:
        self.where = where
        self.shape: tuple[int, int] = counts.shape
        self._counts = counts

    @property
    def natural_rows(self) -> int:
        """See `Rows`."""
        return 64

    def bytes_before(self, row: int | np.ndarray) -> Any:
        """See `Rows`."""
        return self._counts.indptr[row].astype(np.int64) * _ENTRY_BYTES

    def whole(self) -> sp.csr_matrix:
        """See `Rows`; the matrix itself, not a copy."""
        return self._counts

    def _read(self, first: int, last: int) -> Piece:
        indptr = self._counts.indptr
        span = slice(indptr[first], indptr[last])
        lengths = np.diff(indptr[first : last + 1]).astype(np.int64)
        return lengths, self._counts.indices[span], self._counts.data[span]
