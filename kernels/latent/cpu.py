"""Reparameterised sampling with its KL divergence by libfastvae_cpu, in float32."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ..native import LatentCall, address, library, threads_for
from . import reference


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
    q_mean: Tensor,
    q_log_var: Tensor,
    p_mean: Tensor | None,
    p_var: Tensor | None,
    var_eps: float,
    softmax: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sample, variance, KL per cell, and the noise; drawn as the reference draws it."""
    p_mean, p_var = reference.prior_of(q_mean, p_mean, p_var)
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
    grad_q_var: Tensor | None,
    grad_kl: Tensor,
    q_mean: Tensor,
    q_log_var: Tensor,
    p_mean: Tensor | None,
    p_var: Tensor | None,
    noise: Tensor,
    var_eps: float,
    softmax: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients by mean head, log-variance head, prior mean and prior variance."""
    p_mean, p_var = reference.prior_of(q_mean, p_mean, p_var)
    grad_q_var = torch.zeros_like(q_mean) if grad_q_var is None else grad_q_var
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
