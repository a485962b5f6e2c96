"""Every operation in pure torch: the fallback on any device, and what other backends answer to.

Operations come in forward / backward pairs on plain tensors; ``autograd.py`` joins them. Counts
arrive as `Counts` (dense or CSR); the likelihoods are computed in the widest dtype of their
parameters, at least float32, and autograd casts the gradients back.
The mathematics is derived in README.md beside this file.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from . import math_reference as nm


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
