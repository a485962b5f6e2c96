"""The likelihoods at 50 digits.

`mpmath` evaluates the textbook formulas as they stand; 50 digits leave nothing to cancel.
"""

from __future__ import annotations

import functools
import itertools

import mpmath as mp
import numpy as np

mp.mp.dps = 50

X = [0, 1, 2, 3, 5, 8, 9, 20, 100, 1e3, 1e4, 1e5, 0.5, 1.5, 7.25, 9.5, 1234.5]
THETA = [1e-4, 1e-2, 0.3, 1.0, 3.0, 10.0, 1e2, 1e3, 1e4, 1e5, 1e6, 1e8]
MU = [1e-8, 1e-4, 1e-2, 0.3, 1.0, 3.0, 8.5, 20.0, 100.0, 1e3, 1.01e4, 1e5, 1e6]
PI = [-30.0, -8.0, -1.0, 0.0, 0.7, 5.0, 30.0]


def nb(x, log_mu, r):
    """log NB, its gradients by log mu and r, and its curvature by log mu."""
    mu, theta = mp.exp(log_mu), mp.exp(r)
    u = log_mu - r
    softplus = mp.log1p(mp.exp(u))
    value = (
        -(x + theta) * softplus
        + x * u
        + mp.loggamma(x + theta)
        - mp.loggamma(theta)
        - mp.loggamma(x + 1)
    )
    d_mu = theta * (x - mu) / (theta + mu)
    d_r = theta * (mp.digamma(x + theta) - mp.digamma(theta) - softplus - (x - mu) / (theta + mu))
    return value, d_mu, d_r, theta * mu * (theta + x) / (theta + mu) ** 2


def zinb(x, log_mu, r, pi):
    """log ZINB, its gradients by log mu, r and pi, and its curvature by log mu."""
    value, d_mu, d_r, curvature = nb(x, log_mu, r)
    log_not = -mp.log1p(mp.exp(pi))
    sigmoid = 1 / (1 + mp.exp(-pi))
    if x > 0:
        return value + log_not, d_mu, d_r, -sigmoid, curvature
    both = sigmoid + (1 - sigmoid) * mp.exp(value)
    w = (1 - sigmoid) * mp.exp(value) / both
    curvature = abs(w * curvature - w * (1 - w) * d_mu**2)
    return mp.log(both), w * d_mu, w * d_r, (1 - sigmoid) - w, curvature


def poisson(x, log_mu):
    """log Poisson, its gradient by log mu, and its curvature by log mu."""
    mu = mp.exp(log_mu)
    return x * log_mu - mu - mp.loggamma(x + 1), x - mu, mu


FAMILIES = {
    "poisson": (poisson, (X, MU), ["log_p", "log_mu", "curvature"]),
    "nb": (nb, (X, MU, THETA), ["log_p", "log_mu", "log_theta", "curvature"]),
    "zinb": (zinb, (X, MU, THETA, PI), ["log_p", "log_mu", "log_theta", "zi_logits", "curvature"]),
}


@functools.cache
def grid(family: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The accuracy grid of a family: float32 inputs, and what is exact for them in float64.

    Inputs are x, log_mu and, where the family has them, log_theta and zi_logits; outputs are
    log_p, the gradients of log_p under the inputs' names, and curvature = |d2 log_p/d log_mu2|.
    """
    function, axes, outputs = FAMILIES[family]
    inputs = ["x", "log_mu", "log_theta", "zi_logits"][: len(axes)]
    x, mu, *rest = axes
    logs = [x, np.log(mu), *map(np.log, rest[:1]), *rest[1:]]
    points = np.array(list(itertools.product(*logs)), dtype=np.float32)
    exact = [[float(v) for v in function(*map(mp.mpf, map(float, p)))] for p in points]
    columns = np.array(exact, dtype=np.float64).T
    return dict(zip(inputs, points.T, strict=True)), dict(zip(outputs, columns, strict=True))
