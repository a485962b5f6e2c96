"""`SemiSupervisedVAE`: scANVI, a VAE that is told the labels of some cells and learns to give them.

Shapes: N cells, G genes, L = `n_latent`, C = `n_labels`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import functional
from .._covariates import NO_COVARIATES, CellCovariates
from .._torch import evaluating
from ..errors import InputError, at_least, one_of
from ..functional.gather import CountLogs
from ..nn import VARIANCE_FLOOR, Encoder, FCLayers
from .steps import (
    LIKELIHOODS,
    check_input,
    covariates_of,
    drawn_library,
    encoder_columns,
    encoder_covariates,
    encoder_input,
    negative_log_likelihood,
)
from .vae import VAE

LOG_VARIANCE_BOUND = 80.0
"""Largest size of a logarithm of a variance, beyond which its exponential leaves float32."""

ROWS_AT_ONCE = 1 << 16
"""Latent positions that are classified together."""


class LabelledCells(NamedTuple):
    """Cells with known labels, for the loss of the classifier: what `VAE.forward` takes of them.

    Attributes
    ----------
    x
        Counts (M, G).
    y
        Label codes 0..C-1, (M, 1).
    batch_index
        Batch codes (M, 1).
    covariates
        Covariates beside the batch.
    """

    x: Tensor
    y: Tensor
    batch_index: Tensor | None = None
    covariates: CellCovariates = NO_COVARIATES


class Classifier(nn.Module):
    """Network from latent positions to the logits of labels.

    Parameters
    ----------
    n_latent, n_labels
        Number of latent dimensions and of labels.
    n_layers, n_hidden, dropout_rate
        Of the hidden layers; without layers the logits are linear.
    """

    def __init__(
        self, n_latent: int, n_labels: int, n_layers: int, n_hidden: int, dropout_rate: float
    ) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        if n_layers > 0:
            layers = FCLayers(
                n_latent, n_hidden, None, n_layers, n_hidden, dropout_rate=dropout_rate
            )
            parts.append(layers)
        parts.append(nn.Linear(n_hidden if n_layers > 0 else n_latent, n_labels))
        self.classifier = nn.Sequential(*parts)

    def forward(self, z: Tensor) -> Tensor:
        """Return logits (N, C) for positions (N, L)."""
        logits: Tensor = self.classifier(z)
        return logits


class LatentDecoder(nn.Module):
    """Network from a position z2 and a label to mean and log-variance of p(z1 | z2, y).

    Parameters
    ----------
    n_latent, n_labels
        Number of latent dimensions, of z2 as of z1, and of labels.
    n_layers, n_hidden
        Of the hidden layers, which have no dropout.
    """

    def __init__(self, n_latent: int, n_labels: int, n_layers: int, n_hidden: int) -> None:
        super().__init__()
        self.decoder = FCLayers(
            n_latent, n_hidden, [n_labels], n_layers, n_hidden, dropout_rate=0.0
        )
        self.mean_decoder = nn.Linear(n_hidden, n_latent)
        self.var_decoder = nn.Linear(n_hidden, n_latent)

    def forward(self, z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance, (N, L) each, for z2 (N, L) and one-hot labels (N, C)."""
        hidden = self.decoder(z, labels)
        return self.mean_decoder(hidden), self.var_decoder(hidden)


