"""Sampling and KL in torch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import math_reference as nm

LOG_VAR_MAX = 80.0  # log-variance heads above this are clamped, so that exp stays finite


class _Divergence(NamedTuple):
    """What value and gradients of the KL share."""

    q_var: Tensor
    p_var: Tensor
    difference: Tensor  # of the means
    shift: Tensor  # difference / p_var
    excess: Tensor  # (q_var - p_var) / p_var


def _divergence(q_mean: Tensor, q_var: Tensor, p_mean: Tensor, p_var: Tensor) -> _Divergence:
    q_var, p_var = nm.bounded_variance(q_var), nm.bounded_variance(p_var)
    difference = q_mean - p_mean
    excess = ((q_var - p_var) / p_var).clamp(max=nm.RESULT_MAX)
    return _Divergence(q_var, p_var, difference, difference / p_var, excess)


def kl_forward(q_mean: Tensor, q_var: Tensor, p_mean: Tensor, p_var: Tensor) -> Tensor:
    """KL(N(q_mean, q_var) || N(p_mean, p_var)), summed over the last dimension."""
    d = _divergence(q_mean, q_var, p_mean, p_var)
    near = nm.log1pmx_series(d.excess.clamp(-0.5, 0.5))
    far = (torch.log(d.q_var) - torch.log(d.p_var)) - d.excess
    by_variance = torch.where(d.excess.abs() <= 0.5, near, far)
    return nm.saturate(0.5 * (d.difference * d.shift - by_variance).sum(dim=-1))


def kl_backward(
    grad: Tensor, q_mean: Tensor, q_var: Tensor, p_mean: Tensor, p_var: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients by all four."""
    grad = grad.unsqueeze(-1)
    d = _divergence(q_mean, q_var, p_mean, p_var)
    by_mean = grad * nm.saturate(d.shift)
    by_q_var = grad * nm.saturate(0.5 * ((d.q_var - d.p_var) / d.q_var) / d.p_var)
    by_p_var = -0.5 * (d.excess + d.difference * d.shift) / d.p_var
    return by_mean, by_q_var, -by_mean, grad * nm.saturate(by_p_var)


def _draw(
    q_mean: Tensor, q_log_var: Tensor, noise: Tensor, var_eps: float, softmax: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Sample, exp of the clamped head, and variance."""
    v = torch.exp(q_log_var.clamp(max=LOG_VAR_MAX))
    q_var = v + var_eps
    z = q_mean + q_var.sqrt() * noise
    return (torch.softmax(z, dim=-1) if softmax else z), v, q_var


def prior_of(q_mean: Tensor, p_mean: Tensor | None, p_var: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and variance of the prior (N, L); it is standard normal where there is None."""
    if p_mean is None or p_var is None:
        return q_mean.new_zeros(()).expand_as(q_mean), q_mean.new_ones(()).expand_as(q_mean)
    return p_mean, p_var


def sample_and_kl_forward(
    q_mean: Tensor,
    q_log_var: Tensor,
    p_mean: Tensor | None,
    p_var: Tensor | None,
    var_eps: float,
    softmax: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sample, variance, KL per cell, and what backward needs to know the noise.

    The prior is standard normal where it is None.
    """
    p_mean, p_var = prior_of(q_mean, p_mean, p_var)
    noise = torch.randn_like(q_mean)
    z, _, q_var = _draw(q_mean, q_log_var, noise, var_eps, softmax)
    return z, q_var, kl_forward(q_mean, q_var, p_mean, p_var), noise


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
    """Gradients by mean head, log-variance head, prior mean and prior variance.

    There is none by the variance that backward starts from where `grad_q_var` is None.
    """
    p_mean, p_var = prior_of(q_mean, p_mean, p_var)
    z, v, q_var = _draw(q_mean, q_log_var, noise, var_eps, softmax)
    if softmax:
        grad_z = z * (grad_z - (grad_z * z).sum(dim=-1, keepdim=True))
    d_mean, _, d_p_mean, d_p_var = kl_backward(grad_kl, q_mean, q_var, p_mean, p_var)
    d = _divergence(q_mean, q_var, p_mean, p_var)
    share = v / d.q_var  # at most 1: nothing overflows on the way
    by_kl = grad_kl.unsqueeze(-1) * (0.5 * share * d.excess)
    by_z = grad_z * (0.5 * share * (d.q_var.sqrt() * noise))
    d_log_var = by_kl + by_z
    if grad_q_var is not None:
        d_log_var = d_log_var + grad_q_var * v
    return d_mean + grad_z, d_log_var, d_p_mean, d_p_var
