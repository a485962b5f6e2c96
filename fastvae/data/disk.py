"""Counts that stay on disk: read in pieces, a pool of cells at a time."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
import scipy.sparse as sp
import torch

from ..errors import InputError
from .countfile import CountFile
from .parts import HostPart, Part
from .store import Store

_THROUGH_ROWS = 32  # so many unwanted rows between two wanted ones are read through
_READ_BYTES = 8 << 20
_MOSTLY = 0.75  # where more than this share of the rows read is wanted, all of them are kept


@dataclass(frozen=True, eq=False)
class DiskStore(Store):
    """Counts in one or many files, their genes matched.

    Attributes
    ----------
    files
        In the order of the cells.
    gene_maps
        For each file, the store's column of each of its genes, -1 for none, int32; None where
        they are the same.
    cell_lengths
        (N,) int32: nonzero counts of each cell.
    pool_size
        Cells that are read, and shuffled, together.
    block_size
        Neighbouring cells that are read in one piece.
    n_workers
        Threads that read ahead, each a pool.
    """

    residence: ClassVar[str] = "disk"

    files: tuple[CountFile, ...]
    gene_maps: tuple[np.ndarray | None, ...]
    cell_lengths: np.ndarray
    pool_size: int
    block_size: int
    n_workers: int = 1

    @property
    def n_stored(self) -> int:
        """See `Store`."""
        return int(self.cell_lengths.sum(dtype=np.int64))

    def lengths(self) -> np.ndarray:
        """See `Store`."""
        return self.cell_lengths

    @property
    def offsets(self) -> np.ndarray:
        """First row of each file, and N."""
        return np.cumsum([0, *(file.n_cells for file in self.files)])

    @property
    def block_edges(self) -> np.ndarray:
        """See `Store`; no block reaches over the end of a file."""
        ends = self.offsets
        starts = [np.arange(a, b, self.block_size) for a, b in pairwise(ends)]
        return np.concatenate([*starts, ends[-1:]])

    @property
    def pool_cells(self) -> int:
        """See `Store`."""
        return self.pool_size

    @property
    def workers(self) -> int:
        """See `Store`."""
        return self.n_workers

    @property
    def cell_names(self) -> np.ndarray:
        """(N,) array of str, read from the files at each use."""
        return np.concatenate([file.cell_names() for file in self.files])

    def part(self, cells: np.ndarray, device: torch.device) -> Part:
        """See `Store`."""
        counts, rows = self.load(cells)
        return HostPart(self, cells, counts, rows, device)

    def load(self, cells: np.ndarray) -> tuple[sp.csr_matrix, np.ndarray]:
        """Read cells in the order in which they lie on disk.

        Parameters
        ----------
        cells
            (M,) rows of the store in any order.

        Returns
        -------
        counts
            CSR float32 of the cells read, canonical; there may be more than were asked for.
        rows
            (M,) the row of `counts` for each of `cells`.

        Raises
        ------
        InputError
            Something cannot be read, or is not what it was when the file was opened.
        """
        order = np.argsort(cells, kind="stable")
        wanted = cells[order]
        runs = self._runs(wanted)
        kept = [self._kept(wanted, run) for run in runs]
        n_kept = sum(len(cells_of_run) for cells_of_run in kept)
        crow = np.zeros(n_kept + 1, dtype=np.int64)
        in_order = np.concatenate([wanted[:0], *kept])
        np.cumsum(self.cell_lengths[in_order], out=crow[1:])
        columns = np.empty(crow[-1], dtype=np.int32)
        values = np.empty(crow[-1], dtype=np.float32)
        at = 0
        for (number, first, last, _, _), cells_of_run in zip(runs, kept, strict=True):
            end = at + int(self.cell_lengths[cells_of_run].sum(dtype=np.int64))
            self._read(number, first, last, cells_of_run, columns[at:end], values[at:end])
            at = end
        if crow[-1] < 2**31:
            crow = crow.astype(np.int32)
        counts = sp.csr_matrix((values, columns, crow), shape=(n_kept, self.n_genes))
        rows = np.empty(len(cells), dtype=np.int64)
        rows[order] = np.searchsorted(in_order, wanted)
        return counts, rows

    def _runs(self, wanted: np.ndarray) -> list[tuple[int, int, int, int, int]]:
        """File, first and last row in the store, first and last position in `wanted` of runs."""
        offsets = self.offsets
        number = np.searchsorted(offsets, wanted, side="right") - 1
        breaks = (np.diff(wanted) > _THROUGH_ROWS) | (np.diff(number) > 0)
        edges = [0, *(np.flatnonzero(breaks) + 1).tolist(), len(wanted)]
        runs = []
        for a, b in pairwise(edges):
            while a < b:
                which = int(number[a])
                rows, offset = self.files[which].rows, int(offsets[which])
                limit = rows.bytes_before(int(wanted[a]) - offset) + _READ_BYTES
                over = rows.bytes_before(wanted[a:b] - offset + 1) > limit
                stop = a + max(1, int(np.argmax(over))) if over.any() else b
                runs.append((which, int(wanted[a]), int(wanted[stop - 1]) + 1, a, stop))
                a = stop
        return runs

    def _kept(self, wanted: np.ndarray, run: tuple[int, int, int, int, int]) -> np.ndarray:
        _, first, last, a, b = run
        cells = wanted[a:b]
        if len(cells) < _MOSTLY * (last - first):
            return np.unique(cells)
        return np.arange(first, last)

    def _read(
        self,
        number: int,
        first: int,
        last: int,
        kept: np.ndarray,
        columns_out: np.ndarray,
        values_out: np.ndarray,
    ) -> None:
        """Read a run of rows of one file into memory lent for those that are kept."""
        file, offset = self.files[number], int(self.offsets[number])
        lengths, columns, values = selected(file, self.gene_maps[number], first, last, offset)
        if not np.array_equal(lengths, self.cell_lengths[first:last]):
            row = first - offset + int(np.argmax(lengths != self.cell_lengths[first:last]))
            raise InputError(
                f"{file.rows.where} is not what it was when it was opened: row {row} has another "
                "number of counts; start again, and leave the file alone until the end"
            )
        if len(kept) < last - first:
            wanted = np.zeros(last - first, dtype=bool)
            wanted[kept - first] = True
            entries = np.repeat(wanted, lengths)
            columns, values = columns[entries], values[entries]
        columns_out[:] = columns
        values_out[:] = values


def selected(
    file: CountFile, gene_map: np.ndarray | None, first: int, last: int, offset: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read rows of a file in canonical form, with the genes wanted only.

    Parameters
    ----------
    file
        Where they are.
    gene_map
        As in `DiskStore`.
    first, last
        Rows; `offset` of them are of earlier files.

    Returns
    -------
    lengths, columns, values
        int64 (R,), integers and numbers (nnz,).
    """
    lengths, columns, values = file.rows.read(first - offset, last - offset)
    ordered = file.clean
    if gene_map is not None:
        columns = gene_map[columns]
        keep = columns >= 0
        if not keep.all():
            before = np.concatenate([[0], np.cumsum(keep)])
            ends = np.cumsum(lengths)
            lengths = before[ends] - before[ends - lengths]
            columns, values = columns[keep], values[keep]
        increasing = gene_map[gene_map >= 0]
        ordered = ordered and bool(np.all(np.diff(increasing) > 0))
    if ordered and file.clean:
        if len(values) and not values.min() > 0:
            raise InputError(
                f"{file.rows.where} is damaged between rows {first - offset} and {last - offset}: "
                "a stored count is not above zero, and when it was opened all were; copy or "
                "download it again"
            )
        return lengths, columns, values
    crow = np.concatenate([[0], np.cumsum(lengths)])
    n_genes = int(columns.max()) + 1 if len(columns) else 1
    matrix = sp.csr_matrix((as_float32(values), columns, crow), shape=(len(lengths), n_genes))
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    return np.diff(matrix.indptr).astype(np.int64), matrix.indices, matrix.data


def as_float32(values: np.ndarray) -> np.ndarray:
    """Cast counts; one too large becomes infinite, which the check of counts reports."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32, copy=False)
