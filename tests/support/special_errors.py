"""Largest error of each elementary function of the Triton kernels, on this device."""

from __future__ import annotations

import mpmath as mp
import numpy as np
import torch
import triton
import triton.language as tl
from fastvae.kernels import math_gpu as special


@triton.jit
def apply(x_ptr, y_ptr, n, FUNCTION: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n, other=0.5)
    tl.store(y_ptr + i, FUNCTION(x), mask=i < n)


@triton.jit
def stirling_error(z):
    return special.stirling_error(z, special.log(z))


@triton.jit
def z_digamma_minus_log(z):
    return special.z_digamma_minus_log(z, special.log(z))


def _stirling(z):
    return mp.loggamma(z + 1) - ((z + 0.5) * mp.log(z) - z + mp.log(2 * mp.pi) / 2)


def _spread(low, high):
    return np.exp(np.linspace(np.log(low), np.log(high), 4001))


# function, exact function, points, error relative to (0: 1, 1: |exact|, 2: max(1, |exact|)), bound
CASES = {
    "exp": (special.exp, mp.exp, np.linspace(-40, 20, 4001), 1, 3.5e-6),
    "exp_accurate": (special.exp_accurate, mp.exp, np.linspace(-80, 80, 4001), 1, 1.3e-6),
    "log": (special.log, mp.log, _spread(1e-30, 1e30), 2, 2e-7),
    "log_short": (special.log_short, mp.log, _spread(1e-30, 1e30), 2, 3e-7),
    "log1p_unit": (special.log1p_unit, mp.log1p, _spread(1e-20, 1), 1, 2.5e-7),
    "log1p_less_share": (
        special.log1p_less_share,
        lambda e: (mp.log1p(e) - e / (1 + e)) / e**2,
        _spread(1e-8, 1),
        1,
        1e-6,
    ),
    "log1p": (special.log1p, mp.log1p, _spread(1e-20, 1e6), 1, 3e-7),
    "log1pmx_near": (
        special.log1pmx_near,
        lambda t: mp.log1p(t) - t,
        np.linspace(-0.5, 0.5, 4001),
        1,
        1e-6,
    ),
    "stirling_error": (stirling_error, _stirling, _spread(1e-6, 1e8), 2, 1.5e-6),
    "z_digamma_minus_log": (
        z_digamma_minus_log,
        lambda z: z * (mp.digamma(z) - mp.log(z)),
        _spread(1e-6, 1e8),
        2,
        1e-6,
    ),
}


def largest_error(name: str) -> float:
    """Largest error of one function over its points, as CASES measures it."""
    function, exact, points, relative, _ = CASES[name]
    x = torch.tensor(points, dtype=torch.float32)
    y = torch.empty_like(x)
    with np.errstate(all="ignore"):  # of branches not taken, in the interpreter
        apply[(triton.cdiv(len(x), 4096),)](
            x, y, len(x), FUNCTION=function, BLOCK=4096, enable_fp_fusion=True
        )
    want = np.array([float(exact(mp.mpf(v))) for v in x.double().tolist()])
    scale = np.abs(want) if relative == 1 else np.maximum(1, np.abs(want))
    error = np.abs(y.double().cpu().numpy() - want) / np.where(scale == 0, 1, scale)
    return float(error.max())
