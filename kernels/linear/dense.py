"""Dense layers by libfastvae_cpu where torch's own BLAS leaves half of the processor idle.

torch multiplies float32 matrices by MKL, which on AMD processors keeps to 256-bit instructions. The
library uses all of a vector there; it can add to what is there already, it sums the gradient by the
bias along the way, and the number of threads changes no bit of what it computes. On processors that
multiply pairs of bfloat16 it does so where the (N, G) matrix is of that type, and rounds float32
factors as it reads them.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..native import ProductCall, library, threads_for
from ..products import TORCH, Products

WORTH = 2**20  # multiplications below which the call costs more than it saves


def fits(*matrices: Tensor | None) -> bool:
    """Whether the library takes these: float32 on the CPU, not empty and without gaps."""
    for t in matrices:
        if t is not None and not (
            t.dtype == torch.float32 and t.is_contiguous() and t.is_cpu and t.numel()
        ):
            return False
    return True


def _takes(by_gene: Tensor, *others: Tensor | None) -> bool:
    """Whether the library multiplies float32 factors beside an (N, G) matrix, of whatever type."""
    if by_gene.dtype == torch.float32:
        return fits(by_gene, *others)
    whole = by_gene.is_contiguous() and by_gene.is_cpu and by_gene.numel() > 0
    return whole and _rounds(by_gene.dtype) and fits(*others)


def _rounds(dtype: torch.dtype) -> bool:
    return dtype == torch.bfloat16 and bool(library.fastvae_multiplies_bf16())


def _call(sizes: tuple[int, int, int], add: bool, half: bool, **tensors: Tensor | None) -> Any:
    n, g, h = sizes
    found = {name: t.data_ptr() for name, t in tensors.items() if t is not None}
    threads = threads_for(n * g * h // 64)
    return ctypes.byref(ProductCall(n=n, g=g, h=h, threads=threads, add=add, half=half, **found))


def _layer(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    if not _takes(out, x, weight, bias):
        return TORCH.layer(x, weight, bias, out)
    sizes, half = (x.shape[0], *weight.shape), out.dtype != torch.float32
    library.fastvae_layer(_call(sizes, False, half, x=x, weight=weight, bias=bias, out=out))


def _input_gradient(grad: Tensor, weight: Tensor, out: Tensor, add: bool) -> None:
    if not _takes(grad, weight, out):
        return TORCH.input_gradient(grad, weight, out, add)
    sizes, half = (grad.shape[0], *weight.shape), grad.dtype != torch.float32
    library.fastvae_layer_input_grad(_call(sizes, add, half, grad=grad, weight=weight, d_x=out))


def _weight_gradient(
    grad: Tensor, x: Tensor, out: Tensor, bias_out: Tensor | None, add: bool
) -> None:
    if not _takes(grad, x, out, bias_out):
        return TORCH.weight_gradient(grad, x, out, bias_out, add)
    sizes, half = (*grad.shape, x.shape[1]), grad.dtype != torch.float32
    call = _call(sizes, add, half, grad=grad, x=x, d_weight=out, d_bias=bias_out)
    library.fastvae_layer_weight_grad(call)


LIBRARY = Products(_layer, _input_gradient, _weight_gradient, _rounds)

FASTEST = LIBRARY if library.fastvae_blas_is_held_back() else TORCH


def pays(x: Tensor, weight: Tensor) -> bool:
    """Whether the layer is large enough, and of a kind that the library takes."""
    return x.dim() == 2 and x.shape[0] * weight.numel() >= WORTH and fits(x, weight)


class DenseLinear(torch.autograd.Function):
    """``x @ weight.T + bias`` for float32 matrices on the CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: D102
        ctx.save_for_backward(x, weight)
        out = x.new_empty(x.shape[0], weight.shape[0])
        LIBRARY.layer(x, weight, bias, out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        x, weight = ctx.saved_tensors
        by_x, by_weight, by_bias = ctx.needs_input_grad
        d_x = d_weight = d_bias = None
        if torch.is_grad_enabled():  # a second derivative: in terms torch can differentiate
            d_x = grad @ weight if by_x else None
            d_weight = grad.t() @ x if by_weight else None
            return d_x, d_weight, grad.sum(dim=0) if by_bias else None
        grad = grad.contiguous()
        if by_x:
            d_x = torch.empty_like(x)
            LIBRARY.input_gradient(grad, weight, d_x, False)
        if by_weight:
            d_weight = torch.empty_like(weight)
            d_bias = weight.new_empty(len(weight)) if by_bias else None
            LIBRARY.weight_gradient(grad, x, d_weight, d_bias, False)
        elif by_bias:
            d_bias = grad.sum(dim=0)
        return d_x, d_weight, d_bias


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x @ weight.T + bias``, by whichever is faster."""
    if not torch.compiler.is_compiling() and pays(x, weight):
        return DenseLinear.apply(x, weight, bias)
    return F.linear(x, weight, bias)
