"""Rows gathered from a data set on the device, compact or plain CSR, in torch.

Rows may repeat and come in any order; one outside the source is never read. The source has no
column twice in a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..counts import ASIDE, CellColumns, CompactCounts, CountLogs, Counts, CsrBuffers


def largest_minibatch(crow: Tensor, n_rows: int) -> int:
    """Return the capacity that any `n_rows` distinct rows fit in; waits for the device."""
    lengths = crow.diff()
    return int(lengths.topk(min(n_rows, len(lengths))).values.sum())


def lent(
    name: str, given: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype, like: Tensor
) -> Tensor:
    """Memory for a result: what was given, if it fits, or new."""
    if given is None:
        return torch.empty(shape, dtype=dtype, device=like.device)
    found = tuple(given.shape), given.dtype, given.device
    if found != (shape, dtype, like.device) or not given.is_contiguous():
        raise ValueError(
            f"{name} is {found[1]} of shape {found[0]} on {found[2]}; expected contiguous {dtype} "
            f"of shape {shape} on {like.device}"
        )
    return given


def check_buffers(rows: Tensor, buffers: CsrBuffers) -> None:
    """Require buffers that fit the rows."""
    n, capacity = rows.numel(), buffers.col.numel()
    shapes = (n + 1,), (capacity,), (capacity,), (n, 1), (1,)
    dtypes = torch.int32, torch.int32, torch.float32, torch.float32, torch.int64
    for name, given, shape, dtype in zip(buffers._fields, buffers, shapes, dtypes, strict=True):
        lent(name, given, shape, dtype, rows)


def check_logs(logs: CountLogs | None, x: Tensor, totals: Tensor) -> None:
    """Require memory of the shape of what it is the logarithm of."""
    if logs is not None:
        for name, given, like in zip(logs._fields, logs, (x, totals), strict=True):
            lent(name, given, tuple(like.shape), torch.float32, like)


def check_columns(source: CellColumns, rows: Tensor, out: CellColumns) -> None:
    """Require columns of one length each, and memory that fits the rows."""
    kinds = torch.int64, torch.int64, torch.float32, torch.float32
    sizes = *[source.batch.shape] * 2, *[source.library_mean.shape] * 2
    given = zip(source._fields, source, out, sizes, kinds, strict=True)
    for name, column, memory, size, kind in given:
        lent(name, column, tuple(size), kind, rows)
        lent(name, memory, (rows.numel(), 1), kind, rows)


def source_crow(source: Counts | CompactCounts) -> Tensor:
    """Row offsets of the source."""
    if source.crow is None:
        raise ValueError("rows are gathered from CSR counts or CompactCounts; these are dense")
    return source.crow


def _stored(crow: Tensor, rows: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """For each entry of the rows asked for: which of them it is in, and its place in the source."""
    begin = crow[torch.where(known, rows, 0)].long()
    lengths = crow[torch.where(known, rows + 1, 0)].long() - begin
    row = torch.repeat_interleave(torch.arange(rows.numel(), device=rows.device), lengths)
    ends = lengths.cumsum(0)
    return row, torch.arange(row.numel(), device=rows.device) + (begin - ends + lengths)[row]


def _entries(source: Counts | CompactCounts, rows: Tensor) -> tuple[Tensor, ...]:
    """Row, column and count of the entries, the rows' sums, and which rows exist."""
    rows = rows.long()
    known = (rows >= 0) & (rows < source.shape[0])
    row, at = _stored(source_crow(source), rows, known)
    if isinstance(source, CompactCounts):
        small = source.genes.dtype == torch.uint16
        col = (source.genes.view(torch.int16) if small else source.genes)[at].long()
        col = col & 0xFFFF if small else col
        x = source.counts[at].int()
        x[x == ASIDE] = source.aside[_stored(source.aside_crow, rows, known)[1]]
    else:
        assert source.col is not None
        assert source.values is not None
        col, x = source.col[at].long(), source.values[at]
    sums = torch.zeros(rows.numel(), dtype=torch.float64, device=x.device)
    sums = sums.index_add_(0, row, x.double())[:, None]
    return row, col, x.float(), sums.float().masked_fill_(~known[:, None], torch.nan), known


