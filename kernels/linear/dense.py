"""A dense layer by oneDNN on processors where torch's own BLAS leaves half the machine idle."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from . import products
from .products import ONEDNN


def pays(x: Tensor, weight: Tensor) -> bool:
    """Whether the layer is large enough, and of a kind that oneDNN takes."""
    return products.pays(x, weight, weight.shape[-1])


class DenseLinear(torch.autograd.Function):
    """``x @ weight.T + bias`` for float32 matrices on the CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: D102
        ctx.save_for_backward(x, weight)
        return ONEDNN.layer(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        x, weight = ctx.saved_tensors
        by_x, by_weight, by_bias = ctx.needs_input_grad
        if torch.is_grad_enabled():  # a second derivative: in terms torch can differentiate
            d_x = grad @ weight if by_x else None
            d_weight = grad.t() @ x if by_weight else None
        else:
            grad = grad.contiguous()
            d_x = ONEDNN.input_gradient(grad, weight) if by_x else None
            d_weight = ONEDNN.weight_gradient(grad, x) if by_weight else None
        return d_x, d_weight, grad.sum(dim=0) if by_bias else None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x @ weight.T + bias``, by whichever is faster."""
    if not torch.compiler.is_compiling() and pays(x, weight):
        return DenseLinear.apply(x, weight, bias)
    return F.linear(x, weight, bias)
