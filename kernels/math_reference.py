"""Accurate elementwise pieces of the count likelihoods, in torch.

All of them hold the input dtype (float32 or float64) and avoid the differences of large
numbers that the textbook form is made of; README.md beside this file derives them.
Symbols: ``u = log mu - log theta``, ``rho = theta / (theta + mu)``, ``v = mu / (theta + mu)``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

LOG_THETA_MAX = 60.0  # |log theta| beyond this is clamped: mu/theta keeps its digits in float32
LOG_MU_MAX = 60.0  # log mu above this is clamped; there is no lower bound
COUNT_MAX = 1e30  # finite counts above this are clamped
COUNT_MIN = 1e-30  # fractional counts below this are raised to it; log p is continuous at 0
RESULT_MAX = 1e30  # results beyond this are clamped, so that sums of them stay finite
VARIANCE_MIN, VARIANCE_MAX = 1e-30, 1e36  # variances outside are clamped where they are divided by
SMALL_COUNT = 8  # whole counts up to here use a product, others the saddle-point form

_STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360)
_DIGAMMA = (-1 / 12, 1 / 120, -1 / 252, 1 / 240, -1 / 132, 691 / 32760)


class _Depth(NamedTuple):
    """How far each series is taken for one dtype."""

    atanh: int  # terms of the atanh series for |s| <= 1/3
    quarter: int  # and for |s| <= 1/7
    shift: int  # asymptotic series are used from here on
    asymptotic: int  # their number of terms


def _depth(dtype: torch.dtype) -> _Depth:
    return _Depth(17, 9, 16, 6) if dtype == torch.float64 else _Depth(8, 4, 4, 3)


def saturate(t: Tensor) -> Tensor:
    """A result within +-RESULT_MAX; NaN stays NaN."""
    return t.clamp(-RESULT_MAX, RESULT_MAX)


def bounded_count(x: Tensor) -> Tensor:
    """A positive count within its bound; an infinite one is none and gives NaN."""
    return torch.where(x == math.inf, math.nan, x.clamp(max=COUNT_MAX))


def bounded_variance(v: Tensor) -> Tensor:
    """A variance that can be divided by; a negative one gives NaN."""
    return torch.where(v < 0, math.nan, v.clamp(VARIANCE_MIN, VARIANCE_MAX))


def softplus(t: Tensor) -> Tensor:
    """log(1 + exp(t)); past 40 the tail is below rounding in float64 as well."""
    return F.softplus(t, threshold=40.0)


def _horner(coefficients: tuple[float, ...], y: Tensor) -> Tensor:
    total = torch.full_like(y, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        total = torch.addcmul(y.new_tensor(c), total, y)
    return total


def log1pmx_series(t: Tensor, *, quarter: bool = False) -> Tensor:
    """log(1 + t) - t for |t| <= 1/2 (or 1/4), without cancellation (atanh series)."""
    s = t / (2 + t)
    depth = _depth(t.dtype)
    terms = depth.quarter if quarter else depth.atanh
    y = s * s
    series = _horner(tuple(1 / (2 * k + 3) for k in range(terms)), y)
    return s * (2 * y * series - t)


def _log_shift(z: Tensor, log_z: Tensor, k: int) -> Tensor:
    """log((z + k) / z), also where 1/z would overflow."""
    return torch.where(z < 1, torch.log(z + k) - log_z, torch.log1p(k / z))


def stirling_error(z: Tensor, log_z: Tensor) -> Tensor:
    """lgamma(z + 1) - [(z + 1/2) log z - z + log(2 pi)/2] for z > 0, given log z."""
    depth = _depth(z.dtype)
    k = depth.shift
    far = z >= k
    w = torch.where(far, z, z + k)
    series = _horner(_STIRLING[: depth.asymptotic], 1 / (w * w)) / w
    near = torch.where(far, 1, z)  # keeps the unused branch finite
    ratio = torch.ones_like(z)
    for j in range(1, k):
        ratio = ratio * ((near + j) / (near + k))
    shifted = (near + 0.5) * _log_shift(near, log_z, k) - k - torch.log(ratio)
    return torch.where(far, series, series + shifted)


def z_digamma_minus_log(z: Tensor, log_z: Tensor) -> Tensor:
    """z (digamma(z) - log z) for z > 0, given log z: -1 at z -> 0, -1/2 at infinity."""
    depth = _depth(z.dtype)
    k = depth.shift
    far = z >= k
    w = torch.where(far, z, z + k)
    y = 1 / (w * w)
    w_phi = -0.5 + w * y * _horner(_DIGAMMA[: depth.asymptotic], y)
    near = torch.where(far, 1, z)
    recurrence = near * (w_phi / w + _log_shift(near, log_z, k)) - 1
    for j in range(1, k):
        recurrence = recurrence - near / (near + j)
    return torch.where(far, w_phi, recurrence)


class PoissonPieces(NamedTuple):
    """Parameters of Poisson entries."""

    log_mu: Tensor
    mu: Tensor


class NBPieces(NamedTuple):
    """Parameters of negative-binomial entries; those of theta may be one row for all cells."""

    log_mu: Tensor
    mu_given: Tensor | None  # where the mean itself was the input
    log_theta: Tensor
    theta: Tensor
    u: Tensor
    softplus_u: Tensor  # log(1 + mu/theta)

    @property
    def mu(self) -> Tensor:
        """The mean."""
        return torch.exp(self.log_mu) if self.mu_given is None else self.mu_given


def nb_pieces(log_mu: Tensor, mu: Tensor | None, log_theta: Tensor, theta: Tensor) -> NBPieces:
    """Add what value and gradients share."""
    u = log_mu - log_theta
    return NBPieces(log_mu, mu, log_theta, theta, u, softplus(u))


def nb_zero(p: NBPieces) -> Tensor:
    """log NB(0) = -theta softplus(u)."""
    return -(p.theta * p.softplus_u)


def nb_zero_dispersion_grad(p: NBPieces) -> Tensor:
    """-d log NB(0) / d log theta = theta (softplus(u) - v) >= 0."""
    v = torch.sigmoid(p.u)
    # log1p(-v) = -softplus(u), so the bracket is -log1pmx(-v).
    series = -log1pmx_series(v.clamp(max=0.25).neg_(), quarter=True)
    return p.theta * torch.where(v < 0.25, series, p.softplus_u - v)


def is_small(x: Tensor) -> Tensor:
    """Whole counts that take the product form."""
    return (x <= SMALL_COUNT) & (x == torch.floor(x))


def log_factorial_small(x: Tensor) -> Tensor:
    """log x! for whole x <= SMALL_COUNT."""
    product = torch.ones_like(x)
    for i in range(2, SMALL_COUNT + 1):
        product = product * torch.where(x >= i, i, 1)
    return torch.log(product)


def nb_small(x: Tensor, p: NBPieces) -> Tensor:
    """log NB(x) for whole 1 <= x <= SMALL_COUNT."""
    big = p.theta >= 1
    start, step = torch.where(big, 1, p.theta), torch.where(big, 1 / p.theta.clamp(min=1), 1)
    product = torch.ones_like(p.u)
    for i in range(1, SMALL_COUNT):
        factor = torch.add(start, step, alpha=i) / (i + 1)
        product = product * torch.where(x > i, factor, 1)
    # x log(mu theta / (mu + theta)), or x log(mu / (mu + theta)) + log theta
    tail = softplus(-p.u.abs())
    shared = torch.where(
        big,
        x * (torch.minimum(p.log_mu, p.log_theta) - tail),
        x * (p.u.clamp(max=0) - tail) + p.log_theta,
    )
    return shared - p.theta * p.softplus_u + torch.log(product)


def nb_small_dispersion_grad(x: Tensor, p: NBPieces) -> Tensor:
    """-d log NB(x) / d log theta for whole 1 <= x <= SMALL_COUNT."""
    q = torch.zeros_like(p.u)
    for i in range(1, SMALL_COUNT):
        q = q + torch.where(x > i, i / (p.theta + i), 0)
    return q - x * torch.sigmoid(p.u) + nb_zero_dispersion_grad(p)


def _saddle_theta(x: Tensor, p: NBPieces) -> tuple[Tensor, Tensor, Tensor]:
    """theta [log(1 + d) - d] with d = (x - mu)/(theta + mu); then 1 + d and its log."""
    mu = p.mu
    total = p.theta + mu
    d = (x - mu) / total
    ratio = (p.theta + x) / total
    # 1 + d loses digits near d = -1, the quotient does not; both may leave float32's range.
    log_ratio = torch.where(d > -0.5, torch.log1p(d), torch.log(ratio))
    apart = torch.log(p.theta + x) - torch.log(total)
    log_ratio = torch.where((ratio > 1e-30) & (ratio < 1e30), log_ratio, apart)
    far = p.theta * log_ratio - (p.theta / total) * (x - mu)
    near = p.theta * log1pmx_series(d.clamp(-0.5, 0.5))
    return torch.where(d.abs() <= 0.5, near, far), ratio, log_ratio


def _saddle_fit(
    x: Tensor, excess: Tensor, p: PoissonPieces | NBPieces, ratio: Tensor, log_ratio: Tensor
) -> Tensor:
    """x [log(1 + fit) - fit] where fit = excess/x and 1 + fit = ratio mu/x, the fitted mean over x.

    `excess` is the fitted mean less x.
    """
    mu = p.mu
    fit = excess / x  # infinite where x is tiny
    quotient = (mu / x) * ratio
    safe = (mu > 1e-30 * x) & (quotient > 1e-30) & (quotient < 1e30) & (ratio < 1e30)
    quotient = torch.log(torch.where(safe, quotient, 1))
    log_fit = torch.where(safe, quotient, p.log_mu - torch.log(x) + log_ratio)
    log_fit = torch.where((fit > -0.5) & (fit < 1e30), torch.log1p(fit), log_fit)
    near = log1pmx_series(fit.clamp(-0.5, 0.5))
    return torch.where(fit.abs() <= 0.5, x * near, x * log_fit - excess)


def nb_saddle(x: Tensor, p: NBPieces) -> Tensor:
    """log NB(x) for any x > 0 by Loader's saddle-point form."""
    x = x.clamp(min=COUNT_MIN)
    n = x + p.theta
    log_n = torch.log(n)
    theta_term, *ratios = _saddle_theta(x, p)
    mu = p.mu
    excess = (p.theta / (p.theta + mu)) * (mu - x)
    log_n_over_theta = torch.where(
        p.theta > x, torch.log1p(x / p.theta.clamp(min=1e-30)), log_n - p.log_theta
    )
    stirling = stirling_error(n, log_n) - stirling_error(p.theta, p.log_theta)
    return (
        -0.5 * (torch.log(2 * math.pi * x) + log_n_over_theta)
        + (stirling - stirling_error(x, torch.log(x)))
        + theta_term
        + _saddle_fit(x, excess, p, *ratios)
    )


