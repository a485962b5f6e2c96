"""-log p of one count and its gradients: the device functions every likelihood kernel calls.

Counts that are whole and at most 7 take a product, the others Loader's saddle-point form, which
is evaluated only for tiles that hold such a count. README.md derives all of it.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .. import math_gpu as sp

POISSON = tl.constexpr(0)
NB = tl.constexpr(1)
ZINB = tl.constexpr(2)
LOG_THETA_MAX = tl.constexpr(60.0)
LOG_MU_MAX = tl.constexpr(60.0)
COUNT_MAX = tl.constexpr(1e30)
COUNT_MIN = tl.constexpr(1e-30)
RESULT_MAX = tl.constexpr(1e30)


def family_of(theta: Tensor | None, zi_logits: Tensor | None) -> int:
    """Which family these parameters belong to."""
    family = POISSON if theta is None else NB if zi_logits is None else ZINB
    return int(family.value)


@triton.jit
def saturate(x):
    """A result within its bounds; NaN stays."""
    return sp.at_most(sp.at_least(x, -RESULT_MAX), RESULT_MAX)


@triton.jit
def bounded_count(x):
    """A count within its bounds in float32: a negative one counts as zero. NaN stays."""
    if x.dtype.is_floating():
        return sp.at_most(sp.at_least(x.to(tl.float32), 0.0), COUNT_MAX)
    x = x.to(tl.float32)
    return tl.maximum(x, 0.0)  # no whole number is beyond the upper bound


@triton.jit
def is_large(x):
    """Counts that take the saddle-point form."""
    return (x > 7.0) | (x != (x + 12582912.0) - 12582912.0)  # 1.5 2^23 rounds to whole


@triton.jit
def small_product(x, start, step):
    """prod_{1<=i<x} (start + i step)/(i + 1) for whole x <= 7."""
    rest = start - step
    product = tl.where(x > 1.0, tl.fma(rest, 0.5, step), 1.0)
    for i in tl.static_range(2, 7):
        product = sp.times_where_above(product, tl.fma(rest, 1.0 / (i + 1), step), x, i)
    return product


@triton.jit
def small_harmonic(x, theta):
    """sum_{1<=i<x} i/(theta + i), for whole x <= 7."""
    total = tl.where(x > 1.0, sp.rcp_approx(theta + 1.0), 0.0)
    for i in tl.static_range(2, 7):
        total = sp.plus_where_above(total, i * sp.rcp_approx(theta + i), x, i)
    return total


@triton.jit
def saddle_theta(x, mu, theta):
    """theta [log(1 + d) - d] with d = (x - mu)/(theta + mu); then 1 + d and its log."""
    total = theta + mu
    inverse = sp.rcp_approx(total)
    d = (x - mu) * inverse
    ratio = (theta + x) * inverse
    in_range = (ratio > 1e-30) & (ratio < 1e30)
    one_plus = tl.where(d > -0.5, 1.0 + d, ratio)
    log_ratio = tl.where(in_range, sp.log(one_plus), sp.log(theta + x) - sp.log(total))
    far = theta * log_ratio - theta * inverse * (x - mu)
    near = theta * sp.log1pmx_near(tl.minimum(tl.maximum(d, -0.5), 0.5))  # NaN takes the other
    return tl.where(tl.abs(d) <= 0.5, near, far), ratio, log_ratio


@triton.jit
def saddle_fit(x, excess, log_mu, mu, ratio, log_ratio):
    """x [log(1 + fit) - fit] where fit = excess/x and 1 + fit = ratio mu/x, the fitted mean over x.

    `excess` is the fitted mean less x.
    """
    inverse = sp.rcp_approx(x)
    fit = excess * inverse  # infinite where x is tiny
    one_plus = mu * inverse * ratio
    safe = (mu > 1e-30 * x) & (one_plus > 1e-30) & (one_plus < 1e30) & (ratio < 1e30)
    quotient = sp.log(tl.where(safe, one_plus, 1.0))
    log_fit = tl.where(safe, quotient, log_mu - sp.log(x) + log_ratio)
    near = sp.log1pmx_near(tl.minimum(tl.maximum(fit, -0.5), 0.5))
    return tl.where(tl.abs(fit) <= 0.5, x * near, x * log_fit - excess)


@triton.jit
def saddle_log_prob(x, log_mu, mu, r, theta, FAMILY: tl.constexpr):
    """log p(x) for x > 0 by Loader's saddle-point form."""
    log_x = sp.log(x)
    half = -0.5 * (log_x + 1.8378770664093453) - sp.stirling_error(x, log_x)
    if FAMILY == POISSON:
        return half + saddle_fit(x, mu - x, log_mu, mu, 1.0 + 0.0 * x, 0.0 * x)
    n = x + theta
    log_n = sp.log(n)
    theta_term, ratio, log_ratio = saddle_theta(x, mu, theta)
    excess = theta * sp.rcp_approx(theta + mu) * (mu - x)
    more = theta > x
    quotient = tl.where(more, x * sp.rcp_approx(tl.maximum(theta, 1e-30)), 0.0)
    log_n_over_theta = tl.where(more, sp.log1p_unit(quotient), log_n - r)
    stirling = sp.stirling_error(n, log_n) - sp.stirling_error(theta, r)
    fitted = saddle_fit(x, excess, log_mu, mu, ratio, log_ratio)
    return half - 0.5 * log_n_over_theta + stirling + theta_term + fitted


