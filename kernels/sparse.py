"""CSR minibatches in Triton: rows laid out densely or summed, and the first layer.

Where a row lies is read from `crow` on the device alone: columns and values may be longer than
``crow[-1]``, as in memory of a fixed size, and nothing reads what comes after.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from . import reference
from . import special as sp
from .entries import Counts
from .gather import dense_kernel, dense_tile, row_range


def _csr(x: Counts) -> tuple[Tensor, Tensor, Tensor]:
    assert x.crow is not None
    assert x.col is not None
    assert x.values is not None
    return x.crow, x.col, x.values.contiguous()


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
            crow, col, values, crow, crow, crow, out, out, n, genes,
            INDEXED=False, COMPACT=False, LOG1P=log1p, **dense_tile(n, genes),
        )  # fmt: skip
    return out


@triton.jit
def row_sums_kernel(crow_ptr, value_ptr, out_ptr, BLOCK: tl.constexpr):
    """One row: the sum of its entries, in 64 bits."""
    n = tl.program_id(0).to(tl.int64)
    begin, stored = row_range(crow_ptr, n, True)
    value_ptr += begin
    total = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, stored, BLOCK):
        i = start + tl.arange(0, BLOCK)
        total += tl.load(value_ptr + i, mask=i < stored, other=0).to(tl.float64)
    tl.store(out_ptr + n, tl.sum(total, 0).to(tl.float32))


def row_sums(x: Counts) -> Tensor:
    """Total of each cell, (N, 1) float32; as in ``reference.py`` for dense x."""
    if x.dense is not None:
        return reference.row_sums(x)
    crow, _, values = _csr(x)
    n = x.shape[0]
    out = torch.empty(n, 1, dtype=torch.float32, device=values.device)
    if n:
        row_sums_kernel[(n,)](crow, values, out, BLOCK=512)
    return out


@triton.jit
def linear_kernel(
    crow_ptr, col_ptr, value_ptr, weight_ptr, bias_ptr, out_ptr, H,
    LOG1P: tl.constexpr, BIAS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row: the weighted sum of the rows of W^T at its nonzeros, `ROWS` of them at once."""
    n = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    begin, stored = row_range(crow_ptr, n, True)
    col_ptr += begin
    value_ptr += begin
    lanes = tl.arange(0, ROWS)
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in range(0, stored, ROWS):
        i = start + lanes
        col = tl.load(col_ptr + i, mask=i < stored, other=0).to(tl.int64)
        x = tl.load(value_ptr + i, mask=i < stored, other=0).to(tl.float32)
        if LOG1P:
            x = sp.log1p(x)
        here = (i < stored)[:, None] & (h < H)[None, :]
        w = tl.load(weight_ptr + col[:, None] * H + h[None, :], mask=here, other=0.0)
        total += x[:, None] * w.to(tl.float32)
    out = tl.sum(total, 0)
    if BIAS:
        out += tl.load(bias_ptr + h, mask=h < H, other=0.0).to(tl.float32)
    tl.store(out_ptr + n * H + h, out, mask=h < H)


def linear_from_nonzeros(x: Counts, weight: Tensor, bias: Tensor | None, log1p: bool) -> Tensor:
    """``[log1p](x) @ weight.T + bias`` for CSR x, summed over its nonzeros in a fixed order."""
    crow, col, values = _csr(x)
    n, hidden = x.shape[0], weight.shape[0]
    out = torch.empty(n, hidden, dtype=weight.dtype, device=weight.device)
    block = min(128, triton.next_power_of_2(hidden))
    if n:
        linear_kernel[(n, triton.cdiv(hidden, block))](
            crow, col, values, weight.t().contiguous(),
            weight if bias is None else bias.contiguous(), out, hidden,
            LOG1P=log1p, BIAS=bias is not None, ROWS=min(64, 2048 // block), BLOCK=block,
        )  # fmt: skip
    return out


def linear_from_dense(x: Counts, weight: Tensor, bias: Tensor | None, log1p: bool) -> Tensor:
    """The same by one dense product, which is TF32's where torch allows that."""
    # autocast would round the counts to half precision
    with torch.autocast(weight.device.type, enabled=False):
        offset = None if bias is None else bias.to(weight.dtype)
        return F.linear(densify(x, log1p), weight, offset)


# The machine that `nonzeros_pay` reckons with: estimates for an H100, nothing measured.
MEMORY = 2.5e12  # bytes/s to and from device memory
CACHE = 4e12  # bytes/s of rows of the weight from the second-level cache
TF32, FLOAT32 = 2.5e14, 4e13  # operations/s in a matrix product
STEP = 0.8e-6  # seconds of one pass of `linear_kernel`: counts, then the rows they point to
STEP_ENTRIES = 16


def nonzeros_pay(n: int, genes: int, hidden: int, nnz: int, *, tf32: bool = True) -> bool:
    """Whether the first layer is reckoned to be faster from its nonzeros than densified.

    From nonzeros: ``4 nnz H`` bytes of the weight from the cache and ``8 G H`` to transpose it, but
    never less than the passes of a row of mean length take. Densified: ``8 N G`` bytes written and
    read, and ``2 N G H`` operations. The constants above are estimates, not measured.

    Parameters
    ----------
    n, genes, hidden
        Cells N, genes G and outputs H of the layer.
    nnz
        Stored entries, or how many there is memory for: the host knows no other number.
    tf32
        Whether the matrix product may round its factors to TF32.
    """
    if n == 0 or nnz == 0:
        return True
    passes = -(-nnz // (n * STEP_ENTRIES))
    nonzeros = max(4 * nnz * hidden / CACHE, passes * STEP) + 8 * genes * hidden / MEMORY
    product = 2 * n * genes * hidden / (TF32 if tf32 else FLOAT32)
    return nonzeros <= 8 * n * genes / MEMORY + product


def _tf32() -> bool:
    try:
        return torch.get_float32_matmul_precision() != "highest"
    except RuntimeError:  # raised where TF32 was allowed by torch.backends alone
        return True


def linear_forward(x: Counts, weight: Tensor, bias: Tensor | None, log1p: bool) -> Tensor:
    """``[log1p](x) @ weight.T + bias`` for CSR x, by whichever way `nonzeros_pay` says."""
    assert x.col is not None
    (n, genes), hidden = x.shape, weight.shape[0]
    # a half-precision product would round the counts
    if weight.dtype != torch.float32 or nonzeros_pay(n, genes, hidden, x.col.numel(), tf32=_tf32()):
        return linear_from_nonzeros(x, weight, bias, log1p)
    return linear_from_dense(x, weight, bias, log1p)


def linear_weight_grad(grad: Tensor, x: Counts, log1p: bool) -> Tensor:
    """Gradient by the weight (H, G): one dense product, in a fixed order of summation."""
    return grad.t() @ densify(x, log1p).to(grad.dtype)
