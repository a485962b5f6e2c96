"""autograd Functions over a backend's forward / backward pairs.

A backend is a module with the functions of ``reference.py``. Each Function saves its inputs and
O(N) statistics, and recomputes the rest in backward. A backend that has ``nll_with_gradients``
computes the likelihood's gradients along with its value, and ``finish`` hands them over.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .entries import Counts


def _parts(x: Counts) -> tuple[Tensor | None, ...]:
    return x.dense, x.crow, x.col, x.values


def _first_derivative_only(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Refuse ``create_graph=True``: silently constant gradients would be wrong ones."""

    @functools.wraps(backward)
    def checked(ctx: Any, *grads: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "fastvae operations have first derivatives only; call backward or autograd.grad "
                "without create_graph=True"
            )
        return backward(ctx, *grads)

    return checked


class CountNLL(torch.autograd.Function):
    """Negative log-likelihood per cell from decoder logits."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        backend: ModuleType,
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
        parameters = scale_logits, log_library, log_theta, zi_logits, theta_index
        ctx.backend, ctx.shape, ctx.early, norm = backend, shape, None, None
        compiling = torch.compiler.is_compiling()
        if differentiate and not compiling and hasattr(backend, "nll_with_gradients"):
            needs = ctx.needs_input_grad[7:11]
            nll, ctx.early = backend.nll_with_gradients(x, *parameters, needs)
        else:
            nll, norm = backend.nll_forward(x, *parameters)
        ctx.save_for_backward(*_parts(x), *parameters, norm)
        return nll

    @staticmethod
    @_first_derivative_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # noqa: D102
        early, ctx.early = ctx.early, None  # a second backward computes them anew
        grads = None if early is None else ctx.backend.finish(early, grad)
        if grads is not None:
            return (*[None] * 7, *grads, None)
        saved = ctx.saved_tensors
        x = Counts(ctx.shape, *saved[:4])
        grads = ctx.backend.nll_backward(grad, x, *saved[4:], ctx.needs_input_grad[7:11])
        return (*[None] * 7, *grads, None)


class CountLogProb(torch.autograd.Function):
    """Elementwise log probability from mean and inverse dispersion."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        backend: ModuleType,
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
    @_first_derivative_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # noqa: D102
        x, mu, theta, zi_logits = ctx.saved_tensors
        _, _, by_mu, by_theta, by_zi, _ = ctx.needs_input_grad
        d_mu, d_theta, d_zi = ctx.backend.log_prob_backward(
            grad, Counts((x.shape[0], x.shape[1]), x), mu, theta, zi_logits, ctx.eps, by_theta
        )
        return None, None, d_mu if by_mu else None, d_theta, d_zi if by_zi else None, None


class KLNormal(torch.autograd.Function):
    """KL divergence of two diagonal normals, summed over the last dimension."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any, backend: ModuleType, q_mean: Tensor, q_var: Tensor, p_mean: Tensor, p_var: Tensor
    ) -> Tensor:
        ctx.backend = backend
        ctx.save_for_backward(q_mean, q_var, p_mean, p_var)
        return backend.kl_forward(q_mean, q_var, p_mean, p_var)

    @staticmethod
    @_first_derivative_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # noqa: D102
        grads = ctx.backend.kl_backward(grad, *ctx.saved_tensors)
        needed = zip(grads, ctx.needs_input_grad[1:], strict=True)
        return None, *(g if need else None for g, need in needed)


class SampleAndKL(torch.autograd.Function):
    """Reparameterised sample, variance and KL from the two heads of an encoder."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        backend: ModuleType,
        q_mean: Tensor,
        q_log_var: Tensor,
        p_mean: Tensor,
        p_var: Tensor,
        var_eps: float,
        softmax: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        heads = q_mean, q_log_var, p_mean, p_var
        z, q_var, kl, noise = backend.sample_and_kl_forward(*heads, var_eps, softmax)
        ctx.backend, ctx.var_eps, ctx.softmax = backend, var_eps, softmax
        ctx.save_for_backward(*heads, noise)
        return z, q_var, kl

    @staticmethod
    @_first_derivative_only
    def backward(  # noqa: D102
        ctx: Any, grad_z: Tensor, grad_q_var: Tensor, grad_kl: Tensor
    ) -> tuple[Any, ...]:
        grads = ctx.backend.sample_and_kl_backward(
            grad_z, grad_q_var, grad_kl, *ctx.saved_tensors, ctx.var_eps, ctx.softmax
        )
        needed = zip(grads, ctx.needs_input_grad[1:5], strict=True)
        return None, *(g if need else None for g, need in needed), None, None


class CountLinear(torch.autograd.Function):
    """First layer on CSR counts."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        backend: ModuleType,
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
    @_first_derivative_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # noqa: D102
        by_weight, by_bias = ctx.needs_input_grad[5:7]
        x = Counts(ctx.shape, None, *ctx.saved_tensors)
        d_weight = ctx.backend.linear_weight_grad(grad, x, ctx.log1p) if by_weight else None
        d_bias = grad.sum(dim=0) if by_bias else None
        return None, None, None, None, None, d_weight, d_bias, None