@triton.jit
def large_count(x, given):
    """The count where `is_large`, 9 elsewhere; NaN where the one given is infinite or NaN."""
    x = tl.where(is_large(x), sp.at_least(x, COUNT_MIN), 9.0)
    return tl.where(tl.abs(given.to(tl.float32)) < float("inf"), x, float("nan"))


@triton.jit
def saddle_mean(log_mu):
    """The mean, 0 where log mu is -inf."""
    return sp.exp_accurate(sp.at_least(log_mu, -200.0))


@triton.jit
def saddle_dispersion_grad(x, given, log_mu, r, theta):
    """-d log NB(x) / d log theta where `is_large`; anything elsewhere."""
    x = large_count(x, given)
    mu = saddle_mean(log_mu)
    n = x + theta
    at_theta = sp.z_digamma_minus_log(theta, r)
    at_n = sp.z_digamma_minus_log(n, sp.log(n))
    theta_term, _, _ = saddle_theta(x, mu, theta)
    return at_theta - theta * sp.rcp_approx(n) * at_n - theta_term


@triton.jit
def saddle_nll(x, given, log_mu, r, theta, pi, FAMILY: tl.constexpr):
    """-log p(x) where `is_large`; anything elsewhere."""
    y = large_count(x, given)
    nll = -saddle_log_prob(y, log_mu, saddle_mean(log_mu), r, theta, FAMILY)
    if FAMILY == ZINB:
        nll += sp.at_least(pi, 0.0) + sp.log1p_unit(sp.exp_minus(tl.abs(pi)))
    return nll


@triton.jit
def entry_nll(x, log_mu, r, theta, pi, FAMILY: tl.constexpr):
    """-log p(x) and its gradient by log mu; the former unfinished where `is_large`.

    NaN in any parameter reaches both: through a tail where a maximum drops it.
    """
    positive = x > 0.0
    if FAMILY == POISSON:
        mu = sp.exp(log_mu)
        factorial = small_product(x, tl.zeros_like(x) + 1.0, tl.zeros_like(x))  # 1/x!
        return mu - tl.where(positive, x * log_mu + sp.log_short(factorial), 0.0), mu - x
    u = log_mu - r
    e = sp.exp_minus(tl.abs(u))
    tail = sp.log1p_unit(e)
    nll = theta * (tl.maximum(u, 0.0) + tail)
    # theta >= 1 and theta < 1 want different parts of theta^-x in the product
    step = sp.rcp_approx(tl.maximum(theta, 1.0))
    product = small_product(x, tl.minimum(theta, 1.0), step)
    shared = x * (tl.minimum(u, 0.0) + tl.maximum(r, 0.0) - tail) + tl.minimum(r, 0.0)
    rho = tl.where(u > 0.0, e, 1.0) * sp.rcp_approx(1.0 + e)
    d = rho * (sp.exp(log_mu) - x)
    if FAMILY == NB:
        return nll - tl.where(positive, shared + sp.log_short(product), 0.0), d
    c = nll + pi
    ec = sp.exp_minus(tl.abs(c))
    # one reciprocal and one logarithm serve the product where x > 0, and log1p(e^-|c|) and
    # w = sigmoid(-c) elsewhere
    inverse = sp.rcp_approx(tl.where(positive, product, 1.0 + ec))
    w = tl.where(c < 0.0, 1.0, ec) * inverse
    d = tl.where(positive, d, w * d)
    above = sp.at_least(pi, 0.0)
    linear = tl.where(positive, nll - shared + above, sp.at_most(nll, sp.at_least(-pi, 0.0)))
    return linear + sp.log_short((1.0 + sp.exp_minus(tl.abs(pi))) * inverse), d


@triton.jit
def entry_grads(x, log_mu, r, theta, pi, FAMILY: tl.constexpr, WANT_THETA: tl.constexpr):
    """Gradients of -log p(x) by log mu, r and pi; by r unfinished where `is_large`."""
    mu = sp.exp(log_mu)
    if FAMILY == POISSON:
        return mu - x, mu, mu
    zero = x <= 0.0  # a NaN is none
    u = log_mu - r
    e = sp.exp_minus(tl.abs(u))
    inverse = sp.rcp_approx(1.0 + e)
    rho = tl.where(u > 0.0, e, 1.0) * inverse
    d_mu = rho * (mu - x)
    softplus = tl.maximum(u, 0.0) + sp.log1p_unit(e)
    d_theta = mu
    if WANT_THETA:
        v = tl.where(u > 0.0, 1.0, e) * inverse
        near = -sp.log1pmx_near(-tl.minimum(v, 0.5))
        d_theta = theta * tl.where(v < 0.5, near, softplus - v)
        d_theta += small_harmonic(x, theta) - x * v
    if FAMILY == NB:
        return d_mu, d_theta, mu
    c = theta * softplus + pi
    ec = sp.exp_minus(tl.abs(c))
    w = tl.where(c < 0.0, 1.0, ec) * sp.rcp_approx(1.0 + ec)
    ep = sp.exp_minus(tl.abs(pi))
    inverse = sp.rcp_approx(1.0 + ep)
    no = tl.where(pi > 0.0, ep, 1.0) * inverse  # sigmoid(-pi)
    yes = tl.where(pi > 0.0, 1.0, ep) * inverse
    scale = tl.where(zero, w, 1.0)
    return scale * d_mu, scale * d_theta, tl.where(zero, w - no, yes)
