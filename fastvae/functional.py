"""Stateless operations on tensors: check, broadcast, choose a backend.

Counts ``x`` are a dense (N, G) tensor of any real dtype or a ``torch.sparse_csr`` one without
duplicate entries. Everything is computed in float32, or in float64 where a parameter is float64;
half-precision parameters are accepted and their gradients come back in their own dtype. Second
derivatives are not available and asking for them raises.

NaN in an input gives NaN in every result that depends on it, and in no other cell's. The
likelihoods, the divergences and the sampling give finite results and gradients on any finite
float32 input: log theta is clamped to [-60, 60], log mu to at most 60 (it has no lower bound),
counts and zero-inflation logits to at most 1e30, log variances to at most 80, variances that are
divided by to [1e-30, 1e36], and what still lies beyond 1e30 comes out as 1e30 with its sign: the
likelihood and the divergence of a cell, and derivatives. An infinite parameter counts as the bound
it lies beyond, where there is one; an infinite count gives NaN, a negative one counts as zero. What
is not defined is NaN: a softmax with an infinite logit, a negative mean, theta or variance. Linear
layers are plain sums of products and overflow as torch's do.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from . import _backend, _check
from ._backend import use_backend
from .errors import one_of
from .kernels import reference
from .kernels.autograd import CountLinear, CountLogProb, CountNLL, KLNormal, SampleAndKL
from .kernels.entries import same_dtype

__all__ = [
    "count_linear",
    "kl_normal",
    "log_library_size",
    "nb_log_prob",
    "nb_nll",
    "poisson_log_prob",
    "poisson_nll",
    "reparameterize",
    "sample_and_kl",
    "use_backend",
    "zinb_log_prob",
    "zinb_nll",
]


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
) -> Tensor:
    counts = _check.counts(x)
    _check.refuse_gradient(x)
    n, g = counts.shape
    _check.shape("scale_logits", scale_logits, (n, g), "x")
    log_library = _check.per_cell("log_library", log_library, n)
    log_theta, theta_index = _check.dispersion(log_theta, theta_index, n, g)
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


def sample_and_kl(
    q_mean: Tensor,
    q_log_var: Tensor,
    prior_mean: Tensor | None = None,
    prior_var: Tensor | None = None,
    *,
    var_eps: float = 1e-4,
    latent_distribution: str = "normal",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""Draw from an encoder's posterior and measure its divergence from the prior.

    .. math::
        q_v = e^h + \epsilon, \quad z = q_m + \sqrt{q_v}\, e, \quad e \sim N(0, 1)

        \mathrm{KL} = \tfrac12 \sum_d \left[\frac{q_v + (q_m - p_m)^2}{p_v} - 1
                      - \log\frac{q_v}{p_v}\right]

    Parameters
    ----------
    q_mean, q_log_var : Tensor, (N, L)
        Outputs of the mean head and of the log-variance head ``h`` (clamped to at most 80).
    prior_mean, prior_var : Tensor, broadcastable to (N, L), optional
        Standard normal where left out. A variance, not a standard deviation.
    var_eps : float
        Smallest posterior variance.
    latent_distribution : {"normal", "ln"}
        "ln" (logistic normal) returns ``softmax(z)``; the KL is that of the normals before it.

    Returns
    -------
    z, q_m, q_v : Tensor, (N, L)
        Sample, mean and variance.
    kl : Tensor, (N,)
        In nats, at most 1e30.

    Raises
    ------
    InputError
        If shapes do not fit or `latent_distribution` is unknown.
    """
    one_of("latent_distribution", latent_distribution, ("normal", "ln"))
    if q_mean.shape != q_log_var.shape:
        raise _check.mismatch("q_log_var", q_log_var, tuple(q_mean.shape), "q_mean")
    p_mean, p_var = _prior(q_mean, prior_mean, prior_var)
    heads = same_dtype(q_mean, q_log_var, p_mean, p_var)
    backend = _backend.select(*heads)
    z, q_var, kl = SampleAndKL.apply(backend, *heads, var_eps, latent_distribution == "ln")
    return z, heads[0], q_var, kl


