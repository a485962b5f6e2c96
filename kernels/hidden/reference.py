"""Batch normalisation, ReLU and dropout in torch, forward and backward.

Of a minibatch z (N, H) with mean m and variance v of each column, and a mask of 0 and 1:

    xhat = (z - m) / sqrt(v + eps)      out = relu(weight xhat + bias) keep / (1 - rate)

With the upstream gradient g of ``weight xhat + bias``, which is 0 where out is:

    d_bias = sum_n g      d_weight = sum_n g xhat
    d_z = weight / sqrt(v + eps) (g - d_bias/N - xhat d_weight/N)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class BatchNorm(NamedTuple):
    """Batch normalisation of H columns in training.

    Attributes
    ----------
    weight, bias, running_mean, running_var
        (H,) each; the running statistics are updated in place.
    momentum, eps
        As in ``torch.nn.BatchNorm1d``.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    momentum: float
    eps: float


class Hidden(NamedTuple):
    """The output (N, H), and what the backward pass needs.

    Attributes
    ----------
    out
        Never negative; 0 where a unit is off or dropped.
    mean, inverse_std
        (H,) of the minibatch.
    """

    out: Tensor
    mean: Tensor
    inverse_std: Tensor


def hidden_forward(z: Tensor, norm: BatchNorm, keep: Tensor | None, scale: float) -> Hidden:
    """Normalise, rectify and drop the units where `keep` (N, H) is 0; those kept count `scale`."""
    mean = z.mean(dim=0)
    var = z.var(dim=0, correction=0)
    n = z.shape[0]
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), norm.momentum)
    norm.running_var.lerp_((var * (n / max(n - 1, 1))).to(norm.running_var.dtype), norm.momentum)
    inverse_std = torch.rsqrt(var + norm.eps)
    out = torch.relu((z - mean) * (inverse_std * norm.weight) + norm.bias)
    return Hidden(out if keep is None else out * (keep * scale), mean, inverse_std)


def handed_over(
    found: tuple[Tensor, Tensor], out: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """What was found, copied to the memory that was given for it."""
    if out is None:
        return found
    return out[0].copy_(found[0]), out[1].copy_(found[1])


def hidden_backward(
    grad: Tensor,
    z: Tensor,
    norm: BatchNorm,
    hidden: Hidden,
    scale: float,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by z, by the weight and by the bias of the normalisation.

    `out` may lend memory for the last two, (H,) each and contiguous.
    """
    n = z.shape[0]
    xhat = (z - hidden.mean) * hidden.inverse_std
    g = torch.where(hidden.out <= 0, 0.0, grad * scale)  # a NaN stays
    d_bias, d_weight = g.sum(dim=0), (g * xhat).sum(dim=0)
    d_z = (norm.weight * hidden.inverse_std) * (g - d_bias / n - xhat * (d_weight / n))
    return d_z, *handed_over((d_weight, d_bias), out)
