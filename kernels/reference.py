"""Every operation in pure torch: the fallback on any device, and what other backends answer to.

Operations come in forward / backward pairs on plain tensors; ``autograd.py`` joins them. Counts
arrive as `Counts` (dense or CSR); the likelihoods are computed in the widest dtype of their
parameters, at least float32, and autograd casts the gradients back.
The mathematics is derived in README.md beside this file.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from . import numerics as nm
from .entries import Counts, Entries, log_prob, log_prob_grads, make_entries, same_dtype
from .rows import gather_csr as gather_csr
from .rows import gather_dense as gather_dense

LOG_VAR_MAX = 80.0  # log-variance heads above this are clamped, so that exp stays finite


def _from_logits(
    scale_logits: Tensor,
    log_library: Tensor,
    log_theta: Tensor | None,
    zi_logits: Tensor | None,
    theta_index: Tensor | None,
    norm: Tensor,
) -> Entries:
    # The row maximum is taken off first: logits of 1e4 would otherwise cost log mu its digits.
    shift, log_sum = norm[:, :1], norm[:, 1:]
    log_mu = ((scale_logits - shift) + (log_library - log_sum)).clamp(max=nm.LOG_MU_MAX)
    if log_theta is not None and theta_index is not None:
        log_theta = log_theta[theta_index]
    return make_entries(log_mu, None, log_theta, zi_logits)


def nll_forward(
    x: Counts,
    scale_logits: Tensor,
    log_library: Tensor,
    log_theta: Tensor | None,
    zi_logits: Tensor | None,
    theta_index: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood per cell (N,), and the row statistics (N, 2) backward needs.

    The statistics are the maximum of the scale logits and log sum exp of what lies below it.
    """
    scale_logits, log_library, log_theta, zi_logits = same_dtype(
        scale_logits, log_library, log_theta, zi_logits
    )
    shift = scale_logits.amax(dim=1, keepdim=True)
    log_sum = (scale_logits - shift).exp_().sum(dim=1, keepdim=True).log()
    norm = torch.cat([shift, log_sum], dim=1)
    p = _from_logits(scale_logits, log_library, log_theta, zi_logits, theta_index, norm)
    return nm.saturate(-log_prob(x, p).sum(dim=1)), norm


