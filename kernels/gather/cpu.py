"""Rows of a CSR matrix in memory, copied by libfastvae_cpu; in numpy, as data sets are kept."""

from __future__ import annotations

import numpy as np

from ..native import CountsArgument, library, threads_for

_WORTH = 4  # an entry copied is so much less work than one of the likelihood


def gather_rows(
    indptr: np.ndarray, indices: np.ndarray, data: np.ndarray, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Copy rows of a CSR matrix.

    Parameters
    ----------
    indptr, indices : ndarray
        Of the matrix: (N + 1,) and (nnz,), both int32 or both int64.
    data : ndarray, (nnz,)
        float32.
    rows : ndarray, (B,)
        Row numbers in 0..N-1, in any order, repeated ones too.

    Returns
    -------
    crow, col, values : ndarray
        int32 (B + 1,), int32 and float32.

    Raises
    ------
    IndexError
        If a row does not exist.
    ValueError
        If the arrays are of other types, or the rows hold more than 2^31 - 1 entries.
    """
    rows = np.ascontiguousarray(rows, dtype=np.int64)
    if len(rows) and not 0 <= rows.min() <= rows.max() < len(indptr) - 1:
        raise IndexError(f"rows {rows.min()}..{rows.max()} are not all in 0..{len(indptr) - 2}")
    kinds = indptr.dtype, indices.dtype, data.dtype
    whole = indptr.flags.c_contiguous and indices.flags.c_contiguous and data.flags.c_contiguous
    long, short, single = np.dtype(np.int64), np.dtype(np.int32), np.dtype(np.float32)
    wide = kinds == (long, long, single)
    if not (wide or kinds == (short, short, single)) or not whole:
        raise ValueError(f"indptr, indices and data are {kinds}, which the library does not take")
    ends = np.cumsum(indptr[rows + 1] - indptr[rows], dtype=np.int64)
    stored = int(ends[-1]) if len(rows) else 0
    if stored > np.iinfo(np.int32).max:
        raise ValueError(f"{len(rows)} rows hold {stored} entries; take fewer at once")
    crow = np.zeros(len(rows) + 1, dtype=np.int32)
    crow[1:] = ends
    col, values = np.empty(stored, dtype=np.int32), np.empty(stored, dtype=np.float32)
    at = [array.ctypes.data for array in (indptr, indices, data, rows, crow, col, values)]
    source = CountsArgument(None, 0, *at[:3], wide)
    threads = threads_for(stored // _WORTH, len(rows))
    library.fastvae_gather(source, at[3], len(rows), *at[4:], threads)
    return crow, col, values
