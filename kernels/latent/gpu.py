"""Reparameterised sampling and KL, as Triton kernels.

    q_v = exp(h) + eps        z = q_m + sqrt(q_v) e        e ~ N(0, 1)
    KL  = 1/2 sum_d [(q_m - p_m)^2/p_v - (log(1 + t) - t)],   t = (q_v - p_v)/p_v

The noise comes from Philox keyed on (seed, element). The seed is one number drawn on the device by
torch's own generator: `torch.manual_seed` repeats it, a captured CUDA graph draws a new one at
each replay, and backward regenerates the noise from it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import math_gpu as sp
from ..launching import ceil_div, next_power_of_2
from ..likelihood.gpu_entry import saturate


@triton.jit
def load_posterior(mean_ptr, h_ptr, offset, inside, eps):
    """q_m, exp(h) and q_v."""
    q_m = tl.load(mean_ptr + offset, mask=inside, other=0.0).to(tl.float32)
    h = tl.load(h_ptr + offset, mask=inside, other=0.0).to(tl.float32)
    v = sp.exp_accurate(sp.at_most(sp.at_least(h, -200.0), 80.0))  # LOG_VAR_MAX
    return q_m, v, v + eps


@triton.jit
def load_prior(mean_ptr, var_ptr, offset, inside, PRIOR: tl.constexpr):
    """Mean and variance of the prior, which is standard normal without PRIOR."""
    p_m = tl.zeros(offset.shape, tl.float32)
    p_v = p_m + 1.0
    if PRIOR:
        p_m = tl.load(mean_ptr + offset, mask=inside, other=0.0).to(tl.float32)
        p_v = tl.load(var_ptr + offset, mask=inside, other=1.0).to(tl.float32)
    return p_m, p_v


@triton.jit
def normal(seed, offset):
    """Standard normal numbers by Box and Muller, without the range reduction of a general cos."""
    a, b, _, _ = tl.randint4x(seed, offset)
    u = tl.maximum(tl.uint_to_uniform_float(a), 1e-7)
    angle = 6.283185307179586 * (tl.uint_to_uniform_float(b) - 0.5)
    return tl.sqrt(-2.0 * sp.log(u)) * sp.cos_approx(angle)


@triton.jit
def softmax_rows(z, inside):
    """Softmax over the second axis; a NaN comes back with the sum."""
    z = tl.where(inside, z, -float("inf"))
    e = sp.exp(z - tl.max(z, axis=1)[:, None])
    return e / tl.sum(e, axis=1)[:, None]


@triton.jit
def bounded_variance(v):
    """A variance from VARIANCE_MIN to VARIANCE_MAX; NaN where it is NaN or negative."""
    return tl.where(v >= 0.0, tl.minimum(tl.maximum(v, 1e-30), 1e36), float("nan"))


@triton.jit
def relative_excess(q_v, p_v):
    """(q_v - p_v)/p_v of two bounded variances, at most RESULT_MAX."""
    return sp.at_most((q_v - p_v) / p_v, 1e30)


@triton.jit
def log_ratio_term(q_v, p_v):
    """log(1 + t) - t for t = (q_v - p_v)/p_v, without cancellation near 0."""
    t = relative_excess(q_v, p_v)
    near = sp.log1pmx_near(tl.minimum(tl.maximum(t, -0.5), 0.5))
    return tl.where(tl.abs(t) <= 0.5, near, (sp.log(q_v) - sp.log(p_v)) - t)  # also for NaN


@triton.jit
def forward_kernel(
    mean_ptr, h_ptr, p_mean_ptr, p_var_ptr, seed_ptr, z_ptr, var_ptr, kl_ptr,
    N, L, eps, SOFTMAX: tl.constexpr, PRIOR: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of cells: sample, variance, KL."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None].to(tl.int64)
    d = tl.arange(0, BLOCK)[None, :]
    inside = (row < N) & (d < L)
    offset = row * L + d
    q_m, _, q_v = load_posterior(mean_ptr, h_ptr, offset, inside, eps)
    p_m, p_v = load_prior(p_mean_ptr, p_var_ptr, offset, inside, PRIOR)
    z = q_m + tl.sqrt(q_v) * normal(tl.load(seed_ptr), offset.to(tl.int32))
    if SOFTMAX:
        z = softmax_rows(z, d < L)
    tl.store(z_ptr + offset, z, mask=inside)
    tl.store(var_ptr + offset, q_v, mask=inside)
    difference = q_m - p_m
    q_v, p_v = bounded_variance(q_v), bounded_variance(p_v)
    terms = difference * (difference / p_v) - log_ratio_term(q_v, p_v)
    kl = saturate(0.5 * tl.sum(tl.where(inside, terms, 0.0), axis=1))
    cell = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    tl.store(kl_ptr + cell, kl, mask=cell < N)


@triton.jit
def backward_kernel(
    mean_ptr, h_ptr, p_mean_ptr, p_var_ptr, seed_ptr, gz_ptr, gv_ptr, gkl_ptr,
    dm_ptr, dh_ptr, dpm_ptr, dpv_ptr, N, L, gz_stride, eps,
    SOFTMAX: tl.constexpr, PRIOR: tl.constexpr, BY_VAR: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of cells: gradients by both heads and by the prior."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None].to(tl.int64)
    d = tl.arange(0, BLOCK)[None, :]
    inside = (row < N) & (d < L)
    offset = row * L + d
    q_m, v, q_v = load_posterior(mean_ptr, h_ptr, offset, inside, eps)
    p_m, p_v = load_prior(p_mean_ptr, p_var_ptr, offset, inside, PRIOR)
    p_v = bounded_variance(p_v)
    noise = normal(tl.load(seed_ptr), offset.to(tl.int32))
    gz = tl.load(gz_ptr + row * gz_stride + d, mask=inside, other=0.0).to(tl.float32)
    gkl = tl.load(gkl_ptr + row, mask=row < N, other=0.0).to(tl.float32)
    if SOFTMAX:
        z = softmax_rows(q_m + tl.sqrt(q_v) * noise, d < L)
        gz = z * (gz - tl.sum(tl.where(inside, gz * z, 0.0), axis=1)[:, None])
    q_v = bounded_variance(q_v)
    difference = q_m - p_m
    shift = difference / p_v
    excess = relative_excess(q_v, p_v)
    share = v / q_v  # at most 1: nothing overflows on the way
    by_mean = gkl * saturate(shift)
    tl.store(dm_ptr + offset, gz + by_mean, mask=inside)
    d_h = gkl * (0.5 * share * excess) + gz * (0.5 * share * (tl.sqrt(q_v) * noise))
    if BY_VAR:
        d_h += tl.load(gv_ptr + offset, mask=inside, other=0.0).to(tl.float32) * v
    tl.store(dh_ptr + offset, d_h, mask=inside)
    if PRIOR:
        tl.store(dpm_ptr + offset, -by_mean, mask=inside)
        d_p_v = saturate(-0.5 * (excess + difference * shift) / p_v)
        tl.store(dpv_ptr + offset, gkl * d_p_v, mask=inside)


def _grid(n: int, latent: int) -> tuple[tuple[int], dict[str, int]]:
    block = next_power_of_2(latent)
    rows = max(1, 1024 // block)
    return (ceil_div(n, rows),), {"ROWS": rows, "BLOCK": block}


def sample_and_kl_forward(
    q_mean: Tensor,
    q_log_var: Tensor,
    p_mean: Tensor | None,
    p_var: Tensor | None,
    var_eps: float,
    softmax: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sample, variance, KL per cell, and the seed of the noise."""
    n, latent = q_mean.shape
    seed = torch.randint(2**31 - 1, (1,), device=q_mean.device)
    z = torch.empty(n, latent, dtype=q_mean.dtype, device=q_mean.device)
    q_var = torch.empty_like(z)
    kl = torch.empty(n, dtype=torch.float32, device=q_mean.device)
    if n:
        grid, sizes = _grid(n, latent)
        forward_kernel[grid](
            *_contiguous(q_mean, q_log_var, p_mean, p_var), seed, z, q_var, kl,
            n, latent, var_eps, SOFTMAX=softmax, PRIOR=p_mean is not None, **sizes,
            enable_fp_fusion=True,
        )  # fmt: skip
    return z, q_var, kl, seed


