"""Rows gathered from a data set on the device, compact or plain CSR, in torch.

Rows may repeat and come in any order; one outside the source is never read. The source has no
column twice in a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..counts import ASIDE, CompactCounts, Counts, CsrBuffers


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
    log1p: bool = False,
    out: Tensor | None = None,
    totals: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Lay rows of the source out densely: x or log(1 + x), and the sum of each row of x.

    Counts come out exactly (up to 2^24, above as the nearest float32), sums to within the last
    float32 digit. The Triton form waits for nothing and can be captured in a CUDA graph.

    Parameters
    ----------
    source : CompactCounts, or Counts in CSR form
    rows : Tensor, (B,), integer
        On the device of `source`.
    log1p : bool
        Take log(1 + x); the sums are those of x.
    out : Tensor, (B, G), float32, optional
        Where to write x.
    totals : Tensor, (B, 1), float32, optional
        Where to write the sums.

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
    out.zero_()[row, col] = torch.log1p(x) if log1p else x
    out.masked_fill_(~known[:, None], torch.nan)
    return out, totals.copy_(sums)


def gather_csr(source: Counts | CompactCounts, rows: Tensor, buffers: CsrBuffers) -> Counts:
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
    return minibatch(source, buffers)


def minibatch(source: Counts | CompactCounts, buffers: CsrBuffers) -> Counts:
    """The counts in the buffers."""
    shape = (buffers.crow.numel() - 1, source.shape[1])
    return Counts(shape, None, buffers.crow, buffers.col, buffers.values)
