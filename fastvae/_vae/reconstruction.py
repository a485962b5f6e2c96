"""The loss of counts at parameters that are already there."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .. import functional
from ..errors import one_of
from .inputs import check_counts as refuse_non_counts
from .inputs import dense, required
from .parts import LIKELIHOODS


class ReconstructionLoss(nn.Module):
    """What ``VAE`` makes of the output of its ``inference``."""

    reconstruction_loss: str
    check_counts: bool | None

    def get_reconstruction_loss(
        self,
        x: Tensor,
        px_rate: Tensor,
        px_r: Tensor | None,
        px_dropout: Tensor | None,
        **kwargs: Any,
    ) -> Tensor:
        """Negative log-likelihood of each cell, summed over genes.

        Parameters
        ----------
        x
            Counts (N, G).
        px_rate
            Mean, (N, G) or (S, N, G).
        px_r
            Inverse dispersion theta, (G,) or as `px_rate`; unused for ``"poisson"``.
        px_dropout
            Zero-inflation logits as `px_rate`; used for ``"zinb"`` only.
        **kwargs
            Ignored.

        Returns
        -------
        Tensor
            (N,) or (S, N), newly made.

        Raises
        ------
        InputError
            ``reconstruction_loss`` is not known, or `x` is not made of counts.
        """
        likelihood = self.reconstruction_loss
        one_of("reconstruction_loss", likelihood, LIKELIHOODS)
        x = dense(x)
        refuse_non_counts(x, self.check_counts)
        if likelihood == "poisson":
            return -functional.poisson_log_prob(x, px_rate).sum(dim=-1)
        theta = required("px_r", px_r, likelihood)
        if likelihood == "nb":
            return -functional.nb_log_prob(x, px_rate, theta).sum(dim=-1)
        zi_logits = required("px_dropout", px_dropout, likelihood)
        return -functional.zinb_log_prob(x, px_rate, theta, zi_logits).sum(dim=-1)
