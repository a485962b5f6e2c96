"""Count distributions with the torch ``Distribution`` interface and scvi's argument names.

``log_prob`` goes through :mod:`fastvae.functional`, so it is fused and accurate where the
operations are. A (G,) `theta` broadcasts against (..., G) means.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.distributions import Poisson as _TorchPoisson

from . import functional as fn
from .errors import InputError

__all__ = ["NegativeBinomial", "Poisson", "ZeroInflatedNegativeBinomial"]

_LARGEST_RATE = 1e8  # a float32 Poisson draw above this is no longer a whole number


class NegativeBinomial(Distribution):
    r"""Negative binomial with mean `mu` and inverse dispersion `theta`.

    .. math::
        P(x) = \frac{\Gamma(x + \theta)}{\Gamma(\theta)\, x!}
               \left(\frac{\theta}{\theta + \mu}\right)^\theta
               \left(\frac{\mu}{\theta + \mu}\right)^x

    Parameters
    ----------
    total_count, probs, logits : Tensor, optional
        Alternative to `mu` and `theta`: number of failures, and probability or log-odds of a
        success; ``theta = total_count``, ``mu = total_count exp(logits)``.
    mu, theta : Tensor, optional
        Mean and inverse dispersion, both > 0, broadcast together.
    scale : Tensor, optional
        Normalised mean, kept as an attribute for callers that want it.
    validate_args : bool
        Check parameters (ValueError) and warn on values outside the support.

    Raises
    ------
    InputError
        If not exactly one of the two parameterisations is given.
    ValueError
        If a parameter is negative or NaN.
    """

    arg_constraints = {  # noqa: RUF012
        "mu": constraints.nonnegative,
        "theta": constraints.nonnegative,
    }
    support = constraints.nonnegative_integer

    def __init__(
        self,
        total_count: Tensor | None = None,
        probs: Tensor | None = None,
        logits: Tensor | None = None,
        mu: Tensor | None = None,
        theta: Tensor | None = None,
        scale: Tensor | None = None,
        validate_args: bool = True,
    ) -> None:
        mu, theta = _mean_and_dispersion(total_count, probs, logits, mu, theta)
        self._given = mu, theta
        self.mu, self.theta = torch.broadcast_tensors(mu, theta)
        self.scale = scale
        super().__init__(batch_shape=self.mu.shape, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """Mean, ``mu``."""
        return self.mu

    @property
    def variance(self) -> Tensor:
        """Variance, ``mu + mu^2 / theta``."""
        return self.mu + self.mu.square() / self.theta

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> NegativeBinomial:
        """Return the distribution with its parameters expanded."""
        shape = torch.Size(batch_shape)
        return type(self)(**self._expanded(shape), validate_args=False)

    def _expanded(self, shape: torch.Size) -> dict[str, Tensor]:
        return {"mu": self.mu.expand(shape), "theta": self.theta.expand(shape)}

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] | None = None) -> Tensor:
        """Draw counts: a Gamma rate, then a Poisson count."""
        shape = self._extended_shape(torch.Size(sample_shape or ()))
        theta = self.theta.expand(shape)
        # A gamma of mean 1 scaled by mu: theta / mu as a rate would overflow for small means.
        rate = torch.distributions.Gamma(theta, theta, validate_args=False).sample()
        return torch.poisson((rate * self.mu).clamp(max=_LARGEST_RATE))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability of each entry, in nats."""
        self._check_support(value)
        mu, theta = self._given
        return fn.nb_log_prob(value, mu, theta)

    def _check_support(self, value: Tensor) -> None:
        if self._validate_args and not bool(((value >= 0) & (value == value.floor())).all()):
            warnings.warn(
                "value has entries that are not whole counts >= 0; their log probability is that "
                "of the continuous extension (a negative one counts as 0)",
                UserWarning,
                stacklevel=3,
            )


