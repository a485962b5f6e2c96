"""The autograd Function of heads and likelihood.

A backend that expects an upstream gradient makes the gradients along with the value, for the one
seen last; where another one comes they are made again, by the same code, so that a result never
depends on what ran before. Other backends decode once more in backward. What is kept in between is
of the size of the weights, never of cells x genes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..autograd import first_derivative_only
from ..backend import Backend
from ..counts import Counts
from .parameters import HeadNeeds, HeadParameters

_BEFORE = 8  # arguments before the parameters


class HeadsNLL(torch.autograd.Function):
    """Negative log-likelihood per cell from the decoder's hidden units."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        backend: Backend,
        differentiate: bool,
        dtype: torch.dtype | None,
        shape: tuple[int, int],
        dense: Tensor | None,
        crow: Tensor | None,
        col: Tensor | None,
        values: Tensor | None,
        *parameters: Tensor | None,
    ) -> Tensor:
        x, p = Counts(shape, dense, crow, col, values), HeadParameters(*parameters)  # type: ignore[arg-type]
        ctx.backend, ctx.dtype, ctx.shape, ctx.early = backend, dtype, shape, None
        ctx.save_for_backward(dense, crow, col, values, *parameters)
        if not differentiate or backend.expected_upstream is None:
            return backend.heads_forward(x, p, dtype)
        expected, grad = backend.expected_upstream(shape[0])
        nll, grads = backend.heads_with_gradients(grad, x, p, _needs(ctx), dtype)
        ctx.early = expected, grads
        return nll

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # noqa: D102
        early, ctx.early = ctx.early, None  # a second backward computes them anew
        grads = None
        if early is not None and ctx.backend.is_expected(early[0], grad):
            grads = early[1]
        del early  # its memory is wanted again
        if grads is None:
            saved = ctx.saved_tensors
            x, p = Counts(ctx.shape, *saved[:4]), HeadParameters(*saved[4:])
            _, grads = ctx.backend.heads_with_gradients(grad, x, p, _needs(ctx), ctx.dtype)
        return (*[None] * _BEFORE, *grads, None)


def _needs(ctx: Any) -> HeadNeeds:
    return HeadNeeds(*ctx.needs_input_grad[_BEFORE : _BEFORE + len(HeadNeeds._fields)])
