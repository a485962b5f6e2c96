"""-log p of one count and its gradients: the device functions every likelihood kernel calls.

Counts that are whole and at most 7 take a product, the others Loader's saddle-point form, which
is evaluated only for tiles that hold such a count. README.md derives all of it.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from . import special as sp

POISSON = tl.constexpr(0)
NB = tl.constexpr(1)
ZINB = tl.constexpr(2)
LOG_THETA_MAX = tl.constexpr(87.0)
LOG_MU_MAX = tl.constexpr(80.0)


def family_of(theta: Tensor | None, zi_logits: Tensor | None) -> int:
    """Which family these parameters belong to."""
    family = POISSON if theta is None else NB if zi_logits is None else ZINB
    return int(family.value)


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
    huge = d > 1e30
    one_plus = tl.where(d > -0.5, 1.0 + d, ratio)
    log_ratio = tl.where(
        huge, sp.log(theta + x) - sp.log(total), sp.log(tl.where(huge, 1.0, one_plus))
    )
    far = theta * log_ratio - theta * inverse * (x - mu)
    near = theta * sp.log1pmx_near(tl.minimum(tl.maximum(d, -0.5), 0.5))
    return tl.where(tl.abs(d) <= 0.5, near, far), ratio, log_ratio


@triton.jit
def saddle_fit(x, fit, log_mu, mu, ratio, log_ratio):
    """x [log(1 + fit) - fit] where 1 + fit = ratio mu / x is the fitted mean over x."""
    safe = (mu > 1e-30 * x) & (ratio < 1e30)
    quotient = sp.log(tl.where(safe, mu * sp.rcp_approx(x) * ratio, 1.0))
    log_fit = tl.where(safe, quotient, log_mu - sp.log(x) + log_ratio)
    near = sp.log1pmx_near(tl.minimum(tl.maximum(fit, -0.5), 0.5))
    return x * tl.where(tl.abs(fit) <= 0.5, near, log_fit - fit)


@triton.jit
def saddle_log_prob(x, log_mu, mu, r, theta, FAMILY: tl.constexpr):
    """log p(x) for x > 0 by Loader's saddle-point form."""
    log_x = sp.log(x)
    half = -0.5 * (log_x + 1.8378770664093453) - sp.stirling_error(x, log_x)
    inverse_x = sp.rcp_approx(x)
    if FAMILY == POISSON:
        fit = (mu - x) * inverse_x
        return half + saddle_fit(x, fit, log_mu, mu, 1.0 + 0.0 * x, 0.0 * x)
    n = x + theta
    log_n = sp.log(n)
    theta_term, ratio, log_ratio = saddle_theta(x, mu, theta)
    fit = theta * sp.rcp_approx(theta + mu) * ((mu - x) * inverse_x)
    more = theta > x
    quotient = tl.where(more, x * sp.rcp_approx(tl.maximum(theta, 1e-30)), 0.0)
    log_n_over_theta = tl.where(more, sp.log1p_unit(quotient), log_n - r)
    stirling = sp.stirling_error(n, log_n) - sp.stirling_error(theta, r)
    fitted = saddle_fit(x, fit, log_mu, mu, ratio, log_ratio)
    return half - 0.5 * log_n_over_theta + stirling + theta_term + fitted


@triton.jit
def saddle_dispersion_grad(x, log_mu, r, theta):
    """-d log NB(x) / d log theta where `is_large`; anything finite elsewhere."""
    x = tl.where(is_large(x), x, 9.0)
    mu = sp.exp_accurate(log_mu)
    n = x + theta
    at_theta = sp.z_digamma_minus_log(theta, r)
    at_n = sp.z_digamma_minus_log(n, sp.log(n))
    theta_term, _, _ = saddle_theta(x, mu, theta)
    return at_theta - theta * sp.rcp_approx(n) * at_n - theta_term


@triton.jit
def saddle_nll(x, log_mu, r, theta, pi, FAMILY: tl.constexpr):
    """-log p(x) where `is_large`; anything finite elsewhere."""
    y = tl.where(is_large(x), x, 9.0)
    nll = -saddle_log_prob(y, log_mu, sp.exp_accurate(log_mu), r, theta, FAMILY)
    if FAMILY == ZINB:
        nll += tl.maximum(pi, 0.0) + sp.log1p_unit(sp.exp_minus(tl.abs(pi)))
    return nll


@triton.jit
def entry_nll(x, log_mu, r, theta, pi, FAMILY: tl.constexpr):
    """-log p(x) and its gradient by log mu; the former unfinished where `is_large`."""
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
    above = tl.maximum(pi, 0.0)
    linear = tl.where(positive, nll - shared + above, tl.where(c < 0.0, nll, above - pi))
    return linear + sp.log_short((1.0 + sp.exp_minus(tl.abs(pi))) * inverse), d


@triton.jit
def entry_grads(x, log_mu, r, theta, pi, FAMILY: tl.constexpr, WANT_THETA: tl.constexpr):
    """Gradients of -log p(x) by log mu, r and pi; by r unfinished where `is_large`."""
    mu = sp.exp(log_mu)
    if FAMILY == POISSON:
        return mu - x, mu, mu
    positive = x > 0.0
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
    scale = tl.where(positive, 1.0, w)
    return scale * d_mu, scale * d_theta, tl.where(positive, yes, w - no)
