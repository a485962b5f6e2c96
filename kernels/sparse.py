"""CSR minibatches in Triton: rows laid out densely, and the first layer on nonzeros alone."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import special as sp
from .entries import Counts


@triton.jit
def densify_kernel(
    crow_ptr, col_ptr, value_ptr, out_ptr, G, LOG1P: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """One row: zeros, then the stored entries."""
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, BLOCK)
    for start in range(0, G, BLOCK):
        g = start + lanes
        tl.store(out_ptr + row * G + g, tl.zeros((BLOCK,), tl.float32), mask=g < G)
    tl.debug_barrier()  # the zeros of all threads before any entry
    begin = tl.load(crow_ptr + row).to(tl.int64)
    stored = (tl.load(crow_ptr + row + 1) - begin).to(tl.int32)
    for start in range(0, stored, BLOCK):
        i = start + lanes
        col = tl.load(col_ptr + begin + i, mask=i < stored, other=0).to(tl.int64)
        x = tl.load(value_ptr + begin + i, mask=i < stored, other=0).to(tl.float32)
        if LOG1P:
            x = sp.log1p(x)
        tl.store(out_ptr + row * G + col, x, mask=i < stored)


def densify(x: Counts, log1p: bool = False, out: Tensor | None = None) -> Tensor:
    """The counts, or their log1p, as a dense matrix; a dense one is returned as it is.

    `out` may lend float32 memory for it.
    """
    if x.dense is not None:
        return x.dense
    assert x.crow is not None
    assert x.col is not None
    assert x.values is not None
    n, genes = x.shape
    if out is None:
        out = torch.empty(n, genes, dtype=torch.float32, device=x.values.device)
    if n:
        densify_kernel[(n,)](
            x.crow, x.col, x.values.contiguous(), out, genes, LOG1P=log1p, BLOCK=512
        )
    return out


@triton.jit
def linear_kernel(
    crow_ptr, col_ptr, value_ptr, weight_ptr, bias_ptr, out_ptr, H,
    LOG1P: tl.constexpr, BIAS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row: the weighted sum of the rows of W^T at its nonzeros."""
    row = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = h < H
    total = tl.zeros((BLOCK,), tl.float32)
    if BIAS:
        total = tl.load(bias_ptr + h, mask=inside, other=0.0).to(tl.float32)
    begin = tl.load(crow_ptr + row).to(tl.int64)
    stored = (tl.load(crow_ptr + row + 1) - begin).to(tl.int32)
    for i in range(0, stored):
        col = tl.load(col_ptr + begin + i).to(tl.int64)
        x = tl.load(value_ptr + begin + i).to(tl.float32)
        if LOG1P:
            x = sp.log1p(x)
        total += x * tl.load(weight_ptr + col * H + h, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * H + h, total, mask=inside)


def linear_forward(x: Counts, weight: Tensor, bias: Tensor | None, log1p: bool) -> Tensor:
    """``[log1p](x) @ weight.T + bias`` for CSR x."""
    assert x.crow is not None
    assert x.col is not None
    assert x.values is not None
    n, hidden = x.shape[0], weight.shape[0]
    out = torch.empty(n, hidden, dtype=weight.dtype, device=weight.device)
    block = min(256, triton.next_power_of_2(hidden))
    if n:
        linear_kernel[(n, triton.cdiv(hidden, block))](
            x.crow, x.col, x.values.contiguous(), weight.t().contiguous(),
            weight if bias is None else bias.contiguous(), out, hidden,
            LOG1P=log1p, BIAS=bias is not None, BLOCK=block, num_warps=max(1, block // 64),
        )  # fmt: skip
    return out


def linear_weight_grad(grad: Tensor, x: Counts, log1p: bool) -> Tensor:
    """Gradient by the weight (H, G): one dense product, in a fixed order of summation."""
    return grad.t() @ densify(x, log1p).to(grad.dtype)
