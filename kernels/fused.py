"""The Triton backend: the functions of ``reference.py``, each in as few kernels as it takes.

While torch.compile traces, the likelihood goes through custom operators, which it takes as they
are; otherwise the launchers are called directly, which costs less.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import likelihood
from .elementwise import log_prob_backward, log_prob_forward
from .entries import Counts
from .gather import gather_csr, gather_dense
from .latent import sample_and_kl_backward, sample_and_kl_forward
from .reference import kl_backward, kl_forward  # N x L numbers, not worth a kernel of their own
from .sparse import linear_forward, linear_weight_grad

__all__ = [
    "gather_csr",
    "gather_dense",
    "kl_backward",
    "kl_forward",
    "linear_forward",
    "linear_weight_grad",
    "log_prob_backward",
    "log_prob_forward",
    "nll_backward",
    "nll_forward",
    "sample_and_kl_backward",
    "sample_and_kl_forward",
]


def _counts(
    like: Tensor, dense: Tensor | None, crow: Tensor | None, col: Tensor | None, x: Tensor | None
) -> Counts:
    return Counts((like.shape[0], like.shape[1]), dense, crow, col, x)


@torch.library.custom_op("fastvae::nll_forward", mutates_args=())
def _nll_forward(
    dense: Tensor | None,
    crow: Tensor | None,
    col: Tensor | None,
    values: Tensor | None,
    scale_logits: Tensor,
    log_library: Tensor,
    log_theta: Tensor | None,
    zi_logits: Tensor | None,
    theta_index: Tensor | None,
) -> tuple[Tensor, Tensor]:
    x = _counts(scale_logits, dense, crow, col, values)
    return likelihood.nll_forward(x, scale_logits, log_library, log_theta, zi_logits, theta_index)


@_nll_forward.register_fake
def _(dense, crow, col, values, scale_logits, *_):
    n = scale_logits.shape[0]
    return (
        scale_logits.new_empty(n, dtype=torch.float32),
        scale_logits.new_empty(n, 3, dtype=torch.float32),
    )


@torch.library.custom_op("fastvae::nll_backward", mutates_args=())
def _nll_backward(
    grad: Tensor,
    dense: Tensor | None,
    crow: Tensor | None,
    col: Tensor | None,
    values: Tensor | None,
    scale_logits: Tensor,
    log_library: Tensor,
    log_theta: Tensor | None,
    zi_logits: Tensor | None,
    theta_index: Tensor | None,
    stats: Tensor,
    needs: list[bool],
) -> list[Tensor]:
    x = _counts(scale_logits, dense, crow, col, values)
    grads = likelihood.nll_backward(
        grad,
        x,
        scale_logits,
        log_library,
        log_theta,
        zi_logits,
        theta_index,
        stats,
        (needs[0], needs[1], needs[2], needs[3]),
    )
    return [grad.new_empty(0) if g is None else g for g in grads]


@_nll_backward.register_fake
def _(grad, dense, crow, col, values, scale_logits, log_library, log_theta, zi_logits, *rest):
    parameters = scale_logits, log_library, log_theta, zi_logits
    dtypes = scale_logits.dtype, torch.float32, torch.float32, scale_logits.dtype
    return [
        grad.new_empty(0) if t is None or not need else t.new_empty(t.shape, dtype=dtype)
        for t, dtype, need in zip(parameters, dtypes, rest[-1], strict=True)
    ]


def nll_forward(
    x: Counts,
    scale_logits: Tensor,
    log_library: Tensor,
    log_theta: Tensor | None,
    zi_logits: Tensor | None,
    theta_index: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood per cell (N,), and the row statistics backward needs."""
    parameters = scale_logits, log_library, log_theta, zi_logits, theta_index
    if torch.compiler.is_compiling():
        return _nll_forward(*x[1:], *parameters)
    return likelihood.nll_forward(x, *parameters)


def nll_backward(
    grad: Tensor,
    x: Counts,
    scale_logits: Tensor,
    log_library: Tensor,
    log_theta: Tensor | None,
    zi_logits: Tensor | None,
    theta_index: Tensor | None,
    stats: Tensor,
    needs: tuple[bool, bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients by scale logits, log library, log theta and zi logits, where `needs` says so."""
    parameters = scale_logits, log_library, log_theta, zi_logits, theta_index
    if not torch.compiler.is_compiling():
        return likelihood.nll_backward(grad, x, *parameters, stats, needs)
    made = _nll_backward(grad, *x[1:], *parameters, stats, list(needs))
    wanted = [need and t is not None for need, t in zip(needs, parameters, strict=False)]
    d_scale, d_library, d_theta, d_zi = (
        g if want else None for g, want in zip(made, wanted, strict=True)
    )
    return d_scale, d_library, d_theta, d_zi
