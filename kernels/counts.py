"""Counts as the operations take them: a minibatch, a whole data set on a device, lent memory."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

ASIDE = 255  # stands for "the next of this row's counts that are kept aside"
LARGEST = 2**31 - 1
MOST_GENES_16 = 2**16
CHUNK = 2**22  # entries converted at once, so that no copy of the whole is made


class CompactCounts(NamedTuple):
    """Whole counts (N, G) of a data set: 3 bytes per nonzero and 16 per cell.

    Attributes
    ----------
    shape
        (N, G).
    crow
        (N + 1,) int64: where each row begins.
    genes
        Column of each stored entry, uint16 where G <= 65,536, else int32.
    counts
        uint8; 255 says that the count, 255 or more, is the row's next one in `aside`.
    aside_crow
        (N + 1,) int64: where each row begins in `aside`.
    aside
        int32 counts from 255 to 2^31 - 1.
    """

    shape: tuple[int, int]
    crow: Tensor
    genes: Tensor
    counts: Tensor
    aside_crow: Tensor
    aside: Tensor

    def to(self, device: torch.device | str) -> CompactCounts:
        """Return the same counts on `device`."""
        return CompactCounts(self.shape, *(t.to(device) for t in self[1:]))


def compact(crow: Tensor, col: Tensor, values: Tensor, n_genes: int) -> CompactCounts:
    """Convert a CSR matrix of whole counts; exact.

    Parameters
    ----------
    crow : Tensor, (N + 1,), int32 or int64
    col : Tensor, (nnz,), int32 or int64
        No column twice in a row; any order.
    values : Tensor, (nnz,), any real dtype
        Whole numbers from 0 to 2^31 - 1.
    n_genes : int

    Returns
    -------
    CompactCounts
        On the device of the arguments; move it with ``.to``.

    Raises
    ------
    ValueError
        If a count is fractional, negative, not finite or too large (keep the plain CSR matrix
        then: the gathers take it as well), or the arrays are not those of a CSR matrix.
    """
    nnz = col.numel()
    crow = crow.to(torch.int64)
    lengths = crow.diff()
    if (
        values.numel() != nnz
        or not crow.numel()
        or (int(crow[0]), int(crow[-1])) != (0, nnz)
        or bool((lengths < 0).any())
    ):
        raise ValueError(
            f"crow must rise from 0 to the {nnz} columns and {values.numel()} values of the matrix"
        )
    small = n_genes <= MOST_GENES_16
    genes = torch.empty(nnz, dtype=torch.uint16 if small else torch.int32, device=col.device)
    bits = genes.view(torch.int16) if small else genes  # torch has few operations on uint16
    counts = torch.empty(nnz, dtype=torch.uint8, device=col.device)
    at, aside = [crow.new_empty(0)], [torch.empty(0, dtype=torch.int32, device=col.device)]
    for start in range(0, nnz, CHUNK):
        here = slice(start, min(start + CHUNK, nnz))
        x = values[here].to(torch.float64)
        g = col[here]
        wrong = ~((x >= 0) & (x <= LARGEST) & (x == x.floor()) & (g >= 0) & (g < n_genes))
        if bool(wrong.any()):
            raise _refusal(crow, start + int(wrong.to(torch.uint8).argmax()), col, values, n_genes)
        bits[here] = g.to(bits.dtype)
        counts[here] = x.clamp(max=ASIDE).to(torch.uint8)
        large = (x >= ASIDE).nonzero()[:, 0]
        at.append(large + start)
        aside.append(x[large].to(torch.int32))
    aside_crow = torch.searchsorted(torch.cat(at), crow)
    shape = (crow.numel() - 1, n_genes)
    return CompactCounts(shape, crow, genes, counts, aside_crow, torch.cat(aside))


def _refusal(crow: Tensor, at: int, col: Tensor, values: Tensor, n_genes: int) -> ValueError:
    row = int(torch.searchsorted(crow, at, right=True)) - 1
    gene, count = int(col[at]), values[at].item()
    if not 0 <= gene < n_genes:
        return ValueError(f"row {row} has column {gene}; there are {n_genes} genes, from 0")
    return ValueError(
        f"compact counts are whole numbers from 0 to {LARGEST}; row {row}, gene {gene} has "
        f"{count:.12g}: keep the counts as plain CSR"
    )


class Counts(NamedTuple):
    """One minibatch of counts: `dense`, or `crow`, `col` and `values` of a CSR matrix."""

    shape: tuple[int, int]
    dense: Tensor | None
    crow: Tensor | None = None
    col: Tensor | None = None
    values: Tensor | None = None

    def positions(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Row, column and count of each nonzero entry; stored zeros are left out."""
        if self.dense is not None:
            row, col = (~(self.dense <= 0)).nonzero(as_tuple=True)  # NaN counts as nonzero
            return row, col, self.dense[row, col].to(dtype)
        row, col, x = *self.stored(), self.values
        assert x is not None
        stored = ~(x <= 0)
        if not bool(stored.all()):
            row, col, x = row[stored], col[stored], x[stored]
        return row, col, x.to(dtype)

    def stored(self) -> tuple[Tensor, Tensor]:
        """Row and column of each stored entry of a CSR matrix."""
        assert self.crow is not None
        assert self.col is not None
        rows = torch.arange(self.shape[0], device=self.col.device)
        row = torch.repeat_interleave(rows, self.crow.diff(), output_size=self.col.numel())
        return row, self.col.long()

    def to_dense(self, dtype: torch.dtype) -> Tensor:
        """The counts as an (N, G) matrix."""
        if self.dense is not None:
            return self.dense.to(dtype)
        assert self.values is not None
        out = torch.zeros(self.shape, dtype=dtype, device=self.values.device)
        return out.index_put_(self.stored(), self.values.to(dtype), accumulate=True)