def nll_backward(
    grad: Tensor,
    x: Counts,
    scale_logits: Tensor,
    log_library: Tensor,
    log_theta: Tensor | None,
    zi_logits: Tensor | None,
    theta_index: Tensor | None,
    norm: Tensor,
    needs: tuple[bool, bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients by scale logits, log library, log theta and zi logits, where `needs` says so."""
    scale_logits, log_library, log_theta, zi_logits = same_dtype(
        scale_logits, log_library, log_theta, zi_logits
    )
    p = _from_logits(scale_logits, log_library, log_theta, zi_logits, theta_index, norm)
    by_scale, by_library, by_theta, by_zi = needs
    grads = log_prob_grads(x, p, by_theta)
    grad = grad[:, None]
    d_scale = d_library = d_theta = d_zi = None
    if by_scale or by_library:
        d = grads.log_mu * grad
        d_library = d.sum(dim=1, keepdim=True)
        if by_scale:
            softmax = torch.exp((scale_logits - norm[:, :1]) - norm[:, 1:])
            d_scale = torch.addcmul(d, softmax, d_library, value=-1)
    if by_theta and grads.log_theta is not None and log_theta is not None:
        d = grads.log_theta * grad
        if theta_index is not None:
            d_theta = torch.zeros_like(log_theta).index_add_(0, theta_index, d)
        else:
            d_theta = d.sum(dim=0) if log_theta.dim() == 1 else d
    if by_zi and grads.zi_logits is not None:
        d_zi = grads.zi_logits * grad
    return d_scale, d_library if by_library else None, d_theta, d_zi


def _from_mean(
    mu: Tensor, theta: Tensor | None, zi_logits: Tensor | None, eps: float, floor: float = 0.0
) -> Entries:
    mu, theta, zi_logits = same_dtype(mu, theta, zi_logits)
    mu = mu + eps
    mu = torch.where(mu < 0, math.nan, mu.clamp(floor, math.exp(nm.LOG_MU_MAX)))
    return make_entries(torch.log(mu), mu, None if theta is None else torch.log(theta), zi_logits)


def log_prob_forward(
    x: Counts, mu: Tensor, theta: Tensor | None, zi_logits: Tensor | None, eps: float
) -> Tensor:
    """Elementwise log probability (N, G) from mean and inverse dispersion.

    ``theta log1p(eps/theta) <= eps`` is what the textbook's other two eps add; it is left out.
    """
    return log_prob(x, _from_mean(mu, theta, zi_logits, eps))


def log_prob_backward(
    grad: Tensor,
    x: Counts,
    mu: Tensor,
    theta: Tensor | None,
    zi_logits: Tensor | None,
    eps: float,
    want_theta: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients by mu, theta and zi logits."""
    # a mean of 0 has gradients as well: those of the smallest one
    smallest = torch.finfo(torch.promote_types(mu.dtype, torch.float32)).tiny
    p = _from_mean(mu, theta, zi_logits, eps, floor=smallest)
    grads = log_prob_grads(x, p, want_theta)
    d_mu = -grad * nm.saturate(grads.log_mu / p.pieces.mu)
    d_theta = d_zi = None
    if grads.log_theta is not None and isinstance(p.pieces, nm.NBPieces):
        d_theta = -grad * nm.saturate(grads.log_theta / p.pieces.theta)
    if grads.zi_logits is not None:
        d_zi = -grad * grads.zi_logits
    return d_mu, d_theta, d_zi


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


def sample_and_kl_forward(
    q_mean: Tensor, q_log_var: Tensor, p_mean: Tensor, p_var: Tensor, var_eps: float, softmax: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sample, variance, KL per cell, and what backward needs to know the noise."""
    noise = torch.randn_like(q_mean)
    z, _, q_var = _draw(q_mean, q_log_var, noise, var_eps, softmax)
    return z, q_var, kl_forward(q_mean, q_var, p_mean, p_var), noise


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
    z, v, q_var = _draw(q_mean, q_log_var, noise, var_eps, softmax)
    if softmax:
        grad_z = z * (grad_z - (grad_z * z).sum(dim=-1, keepdim=True))
    d_mean, _, d_p_mean, d_p_var = kl_backward(grad_kl, q_mean, q_var, p_mean, p_var)
    d = _divergence(q_mean, q_var, p_mean, p_var)
    share = v / d.q_var  # at most 1: nothing overflows on the way
    by_kl = grad_kl.unsqueeze(-1) * (0.5 * share * d.excess)
    by_z = grad_z * (0.5 * share * (d.q_var.sqrt() * noise))
    return d_mean + grad_z, by_kl + by_z + grad_q_var * v, d_p_mean, d_p_var


dense_linear = F.linear


def row_sums(x: Counts) -> Tensor:
    """Total of each cell, (N, 1), in float64 where the counts are and float32 elsewhere."""
    counts = x.values if x.dense is None else x.dense
    assert counts is not None
    counts = counts.to(counts.dtype if counts.dtype == torch.float64 else torch.float32)
    if x.dense is not None:
        return counts.sum(dim=1, keepdim=True)
    row, _ = x.stored()
    return counts.new_zeros((x.shape[0], 1)).index_add_(0, row, counts[:, None])


def linear_forward(x: Counts, weight: Tensor, bias: Tensor | None, log1p: bool) -> Tensor:
    """``[log1p](x) @ weight.T + bias`` for CSR x: weighted sums of the weight's columns."""
    assert x.col is not None
    assert x.values is not None
    values = x.values.to(weight.dtype)
    out = F.embedding_bag(
        x.col,
        weight.t().contiguous(),
        x.crow,
        mode="sum",
        per_sample_weights=torch.log1p(values) if log1p else values,
        include_last_offset=True,
    )
    return out if bias is None else out + bias


def linear_weight_grad(grad: Tensor, x: Counts, log1p: bool) -> Tensor:
    """Gradient by the weight (H, G); one dense product beats scattering on the CPUs tried."""
    dense = x.to_dense(grad.dtype)
    return grad.t() @ (dense.log1p_() if log1p else dense)
