"""Minibatches of cells whose counts are in memory, as tensors on the training device."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch

from ._csr import csr_tensor, on_device

_MARGIN = 32  # parts differ in length by less than their 32nd part, mostly

if TYPE_CHECKING:
    import scipy.sparse as sp

    from .store import Store


class Minibatch(NamedTuple):
    """B cells, with what `VAE.forward` takes.

    Attributes
    ----------
    x
        (B, G) ``torch.sparse_csr`` float32 counts with int32 indices.
    batch_index, y
        (B, 1) int64 batch and label codes.
    local_l_mean, local_l_var
        (B, 1) float32 statistics of the log library size in each cell's batch.
    cells
        (B,) int64 ndarray: rows of the store.
    """

    x: torch.Tensor
    batch_index: torch.Tensor
    y: torch.Tensor
    local_l_mean: torch.Tensor
    local_l_var: torch.Tensor
    cells: np.ndarray


class Part(Protocol):
    """A sequence of cells that minibatches are cut from."""

    def minibatch(self, start: int, stop: int) -> Minibatch:
        """Return the minibatch of the cells at positions `start` to `stop` of the sequence."""

    def done(self) -> None:
        """Give its memory back; no minibatch is cut from it any more."""


class SpareMemory:
    """Arrays of parts that are done with, for those that are read next.

    Fresh memory of this size comes from the system page by page, which can take longer than
    reading what goes into it.
    """

    def __init__(self) -> None:
        self._free: deque[tuple[np.ndarray, np.ndarray]] = deque()

    def take(self, entries: int) -> tuple[np.ndarray, np.ndarray]:
        """Return int32 and float32 arrays of that many entries, with anything in them."""
        try:
            columns, values = self._free.popleft()
        except IndexError:
            columns = values = np.empty(0)
        if len(columns) < entries:
            size = entries + entries // _MARGIN
            columns, values = np.empty(size, dtype=np.int32), np.empty(size, dtype=np.float32)
        return columns[:entries], values[:entries]

    def give_back(self, columns: np.ndarray, values: np.ndarray) -> None:
        """Take back what `take` returned; anything else is left alone."""
        if columns.base is not None and values.base is not None and columns.dtype == np.int32:
            self._free.append((columns.base, values.base))


class HostPart:
    """Cells whose counts are rows of a CSR matrix in memory.

    Parameters
    ----------
    store
        Where the codes and the library statistics are.
    cells
        (M,) int64 rows of the store, in the order of the minibatches.
    counts
        CSR float32.
    rows
        (M,) row of `counts` for each of `cells`.
    device
        Where the tensors go; to a GPU through pinned memory, without waiting.
    memory
        Where the arrays of `counts` go when all minibatches have been cut.
    """

    def __init__(
        self,
        store: Store,
        cells: np.ndarray,
        counts: sp.csr_matrix,
        rows: np.ndarray,
        device: torch.device,
        memory: SpareMemory | None = None,
    ) -> None:
        self.store = store
        self.cells = cells
        self.counts = counts
        self.rows = rows
        self.device = device
        self.memory = memory

    def minibatch(self, start: int, stop: int) -> Minibatch:
        """Gather the rows; see `Part`."""
        store, device = self.store, self.device
        cells = self.cells[start:stop]
        crow, col, values = gather_rows(self.counts, self.rows[start:stop])
        batches = store.batch_codes[cells]

        def column(values: np.ndarray) -> torch.Tensor:
            return on_device(values, device).unsqueeze(1)

        return Minibatch(
            x=csr_tensor(crow, col, values, (len(cells), store.n_genes), device),
            batch_index=column(batches),
            y=column(store.label_codes[cells]),
            local_l_mean=column(store.log_library_mean[batches]),
            local_l_var=column(store.log_library_var[batches]),
            cells=cells,
        )

    def done(self) -> None:
        """See `Part`."""
        if self.memory is not None:
            self.memory.give_back(self.counts.indices, self.counts.data)
            self.memory = None


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
        from ..kernels.cpu_rows import gather_rows
    except ImportError:
        return None
    return gather_rows
