# mypy: disallow-untyped-defs=False
"""Rows gathered from counts on the device, and CSR counts laid out densely, in Triton.

`reference` says what comes out. One program per row. A count that stands aside is found by its
rank among those of its row, and a row without any (most of them) skips the search. Sums are taken
in 64 bits.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import math_gpu as sp
from ..counts import CellColumns, CompactCounts, CountLogs, Counts, CsrBuffers
from ..launching import ceil_div, next_power_of_2
from .reference import (
    check_buffers,
    check_columns,
    check_logs,
    lent,
    minibatch,
    source_crow,
)


@triton.jit
def row_range(crow_ptr, row, known):
    """Where a row begins, and how many entries it has; none where there is no such row."""
    begin = tl.load(crow_ptr + row, mask=known, other=0).to(tl.int64)
    end = tl.load(crow_ptr + row + 1, mask=known, other=0).to(tl.int64)
    return begin, (end - begin).to(tl.int32)


@triton.jit
def load_entries(
    col_ptr, value_ptr, aside_ptr, i, inside, aside, asides, COMPACT: tl.constexpr
):  # fmt: skip
    """Columns and counts of one tile, and where the counts aside go on."""
    col = tl.load(col_ptr + i, mask=inside, other=0).to(tl.int32)
    x = tl.load(value_ptr + i, mask=inside, other=0)
    if COMPACT:
        x = x.to(tl.int32)
        if asides > 0:
            away = x == 255  # ASIDE
            rank = tl.cumsum(away.to(tl.int32), 0)
            x = tl.where(away, tl.load(aside_ptr + aside + (rank - 1), mask=away, other=0), x)
            aside += tl.sum(away.to(tl.int32), 0)
    return col, x, aside


@triton.jit
def log_library(total):
    """Log of a total, which counts as 1 at least and as the largest float32 at most."""
    total = sp.at_most(sp.at_least(total, 1.0), 3.4028234e38)
    return tl.where(total == total, sp.log(total), float("nan"))


@triton.jit
def dense_kernel(
    crow_ptr, col_ptr, value_ptr, aside_crow_ptr, aside_ptr, rows_ptr,
    out_ptr, log_ptr, total_ptr, library_ptr, cells, G,
    INDEXED: tl.constexpr, COMPACT: tl.constexpr, LOG1P: tl.constexpr, LOGS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One row: zeros, then the stored entries; with row numbers also their sum.

    LOG1P lays log(1 + x) out instead of x; LOGS lays it out too, with the log of the sum.
    """
    n = tl.program_id(0).to(tl.int64)
    row = n
    known = row < cells
    if INDEXED:
        row = tl.load(rows_ptr + n).to(tl.int64)
        known = (row >= 0) & (row < cells)
    lanes = tl.arange(0, BLOCK)
    out_ptr += n * G
    log_ptr += n * G
    fill = tl.zeros((BLOCK,), tl.float32) + tl.where(known, 0.0, float("nan"))
    for start in range(0, G, BLOCK):
        g = start + lanes
        tl.store(out_ptr + g, fill, mask=g < G)
        if LOGS:
            tl.store(log_ptr + g, fill, mask=g < G)
    tl.debug_barrier()  # the zeros of all threads before any entry
    begin, stored = row_range(crow_ptr, row, known)
    col_ptr += begin
    value_ptr += begin
    aside, asides = begin, stored
    if COMPACT:
        aside, asides = row_range(aside_crow_ptr, row, known)
    total = tl.zeros((BLOCK,), tl.int64 if COMPACT else tl.float64)
    for start in range(0, stored, BLOCK):
        i = start + lanes
        col, x, aside = load_entries(
            col_ptr, value_ptr, aside_ptr, i, i < stored, aside, asides, COMPACT
        )
        if INDEXED:
            total += x.to(total.dtype)
        y = x.to(tl.float32)
        if LOG1P:
            y = sp.log1p(y)
        tl.store(out_ptr + col, y, mask=i < stored)
        if LOGS:
            tl.store(log_ptr + col, sp.log1p(y), mask=i < stored)
    if INDEXED:
        total = tl.where(known, tl.sum(total, 0).to(tl.float32), float("nan"))
        tl.store(total_ptr + n, total)
        if LOGS:
            tl.store(library_ptr + n, log_library(total))


