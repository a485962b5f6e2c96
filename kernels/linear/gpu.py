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

from .. import math_gpu as sp
from ..counts import Counts
from ..gather.gpu import _csr, densify, row_range
from ..launching import ceil_div, next_power_of_2
from . import reference
from .cost import nonzeros_pay


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
        row_sums_kernel[(n,)](crow, values, out, BLOCK=512, enable_fp_fusion=True)
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
    block = min(128, next_power_of_2(hidden))
    if n:
        linear_kernel[(n, ceil_div(hidden, block))](
            crow, col, values, weight.t().contiguous(),
            weight if bias is None else bias.contiguous(), out, hidden,
            LOG1P=log1p, BIAS=bias is not None, ROWS=min(64, 2048 // block), BLOCK=block,
            enable_fp_fusion=True,
        )  # fmt: skip
    return out


def linear_from_dense(x: Counts, weight: Tensor, bias: Tensor | None, log1p: bool) -> Tensor:
    """The same by one dense product, which is TF32's where torch allows that."""
    # autocast would round the counts to half precision
    with torch.autocast(weight.device.type, enabled=False):
        offset = None if bias is None else bias.to(weight.dtype)
        return F.linear(densify(x, log1p), weight, offset)


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


def linear_weight_grad(grad: Tensor, x: Counts, log1p: bool, out: Tensor | None = None) -> Tensor:
    """Gradient by the weight (H, G): one dense product, in a fixed order of summation."""
    return torch.mm(grad.t(), densify(x, log1p).to(grad.dtype), out=out)
