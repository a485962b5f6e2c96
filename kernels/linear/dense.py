"""A dense layer by oneDNN on processors where torch's own BLAS leaves half the machine idle.

torch multiplies float32 matrices by MKL, which on AMD processors keeps to 256-bit instructions;
oneDNN, which torch carries as well, does not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

WORTH = 2**22  # multiplications below which the call costs more than it saves


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def available() -> bool:
    """Whether this torch has the operator."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def pays(x: Tensor, weight: Tensor) -> bool:
    """Whether the layer is large enough, and of a kind that the operator takes."""
    return (
        x.dim() == 2
        and x.dtype == weight.dtype == torch.float32
        and x.is_contiguous()
        and weight.is_contiguous()
        and x.shape[0] * weight.numel() >= WORTH
    )


class DenseLinear(torch.autograd.Function):
    """``x @ weight.T + bias`` for float32 matrices on the CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: D102
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        x, weight = ctx.saved_tensors
        by_x, by_weight, by_bias = ctx.needs_input_grad
        again = torch.is_grad_enabled()  # a second derivative: in terms torch can differentiate
        d_x = None
        if by_x:
            d_x = grad @ weight if again else _product(grad.contiguous(), weight.t(), None)
        return d_x, grad.t() @ x if by_weight else None, grad.sum(dim=0) if by_bias else None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x @ weight.T + bias``, by whichever is faster."""
    if not torch.compiler.is_compiling() and pays(x, weight):
        return DenseLinear.apply(x, weight, bias)
    return F.linear(x, weight, bias)
