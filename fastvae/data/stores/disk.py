"""Counts that stay on disk: read in pieces, a pool of cells at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch

from ...errors import InputError
from ..sources.countfile import CountFile
from ..sources.row_ranges import Piece
from .host import HostPart
from .minibatch import Part, SpareMemory
from .store import Store

_THROUGH_ROWS = 32  # up to so many rows between two wanted ones are read too
_RUN_BYTES = 32 << 20
_GROUP_BYTES = 32 << 20  # of runs that are read at once, where that is faster
_MOSTLY = 0.75  # where more than this share of the rows read is wanted, all of them are kept


class _Run(NamedTuple):
    """Rows `first` to `last` of the store, for the wanted cells at `start` to `stop`."""

    file: int
    offset: int  # rows of the files before
    first: int
    last: int
    start: int
    stop: int


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
        return distinct_cells([file.cell_names() for file in self.files], self.files)

    def part(
        self, cells: np.ndarray, device: torch.device, memory: SpareMemory | None = None
    ) -> Part:
        """See `Store`."""
        counts, rows = self.load(cells, memory)
        return HostPart(self, cells, counts, rows, device, memory)

    def load(
        self, cells: np.ndarray, memory: SpareMemory | None = None
    ) -> tuple[sp.csr_matrix, np.ndarray]:
        """Read cells in the order in which they lie on disk.

        Parameters
        ----------
        cells
            (M,) rows of the store in any order.
        memory
            Where the counts go; fresh memory by default.

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
        columns, values = (memory or SpareMemory()).take(int(crow[-1]))
        ends = crow[np.cumsum([len(cells_of_run) for cells_of_run in kept])]
        at = 0
        for group in self._groups(runs):
            rows_of_file = self.files[runs[group.start].file].rows
            ranges = [(run.first - run.offset, run.last - run.offset) for run in runs[group]]
            stop = int(ends[group.stop - 1])
            in_place = self._as_stored(runs[group], kept[group])
            into = (columns[at:stop], values[at:stop]) if in_place else None
            pieces = rows_of_file.read(ranges, into)
            for i, piece in zip(range(group.start, group.stop), pieces, strict=True):
                end = int(ends[i])
                out = None if in_place else (columns[at:end], values[at:end])
                self._place(runs[i], piece, kept[i], out)
                at = end
        if crow[-1] < 2**31:
            crow = crow.astype(np.int32)
        counts = sp.csr_matrix((values, columns, crow), shape=(n_kept, self.n_genes))
        rows = np.empty(len(cells), dtype=np.int64)
        rows[order] = np.searchsorted(in_order, wanted)
        return counts, rows

    def _runs(self, wanted: np.ndarray) -> list[_Run]:
        """Cut sorted cells into runs of neighbours, each of one file and of bounded size."""
        offsets = self.offsets
        number = np.searchsorted(offsets, wanted, side="right") - 1
        breaks = (np.diff(wanted) > _THROUGH_ROWS) | (np.diff(number) > 0)
        edges = [0, *(np.flatnonzero(breaks) + 1).tolist(), len(wanted)]
        runs = []
        for a, b in pairwise(edges):
            while a < b:
                file, offset = int(number[a]), int(offsets[number[a]])
                rows = self.files[file].rows
                limit = rows.bytes_before(int(wanted[a]) - offset) + _RUN_BYTES
                over = rows.bytes_before(wanted[a:b] - offset + 1) > limit
                stop = a + max(1, int(np.argmax(over))) if over.any() else b
                runs.append(_Run(file, offset, int(wanted[a]), int(wanted[stop - 1]) + 1, a, stop))
                a = stop
        return runs

    def _groups(self, runs: list[_Run]) -> Iterator[slice]:
        """Put runs of one file together that are read at once."""
        start, n_bytes = 0, 0
        for i, run in enumerate(runs):
            rows = self.files[run.file].rows
            more = rows.bytes_before(run.last - run.offset)
            more -= rows.bytes_before(run.first - run.offset)
            if i > start and (run.file != runs[start].file or n_bytes + more > _GROUP_BYTES):
                yield slice(start, i)
                start, n_bytes = i, 0
            n_bytes += more
        if runs:
            yield slice(start, len(runs))

    def _kept(self, wanted: np.ndarray, run: _Run) -> np.ndarray:
        """Cells of a run whose counts are kept: all that are read, where few are unwanted."""
        cells = wanted[run.start : run.stop]
        if len(cells) < _MOSTLY * (run.last - run.first):
            return np.unique(cells)
        return np.arange(run.first, run.last)

    def _as_stored(self, runs: list[_Run], kept: list[np.ndarray]) -> bool:
        """Whether rows of one file are wanted as they are: all of them, canonical, every gene."""
        number = runs[0].file
        file = self.files[number]
        plain = file.clean and self.gene_maps[number] is None and file.rows.kept_as_used
        return plain and all(
            len(cells) == run.last - run.first for cells, run in zip(kept, runs, strict=True)
        )

    def _place(
        self,
        run: _Run,
        piece: Piece,
        kept: np.ndarray,
        out: tuple[np.ndarray, np.ndarray] | None,
    ) -> None:
        """Check what was read of a run; put it into `out` unless it is where it belongs."""
        file = self.files[run.file]
        first, last = run.first, run.last
        lengths, columns, values = canonical(file, self.gene_maps[run.file], piece)
        if not np.array_equal(lengths, self.cell_lengths[first:last]):
            row = first - run.offset + int(np.argmax(lengths != self.cell_lengths[first:last]))
            raise InputError(
                f"{file.rows.where} is not what it was when it was opened: row {row} has another "
                "number of counts; start again, and leave the file alone until the end"
            )
        if out is None:
            return
        if len(kept) < last - first:
            wanted = np.zeros(last - first, dtype=bool)
            wanted[kept - first] = True
            entries = np.repeat(wanted, lengths)
            columns, values = columns[entries], values[entries]
        out[0][:] = columns
        out[1][:] = as_float32(values)


