"""Rows gathered from counts in memory or on a device, for minibatches."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..kernels.counts import (
    LARGEST,
    MOST_GENES_16,
    CellColumns,
    CompactCounts,
    CountLogs,
    Counts,
    CsrBuffers,
    DenseBuffers,
    compact,
)
from .dispatch import select

if TYPE_CHECKING:
    import scipy.sparse as sp

__all__ = [
    "LARGEST",
    "MOST_GENES_16",
    "CellColumns",
    "CompactCounts",
    "CountLogs",
    "Counts",
    "CsrBuffers",
    "DenseBuffers",
    "compact",
    "csr_pays",
    "gather_columns",
    "gather_into",
    "gather_rows",
]


def gather_into(
    source: CompactCounts | Counts,
    rows: Tensor,
    into: CsrBuffers | DenseBuffers,
    logs: CountLogs | None = None,
) -> None:
    """Copy rows of counts on a device into lent memory there, with the sum of each row.

    Nothing waits for the device, so that the copy can be part of a CUDA graph.

    Parameters
    ----------
    source
        Compact counts, or plain CSR ones.
    rows
        (B,) integer row numbers on the device of `source`. A row outside the source comes out as
        NaN: dense in that row, CSR in every value.
    into
        Memory for B rows; it decides the layout.
    logs
        Memory for the logarithms, if they are wanted: ``into.logs()``.

    Raises
    ------
    ValueError
        `source` is dense, or `into` or `logs` has another shape, dtype or device.
    """
    backend = select(rows)
    if isinstance(into, DenseBuffers):
        backend.gather_dense(source, rows, out=into.x, totals=into.totals, logs=logs)
    else:
        backend.gather_csr(source, rows, into, logs=logs)


def gather_columns(source: CellColumns, rows: Tensor, into: CellColumns) -> None:
    """Copy the codes and the library statistics of cells into lent memory on their device.

    Nothing waits for the device.

    Parameters
    ----------
    source
        Of a data set of N cells.
    rows
        (B,) integer row numbers; one outside 0..N-1 gets the codes 0 and the statistics NaN.
    into
        Memory for B cells.

    Raises
    ------
    ValueError
        A column of either has another shape, dtype or device.
    """
    select(torch.empty(0, device=rows.device)).gather_columns(source, rows, into)


def csr_pays(device: torch.device) -> Callable[..., bool] | None:
    """Return the function that says whether CSR minibatches of fixed size move fewer bytes.

    None where the kernels of `device` take no CSR arrays that are longer than their rows say.
    """
    return select(torch.empty(0, device=device)).csr_pays


def gather_rows(
    counts: sp.csr_matrix, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Copy rows of a CSR matrix, in any order: (B+1,) int32, (nnz,) int32, (nnz,) float32."""
    copy = _library_copy()
    if copy is not None and counts.indptr.dtype == counts.indices.dtype:
        return copy(counts.indptr, counts.indices, counts.data, rows)
    block = counts[rows]
    crow = block.indptr.astype(np.int32, copy=False)
    return crow, block.indices.astype(np.int32, copy=False), block.data


@functools.cache
def _library_copy() -> Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray]] | None:
    """The compiled copy, where it was built; scipy does the same, several times slower."""
    try:
        from ..kernels.gather.cpu import gather_rows
    except ImportError:
        return None
    return gather_rows