def sample_and_kl_backward(
    grad_z: Tensor,
    grad_q_var: Tensor | None,
    grad_kl: Tensor,
    q_mean: Tensor,
    q_log_var: Tensor,
    p_mean: Tensor | None,
    p_var: Tensor | None,
    seed: Tensor,
    var_eps: float,
    softmax: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients by mean head, log-variance head, prior mean and prior variance."""
    n, latent = q_mean.shape
    prior = p_mean is not None
    d_mean, d_h, *by_prior = (
        torch.empty(n, latent, dtype=q_mean.dtype, device=q_mean.device)
        for _ in range(4 if prior else 2)
    )
    d_p_mean, d_p_var = by_prior or (None, None)
    if n:
        grid, sizes = _grid(n, latent)
        grad_z = grad_z if grad_z.stride(1) == 1 else grad_z.contiguous()
        by_kl, by_var = _contiguous(grad_kl, grad_q_var)
        backward_kernel[grid](
            *_contiguous(q_mean, q_log_var, p_mean, p_var), seed, grad_z, by_var, by_kl,
            d_mean, d_h, *(by_prior or (d_mean, d_h)), n, latent, grad_z.stride(0), var_eps,
            SOFTMAX=softmax, PRIOR=prior, BY_VAR=grad_q_var is not None, **sizes,
            enable_fp_fusion=True,
        )  # fmt: skip
    return d_mean, d_h, d_p_mean, d_p_var


def _contiguous(first: Tensor, *others: Tensor | None) -> list[Tensor]:
    """All as the kernels read them; the first stands in for one that is not there."""
    first = first.contiguous()
    return [first, *(first if t is None else t.contiguous() for t in others)]
