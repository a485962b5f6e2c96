"""The distributions that scvi-tools' modules return, computed by fastvae's operations."""

from __future__ import annotations

from typing import Any, cast

import scvi.distributions
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from ... import functional
from .._counts_from_logits import LazyCounts


class Posterior(Normal):
    """A normal posterior that knows its KL divergence from the standard normal prior.

    Attributes
    ----------
    kl : Tensor, (N,)
        In nats.
    variance_given : Tensor, (N, L)
        The encoder's variance.
    """

    kl: Tensor
    variance_given: Tensor

    @classmethod
    def of(cls, mean: Tensor, variance: Tensor, kl: Tensor) -> Posterior:
        """Make one of what ``sample_and_kl`` returns."""
        q = cls(mean, variance.sqrt(), validate_args=False)
        q.kl, q.variance_given = kl, variance
        return q


class StandardNormal(Normal):
    """The prior of the latent space."""

    @classmethod
    def like(cls, z: Tensor) -> StandardNormal:
        """Return the prior in the shape of `z`."""
        return cls(torch.zeros_like(z), torch.ones_like(z), validate_args=False)


def kl_latent(q: Normal, p: Normal) -> Tensor:
    """KL divergence of each cell's latent posterior, (N,) or (S, N) as `p` is, for any normals."""
    if isinstance(q, Posterior) and hasattr(q, "kl") and isinstance(p, StandardNormal):
        return q.kl.expand(p.loc.shape[:-1])
    return kl_divergence(q, p).sum(dim=-1)


def kl_library(q: Normal, p: Normal) -> Tensor:
    """KL divergence of each cell's log library size (N,)."""
    if isinstance(q, Posterior) and hasattr(q, "variance_given"):
        return functional.kl_normal(q.loc, q.variance_given, p.loc, p.scale.square())
    return kl_divergence(q, p).sum(dim=1)


class _Counts(LazyCounts):
    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability of each entry, in nats.

        On the CPU, scvi-tools' code computes it: fastvae has no faster kernel for single entries.
        """
        if value.is_cuda:
            return super().log_prob(value)
        self.touch()
        behind = cast(Any, super(LazyCounts, self))
        return behind.log_prob(value if value.layout == torch.strided else value.to_dense())


class ZeroInflatedNegativeBinomial(_Counts, scvi.distributions.ZeroInflatedNegativeBinomial):
    """``scvi.distributions.ZeroInflatedNegativeBinomial``, made from logits."""

    parameters = ("mu", "theta", "zi_logits")


class NegativeBinomial(_Counts, scvi.distributions.NegativeBinomial):
    """``scvi.distributions.NegativeBinomial``, made from logits."""

    parameters = ("mu", "theta")


class Poisson(_Counts, scvi.distributions.Poisson):
    """``scvi.distributions.Poisson``, made from logits."""

    parameters = ("rate",)


LIKELIHOODS: dict[str, type[LazyCounts]] = {
    "zinb": ZeroInflatedNegativeBinomial,
    "nb": NegativeBinomial,
    "poisson": Poisson,
}
