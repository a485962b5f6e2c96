"""Counts kept on the training device, in compact form where they are whole numbers."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

import numpy as np
import torch

from ..._covariates import NO_COVARIATES, CellCovariates
from ..._torch import csr_of
from ...functional.gather import (
    MOST_GENES_16,
    CellColumns,
    CompactCounts,
    CountLogs,
    Counts,
    CsrBuffers,
    DenseBuffers,
    compact,
    gather_columns,
    gather_into,
)
from ..csr import on_device
from .host import covariates_on
from .minibatch import Minibatch, Part, SpareMemory
from .store import Store

_SLAB_CELLS = 1 << 16
_BYTES_PER_CELL = 48  # two row offsets, two codes, two statistics
_UNKNOWN = np.zeros(0, dtype=np.int64)


def compact_bytes(store: Store) -> int:
    """Bytes that the counts of `store` take on a device, if they are whole numbers."""
    per_count = 3 if store.n_genes <= MOST_GENES_16 else 5
    return store.n_stored * per_count + store.n_cells * _BYTES_PER_CELL


@dataclass(frozen=True, eq=False)
class DeviceStore(Store):
    """Counts on a device: a minibatch is one gather there.

    Attributes
    ----------
    source
        3 bytes per nonzero, or plain CSR where a count is fractional.
    cell_lengths
        (N,) int32 on the host, so that the size of a minibatch is known without asking the device.
    columns
        Codes of the cells and library statistics of the batches, on the device.
    covariates_there
        `covariates`, on the device.
    """

    residence: ClassVar[str] = "device"

    source: CompactCounts | Counts
    cell_lengths: np.ndarray
    columns: CellColumns
    covariates_there: CellCovariates = NO_COVARIATES

    @classmethod
    def of(cls, store: Store, device: torch.device) -> DeviceStore:
        """Copy the counts of another store to `device`, a slab of cells at a time."""
        lengths = store.lengths().astype(np.int32)
        try:
            source: CompactCounts | Counts = _compact_source(store, lengths, device)
        except ValueError:  # a count that is not whole
            source = _plain_source(store, lengths, device)
        arrays = store.batch_codes, store.label_codes, store.log_library_mean, store.log_library_var
        annotation = {field.name: getattr(store, field.name) for field in fields(Store)}
        columns = CellColumns(*(on_device(array, device) for array in arrays))
        return cls(
            **annotation,
            source=source,
            cell_lengths=lengths,
            columns=columns,
            covariates_there=covariates_on(store.covariates, device),
        )

    @property
    def n_stored(self) -> int:
        """See `Store`."""
        return int(self.cell_lengths.sum(dtype=np.int64))

    def lengths(self) -> np.ndarray:
        """See `Store`."""
        return self.cell_lengths

    @property
    def device(self) -> torch.device:
        """Where the counts are."""
        return self.columns.batch.device

    def minibatch_into(
        self,
        rows: torch.Tensor,
        into: CsrBuffers | DenseBuffers,
        columns: CellColumns,
        logs: CountLogs | None = None,
        covariates: CellCovariates = NO_COVARIATES,
    ) -> Minibatch:
        """Write a minibatch into given memory, without waiting for the device.

        Parameters
        ----------
        rows
            (B,) int64 cells, on the device.
        into
            Memory for the counts of B cells.
        columns
            Memory for what goes with them.
        logs
            Memory for the logarithms of the counts, if they are wanted.
        covariates
            Memory for the covariates that the cells have: `covariate_memory`.

        Returns
        -------
        Minibatch
            Views of that memory. Its `cells` are empty: the row numbers are on the device.
        """
        gather_into(self.source, rows, into, logs)
        gather_columns(self.columns, rows, columns)
        there = self.covariates_there.given()
        for name, memory in covariates.given().items():
            torch.index_select(there[name], 0, rows, out=memory)
        if isinstance(into, DenseBuffers):
            x = into.x
        else:
            x = csr_of(into.crow, into.col, into.values, (len(rows), self.n_genes))
        return Minibatch(
            x=x,
            batch_index=columns.batch,
            y=columns.label,
            local_l_mean=columns.library_mean,
            local_l_var=columns.library_var,
            cells=_UNKNOWN,
            logs=logs,
            covariates=covariates,
        )

    def covariate_memory(self, n_cells: int) -> CellCovariates:
        """Return memory for the covariates of so many cells."""
        return self.covariates_there.each(lambda values: values.new_empty(n_cells, values.shape[1]))

    def part(
        self, cells: np.ndarray, device: torch.device, memory: SpareMemory | None = None
    ) -> Part:
        """See `Store`."""
        home = self.device
        if home.type != device.type or (device.index or 0) != (home.index or 0):
            raise AssertionError(f"counts kept on {home} cannot serve minibatches on {device}")
        return _DevicePart(self, cells, on_device(cells, device))


@dataclass(frozen=True)
class _DevicePart:
    store: DeviceStore
    cells: np.ndarray
    rows: torch.Tensor

    def minibatch(self, start: int, stop: int) -> Minibatch:
        store, cells, rows = self.store, self.cells[start:stop], self.rows[start:stop]
        stored = int(store.cell_lengths[cells].sum(dtype=np.int64))
        into = CsrBuffers.empty(len(cells), stored, rows.device)
        columns = CellColumns.empty(len(cells), rows.device)
        memory = into, columns, into.logs(), store.covariate_memory(len(cells))
        return store.minibatch_into(rows, *memory)._replace(cells=cells)

    def done(self) -> None:
        """See `Part`; the counts stay."""


def _crow(lengths: np.ndarray, device: torch.device) -> torch.Tensor:
    crow = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=crow[1:])
    return torch.from_numpy(crow).to(device)


def _slabs(store: Store) -> list[tuple[int, int]]:
    step = min(_SLAB_CELLS, store.pool_cells)
    return [(i, min(i + step, store.n_cells)) for i in range(0, store.n_cells, step)]


def _compact_source(store: Store, lengths: np.ndarray, device: torch.device) -> CompactCounts:
    small = store.n_genes <= MOST_GENES_16
    n_stored = int(lengths.sum(dtype=np.int64))
    genes = torch.empty(n_stored, dtype=torch.uint16 if small else torch.int32, device=device)
    counts = torch.empty(n_stored, dtype=torch.uint8, device=device)
    aside, aside_lengths = [], []
    at = 0
    for start, stop in _slabs(store):
        arrays = store.rows(np.arange(start, stop))
        crow, col, values = (torch.from_numpy(array) for array in arrays)
        piece = compact(crow, col, values, store.n_genes)
        end = at + len(piece.counts)
        genes[at:end] = piece.genes.to(device)
        counts[at:end] = piece.counts.to(device)
        aside.append(piece.aside)
        aside_lengths.append(np.diff(piece.aside_crow.numpy()))
        at = end
    return CompactCounts(
        (store.n_cells, store.n_genes),
        _crow(lengths, device),
        genes,
        counts,
        _crow(np.concatenate(aside_lengths), device),
        torch.cat(aside).to(device),
    )


def _plain_source(store: Store, lengths: np.ndarray, device: torch.device) -> Counts:
    n_stored = int(lengths.sum(dtype=np.int64))
    col = torch.empty(n_stored, dtype=torch.int32, device=device)
    values = torch.empty(n_stored, dtype=torch.float32, device=device)
    at = 0
    for start, stop in _slabs(store):
        _, piece_col, piece_values = store.rows(np.arange(start, stop))
        end = at + len(piece_col)
        col[at:end] = torch.from_numpy(piece_col).to(device)
        values[at:end] = torch.from_numpy(piece_values).to(device)
        at = end
    shape = (store.n_cells, store.n_genes)
    return Counts(shape, None, _crow(lengths, device), col, values)