def gather_dense(
    source: Counts | CompactCounts,
    rows: Tensor,
    *,
    out: Tensor | None = None,
    totals: Tensor | None = None,
    logs: CountLogs | None = None,
) -> tuple[Tensor, Tensor]:
    """Lay rows of the source out densely, with the sum of each row.

    Counts come out exactly (up to 2^24, above as the nearest float32), sums to within the last
    float32 digit. The Triton form waits for nothing and can be captured in a CUDA graph.

    Parameters
    ----------
    source : CompactCounts, or Counts in CSR form
    rows : Tensor, (B,), integer
        On the device of `source`.
    out : Tensor, (B, G), float32, optional
        Where to write x.
    totals : Tensor, (B, 1), float32, optional
        Where to write the sums.
    logs : CountLogs, optional
        Where to write log(1 + x) beside x, and the logarithms of the sums.

    Returns
    -------
    out, totals : Tensor
        The row and the sum of a row number outside 0..N-1 are NaN.

    Raises
    ------
    ValueError
        If `source` is dense, or lent memory has another shape, dtype or device.
    """
    row, col, x, sums, known = _entries(source, rows)
    out = lent("out", out, (rows.numel(), source.shape[1]), torch.float32, rows)
    totals = lent("totals", totals, (rows.numel(), 1), torch.float32, rows)
    out.zero_()[row, col] = x
    out.masked_fill_(~known[:, None], torch.nan)
    totals.copy_(sums)
    check_logs(logs, out, totals)
    if logs is not None:
        _write_logs(logs, out, totals)
    return out, totals


def _write_logs(logs: CountLogs, x: Tensor, totals: Tensor) -> None:
    torch.log1p(x, out=logs.log1p)
    torch.log(totals.clamp(1.0, torch.finfo(torch.float32).max), out=logs.log_library)


def gather_csr(
    source: Counts | CompactCounts,
    rows: Tensor,
    buffers: CsrBuffers,
    *,
    logs: CountLogs | None = None,
) -> Counts:
    """Copy rows of the source to a CSR minibatch in lent memory, with the sum of each row.

    The Triton form waits for nothing and can be captured in a CUDA graph: all shapes are those of
    the buffers, and only entries before ``crow[-1]`` mean anything.

    Parameters
    ----------
    source : CompactCounts, or Counts in CSR form
    rows : Tensor, (B,), integer
        On the device of `source`.
    buffers : CsrBuffers
        ``CsrBuffers.empty(B, capacity, device)``; `largest_minibatch` says what is enough.
    logs : CountLogs, optional
        Where to write log(1 + x) of the entries, and the logarithms of the sums.

    Returns
    -------
    Counts
        The minibatch: views of the buffers.

    Raises
    ------
    ValueError
        If `source` is dense, or the buffers do not fit the rows.

    Notes
    -----
    Nothing is written past the buffers. Where the rows have more entries than fit, or a row number
    lies outside 0..N-1, the host cannot be told without waiting: ``needed`` then is more than the
    capacity, or -1, rows that do not fit are cut off, and every value and sum is NaN, so that a
    loss computed from them is NaN too.
    """
    check_buffers(rows, buffers)
    row, col, x, sums, known = _entries(source, rows)
    capacity = buffers.col.numel()
    lengths = torch.bincount(row, minlength=rows.numel())
    buffers.crow[:1] = 0
    buffers.crow[1:] = lengths.cumsum(0).clamp(max=capacity)
    needed = row.numel() if bool(known.all()) else -1
    wrong = not 0 <= needed <= capacity
    fits = min(row.numel(), capacity)
    buffers.col[:fits] = col[:fits].int()
    buffers.values[:fits] = torch.nan if wrong else x[:fits]
    buffers.totals.copy_(sums.fill_(torch.nan) if wrong else sums)
    buffers.needed.fill_(needed)
    check_logs(logs, buffers.values, buffers.totals)
    if logs is not None:
        _write_logs(logs, buffers.values, buffers.totals)
    return minibatch(source, buffers)


def gather_columns(source: CellColumns, rows: Tensor, out: CellColumns) -> None:
    """Copy what is known of cells beside their counts to lent memory.

    Parameters
    ----------
    source : CellColumns
        Of a data set of N cells.
    rows : Tensor, (B,), integer
    out : CellColumns
        Memory for B cells. A row number outside 0..N-1 gets the codes 0 and the prior NaN.

    Raises
    ------
    ValueError
        If a column of either has another shape, dtype or device.
    """
    check_columns(source, rows, out)
    rows = rows.long()
    known = (rows >= 0) & (rows < source.batch.numel())
    at = torch.where(known, rows, 0)
    batch, unknown = torch.where(known, source.batch[at], 0), ~known[:, None]
    out.batch.copy_(batch[:, None])
    out.label.copy_(torch.where(known, source.label[at], 0)[:, None])
    for of, to in zip(source[2:], out[2:], strict=True):
        to.copy_(of[batch][:, None]).masked_fill_(unknown, torch.nan)


def minibatch(source: Counts | CompactCounts, buffers: CsrBuffers) -> Counts:
    """The counts in the buffers."""
    shape = (buffers.crow.numel() - 1, source.shape[1])
    return Counts(shape, None, buffers.crow, buffers.col, buffers.values)
