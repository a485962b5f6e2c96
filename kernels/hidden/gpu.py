# mypy: disallow-untyped-defs=False
"""Batch normalisation, ReLU and dropout in Triton; `reference` says what comes out.

A program has some columns of all cells of a minibatch, which stay in registers: each matrix is
read once and written once. Minibatches of more cells go through torch's own kernels.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import math_gpu as sp
from ..launching import ceil_div, next_power_of_2
from . import reference
from .reference import BatchNorm, Hidden

MOST_CELLS = 1024  # what fits in registers


@triton.jit
def forward_kernel(
    z_ptr, weight_ptr, bias_ptr, running_mean_ptr, running_var_ptr, keep_ptr,
    out_ptr, mean_ptr, inverse_ptr, N, H, z_stride, momentum, eps, scale, correction,
    KEEP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Some columns: statistics, output, and the running statistics."""
    n = tl.arange(0, ROWS)[:, None]
    h = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    there = h < H
    inside = (n < N) & there[None, :]
    at = n * H + h[None, :]
    z = tl.load(z_ptr + n.to(tl.int64) * z_stride + h[None, :], mask=inside, other=0.0)
    mean = tl.sum(z, 0) / N
    centred = tl.where(inside, z - mean[None, :], 0.0)
    var = tl.sum(centred * centred, 0) / N
    inverse = 1.0 / tl.sqrt(var + eps)
    weight = tl.load(weight_ptr + h, mask=there, other=0.0)
    bias = tl.load(bias_ptr + h, mask=there, other=0.0)
    out = sp.at_least(centred * (inverse * weight)[None, :] + bias[None, :], 0.0)
    if KEEP:
        out *= tl.load(keep_ptr + at, mask=inside, other=0.0) * scale
    tl.store(out_ptr + at, out, mask=inside)
    tl.store(mean_ptr + h, mean, mask=there)
    tl.store(inverse_ptr + h, inverse, mask=there)
    before = tl.load(running_mean_ptr + h, mask=there, other=0.0)
    tl.store(running_mean_ptr + h, before + momentum * (mean - before), mask=there)
    before = tl.load(running_var_ptr + h, mask=there, other=0.0)
    tl.store(running_var_ptr + h, before + momentum * (var * correction - before), mask=there)


@triton.jit
def backward_kernel(
    grad_ptr, z_ptr, weight_ptr, out_ptr, mean_ptr, inverse_ptr, dz_ptr, dw_ptr, db_ptr,
    N, H, grad_stride, z_stride, scale, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Some columns: gradients by z, by the weight and by the bias."""
    n = tl.arange(0, ROWS)[:, None]
    h = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    there = h < H
    inside = (n < N) & there[None, :]
    at = n * H + h[None, :]
    grad = tl.load(grad_ptr + n.to(tl.int64) * grad_stride + h[None, :], mask=inside, other=0.0)
    out = tl.load(out_ptr + at, mask=inside, other=0.0)
    z = tl.load(z_ptr + n.to(tl.int64) * z_stride + h[None, :], mask=inside, other=0.0)
    mean = tl.load(mean_ptr + h, mask=there, other=0.0)
    inverse = tl.load(inverse_ptr + h, mask=there, other=0.0)
    weight = tl.load(weight_ptr + h, mask=there, other=0.0)
    g = tl.where(out <= 0.0, 0.0, grad * scale)  # a NaN stays
    xhat = tl.where(inside, (z - mean[None, :]) * inverse[None, :], 0.0)
    d_bias = tl.sum(g, 0)
    d_weight = tl.sum(g * xhat, 0)
    below = g - (d_bias / N)[None, :] - xhat * (d_weight / N)[None, :]
    tl.store(dz_ptr + at, (weight * inverse)[None, :] * below, mask=inside)
    tl.store(dw_ptr + h, d_weight, mask=there)
    tl.store(db_ptr + h, d_bias, mask=there)


def _fits(z: Tensor, norm: BatchNorm) -> bool:
    parts = z, *norm[:4]
    return z.shape[0] > 0 and all(t.dtype == torch.float32 for t in parts)


def _tile(n: int) -> dict[str, Any]:
    """Rows and columns of a program; reasoned, not measured: 8 columns are one sector of memory."""
    rows = max(16, next_power_of_2(n))
    columns = 8 if rows <= 256 else 4
    return {"ROWS": rows, "COLUMNS": columns, "num_warps": 4 if rows <= 256 else 8}


def _unit_stride(t: Tensor) -> Tensor:
    return t if t.stride(1) == 1 else t.contiguous()


def hidden_forward(z: Tensor, norm: BatchNorm, keep: Tensor | None, scale: float) -> Hidden:
    """Normalise, rectify and drop; as in ``reference.py``."""
    if not _fits(z, norm):
        return reference.hidden_forward(z, norm, keep, scale)
    n, h = z.shape
    weight, bias, running_mean, running_var = norm[:4]
    if n > MOST_CELLS:
        made = torch.native_batch_norm(*(z, *norm[:4]), True, norm.momentum, norm.eps)
        out = made[0].relu_() if keep is None else made[0].relu_().mul_(keep).mul_(scale)
        return Hidden(out, made[1], made[2])
    z, tile = _unit_stride(z), _tile(n)
    out = torch.empty(n, h, dtype=z.dtype, device=z.device)
    mean, inverse = (torch.empty(h, dtype=z.dtype, device=z.device) for _ in range(2))
    forward_kernel[(ceil_div(h, tile["COLUMNS"]),)](
        z, weight.contiguous(), bias.contiguous(), running_mean, running_var,
        out if keep is None else keep.contiguous(), out, mean, inverse,
        n, h, z.stride(0), norm.momentum, norm.eps, scale, n / max(n - 1, 1),
        KEEP=keep is not None, **tile, enable_fp_fusion=True,
    )  # fmt: skip
    return Hidden(out, mean, inverse)


def hidden_backward(
    grad: Tensor,
    z: Tensor,
    norm: BatchNorm,
    hidden: Hidden,
    scale: float,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by z, by the weight and by the bias; as in ``reference.py``."""
    if not (_fits(z, norm) and grad.dtype == torch.float32):
        return reference.hidden_backward(grad, z, norm, hidden, scale, out)
    n, h = z.shape
    if n > MOST_CELLS:
        g = torch.where(hidden.out <= 0, 0.0, grad * scale)
        d_z, *found = torch.ops.aten.native_batch_norm_backward(
            g, z, norm.weight, norm.running_mean, norm.running_var, hidden.mean,
            hidden.inverse_std, True, norm.eps, [True, True, True],
        )  # fmt: skip
        return d_z, *reference.handed_over((found[0], found[1]), out)
    grad, z, tile = _unit_stride(grad), _unit_stride(z), _tile(n)
    d_z = torch.empty(n, h, dtype=z.dtype, device=z.device)
    if out is None:
        out = torch.empty_like(hidden.mean), torch.empty_like(hidden.mean)
    backward_kernel[(ceil_div(h, tile["COLUMNS"]),)](
        grad, z, norm.weight.contiguous(), hidden.out, hidden.mean, hidden.inverse_std, d_z, *out,
        n, h, grad.stride(0), z.stride(0), scale, **tile, enable_fp_fusion=True,
    )  # fmt: skip
    return d_z, *out
