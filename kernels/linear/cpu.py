"""The first layer on CSR counts and their row sums, by libfastvae_cpu, in float32."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ..counts import Counts
from ..lent import lent
from ..native import LinearCall, address, counts_argument, library, matrix, threads_for, vector
from . import reference


def row_sums(x: Counts) -> Tensor:
    """Total of each CSR row, (N, 1)."""
    held = counts_argument(x)
    if held.argument.dense is not None:
        return reference.row_sums(x)
    out = torch.empty(x.shape[0], 1, device="cpu")
    library.fastvae_row_sums(held.argument, x.shape[0], address(out))
    return out


def _linear_call(x: Counts, hidden: int, log1p: bool) -> tuple[LinearCall, tuple[Tensor, ...]]:
    assert x.values is not None
    n, g = x.shape
    values = vector(x.values)
    held = counts_argument(x._replace(values=torch.log1p(values) if log1p else values))
    threads = threads_for(values.numel() * hidden // 8)
    return LinearCall(n=n, g=g, h=hidden, threads=threads, x=held.argument), held.tensors


def linear_forward(x: Counts, weight: Tensor, bias: Tensor | None, log1p: bool) -> Tensor:
    """``[log1p](x) @ weight.T + bias`` for CSR x: weighted sums of the weight's columns."""
    hidden = weight.shape[0]
    call, held = _linear_call(x, hidden, log1p)
    if call.x.dense is not None:
        return reference.linear_forward(x, weight, bias, log1p)
    dtype, weight = weight.dtype, matrix(weight)
    bias = None if bias is None else vector(bias)
    out = weight.new_empty(x.shape[0], hidden)
    call.weight, call.weight_stride = address(weight), weight.stride(0)
    call.bias, call.out = address(bias), address(out)
    library.fastvae_linear(ctypes.byref(call))
    del held
    return out.to(dtype)


def linear_weight_grad(grad: Tensor, x: Counts, log1p: bool, out: Tensor | None = None) -> Tensor:
    """Gradient by the weight (H, G), summed over the nonzeros of each gene."""
    hidden = grad.shape[1]
    call, held = _linear_call(x, hidden, log1p)
    if call.x.dense is not None or not (out is None or _takes(out)):
        return reference.linear_weight_grad(grad, x, log1p, out)
    dtype, grad = grad.dtype, vector(grad)
    found = lent(hidden, x.shape[1]) if out is None else out
    call.grad, call.d_weight = address(grad), address(found)
    call.d_weight_stride = found.stride(0)
    library.fastvae_linear_weight_grad(ctypes.byref(call))
    del held
    return found.to(dtype)


def _takes(out: Tensor) -> bool:
    return out.dtype == torch.float32 and out.stride(1) == 1
