"""Batch normalisation, ReLU and dropout by libfastvae_cpu, in float32."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ..native import HiddenCall, address, library, threads_for
from . import reference
from .reference import BatchNorm, Hidden


def _fits(z: Tensor, norm: BatchNorm) -> bool:
    return z.dtype == torch.float32 and all(
        t.dtype == torch.float32 and t.is_contiguous() for t in norm[:4]
    )


def hidden_forward(z: Tensor, norm: BatchNorm, keep: Tensor | None, scale: float) -> Hidden:
    """Normalise, rectify and drop; see ``reference.py``."""
    if not _fits(z, norm):
        return reference.hidden_forward(z, norm, keep, scale)
    z = z.contiguous()
    n, h = z.shape
    out, mean, inverse_std = torch.empty_like(z), z.new_empty(h), z.new_empty(h)
    keep = None if keep is None else keep.contiguous()
    call = HiddenCall(
        n=n,
        h=h,
        threads=threads_for(n * h // 4),
        momentum=norm.momentum,
        eps=norm.eps,
        scale=scale,
        z=address(z),
        weight=address(norm.weight),
        bias=address(norm.bias),
        running_mean=address(norm.running_mean),
        running_var=address(norm.running_var),
        keep=address(keep),
        out=address(out),
        mean=address(mean),
        inverse_std=address(inverse_std),
    )
    library.fastvae_hidden(ctypes.byref(call))
    return Hidden(out, mean, inverse_std)


def hidden_backward(
    grad: Tensor,
    z: Tensor,
    norm: BatchNorm,
    hidden: Hidden,
    scale: float,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by z, by the weight and by the bias of the normalisation."""
    if not (_fits(z, norm) and grad.dtype == torch.float32):
        return reference.hidden_backward(grad, z, norm, hidden, scale, out)
    z, grad = z.contiguous(), grad.contiguous()
    n, h = z.shape
    d_z = torch.empty_like(z)
    d_weight, d_bias = (z.new_empty(h), z.new_empty(h)) if out is None else out
    call = HiddenCall(
        n=n,
        h=h,
        threads=threads_for(n * h // 4),
        scale=scale,
        z=address(z),
        weight=address(norm.weight),
        out=address(hidden.out),
        mean=address(hidden.mean),
        inverse_std=address(hidden.inverse_std),
        grad=address(grad),
        d_z=address(d_z),
        d_weight=address(d_weight),
        d_bias=address(d_bias),
    )
    library.fastvae_hidden_backward(ctypes.byref(call))
    return d_z, d_weight, d_bias
