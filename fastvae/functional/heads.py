"""Decoder heads and likelihood as one operation, which keeps no matrix of cells by genes."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputError
from ..kernels.counts import Counts
from ..kernels.heads.function import HeadsNLL
from ..kernels.heads.parameters import HeadGradients, HeadNeeds, HeadParameters
from . import arguments as _check
from . import dispatch as _backend
from .likelihood import nll_of
from .linear import dense_linear

__all__ = [
    "Head",
    "HeadGradients",
    "HeadNeeds",
    "HeadParameters",
    "heads_nll_and_gradients",
    "heads_nll_of",
    "nb_heads_nll",
    "poisson_heads_nll",
    "zinb_heads_nll",
]

Head = tuple[Tensor, Tensor | None]
"""Weight (G, H) of a linear layer, and its bias (G,) or None."""


def zinb_heads_nll(
    x: Tensor,
    hidden: Tensor,
    scale_head: Head,
    log_library: Tensor,
    log_theta: Tensor | Head,
    zi_head: Head,
    *,
    theta_index: Tensor | None = None,
) -> Tensor:
    r"""Negative zero-inflated negative-binomial log-likelihood from the decoder's hidden units.

    :func:`~fastvae.functional.zinb_nll` of the logits that linear heads make of the hidden units
    :math:`h_n`,

    .. math::
        s_n = W_s h_n + b_s, \qquad \pi_n = W_\pi h_n + b_\pi

    Heads, likelihood and their gradients are computed for a block of cells at a time. What is kept
    for backward is of the size of the weights; no matrix of cells by genes is.

    Parameters
    ----------
    x : Tensor, (N, G)
        Counts, dense or CSR.
    hidden : Tensor, (N, H)
        Output of the decoder's last hidden layer.
    scale_head, zi_head : tuple of Tensor
        Weight (G, H) and bias (G,), or None, of the heads of the scale logits and of the
        zero-inflation logits.
    log_library : Tensor, (N, 1) or (N,)
        Natural log of the expected total count.
    log_theta : Tensor, (G,) or (K, G) with `theta_index`, or a head
        Natural log of the inverse dispersion, or the head that makes that of each cell.
    theta_index : Tensor, (N,), integer, optional
        Row of `log_theta` for each cell: its batch or label.

    Returns
    -------
    Tensor, (N,)
        As of :func:`~fastvae.functional.zinb_nll`. Differentiable by everything but `x`, once.
        Inside ``torch.autocast`` products are taken in its dtype, the likelihood in float32.

    Raises
    ------
    InputError
        If a shape, layout or index does not fit, or `x` wants a gradient.
    """
    return _nll(x, hidden, scale_head, log_library, log_theta, zi_head, theta_index)


def nb_heads_nll(
    x: Tensor,
    hidden: Tensor,
    scale_head: Head,
    log_library: Tensor,
    log_theta: Tensor | Head,
    *,
    theta_index: Tensor | None = None,
) -> Tensor:
    r"""Negative negative-binomial log-likelihood from the decoder's hidden units.

    Parameters, result and errors as in :func:`zinb_heads_nll`, without the zero inflation.
    """
    return _nll(x, hidden, scale_head, log_library, log_theta, None, theta_index)


def poisson_heads_nll(x: Tensor, hidden: Tensor, scale_head: Head, log_library: Tensor) -> Tensor:
    r"""Negative Poisson log-likelihood from the decoder's hidden units.

    Parameters, result and errors as in :func:`zinb_heads_nll`, without dispersion and zero
    inflation.
    """
    return _nll(x, hidden, scale_head, log_library, None, None, None)


def heads_nll_of(
    family: str,
    x: Tensor,
    hidden: Tensor,
    scale_head: Head,
    log_library: Tensor,
    log_theta: Tensor | Head | None,
    zi_head: Head | None,
    *,
    theta_index: Tensor | None = None,
    in_range: bool = False,
) -> Tensor:
    """Negative log-likelihood of each cell (N,) under "zinb", "nb" or "poisson".

    Parameters that the family does not have are left out. `in_range` says that the caller has
    checked the range of `theta_index`.
    """
    if family == "poisson":
        return _nll(x, hidden, scale_head, log_library, None, None, None)
    assert log_theta is not None
    assert zi_head is not None or family == "nb"
    zi_head = zi_head if family == "zinb" else None
    return _nll(x, hidden, scale_head, log_library, log_theta, zi_head, theta_index, in_range)


def heads_nll_and_gradients(
    upstream: Tensor,
    x: Tensor,
    hidden: Tensor,
    scale_head: Head,
    log_library: Tensor,
    log_theta: Tensor | Head | None = None,
    zi_head: Head | None = None,
    *,
    theta_index: Tensor | None = None,
    in_range: bool = False,
    needs: HeadNeeds | None = None,
    into: HeadGradients | None = None,
) -> tuple[Tensor, HeadGradients]:
    """Negative log-likelihood of each cell and its gradients, without autograd.

    Parameters
    ----------
    upstream : Tensor, (N,)
        Gradient by the likelihood of each cell, which all gradients are multiplied by.
    x, hidden, scale_head, log_library, log_theta, zi_head, theta_index
        As in :func:`zinb_heads_nll`. NB without `zi_head`, Poisson without `log_theta` too.
    in_range
        Whether the caller has checked the range of `theta_index`.
    needs
        Which gradients are wanted; all of them where left out.
    into
        Memory to write gradients to, where it has some; dense, in the shape of the parameter.

    Returns
    -------
    nll : Tensor, (N,)
    gradients : HeadGradients
        In the shapes and dtypes of the parameters; those of a head of log theta are called
        ``theta_weight`` and ``theta_bias``.

    Raises
    ------
    InputError
        As in :func:`zinb_heads_nll`.
    """
    counts, p = _arguments(
        x, hidden, scale_head, log_library, log_theta, zi_head, theta_index, in_range
    )
    _check.shape("upstream", upstream, (counts.shape[0],), "x")
    backend = _backend.select(*p[:9])
    with torch.no_grad():
        found: tuple[Tensor, HeadGradients] = backend.heads_with_gradients(
            upstream, counts, p, needs or HeadNeeds(), _product_dtype(hidden), into
        )
    return found


def _nll(
    x: Tensor,
    hidden: Tensor,
    scale_head: Head,
    log_library: Tensor,
    log_theta: Tensor | Head | None,
    zi_head: Head | None,
    theta_index: Tensor | None,
    in_range: bool = False,
) -> Tensor:
    counts, p = _arguments(
        x, hidden, scale_head, log_library, log_theta, zi_head, theta_index, in_range
    )
    backend = _backend.select(*p[:9])
    dtype = _product_dtype(hidden)
    compiling = torch.compiler.is_compiling()
    if compiling or backend.heads_pay is None or not backend.heads_pay(counts, p, dtype):
        return _one_after_the_other(x, p)
    # inside a Function gradients are always off, and whether any is wanted cannot be seen
    wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in p[:9])
    return HeadsNLL.apply(backend, wanted, dtype, *counts, *p)


def _one_after_the_other(x: Tensor, p: HeadParameters) -> Tensor:
    """The same by layers and likelihood, which keep the logits."""
    scale_logits = dense_linear(p.hidden, p.scale_weight, p.scale_bias)
    log_theta, zi_logits, family = p.log_theta, None, "poisson"
    if p.theta_weight is not None:
        log_theta = dense_linear(p.hidden, p.theta_weight, p.theta_bias)
    if log_theta is not None:
        family = "nb"
    if p.zi_weight is not None:
        zi_logits, family = dense_linear(p.hidden, p.zi_weight, p.zi_bias), "zinb"
    index = p.theta_index
    return nll_of(
        family,
        x,
        scale_logits,
        p.log_library,
        log_theta,
        zi_logits,
        theta_index=index,
        in_range=True,
    )


def _product_dtype(hidden: Tensor) -> torch.dtype | None:
    """The dtype that autocast asks for, or None."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def _arguments(
    x: Tensor,
    hidden: Tensor,
    scale_head: Head,
    log_library: Tensor,
    log_theta: Tensor | Head | None,
    zi_head: Head | None,
    theta_index: Tensor | None,
    in_range: bool,
) -> tuple[Counts, HeadParameters]:
    counts = _check.counts(x)
    _check.refuse_gradient(x)
    n, g = counts.shape
    if hidden.dim() != 2 or hidden.shape[0] != n:
        raise _check.mismatch("hidden", hidden, (n, "H"), "x")
    width = hidden.shape[1]
    scale = _head("scale_head", scale_head, g, width)
    zi = (None, None) if zi_head is None else _head("zi_head", zi_head, g, width)
    theta: tuple[Tensor | None, Tensor | None] = None, None
    if isinstance(log_theta, tuple):
        if theta_index is not None:
            raise InputError(
                "theta_index was given, but log_theta is a head; expected a table (K, G) with one "
                "row per index, or no theta_index"
            )
        theta, log_theta = _head("log_theta", log_theta, g, width), None
    log_theta, theta_index = _check.dispersion(log_theta, theta_index, n, g, in_range)
    if log_theta is not None and log_theta.dim() == 2 and theta_index is None:
        if n != 1:
            raise InputError(
                f"log_theta has shape {tuple(log_theta.shape)}; expected ({g},), a table with "
                "theta_index, or the weight and bias of a head that makes one row per cell"
            )
        log_theta = log_theta[0]
    library = _check.per_cell("log_library", log_library, n)
    return counts, HeadParameters(
        hidden,
        scale[0],
        scale[1],
        zi[0],
        zi[1],
        theta[0],
        theta[1],
        library,
        log_theta,
        theta_index,
    )


def _head(name: str, head: Head, genes: int, width: int) -> Head:
    weight, bias = head
    _check.shape(f"the weight of {name}", weight, (genes, width), "x and hidden")
    if bias is not None:
        _check.shape(f"the bias of {name}", bias, (genes,), "x")
    return weight, bias