def distinct_cells(each: Sequence[Any], files: Sequence[CountFile]) -> np.ndarray:
    """Join the names of the cells of files.

    Where files have names in common, all get the name of their file at the end, as
    ``anndata.concat(index_unique="-")`` has it.
    """
    import pandas as pd

    joined = np.concatenate([np.asarray(names, dtype=object) for names in each])
    once = np.concatenate([pd.unique(np.asarray(names, dtype=object)) for names in each])
    if len(each) == 1 or pd.Index(once).is_unique:
        return joined
    ends = np.repeat([f"-{file.name}" for file in files], [len(names) for names in each])
    return np.array([f"{name}{end}" for name, end in zip(joined, ends, strict=True)], dtype=object)


def canonical(file: CountFile, gene_map: np.ndarray | None, piece: Piece) -> Piece:
    """Bring rows that were read to canonical form, with the genes wanted only.

    Parameters
    ----------
    file
        Where they are from.
    gene_map
        As in `DiskStore`.
    piece
        Lengths, columns and values.

    Raises
    ------
    InputError
        A count of a file that was found to have none is zero or NaN now.
    """
    lengths, columns, values = piece
    ordered = file.clean
    if gene_map is not None:
        columns = gene_map[columns]
        keep = columns >= 0
        if not keep.all():
            before = np.concatenate([[0], np.cumsum(keep)])
            ends = np.cumsum(lengths)
            lengths = before[ends] - before[ends - lengths]
            columns, values = columns[keep], values[keep]
        ordered = ordered and bool(np.all(np.diff(gene_map[gene_map >= 0]) > 0))
    if ordered:
        if len(values) and not values.min() > 0:
            raise InputError(
                f"{file.rows.where} is damaged: a stored count is not above zero, and when it was "
                "opened all were; copy or download it again"
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