class ZeroInflatedNegativeBinomial(NegativeBinomial):
    r"""Negative binomial with extra zeros of probability ``sigmoid(zi_logits)``.

    :math:`P(x) = \sigma(\pi) 1[x = 0] + \sigma(-\pi) \mathrm{NB}(x; \mu, \theta)`

    Parameters are those of :class:`NegativeBinomial` and

    zi_logits : Tensor
        Logits ``pi`` of the extra zero.
    """

    arg_constraints = {  # noqa: RUF012
        "mu": constraints.nonnegative,
        "theta": constraints.nonnegative,
        "zi_logits": constraints.real,
    }

    def __init__(
        self,
        total_count: Tensor | None = None,
        probs: Tensor | None = None,
        logits: Tensor | None = None,
        mu: Tensor | None = None,
        theta: Tensor | None = None,
        zi_logits: Tensor | None = None,
        scale: Tensor | None = None,
        validate_args: bool = True,
    ) -> None:
        if zi_logits is None:
            raise InputError("zi_logits is missing; give the logits of an extra zero")
        mu, theta = _mean_and_dispersion(total_count, probs, logits, mu, theta)
        mu_full, _, self.zi_logits = torch.broadcast_tensors(mu, theta, zi_logits)
        self._given_zi = zi_logits
        given = mu
        super().__init__(mu=mu_full, theta=theta, scale=scale, validate_args=validate_args)
        self._given = given, theta

    @property
    def zi_probs(self) -> Tensor:
        """Probability of an extra zero."""
        return torch.sigmoid(self.zi_logits)

    @property
    def mean(self) -> Tensor:
        """Mean, ``(1 - zi_probs) mu``."""
        return torch.sigmoid(-self.zi_logits) * self.mu

    @property
    def variance(self) -> Tensor:
        """Variance, ``(1 - zi_probs) mu (1 + mu / theta + zi_probs mu)``."""
        return self.mean * (1 + self.mu / self.theta + self.zi_probs * self.mu)

    def _expanded(self, shape: torch.Size) -> dict[str, Tensor]:
        return {**super()._expanded(shape), "zi_logits": self.zi_logits.expand(shape)}

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] | None = None) -> Tensor:
        """Draw counts, then set the extra zeros."""
        counts = super().sample(sample_shape)
        extra = torch.rand_like(counts) <= self.zi_probs
        return counts.masked_fill(extra, 0.0)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability of each entry, in nats."""
        self._check_support(value)
        mu, theta = self._given
        return fn.zinb_log_prob(value, mu, theta, self._given_zi)


class Poisson(_TorchPoisson):
    r"""Poisson with mean `rate`; ``log_prob`` keeps its digits at large counts.

    Parameters
    ----------
    rate : Tensor
        Mean, >= 0.
    scale : Tensor, optional
        Normalised mean, kept as an attribute for callers that want it.
    validate_args : bool, optional
        Check the rate and the support (ValueError).
    """

    def __init__(
        self, rate: Tensor, scale: Tensor | None = None, validate_args: bool | None = None
    ) -> None:
        super().__init__(rate, validate_args=validate_args)
        self.scale = scale

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability of each entry, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        return fn.poisson_log_prob(value, self.rate)


def _mean_and_dispersion(
    total_count: Tensor | None,
    probs: Tensor | None,
    logits: Tensor | None,
    mu: Tensor | None,
    theta: Tensor | None,
) -> tuple[Tensor, Tensor]:
    if (mu is None) == (total_count is None):
        raise InputError("give either mu and theta, or total_count with probs or logits")
    if mu is not None:
        if theta is None:
            raise InputError("theta is missing; give the inverse dispersion with mu")
        return torch.as_tensor(mu), torch.as_tensor(theta)
    theta = torch.as_tensor(total_count)
    if logits is not None and probs is None:
        return theta * torch.exp(logits), theta
    if probs is not None and logits is None:
        return theta * probs / (1 - probs), theta
    raise InputError("give exactly one of probs and logits with total_count")
