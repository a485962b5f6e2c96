"""Log probability of every entry from mean and inverse dispersion, as Triton kernels.

    value = log p(x | mu + eps, theta, pi)

The same entry functions as the likelihood from logits; parameters that are broadcast along one of
the two axes are read where they lie.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import constants_gpu as constants
from .. import math_gpu as sp
from ..counts import Counts
from ..launching import ceil_div
from .gpu_entry import (
    bounded_count,
    entry,
    family_of,
    is_large,
    saddle_dispersion_grad,
    saddle_nll,
    saturate,
    small_harmonic,
    small_nll,
)

BLOCK = 512


@triton.jit
def log_within(x, lowest):
    """Log x and x, within `lowest` and e^60; NaN where x is NaN or negative.

    The reference calls 60 LOG_MU_MAX and LOG_THETA_MAX.
    """
    bounded = tl.minimum(tl.maximum(x, lowest), 1.1420073898156842e26)
    valid = x >= 0.0
    log_x = tl.minimum(sp.log(bounded), 60.0)
    return tl.where(valid, log_x, float("nan")), tl.where(valid, bounded, float("nan"))


@triton.jit
def place(TALL: tl.constexpr, BLOCK: tl.constexpr):
    """Row and columns of a program. A single row may be longer than 32 bits and grid y reach."""
    if TALL:
        row = tl.zeros((), tl.int64)
        return row, tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row = tl.program_id(0).to(tl.int64)
    return row, tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def load_entry(
    x_ptr, mu_ptr, theta_ptr, pi_ptr, row, col, inside, eps,
    x_row, x_col, mu_row, mu_col, theta_row, theta_col, pi_row, pi_col, FAMILY: tl.constexpr,
):  # fmt: skip
    """x as given and bounded, mean, log mean, log theta, theta and pi of a block of one row."""
    given = tl.load(x_ptr + row * x_row + col * x_col, mask=inside, other=0)
    given_mu = tl.load(mu_ptr + row * mu_row + col * mu_col, mask=inside, other=1.0)
    given_mu = given_mu.to(tl.float32) + eps
    log_mu, mu = log_within(given_mu, 1.2e-38)
    log_mu = tl.where(given_mu == 0.0, -float("inf"), log_mu)
    r, theta, pi = log_mu, log_mu, log_mu
    if FAMILY != "poisson":
        theta = tl.load(theta_ptr + row * theta_row + col * theta_col, mask=inside, other=1.0)
        r, theta = log_within(theta.to(tl.float32), 8.75651076269652e-27)  # e^-60
    if FAMILY == "zinb":
        pi = tl.load(pi_ptr + row * pi_row + col * pi_col, mask=inside, other=0.0).to(tl.float32)
        pi = sp.at_most(pi, 1e30)  # RESULT_MAX
    x = tl.where(given.to(tl.float32) < float("inf"), bounded_count(given), float("nan"))
    return given, x, mu, log_mu, r, theta, pi


@triton.jit
def entry_of(x, large, mu, log_mu, r, theta, pi, FAMILY: tl.constexpr):
    """`entry` by mean and inverse dispersion and their logarithms."""
    smaller = mu if FAMILY == "poisson" else sp.at_most(mu, theta)
    return entry(x, large, log_mu * constants.LOG2E, r * constants.LOG2E, smaller, pi, FAMILY)


@triton.jit
def forward_kernel(
    x_ptr, mu_ptr, theta_ptr, pi_ptr, out_ptr, G, eps,
    x_row, x_col, mu_row, mu_col, theta_row, theta_col, pi_row, pi_col,
    FAMILY: tl.constexpr, TALL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of one row: log p."""
    row, col = place(TALL, BLOCK)
    inside = col < G
    given, x, mu, log_mu, r, theta, pi = load_entry(
        x_ptr, mu_ptr, theta_ptr, pi_ptr, row, col, inside, eps,
        x_row, x_col, mu_row, mu_col, theta_row, theta_col, pi_row, pi_col, FAMILY,
    )  # fmt: skip
    large = is_large(x)
    nll, _, _, _ = entry_of(x, large, mu, log_mu, r, theta, pi, FAMILY)
    nll += tl.where((x > 1.0) & (large == 0), small_nll(x, r, theta, FAMILY), 0.0)
    if tl.max(large.to(tl.int32)) > 0:
        nll += tl.where(large, saddle_nll(x, given, log_mu, r, theta, FAMILY), 0.0)
    tl.store(out_ptr + row * G + col, -nll, mask=inside)


