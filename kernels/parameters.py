"""The parameters of the likelihoods, as the operations pass them on."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Parameters(NamedTuple):
    """Parameters of a count likelihood for N cells and G genes.

    Attributes
    ----------
    scale_logits
        (N, G); the mean is the library size times their softmax.
    log_library
        (N, 1) logarithm of the library size.
    log_theta
        Log inverse dispersion, (G,), (N, G), or (K, G) with `theta_index`; None for Poisson.
    zi_logits
        (N, G) logits of an extra zero; None unless ZINB.
    theta_index
        (N,) row of `log_theta` for each cell.
    """

    scale_logits: Tensor
    log_library: Tensor
    log_theta: Tensor | None = None
    zi_logits: Tensor | None = None
    theta_index: Tensor | None = None

    def same_dtype(self) -> Parameters:
        """The parameters in the widest dtype among them, at least float32."""
        scale_logits, log_library, log_theta, zi_logits = same_dtype(*self[:4])
        return Parameters(scale_logits, log_library, log_theta, zi_logits, self.theta_index)


def same_dtype(*tensors: Tensor | None) -> tuple[Any, ...]:
    """Cast to the widest dtype among them, at least float32."""
    dtype = torch.float32
    for t in tensors:
        if t is not None:
            dtype = torch.promote_types(dtype, t.dtype)
    return tuple(None if t is None else t.to(dtype) for t in tensors)
