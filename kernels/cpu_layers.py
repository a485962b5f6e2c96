"""Sampling with KL, and the first layer on CSR counts, by libfastvae_cpu, in float32."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from . import reference
from .entries import Counts
from .native import (
    LatentCall,
    LinearCall,
    address,
    counts_argument,
    library,
    matrix,
    threads_for,
    vector,
)


def _latent_call(q_mean: Tensor, p_mean: Tensor, p_var: Tensor, **fields: object) -> LatentCall:
    return LatentCall(
        n=q_mean.shape[0],
        l=q_mean.shape[1],
        threads=threads_for(q_mean.numel()),
        mean=address(q_mean),
        prior_mean=address(p_mean),
        prior_var=address(p_var),
        prior_mean_row=p_mean.stride(0),
        prior_mean_col=p_mean.stride(1),
        prior_var_row=p_var.stride(0),
        prior_var_col=p_var.stride(1),
        **fields,
    )


def _fits(*heads: Tensor) -> bool:
    return all(t.dim() == 2 for t in heads) and heads[0].numel() > 0


def sample_and_kl_forward(
    q_mean: Tensor, q_log_var: Tensor, p_mean: Tensor, p_var: Tensor, var_eps: float, softmax: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sample, variance, KL per cell, and the noise; drawn as the reference draws it."""
    if not _fits(q_mean, q_log_var, p_mean, p_var):
        return reference.sample_and_kl_forward(q_mean, q_log_var, p_mean, p_var, var_eps, softmax)
    mean, log_var = q_mean.detach().contiguous(), q_log_var.detach().contiguous()
    noise = torch.randn_like(mean)
    z, var = torch.empty_like(mean), torch.empty_like(mean)
    kl = mean.new_empty(len(mean))
    call = _latent_call(
        mean,
        p_mean,
        p_var,
        log_var=address(log_var),
        noise=address(noise),
        z=address(z),
        var=address(var),
        kl=address(kl),
        softmax=softmax,
        var_eps=var_eps,
    )
    library.fastvae_sample_and_kl(ctypes.byref(call))
    return z, var, kl, noise


def sample_and_kl_backward(
    grad_z: Tensor,
    grad_q_var: Tensor,
    grad_kl: Tensor,
    q_mean: Tensor,
    q_log_var: Tensor,
    p_mean: Tensor,
    p_var: Tensor,
    noise: Tensor,
    var_eps: float,
    softmax: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients by mean head, log-variance head, prior mean and prior variance."""
    heads = q_mean, q_log_var, p_mean, p_var
    if not _fits(*heads):
        return reference.sample_and_kl_backward(
            grad_z, grad_q_var, grad_kl, *heads, noise, var_eps, softmax
        )
    mean, log_var = q_mean.detach().contiguous(), q_log_var.detach().contiguous()
    upstream = grad_z.contiguous(), grad_q_var.contiguous(), grad_kl.contiguous()
    d_mean, d_log_var, d_p_mean, d_p_var = (torch.empty_like(mean) for _ in heads)
    z = torch.empty_like(mean) if softmax else None
    call = _latent_call(
        mean,
        p_mean,
        p_var,
        log_var=address(log_var),
        noise=address(noise),
        grad_z=address(upstream[0]),
        grad_var=address(upstream[1]),
        grad_kl=address(upstream[2]),
        z=address(z),
        d_mean=address(d_mean),
        d_log_var=address(d_log_var),
        d_prior_mean=address(d_p_mean),
        d_prior_var=address(d_p_var),
        softmax=softmax,
        var_eps=var_eps,
    )
    library.fastvae_sample_and_kl_backward(ctypes.byref(call))
    return d_mean, d_log_var, d_p_mean, d_p_var


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


def linear_weight_grad(grad: Tensor, x: Counts, log1p: bool) -> Tensor:
    """Gradient by the weight (H, G), summed over the nonzeros of each gene."""
    hidden = grad.shape[1]
    call, held = _linear_call(x, hidden, log1p)
    if call.x.dense is not None:
        return reference.linear_weight_grad(grad, x, log1p)
    dtype, grad = grad.dtype, vector(grad)
    out = grad.new_empty(hidden, x.shape[1])
    call.grad, call.d_weight = address(grad), address(out)
    library.fastvae_linear_weight_grad(ctypes.byref(call))
    del held
    return out.to(dtype)
