"""The autograd Function of the first layer over a backend's forward / backward pair."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..autograd import first_derivative_only
from ..backend import Backend
from ..counts import Counts


class CountLinear(torch.autograd.Function):
    """First layer on CSR counts."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        backend: Backend,
        shape: tuple[int, int],
        crow: Tensor,
        col: Tensor,
        values: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        log1p: bool,
    ) -> Tensor:
        ctx.backend, ctx.shape, ctx.log1p = backend, shape, log1p
        ctx.save_for_backward(crow, col, values)
        return backend.linear_forward(Counts(shape, None, crow, col, values), weight, bias, log1p)

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # noqa: D102
        by_weight, by_bias = ctx.needs_input_grad[5:7]
        x = Counts(ctx.shape, None, *ctx.saved_tensors)
        d_weight = ctx.backend.linear_weight_grad(grad, x, ctx.log1p) if by_weight else None
        d_bias = grad.sum(dim=0) if by_bias else None
        return None, None, None, None, None, d_weight, d_bias, None
