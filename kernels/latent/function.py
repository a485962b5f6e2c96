"""autograd Functions of sampling and KL over a backend's forward / backward pairs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..autograd import first_derivative_only
from ..backend import Backend


class KLNormal(torch.autograd.Function):
    """KL divergence of two diagonal normals, summed over the last dimension."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any, backend: Backend, q_mean: Tensor, q_var: Tensor, p_mean: Tensor, p_var: Tensor
    ) -> Tensor:
        ctx.backend = backend
        ctx.save_for_backward(q_mean, q_var, p_mean, p_var)
        return backend.kl_forward(q_mean, q_var, p_mean, p_var)

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # noqa: D102
        grads = ctx.backend.kl_backward(grad, *ctx.saved_tensors)
        needed = zip(grads, ctx.needs_input_grad[1:], strict=True)
        return None, *(g if need else None for g, need in needed)


class SampleAndKL(torch.autograd.Function):
    """Reparameterised sample, variance and KL from the two heads of an encoder."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        backend: Backend,
        q_mean: Tensor,
        q_log_var: Tensor,
        p_mean: Tensor | None,
        p_var: Tensor | None,
        var_eps: float,
        softmax: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        heads = q_mean, q_log_var, p_mean, p_var
        z, q_var, kl, noise = backend.sample_and_kl_forward(*heads, var_eps, softmax)
        ctx.backend, ctx.var_eps, ctx.softmax = backend, var_eps, softmax
        ctx.save_for_backward(*heads, noise)
        return z, q_var, kl

    @staticmethod
    @first_derivative_only
    def backward(  # noqa: D102
        ctx: Any, grad_z: Tensor | None, grad_q_var: Tensor | None, grad_kl: Tensor | None
    ) -> tuple[Any, ...]:
        q_mean = ctx.saved_tensors[0]
        grad_z = torch.zeros_like(q_mean) if grad_z is None else grad_z
        grad_kl = q_mean.new_zeros(len(q_mean)) if grad_kl is None else grad_kl
        grads = ctx.backend.sample_and_kl_backward(
            grad_z, grad_q_var, grad_kl, *ctx.saved_tensors, ctx.var_eps, ctx.softmax
        )
        needed = zip(grads, ctx.needs_input_grad[1:5], strict=True)
        return None, *(g if need else None for g, need in needed), None, None