class SemiSupervisedVAE(VAE):
    r"""scVI with a prior that depends on the label, and a classifier of labels: scANVI.

    The position z1 of cell n, which the decoder decodes, comes from its label y and a second
    latent variable,

    .. math::
        y_n \sim \mathrm{Cat}(1 / C), \quad z^2_n \sim N(0, I), \quad
        z^1_n \sim N(\mu(z^2_n, y_n), \sigma^2(z^2_n, y_n)) ,

    with posteriors q(z1 | x), q(z2 | z1, y) and q(y | z1), the classifier. The bound is that of
    cells without labels for all cells, a mean over labels by q(y | z1); labels that are known come
    in by the cross-entropy of the classifier (Xu et al. 2021, as scvi-tools has it since 1.0).
    Names and shapes of all weights are those of ``scvi.module.SCANVAE``.

    Parameters
    ----------
    n_input
        Number of genes.
    n_labels
        Number of labels, at least 2; cells without a label have none of them.
    linear_classifier
        Whether the classifier is one linear layer.
    **options
        As in :class:`VAE`, except ``n_labels``.

    Raises
    ------
    InputError
        Fewer than two labels; ``dispersion="gene-label"``, which needs the label of every cell; or
        ``latent_distribution="ln"``, whose density has no closed form.
    """

    def __init__(
        self, n_input: int, *, n_labels: int, linear_classifier: bool = False, **options: Any
    ) -> None:
        at_least(2, n_labels=n_labels)
        check_options(options)
        super().__init__(n_input, **options)
        n_latent, n_layers = self.n_latent, options.get("n_layers", 1)
        n_hidden, rate = options.get("n_hidden", 128), options.get("dropout_rate", 0.1)
        self.n_labels = n_labels
        self.classifier = Classifier(
            n_latent, n_labels, 0 if linear_classifier else n_layers, n_hidden, rate
        )
        self.encoder_z2_z1 = Encoder(
            n_latent, n_latent, [n_labels], n_layers, n_hidden, dropout_rate=rate
        )
        self.encoder_z2_z1.encoder.of_counts = False
        self.decoder_z1_z2 = LatentDecoder(n_latent, n_labels, n_layers, n_hidden)
        self.y_prior = nn.Parameter(torch.full((1, n_labels), 1.0 / n_labels), requires_grad=False)

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        local_l_mean: Tensor | None,
        local_l_var: Tensor | None,
        batch_index: Tensor | None = None,
        y: Tensor | None = None,
        *,
        logs: CountLogs | None = None,
        labelled: LabelledCells | None = None,
        cat_covs: Tensor | None = None,
        cont_covs: Tensor | None = None,
        size_factor: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | float]:
        r"""Loss of each cell in two parts, and that of the classifier.

        Parameters
        ----------
        x, local_l_mean, local_l_var, batch_index, logs, cat_covs, cont_covs, size_factor
            As in :meth:`VAE.forward`.
        y
            Not read: each cell counts as one without a label.
        labelled
            Cells with labels, which may be among those of `x`.

        Returns
        -------
        tuple
            :math:`-\log p(x|z^1, l) + \log q(z^1|x) - E_y \log p(z^1|z^2, y)` (N,), the divergences
            :math:`E_y KL(q(z^2|z^1, y)\|p(z^2)) + KL(q(y|z^1)\|p(y)) + KL(q(\log l)\|p(\log l))`
            (N,), all at one draw of z1, of l and of z2 for each label; and the mean cross-entropy
            of the labelled cells, 0.0 without any.

        Raises
        ------
        InputError
            As :meth:`VAE.forward`.
        """
        one_of("reconstruction_loss", self.reconstruction_loss, LIKELIHOODS)
        check_input(self, x, True)
        more = CellCovariates(cat_covs, cont_covs, size_factor)
        x_ = encoder_input(self, x, logs)
        covariates = covariates_of(self, x, batch_index, y, more)
        columns = encoder_columns(self, covariates, x_)
        heads = self.z_encoder.moments(x_, *encoder_covariates(self, covariates), **columns)
        z, q_m, q_v, _ = functional.sample_and_kl(*heads, var_eps=VARIANCE_FLOOR)
        local_l = local_l_mean, local_l_var
        library, kl_l = drawn_library(self, x, x_, covariates, columns, local_l, logs)
        z = z.to(x_.dtype)
        nll = negative_log_likelihood(self, x, z, library.to(z.dtype), covariates)
        difference, kl = self.prior_terms(z, q_m, q_v)
        kl = kl if kl_l is None else kl + kl_l
        return nll + difference, kl, 0.0 if labelled is None else self.cross_entropy(labelled)

    def prior_terms(
        self, z: Tensor, q_m: Tensor, q_v: Tensor, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What the prior of z1 costs each cell.

        Parameters
        ----------
        z, q_m, q_v
            A draw of z1, and mean and variance of the posterior that it comes from, (N, L).
        noise
            Standard normal numbers (N, C, L) that z2 is drawn with; None draws them.

        Returns
        -------
        tuple of Tensor
            log q(z1 | x) - E_y log p(z1 | z2, y), and E_y KL(q(z2 | z1, y) || p(z2)) +
            KL(q(y | z1) || p(y)); (N,) each.
        """
        n_cells, n_labels = len(z), self.n_labels
        labels = torch.eye(n_labels, dtype=z.dtype, device=z.device)
        labels = labels.repeat_interleave(n_cells, dim=0)
        z1 = z.repeat(n_labels, 1)
        heads = self.encoder_z2_z1.moments(z1, labels)
        z2, m2, v2, kl_z2 = functional.sample_and_kl(*heads, var_eps=VARIANCE_FLOOR)
        if noise is not None:
            z2 = m2 + v2.sqrt() * noise.transpose(0, 1).flatten(0, 1)
        p_m, p_log_v = self.decoder_z1_z2(z2.to(z.dtype), labels)
        log_p = normal_log_density(z1, p_m, p_log_v).view(n_labels, n_cells).t()
        log_y = torch.log_softmax(self.classifier(z), dim=-1)
        probabilities = log_y.exp()
        difference = normal_log_density(z, q_m, q_v.log()) - (probabilities * log_p).sum(-1)
        kl_y = (probabilities * (log_y - self.y_prior.log())).sum(-1)
        kl = (probabilities * kl_z2.view(n_labels, n_cells).t()).sum(-1) + kl_y
        return difference, kl

    def cross_entropy(self, labelled: LabelledCells) -> Tensor:
        """Mean cross-entropy, 0-d, of the classifier at the posterior means of cells with labels.

        Raises
        ------
        InputError
            As :meth:`VAE.forward`; or label codes are out of range.
        """
        x, more = labelled.x, labelled.covariates
        check_input(self, x, True)
        x_ = encoder_input(self, x)
        covariates = covariates_of(self, x, labelled.batch_index, labelled.y, more)
        columns = encoder_columns(self, covariates, x_)
        q_m, _ = self.z_encoder.moments(x_, *encoder_covariates(self, covariates), **columns)
        codes = covariates.labels.index(self.n_labels)
        return nn.functional.cross_entropy(self.classifier(q_m.to(x_.dtype)), codes)

    def label_probabilities(self, z: Tensor) -> Tensor:
        """Probability of each label, (N, C) on the CPU, at positions z1 (N, L) on any device."""
        with evaluating(self):
            parts = [
                torch.softmax(self.classifier(some.to(self.y_prior.device)), dim=-1).cpu()
                for some in z.split(ROWS_AT_ONCE)
            ]
        return torch.cat(parts)


def check_options(options: Mapping[str, Any]) -> None:
    """Raise where an option of `VAE` does not go with labels of some cells.

    Raises
    ------
    InputError
        ``dispersion="gene-label"``, or ``latent_distribution="ln"``.
    """
    for name, refused in (("dispersion", "gene-label"), ("latent_distribution", "ln")):
        if options.get(name) == refused:
            raise InputError(
                f"{name}={refused!r} does not go with unlabeled_category, the training with "
                "labels of some cells; leave out one of them"
            )


def normal_log_density(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Log density of a normal with a diagonal covariance, summed over the last dimension."""
    log_variance = log_variance.clamp(-LOG_VARIANCE_BOUND, LOG_VARIANCE_BOUND)
    squares = (x - mean).square() * torch.exp(-log_variance)
    return -0.5 * (squares + log_variance + math.log(2.0 * math.pi)).sum(dim=-1)