class OrderedCounts(Counts):
    """Counts whose columns are known to lie within the genes and to increase in each row."""

    __slots__ = ()


class DenseBuffers(NamedTuple):
    """Memory of a fixed size for a dense minibatch of B rows and G genes; see `gather_dense`.

    Attributes
    ----------
    x
        (B, G) float32.
    totals
        (B, 1) float32 sum of each row.
    """

    x: Tensor
    totals: Tensor

    def first(self, n_rows: int) -> DenseBuffers:
        """Return the part of this memory that is for so many rows."""
        return DenseBuffers(*(part[:n_rows] for part in self))

    def logs(self) -> CountLogs:
        """Return memory for the logarithms of these counts."""
        return CountLogs(torch.empty_like(self.x), torch.empty_like(self.totals))

    @staticmethod
    def empty(n_rows: int, genes: int, device: torch.device | str) -> DenseBuffers:
        """Return memory for `n_rows` rows."""
        return DenseBuffers(
            torch.empty(n_rows, genes, dtype=torch.float32, device=device),
            torch.empty(n_rows, 1, dtype=torch.float32, device=device),
        )


class CountLogs(NamedTuple):
    """Logarithms of a minibatch's counts, which the gather writes in the same pass.

    Attributes
    ----------
    log1p
        log(1 + x), float32: (B, G), or of the stored entries (capacity,) where x is CSR.
    log_library
        (B, 1) float32 log of each total; a total below 1 counts as 1.
    """

    log1p: Tensor
    log_library: Tensor

    def first(self, n_rows: int) -> CountLogs:
        """Return the part of this memory that is for so many rows."""
        log1p = self.log1p[:n_rows] if self.log1p.dim() == 2 else self.log1p
        return CountLogs(log1p, self.log_library[:n_rows])


class CellColumns(NamedTuple):
    """What is known of cells beside their counts.

    Attributes
    ----------
    batch, label
        Codes, int64: (N,) of a data set, (B, 1) of a minibatch.
    library_mean, library_var
        Mean and variance of the log library size, float32: (n_batch,) of each batch of a data set,
        (B, 1) for each cell of a minibatch.
    """

    batch: Tensor
    label: Tensor
    library_mean: Tensor
    library_var: Tensor

    @staticmethod
    def empty(n_rows: int, device: torch.device | str) -> CellColumns:
        """Return memory for a minibatch of `n_rows` cells."""
        kinds = torch.int64, torch.int64, torch.float32, torch.float32
        return CellColumns(*(torch.empty(n_rows, 1, dtype=kind, device=device) for kind in kinds))

    def first(self, n_rows: int) -> CellColumns:
        """Return the part of this memory that is for so many cells."""
        return CellColumns(*(column[:n_rows] for column in self))


class CsrBuffers(NamedTuple):
    """Memory of a fixed size for a CSR minibatch of B rows; see `gather_csr`.

    Attributes
    ----------
    crow
        (B + 1,) int32.
    col
        (capacity,) int32.
    values
        (capacity,) float32.
    totals
        (B, 1) float32 sum of each row.
    needed
        (1,) int64: how many entries the rows have, which may be more than `capacity`; -1 where
        a row number lay outside the source.
    """

    crow: Tensor
    col: Tensor
    values: Tensor
    totals: Tensor
    needed: Tensor

    def first(self, n_rows: int) -> CsrBuffers:
        """Return the same memory for so many rows: the entries may be as many as before."""
        crow, totals = self.crow[: n_rows + 1], self.totals[:n_rows]
        return self._replace(crow=crow, totals=totals)

    def logs(self) -> CountLogs:
        """Return memory for the logarithms of these counts."""
        return CountLogs(torch.empty_like(self.values), torch.empty_like(self.totals))

    @staticmethod
    def empty(n_rows: int, capacity: int, device: torch.device | str) -> CsrBuffers:
        """Return memory for `n_rows` rows of together at most `capacity` entries."""
        if not 0 <= capacity <= LARGEST:
            raise ValueError(f"capacity is {capacity}; 32-bit row offsets reach {LARGEST}")
        return CsrBuffers(
            torch.empty(n_rows + 1, dtype=torch.int32, device=device),
            torch.empty(capacity, dtype=torch.int32, device=device),
            torch.empty(capacity, dtype=torch.float32, device=device),
            torch.empty(n_rows, 1, dtype=torch.float32, device=device),
            torch.empty(1, dtype=torch.int64, device=device),
        )
