"""Negative log-likelihoods from decoder logits, and elementwise log probabilities."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ..kernels.likelihood.function import CountLogProb, CountNLL
from . import arguments as _check
from . import dispatch as _backend


def zinb_nll(
    x: Tensor,
    scale_logits: Tensor,
    log_library: Tensor,
    log_theta: Tensor,
    zi_logits: Tensor,
    *,
    theta_index: Tensor | None = None,
) -> Tensor:
    r"""Negative zero-inflated negative-binomial log-likelihood of each cell.

    With :math:`\log\mu = l + \log\mathrm{softmax}(s)`, :math:`\theta = e^r` and the logit
    :math:`\pi` of an extra zero,

    .. math::
        -\sum_g \log\left[\sigma(\pi_{ng}) 1[x_{ng} = 0]
                 + \sigma(-\pi_{ng}) \mathrm{NB}(x_{ng}; \mu_{ng}, \theta_{ng})\right]

    Softmax, library scaling, likelihood and sum are one operation: the rate is never returned.

    Parameters
    ----------
    x : Tensor, (N, G)
        Counts, dense or CSR.
    scale_logits : Tensor, (N, G)
        Decoder output before the softmax over genes, ``s``.
    log_library : Tensor, (N, 1) or (N,)
        Natural log of the expected total count, ``l``.
    log_theta : Tensor, (G,), (K, G) with `theta_index`, or (N, G)
        Natural log of the inverse dispersion, ``r``.
    zi_logits : Tensor, (N, G)
        Zero-inflation logits, ``pi``.
    theta_index : Tensor, (N,), integer, optional
        Row of `log_theta` for each cell: its batch or label.

    Returns
    -------
    Tensor, (N,)
        In nats, at most 1e30; float32, or float64 where a parameter is float64. NaN where anything
        of the cell is NaN or a count is infinite.

    Raises
    ------
    InputError
        If a shape, layout or index does not fit, or `x` wants a gradient.

    Notes
    -----
    Lopez et al., Nature Methods 15, 1053 (2018) use this likelihood for scVI. The form computed
    here, and its error, are in ``kernels/README.md``.
    """
    return _nll(x, scale_logits, log_library, log_theta, zi_logits, theta_index)


def nb_nll(
    x: Tensor,
    scale_logits: Tensor,
    log_library: Tensor,
    log_theta: Tensor,
    *,
    theta_index: Tensor | None = None,
) -> Tensor:
    r"""Negative negative-binomial log-likelihood of each cell.

    :math:`-\sum_g \log\mathrm{NB}(x_{ng}; \mu_{ng}, \theta_{ng})`; parameters, result and errors
    as in :func:`zinb_nll`, without the zero inflation.
    """
    return _nll(x, scale_logits, log_library, log_theta, None, theta_index)


def poisson_nll(x: Tensor, scale_logits: Tensor, log_library: Tensor) -> Tensor:
    r"""Negative Poisson log-likelihood of each cell.

    :math:`-\sum_g (x_{ng} \log\mu_{ng} - \mu_{ng} - \log x_{ng}!)`; parameters, result and errors
    as in :func:`zinb_nll`, without dispersion and zero inflation.
    """
    return _nll(x, scale_logits, log_library, None, None, None)


def _nll(
    x: Tensor,
    scale_logits: Tensor,
    log_library: Tensor,
    log_theta: Tensor | None,
    zi_logits: Tensor | None,
    theta_index: Tensor | None,
    in_range: bool = False,
) -> Tensor:
    counts = _check.counts(x)
    _check.refuse_gradient(x)
    n, g = counts.shape
    _check.shape("scale_logits", scale_logits, (n, g), "x")
    log_library = _check.per_cell("log_library", log_library, n)
    log_theta, theta_index = _check.dispersion(log_theta, theta_index, n, g, in_range)
    if zi_logits is not None:
        _check.shape("zi_logits", zi_logits, (n, g), "x")
    parameters = scale_logits, log_library, log_theta, zi_logits
    backend = _backend.select(*parameters)
    # inside a Function gradients are always off, and whether any is wanted cannot be seen
    wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in parameters)
    return CountNLL.apply(backend, wanted, *counts, *parameters, theta_index)


def zinb_log_prob(
    x: Tensor, mu: Tensor, theta: Tensor, zi_logits: Tensor, eps: float = 1e-8
) -> Tensor:
    r"""Zero-inflated negative-binomial log probability of each entry.

    :math:`\log[\sigma(\pi) 1[x = 0] + \sigma(-\pi) \mathrm{NB}(x; \mu + \epsilon, \theta)]`

    Parameters
    ----------
    x, mu, theta, zi_logits : Tensor
        Dense counts, mean, inverse dispersion and zero-inflation logits, broadcast together.
        A zero or negative count takes the zero branch; a mean above e^60 counts as that and a
        theta as within e^-60 and e^60; a negative mean or theta gives NaN.
    eps : float
        Added to the mean, so that its log stays finite.

    Returns
    -------
    Tensor
        Of the broadcast shape, in nats, differentiable by `mu`, `theta` and `zi_logits`. It is
        -inf, as the exact value is, at a positive count where ``mu + eps`` is 0, and finite on all
        other finite input.

    Raises
    ------
    InputError
        If the shapes do not broadcast, or `x` is sparse or wants a gradient.
    """
    return _log_prob(x, mu, theta, zi_logits, eps)


def nb_log_prob(x: Tensor, mu: Tensor, theta: Tensor, eps: float = 1e-8) -> Tensor:
    r"""Negative-binomial log probability of each entry.

    :math:`\log\mathrm{NB}(x; \mu + \epsilon, \theta)`.

    Parameters, result and errors as in :func:`zinb_log_prob`, without the zero inflation.
    """
    return _log_prob(x, mu, theta, None, eps)


def poisson_log_prob(x: Tensor, mu: Tensor, eps: float = 0.0) -> Tensor:
    r"""Poisson log probability of each entry, :math:`x \log\mu - \mu - \log x!`.

    Parameters, result and errors as in :func:`zinb_log_prob`. `eps` is 0 by default, as the
    Poisson likelihood of scvi has none: ``mu = 0`` gives 0 at x = 0 and -inf elsewhere.
    """
    return _log_prob(x, mu, None, None, eps)


def _log_prob(
    x: Tensor, mu: Tensor, theta: Tensor | None, zi_logits: Tensor | None, eps: float
) -> Tensor:
    _check.refuse_gradient(x)
    shape = _check.broadcast([t for t in (x, mu, theta, zi_logits) if t is not None])
    rows = (-1, shape[-1]) if len(shape) else (1, 1)
    if 0 in shape:
        rows = (0, 1)
    flat = [None if t is None else t.expand(shape).reshape(rows) for t in (x, mu, theta, zi_logits)]
    return CountLogProb.apply(_backend.select(*flat[1:]), *flat, eps).reshape(shape)


def nll_of(
    family: str,
    x: Tensor,
    scale_logits: Tensor,
    log_library: Tensor,
    log_theta: Tensor | None,
    zi_logits: Tensor | None,
    *,
    theta_index: Tensor | None = None,
    in_range: bool = False,
) -> Tensor:
    """Negative log-likelihood of each cell (N,) under "zinb", "nb" or "poisson".

    Parameters that the family does not have are left out. `in_range` says that the caller has
    checked the range of `theta_index`.
    """
    if family == "poisson":
        return _nll(x, scale_logits, log_library, None, None, None)
    assert log_theta is not None
    assert zi_logits is not None or family == "nb"
    zi_logits = zi_logits if family == "zinb" else None
    return _nll(x, scale_logits, log_library, log_theta, zi_logits, theta_index, in_range)


LOWEST_SOFTPLUS_LOGIT = -80.0  # below, softplus would be denormal and its logarithm lost


def softplus_as_softmax(scale_logits: Tensor, log_library: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and log library size whose softmax gives the means of a softplus.

    ``exp(log_library) softplus(scale_logits)`` is ``exp(l) softmax(s)``, from which the kernels
    start, with s = log softplus(scale_logits) and l = log_library + logsumexp(s).
    """
    scale = softplus(scale_logits.clamp(min=LOWEST_SOFTPLUS_LOGIT)).log()
    return scale, log_library + scale.logsumexp(-1, keepdim=True)


def log_prob_of(
    family: str, x: Tensor, mu: Tensor, theta: Tensor | None, zi_logits: Tensor | None
) -> Tensor:
    """Log probability of each entry under "zinb", "nb" or "poisson", as `nll_of`."""
    if family == "poisson":
        return poisson_log_prob(x, mu)
    assert theta is not None
    if family == "nb":
        return nb_log_prob(x, mu, theta)
    assert zi_logits is not None
    return zinb_log_prob(x, mu, theta, zi_logits)