def reparameterize(q_m: Tensor, q_v: Tensor) -> Tensor:
    """Sample ``q_m + sqrt(q_v) e``, e standard normal, q_v a variance; shapes broadcast.

    A variance of 0 gets the gradient 0, where the exact one is infinite; a negative one gives NaN.
    """
    shape = torch.broadcast_shapes(q_m.shape, q_v.shape)
    noise = torch.randn(shape, dtype=q_m.dtype, device=q_m.device)
    smallest = torch.finfo(q_m.dtype).tiny  # its root can be divided by
    return q_m + torch.where(q_v.abs() < smallest, smallest, q_v).sqrt() * noise


def kl_normal(
    q_m: Tensor, q_v: Tensor, p_m: Tensor | None = None, p_v: Tensor | None = None
) -> Tensor:
    """KL divergence of N(q_m, q_v) from N(p_m, p_v), summed over the last dimension.

    The second argument of each pair is a variance; the prior is standard normal where left out.
    Accurate also where the two nearly agree; at most 1e30. Raises InputError if shapes do not fit.
    """
    p_m, p_v = _prior(q_m, p_m, p_v)
    q_m, q_v, p_m, p_v = same_dtype(q_m, q_v, p_m, p_v)
    return KLNormal.apply(_backend.select(q_m, q_v), q_m, q_v.expand_as(q_m), p_m, p_v)


def _prior(q_m: Tensor, p_m: Tensor | None, p_v: Tensor | None) -> tuple[Tensor, Tensor]:
    zero = q_m.new_zeros(()) if p_m is None else p_m
    one = q_m.new_ones(()) if p_v is None else p_v
    return _check.expand("prior mean", zero, q_m), _check.expand("prior variance", one, q_m)


def count_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, log1p: bool = False
) -> Tensor:
    """Apply a linear layer to counts: ``[log1p](x) @ weight.T + bias``.

    With CSR `x` this is a weighted sum of columns of `weight`, or on a GPU a dense product of `x`
    where that is reckoned to be faster; `x` gets no gradient.

    Parameters
    ----------
    x : Tensor, (N, G)
        Counts, dense or CSR.
    weight : Tensor, (H, G)
    bias : Tensor, (H,), optional
    log1p : bool
        Take log(1 + x) first.

    Returns
    -------
    Tensor, (N, H)

    Raises
    ------
    InputError
        If the number of genes differs.
    """
    counts = _check.counts(x)
    if weight.dim() != 2 or weight.shape[1] != counts.shape[1]:
        raise _check.mismatch("weight", weight, ("H", counts.shape[1]), "x")
    if x.layout == torch.sparse_csr:
        _, _, crow, col, values = counts
        parts = counts.shape, crow, col, values
        return CountLinear.apply(_backend.select(values, weight), *parts, weight, bias, log1p)
    dense = x.to(weight.dtype)
    return F.linear(torch.log1p(dense) if log1p else dense, weight, bias)


def dense_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``, x (..., H) and weight (G, H) dense, by the fastest library here."""
    if torch.is_autocast_enabled(x.device.type):
        return F.linear(x, weight, bias)
    return _backend.select(weight).dense_linear(x, weight, bias)


def log_library_size(x: Tensor, floor: float = 1.0) -> Tensor:
    """Natural log of each cell's total count, (N, 1); a total below `floor` counts as that.

    The floor keeps a cell without counts finite; a total beyond the largest float32 (float64 where
    the counts are) counts as that. `x` is dense or CSR.
    """
    counts = _check.counts(x)
    plain = counts.values is None or counts.values.dtype != torch.float32
    total = (reference if plain else _backend.select(counts.values)).row_sums(counts)
    return total.clamp(floor, torch.finfo(total.dtype).max).log()
