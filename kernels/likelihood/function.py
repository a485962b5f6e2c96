"""autograd Functions of the likelihoods over a backend's forward / backward pairs.

Each saves its inputs and O(N) statistics, and recomputes the rest in backward. A backend that has
``nll_with_gradients`` computes the gradients along with the value, and ``finish`` hands them over.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..autograd import first_derivative_only
from ..backend import Backend
from ..counts import Counts
from ..parameters import Parameters


def _parts(x: Counts) -> tuple[Tensor | None, ...]:
    return x.dense, x.crow, x.col, x.values


class CountNLL(torch.autograd.Function):
    """Negative log-likelihood per cell from decoder logits."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        backend: Backend,
        differentiate: bool,
        shape: tuple[int, int],
        dense: Tensor | None,
        crow: Tensor | None,
        col: Tensor | None,
        values: Tensor | None,
        scale_logits: Tensor,
        log_library: Tensor,
        log_theta: Tensor | None,
        zi_logits: Tensor | None,
        theta_index: Tensor | None,
    ) -> Tensor:
        x = Counts(shape, dense, crow, col, values)
        p = Parameters(scale_logits, log_library, log_theta, zi_logits, theta_index)
        ctx.backend, ctx.shape, ctx.early, norm = backend, shape, None, None
        compiling = torch.compiler.is_compiling()
        if differentiate and not compiling and backend.nll_with_gradients is not None:
            needs = ctx.needs_input_grad[7:11]
            nll, ctx.early = backend.nll_with_gradients(x, p, needs)
        else:
            nll, norm = backend.nll_forward(x, p)
        ctx.save_for_backward(*_parts(x), *p, norm)
        return nll

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # noqa: D102
        early, ctx.early = ctx.early, None  # a second backward computes them anew
        saved = ctx.saved_tensors
        x = Counts(ctx.shape, *saved[:4])
        p, norm = Parameters(*saved[4:9]), saved[9]
        grads = None if early is None else ctx.backend.finish(early, grad, x, p)
        if grads is not None:
            return (*[None] * 7, *grads, None)
        grads = ctx.backend.nll_backward(grad, x, p, norm, ctx.needs_input_grad[7:11])
        return (*[None] * 7, *grads, None)


class CountLogProb(torch.autograd.Function):
    """Elementwise log probability from mean and inverse dispersion."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        backend: Backend,
        x: Tensor,
        mu: Tensor,
        theta: Tensor | None,
        zi_logits: Tensor | None,
        eps: float,
    ) -> Tensor:
        ctx.backend, ctx.eps = backend, eps
        ctx.save_for_backward(x, mu, theta, zi_logits)
        shape = (x.shape[0], x.shape[1])
        return backend.log_prob_forward(Counts(shape, x), mu, theta, zi_logits, eps)

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # noqa: D102
        x, mu, theta, zi_logits = ctx.saved_tensors
        _, _, by_mu, by_theta, by_zi, _ = ctx.needs_input_grad
        d_mu, d_theta, d_zi = ctx.backend.log_prob_backward(
            grad, Counts((x.shape[0], x.shape[1]), x), mu, theta, zi_logits, ctx.eps, by_theta
        )
        return None, None, d_mu if by_mu else None, d_theta, d_zi if by_zi else None, None