@triton.jit
def offsets_kernel(
    crow_ptr, rows_ptr, out_ptr, needed_ptr, B, cells, capacity, BLOCK: tl.constexpr
):  # fmt: skip
    """A single program: where each gathered row begins in a minibatch of `capacity` entries."""
    lanes = tl.arange(0, BLOCK)
    before = tl.full((), 0, tl.int64)
    missing = tl.full((), 0, tl.int32)
    tl.store(out_ptr, 0)
    for start in range(0, B, BLOCK):
        i = start + lanes
        row = tl.load(rows_ptr + i, mask=i < B, other=0).to(tl.int64)
        known = (row >= 0) & (row < cells) & (i < B)
        stored = row_range(crow_ptr, row, known)[1].to(tl.int64)
        ends = before + tl.cumsum(stored, 0)
        tl.store(out_ptr + 1 + i, tl.minimum(ends, capacity).to(tl.int32), mask=i < B)
        before += tl.sum(stored, 0)
        missing += tl.sum(((i < B) & (known == 0)).to(tl.int32), 0)
    tl.store(needed_ptr, tl.where(missing > 0, -1, before))


@triton.jit
def csr_kernel(
    crow_ptr, col_ptr, value_ptr, aside_crow_ptr, aside_ptr, rows_ptr,
    out_crow_ptr, out_col_ptr, out_value_ptr, log_ptr, total_ptr, library_ptr, needed_ptr,
    cells, capacity,
    COMPACT: tl.constexpr, LOGS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row: its entries as far as they fit, NaN unless all rows exist and fit."""
    n = tl.program_id(0).to(tl.int64)
    row = tl.load(rows_ptr + n).to(tl.int64)
    known = (row >= 0) & (row < cells)
    begin, stored = row_range(crow_ptr, row, known)
    col_ptr += begin
    value_ptr += begin
    to, fits = row_range(out_crow_ptr, n, known)
    out_col_ptr += to
    out_value_ptr += to
    log_ptr += to
    needed = tl.load(needed_ptr)
    wrong = (needed < 0) | (needed > capacity)
    aside, asides = begin, stored
    if COMPACT:
        aside, asides = row_range(aside_crow_ptr, row, known)
    lanes = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.int64 if COMPACT else tl.float64)
    for start in range(0, stored, BLOCK):
        i = start + lanes
        col, x, aside = load_entries(
            col_ptr, value_ptr, aside_ptr, i, i < stored, aside, asides, COMPACT
        )
        total += x.to(total.dtype)
        tl.store(out_col_ptr + i, col, mask=i < fits)
        y = tl.where(wrong, float("nan"), x.to(tl.float32))
        tl.store(out_value_ptr + i, y, mask=i < fits)
        if LOGS:
            tl.store(log_ptr + i, sp.log1p(y), mask=i < fits)
    total = tl.where(wrong, float("nan"), tl.sum(total, 0).to(tl.float32))
    tl.store(total_ptr + n, total)
    if LOGS:
        tl.store(library_ptr + n, log_library(total))


@triton.jit
def columns_kernel(
    batch_ptr, label_ptr, mean_ptr, var_ptr, rows_ptr,
    out_batch_ptr, out_label_ptr, out_mean_ptr, out_var_ptr, B, cells, BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of cells: their codes, and the prior of the library size in their batch."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(rows_ptr + i, mask=i < B, other=0).to(tl.int64)
    known = (row >= 0) & (row < cells) & (i < B)
    batch = tl.load(batch_ptr + row, mask=known, other=0)
    tl.store(out_batch_ptr + i, batch, mask=i < B)
    tl.store(out_label_ptr + i, tl.load(label_ptr + row, mask=known, other=0), mask=i < B)
    mean = tl.load(mean_ptr + batch, mask=known, other=float("nan"))
    tl.store(out_mean_ptr + i, mean, mask=i < B)
    var = tl.load(var_ptr + batch, mask=known, other=float("nan"))
    tl.store(out_var_ptr + i, var, mask=i < B)


def _parts(source: Counts | CompactCounts) -> tuple[Tensor, ...]:
    """Arrays of the source in the kernels' order; plain CSR has nothing aside."""
    crow = source_crow(source).contiguous()
    if isinstance(source, CompactCounts):
        return crow, source.genes, source.counts, source.aside_crow, source.aside
    assert source.col is not None
    assert source.values is not None
    return crow, source.col.contiguous(), source.values.contiguous(), crow, crow


def dense_tile(n: int, genes: int) -> dict[str, Any]:
    """Few long rows get more threads each; sizes are reasoned, not measured."""
    return {"BLOCK": 2048, "num_warps": 16} if n < 1024 <= genes // 4 else {"BLOCK": 512}


def gather_dense(
    source: Counts | CompactCounts,
    rows: Tensor,
    *,
    out: Tensor | None = None,
    totals: Tensor | None = None,
    logs: CountLogs | None = None,
) -> tuple[Tensor, Tensor]:
    """The rows (B, G), and their sums (B, 1); as in ``reference.py``."""
    parts = _parts(source)
    n, (cells, genes) = rows.numel(), source.shape
    out = lent("out", out, (n, genes), torch.float32, rows)
    totals = lent("totals", totals, (n, 1), torch.float32, rows)
    check_logs(logs, out, totals)
    log_out, library = (out, totals) if logs is None else logs
    if n:
        dense_kernel[(n,)](
            *parts, rows.contiguous(), out, log_out, totals, library, cells, genes, INDEXED=True,
            COMPACT=isinstance(source, CompactCounts), LOG1P=False, LOGS=logs is not None,
            **dense_tile(n, genes), enable_fp_fusion=True,
        )  # fmt: skip
    return out, totals


def gather_csr(
    source: Counts | CompactCounts,
    rows: Tensor,
    buffers: CsrBuffers,
    *,
    logs: CountLogs | None = None,
) -> Counts:
    """The rows as a CSR minibatch in lent memory; as in ``reference.py``."""
    parts = _parts(source)
    check_buffers(rows, buffers)
    check_logs(logs, buffers.values, buffers.totals)
    rows = rows.contiguous()
    n, cells, capacity = rows.numel(), source.shape[0], buffers.col.numel()
    crow, col, values, totals, needed = buffers
    log_values, library = (values, totals) if logs is None else logs
    block = min(1024, next_power_of_2(n)) if n else 1
    offsets_kernel[(1,)](
        parts[0], rows, crow, needed, n, cells, capacity, BLOCK=block, enable_fp_fusion=True
    )
    if n:
        csr_kernel[(n,)](
            *parts, rows, crow, col, values, log_values, totals, library, needed, cells, capacity,
            COMPACT=isinstance(source, CompactCounts), LOGS=logs is not None, BLOCK=512,
            enable_fp_fusion=True,
        )  # fmt: skip
    return minibatch(source, buffers)


def gather_columns(source: CellColumns, rows: Tensor, out: CellColumns) -> None:
    """What is known of the cells beside their counts, in lent memory; as in ``reference.py``."""
    check_columns(source, rows, out)
    n, block = rows.numel(), 128
    if n:
        columns_kernel[(ceil_div(n, block),)](
            *source,
            rows.contiguous(),
            *out,
            n,
            source.batch.numel(),
            BLOCK=block,
            enable_fp_fusion=True,
        )


def _csr(x: Counts) -> tuple[Tensor, Tensor, Tensor]:
    assert x.crow is not None
    assert x.col is not None
    assert x.values is not None
    return x.crow.contiguous(), x.col.contiguous(), x.values.contiguous()


def densify(x: Counts, log1p: bool = False, out: Tensor | None = None) -> Tensor:
    """The counts, or their log1p, as a dense matrix; a dense one is returned as it is.

    `out` may lend float32 memory for it.
    """
    if x.dense is not None:
        return x.dense
    crow, col, values = _csr(x)
    n, genes = x.shape
    if out is None:
        out = torch.empty(n, genes, dtype=torch.float32, device=values.device)
    if n:
        dense_kernel[(n,)](
            crow, col, values, crow, crow, crow, out, out, out, out, n, genes,
            INDEXED=False, COMPACT=False, LOG1P=log1p, LOGS=False, **dense_tile(n, genes),
            enable_fp_fusion=True,
        )  # fmt: skip
    return out