@triton.jit
def backward_kernel(
    x_ptr, mu_ptr, theta_ptr, pi_ptr, grad_ptr, dmu_ptr, dtheta_ptr, dpi_ptr, G, eps,
    x_row, x_col, mu_row, mu_col, theta_row, theta_col, pi_row, pi_col,
    FAMILY: tl.constexpr, WANT_THETA: tl.constexpr, TALL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of one row: gradients by mu, theta and pi."""
    row, col = place(TALL, BLOCK)
    inside = col < G
    given, x, mu, log_mu, r, theta, pi = load_entry(
        x_ptr, mu_ptr, theta_ptr, pi_ptr, row, col, inside, eps,
        x_row, x_col, mu_row, mu_col, theta_row, theta_col, pi_row, pi_col, FAMILY,
    )  # fmt: skip
    # a mean of 0 has the gradients of 1e-37
    mu = sp.at_least(mu, 1e-37)
    log_mu = sp.at_least(log_mu, -85.19564844077969)
    at = row * G + col
    grad = -tl.load(grad_ptr + at, mask=inside, other=0.0).to(tl.float32)
    large = is_large(x)
    _, d_mu, d_theta, d_pi = entry_of(x, large, mu, log_mu, r, theta, pi, FAMILY)
    tl.store(dmu_ptr + at, grad * saturate(d_mu / mu), mask=inside)
    if WANT_THETA:
        d_theta += small_harmonic(x, theta)
        if tl.max(large.to(tl.int32)) > 0:
            d_theta = tl.where(large, saddle_dispersion_grad(x, given, log_mu, r, theta), d_theta)
        tl.store(dtheta_ptr + at, grad * saturate(d_theta / theta), mask=inside)
    if FAMILY == "zinb":
        tl.store(dpi_ptr + at, grad * d_pi, mask=inside)


def _tall(x: Counts, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Narrow matrices are laid out as one row, so that blocks are full."""
    assert x.dense is not None
    n, genes = x.shape
    if genes >= 32 or n == 1:
        return x.dense, *tensors
    return tuple(None if t is None else t.reshape(1, n * genes) for t in (x.dense, *tensors))


def _grid(n: int, genes: int) -> tuple[int, ...]:
    """One program for each block of a row; grid y, which ends at 65,535, counts blocks."""
    blocks = ceil_div(genes, BLOCK)
    return (blocks,) if n == 1 else (n, blocks)


def _strides(*tensors: Tensor | None) -> list[int]:
    return [s for t in tensors for s in ((0, 0) if t is None else t.stride())]


def log_prob_forward(
    x: Counts, mu: Tensor, theta: Tensor | None, zi_logits: Tensor | None, eps: float
) -> Tensor:
    """Elementwise log probability (N, G)."""
    family = family_of(theta, zi_logits)
    out = torch.empty(x.shape, dtype=torch.float32, device=mu.device)
    counts, mean, theta, pi = _tall(x, mu, theta, zi_logits)
    assert counts is not None
    if out.numel():
        n, genes = counts.shape
        forward_kernel[_grid(n, genes)](
            counts, mean, out if theta is None else theta, out if pi is None else pi,
            out, genes, eps, *_strides(counts, mean, theta, pi), FAMILY=family, TALL=n == 1,
            BLOCK=BLOCK, enable_fp_fusion=True,
        )  # fmt: skip
    return out


def log_prob_backward(
    grad: Tensor,
    x: Counts,
    mu: Tensor,
    theta: Tensor | None,
    zi_logits: Tensor | None,
    eps: float,
    want_theta: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients by mu, theta and zi logits, (N, G) each."""
    family = family_of(theta, zi_logits)
    want_theta = want_theta and theta is not None
    d_mu = torch.empty(x.shape, dtype=torch.float32, device=mu.device)
    d_theta = torch.empty_like(d_mu) if want_theta else None
    d_zi = None if zi_logits is None else torch.empty_like(d_mu)
    counts, mean, theta, pi = _tall(x, mu, theta, zi_logits)
    assert counts is not None
    if d_mu.numel():
        n, genes = counts.shape
        backward_kernel[_grid(n, genes)](
            counts, mean, d_mu if theta is None else theta, d_mu if pi is None else pi,
            grad.contiguous(), d_mu, d_mu if d_theta is None else d_theta,
            d_mu if d_zi is None else d_zi, genes, eps, *_strides(counts, mean, theta, pi),
            FAMILY=family, WANT_THETA=want_theta, TALL=n == 1, BLOCK=BLOCK, enable_fp_fusion=True,
        )  # fmt: skip
    return d_mu, d_theta, d_zi
