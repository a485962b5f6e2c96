"""-log p of one count and its gradients: the device functions every likelihood kernel calls.

`entry` is branch-free and complete for counts of 0 and 1. Whole counts up to 7 add the logarithm
of a product, and the others take Loader's saddle-point form. README.md derives all of it.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .. import constants_gpu as constants
from .. import math_gpu as sp


def family_of(theta: Tensor | None, zi_logits: Tensor | None) -> str:
    """Which family these parameters belong to."""
    return "poisson" if theta is None else "nb" if zi_logits is None else "zinb"


@triton.jit
def saturate(x):
    """A result within its bounds, -RESULT_MAX and RESULT_MAX of the reference; NaN stays."""
    return sp.at_most(sp.at_least(x, -1e30), 1e30)


@triton.jit
def bounded_count(x):
    """A count within its bounds in float32: a negative one counts as zero. NaN stays."""
    if x.dtype.is_floating():
        return sp.at_most(sp.at_least(x.to(tl.float32), 0.0), 1e30)  # COUNT_MAX
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
    if FAMILY == "poisson":
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
    x = tl.where(is_large(x), sp.at_least(x, 1e-30), 9.0)  # COUNT_MIN
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
def saddle_nll(x, given, log_mu, r, theta, FAMILY: tl.constexpr):
    """-log NB(x), or Poisson, where `is_large`; anything elsewhere."""
    return -saddle_log_prob(large_count(x, given), log_mu, saddle_mean(log_mu), r, theta, FAMILY)


@triton.jit
def small_nll(x, r, theta, FAMILY: tl.constexpr):
    """What a whole count from 2 to 7 adds to the -log p of `entry`."""
    if FAMILY == "poisson":
        return -sp.log_short(small_product(x, tl.zeros_like(x) + 1.0, tl.zeros_like(x)))  # 1/x!
    # theta^(1 - x) is apart where theta < 1: it might overflow
    step = sp.rcp_approx(tl.maximum(theta, 1.0))
    product = small_product(x, tl.minimum(theta, 1.0), step)
    return tl.fma(x - 1.0, tl.minimum(r, 0.0), -sp.log_short(product))


@triton.jit
def negative_binomial(x, log2_mu, log2_theta, smaller):
    """-log NB(x) at 0 and less what it is at x; gradients by log mu and log theta.

    All of it comes from the smaller one of mu and theta, which keeps its digits where the two
    differ: -log NB(0) = mu log1p(e)/e with e = mu/theta < 1, and theta (u + log1p(e)) with
    e = theta/mu. Binary logarithms need no product before the exponential of their difference.
    """
    u = log2_mu - log2_theta
    more = u > 0.0
    e = sp.exp2_minus_abs(u)
    inverse = sp.rcp_approx(1.0 + e)
    factor = tl.where(more, e, 1.0)
    share = sp.log1p_less_share(e)
    quotient = tl.fma(e, share, inverse)  # log1p(e)/e
    # over 1 or e, as smaller is
    softplus = tl.fma(factor, quotient, tl.maximum(u, 0.0) * constants.LN2)
    less_share = tl.where(more, softplus - inverse, e * share)  # softplus(u) - v, likewise
    below = tl.fma(sp.at_most(log2_mu, log2_theta), constants.LN2, -(e * quotient))
    part = factor * x  # over 1 + e it is rho x
    by_log_mu = (smaller - part) * inverse
    by_log_theta = tl.fma(smaller, less_share, tl.fma(part, inverse, -x))
    return smaller * softplus, x * below, by_log_mu, by_log_theta


@triton.jit
def entry(x, large, log2_mu, log2_theta, smaller, pi, FAMILY: tl.constexpr):
    """-log p(x), and its gradients by log mu, log theta and pi, but for the gamma function's part.

    That is `small_nll` and `small_harmonic` for whole counts from 2 to 7. Where `large`, the first
    lacks `saddle_nll` and the gradient by log theta is unfinished. `smaller` is the smaller one of
    mu and theta, mu without theta. NaN in any parameter reaches all.
    """
    positive = (x <= 0.0) == 0  # also a NaN
    if FAMILY == "poisson":
        nll = smaller - tl.where(positive, x * (log2_mu * constants.LN2), 0.0)
        return tl.where(large, 0.0, nll), smaller - x, smaller, smaller
    at_zero, less, by_log_mu, by_r = negative_binomial(x, log2_mu, log2_theta, smaller)
    at_x = tl.where(large, 0.0, at_zero - less)
    if FAMILY == "nb":
        return tl.where(positive, at_x, at_zero), by_log_mu, by_r, at_zero
    c = tl.where(positive, -float("inf"), at_zero + pi)
    ec = sp.exp_minus(tl.abs(c))
    ep = sp.exp_minus(tl.abs(pi))
    p = 1.0 + ep
    inverse = sp.rcp_approx(1.0 + ec)
    w = tl.where(c < 0.0, 1.0, ec) * inverse  # P(the zero is the NB's); 1 where x is positive
    no = tl.where(pi > 0.0, ep, 1.0) * sp.rcp_approx(p)  # sigmoid(-pi)
    at_x += sp.at_least(pi, 0.0)
    linear = tl.where(positive, at_x, sp.at_most(at_zero, sp.at_least(-pi, 0.0)))
    nll = tl.fma(sp.log2_approx(p * inverse), constants.LN2, linear)
    return nll, w * by_log_mu, w * by_r, w - no
