"""Reparameterised samples and the KL divergence of normals."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import one_of
from ..kernels.latent.function import KLNormal, SampleAndKL
from ..kernels.parameters import same_dtype
from . import arguments as _check
from . import dispatch as _backend


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
    p_mean = p_var = None
    if prior_mean is not None or prior_var is not None:
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
    smallest = torch.finfo(q_m.dtype).tiny  # its square root is not 0
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