def nb_saddle_dispersion_grad(x: Tensor, p: NBPieces) -> Tensor:
    """-d log NB(x) / d log theta for any x > 0."""
    x = x.clamp(min=COUNT_MIN)
    n = x + p.theta
    at_theta = z_digamma_minus_log(p.theta, p.log_theta)
    at_n = z_digamma_minus_log(n, torch.log(n))
    return at_theta - (p.theta / n) * at_n - _saddle_theta(x, p)[0]


def poisson_small(x: Tensor, p: PoissonPieces) -> Tensor:
    """log Poisson(x) for whole 1 <= x <= SMALL_COUNT."""
    return x * p.log_mu - p.mu - log_factorial_small(x)


def poisson_saddle(x: Tensor, p: PoissonPieces) -> Tensor:
    """log Poisson(x) for any x > 0 by Loader's saddle-point form."""
    x = x.clamp(min=COUNT_MIN)
    half = -0.5 * torch.log(2 * math.pi * x) - stirling_error(x, torch.log(x))
    return half + _saddle_fit(x, p.mu - x, p, torch.ones_like(x), torch.zeros_like(x))


def zero_inflate(log_p0: Tensor, zi_logits: Tensor) -> Tensor:
    """log[sigmoid(pi) + sigmoid(-pi) p0] = softplus(log p0 - pi) - softplus(-pi)."""
    b = log_p0 - zi_logits
    # The larger parts are subtracted exactly; only the log1p tails are rounded.
    linear = torch.where(b > 0, log_p0, zi_logits.clamp(max=0))
    return linear + (softplus(b.abs().neg_()) - softplus(zi_logits.abs().neg_()))
