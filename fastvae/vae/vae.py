"""The scVI variational autoencoder, with the interface of ``scvi.models.VAE`` (scvi 0.5-0.6.8).

Shapes: N cells, G genes (`n_input`), L = `n_latent`, S = `n_samples`, K = `n_batch`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from .. import functional
from .._covariates import CellCovariates, as_column
from ..errors import at_least, one_of
from ..functional.gather import CountLogs
from ..functional.likelihood import log_prob_of
from ..nn import DecoderSCVI, Encoder, LinearDecoderSCVI
from . import steps
from .arguments import as_dense, prior, refuse_non_counts, required
from .steps import (
    DISPERSIONS,
    LATENTS,
    LIKELIHOODS,
    check_input,
    covariates_of,
    decoder_covariates,
    decoder_input,
    draws,
    encoder_categories,
    encoder_columns,
    encoder_covariates,
    encoder_input,
    log_dispersion,
    observed_log_library,
)
from .stock import fused_forward_is_faithful, own_method, remember

__all__ = ["VAE"]


class VAE(nn.Module):
    r"""Variational autoencoder of raw counts: scVI.

    For cell n with counts :math:`x_n` and batch :math:`s_n`

    .. math::
        z_n \sim N(0, I), \quad \log l_n \sim N(m_{s_n}, v_{s_n}), \quad
        x_{ng} \sim \mathrm{ZINB}(l_n\, \mathrm{softmax}_g f(z_n, s_n),\ \theta_g,\ \pi_g(z_n, s_n))

    with normal posteriors of z and log l from two encoders. Takes the place of
    ``scvi.models.VAE`` of scvi 0.5-0.6.8: same arguments, methods, shapes, state dict, initial
    weights and random draws for the same seed. Counts `x` may be dense or ``torch.sparse_csr``.
    `forward` does not make the (N, G) rate; where a subclass or an instance replaces `inference`,
    `get_reconstruction_loss`, an encoder or the decoder, the replacement is used instead.

    Parameters
    ----------
    n_input
        Number of genes.
    n_batch
        Number of batches; the decoder is told the batch if there are two or more.
    n_labels
        Number of cell labels, used by ``dispersion="gene-label"``.
    n_hidden, n_latent, n_layers, dropout_rate
        Width of hidden layers, dimension of z, number of hidden layers of the z encoder and the
        decoder, dropout of the encoders.
    dispersion
        What the inverse dispersion theta depends on: ``"gene"``, ``"gene-batch"``,
        ``"gene-label"`` or ``"gene-cell"``.
    log_variational
        Whether the encoders see log(1 + x) instead of x.
    reconstruction_loss
        ``"zinb"``, ``"nb"`` or ``"poisson"``.
    latent_distribution
        ``"normal"``, or ``"ln"`` for a z on the simplex (softmax of a normal).
    use_observed_lib_size
        Take the observed total count as library size: the library encoder is not run and its KL
        divergence is 0.
    encode_covariates
        Tell the encoders the batch and the other covariates too, as the decoder is told: one-hot,
        at every layer. Then they have n_batch more columns in every linear layer, and need
        `batch_index`.
    n_cats_per_cov, n_continuous_cov
        Number of categories of each categorical covariate, and number of continuous covariates,
        that the decoder is told beside the batch. Categories are one-hot; continuous covariates
        follow z in the first layer, unscaled.
    use_size_factor_key
        Multiply expression by a given size factor of each cell, in the place of the library size.
        Expression is then a softplus of the decoder's logits and does not sum to 1; the library
        size is not learned.
    deeply_inject_covariates
        Tell categories to every layer, not to the first one alone.
    check_counts
        Whether to look for negative, NaN and infinite counts in each call. None: on the CPU only,
        since elsewhere the answer has to be waited for.

    Raises
    ------
    InputError
        An option is not known (a ``ValueError``).

    Notes
    -----
    The zero-inflation head is not run by `forward` for ``"nb"`` and ``"poisson"``, and the
    dispersion head only for ``"gene-cell"``; heads without use keep ``grad is None``.

    Examples
    --------
    >>> model = VAE(n_input=2000, n_batch=3)
    >>> reconstruction, kl, _ = model(x, local_l_mean, local_l_var, batch_index)
    >>> loss = torch.mean(reconstruction + kl_weight * kl)
    """

    # also of models that were pickled before there was a choice
    encode_covariates = False
    n_cats_per_cov: tuple[int, ...] = ()
    n_continuous_cov = 0
    use_size_factor_key = False
    frozen_parts: tuple[str, ...] = ()
    """Names of submodules that stay in evaluation mode whatever `train` is told."""

    def __init__(
        self,
        n_input: int,
        n_batch: int = 0,
        n_labels: int = 0,
        n_hidden: int = 128,
        n_latent: int = 10,
        n_layers: int = 1,
        dropout_rate: float = 0.1,
        dispersion: str = "gene",
        log_variational: bool = True,
        reconstruction_loss: str = "zinb",
        latent_distribution: str = "normal",
        *,
        use_observed_lib_size: bool = False,
        check_counts: bool | None = None,
        encode_covariates: bool = False,
        n_cats_per_cov: Sequence[int] | None = None,
        n_continuous_cov: int = 0,
        use_size_factor_key: bool = False,
        deeply_inject_covariates: bool = True,
    ) -> None:
        super().__init__()
        at_least(1, n_input=n_input, n_hidden=n_hidden, n_latent=n_latent)
        at_least(0, n_batch=n_batch, n_labels=n_labels, n_continuous_cov=n_continuous_cov)
        n_cats = tuple(n_cats_per_cov or ())
        for k, n_cat in enumerate(n_cats):
            at_least(0, **{f"n_cats_per_cov[{k}]": n_cat})
        one_of("dispersion", dispersion, DISPERSIONS)
        one_of("latent_distribution", latent_distribution, LATENTS)
        if type(self).forward is VAE.forward and self._expects_counts():
            one_of("reconstruction_loss", reconstruction_loss, LIKELIHOODS)
        self.dispersion = dispersion
        self.n_latent = n_latent
        self.log_variational = log_variational
        self.reconstruction_loss = reconstruction_loss
        self.n_batch = n_batch
        self.n_labels = n_labels
        self.latent_distribution = latent_distribution
        self.use_observed_lib_size = use_observed_lib_size or use_size_factor_key
        self.check_counts = check_counts
        self.encode_covariates = encode_covariates
        self.n_cats_per_cov = n_cats
        self.n_continuous_cov = n_continuous_cov
        self.use_size_factor_key = use_size_factor_key
        self._n_input = n_input

        # drawn first, then the modules in this order: the seed decides the same initial weights
        if dispersion != "gene-cell":
            columns = {"gene-batch": (n_batch,), "gene-label": (n_labels,)}.get(dispersion, ())
            self.px_r = nn.Parameter(torch.randn(n_input, *columns))
        cats = [n_batch, *n_cats]
        n_seen, told = (n_input + n_continuous_cov, cats) if encode_covariates else (n_input, None)
        deeply = deeply_inject_covariates
        self.z_encoder = Encoder(
            n_seen,
            n_latent,
            told,
            n_layers=n_layers,
            n_hidden=n_hidden,
            dropout_rate=dropout_rate,
            distribution=latent_distribution,
            inject_covariates=deeply,
        )
        self.l_encoder = Encoder(
            n_seen, 1, told, n_layers=1, n_hidden=n_hidden, dropout_rate=dropout_rate
        )
        self.decoder: DecoderSCVI | LinearDecoderSCVI = DecoderSCVI(
            n_latent + n_continuous_cov,
            n_input,
            n_cat_list=cats,
            n_layers=n_layers,
            n_hidden=n_hidden,
            inject_covariates=deeply,
            scale_activation="softplus" if use_size_factor_key else "softmax",
        )

    def train(self, mode: bool = True) -> Self:
        """Set the mode of every part, but leave `frozen_parts` in evaluation mode."""
        super().train(mode)
        for name in self.frozen_parts:
            self.get_submodule(name).eval()
        return self

    def inference(
        self,
        x: Tensor,
        batch_index: Tensor | None = None,
        y: Tensor | None = None,
        n_samples: int = 1,
        transform_batch: Any = None,
        *,
        cat_covs: Tensor | None = None,
        cont_covs: Tensor | None = None,
        size_factor: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Encode, draw z and the library size, decode.

        Parameters
        ----------
        x
            Counts (N, G).
        batch_index
            Batch codes 0..K-1, (N, 1) or (N,), or one-hot (N, K).
        y
            Label codes (N, 1) or (N,), needed for ``dispersion="gene-label"``.
        n_samples
            Number of draws S; above 1 they are made without gradient.
        transform_batch
            Decode as if every cell came from this batch (an int, or one code per cell). Other
            covariates stay those of the cell.
        cat_covs
            Codes of the categorical covariates, (N, C), a column for each.
        cont_covs
            Continuous covariates (N, P).
        size_factor
            Size factors (N, 1) or (N,), above 0; not their logarithms.

        Returns
        -------
        dict of str to Tensor
            px_scale, px_rate, px_dropout (N, G); px_r = theta, (G,) for ``"gene"`` and (N, G)
            otherwise; qz_m, qz_v, z (N, L); ql_m, ql_v, library (N, 1). With S > 1 all but px_r
            have a leading S, px_r only for ``"gene-cell"``. px_dropout are logits, library is a
            logarithm, qz_v and ql_v are variances. With the observed library size, ql_m is the
            library and ql_v is 0; with size factors, library is their logarithm.

        Raises
        ------
        InputError
            Wrong shapes, codes missing or out of range, covariates that are not finite, size
            factors not above 0, values that are no counts.
        """
        check_input(self, x, self._expects_counts())
        more = CellCovariates(cat_covs, cont_covs, size_factor)
        x_, covariates = encoder_input(self, x), covariates_of(self, x, batch_index, y, more)
        columns = encoder_columns(self, covariates, x_)
        qz_m, qz_v, z = self.z_encoder(x_, *encoder_covariates(self, covariates), **columns)
        if self.use_observed_lib_size:
            library = observed_log_library(self, x, covariates).to(qz_m.dtype)
            ql_m, ql_v = library, torch.zeros_like(library)
        else:
            told = encoder_categories(self, self.l_encoder, covariates)
            ql_m, ql_v, library = self.l_encoder(x_, *told, **columns)
        if n_samples > 1:
            z = self.z_encoder.z_transformation(draws(qz_m, qz_v, n_samples))
            library = draws(ql_m, ql_v, n_samples)
            qz_m, qz_v, ql_m, ql_v = (
                each.expand(n_samples, *each.shape) for each in (qz_m, qz_v, ql_m, ql_v)
            )

        covariates = covariates.decoded_as(transform_batch)
        px_scale, px_r, px_rate, px_dropout = self.decoder(
            self.dispersion,
            decoder_input(self, z, covariates),
            library,
            *decoder_covariates(self, covariates),
        )
        log_theta, codes = log_dispersion(self, px_r, covariates)
        theta = torch.exp(log_theta)
        return {
            "px_scale": px_scale,
            "px_r": theta if codes is None else theta.index_select(0, codes),
            "px_rate": px_rate,
            "px_dropout": px_dropout,
            "qz_m": qz_m,
            "qz_v": qz_v,
            "z": z,
            "ql_m": ql_m,
            "ql_v": ql_v,
            "library": library,
        }

    def forward(
        self,
        x: Tensor,
        local_l_mean: Tensor | None,
        local_l_var: Tensor | None,
        batch_index: Tensor | None = None,
        y: Tensor | None = None,
        *,
        logs: CountLogs | None = None,
        cat_covs: Tensor | None = None,
        cont_covs: Tensor | None = None,
        size_factor: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, float]:
        r"""Loss of each cell, in two parts.

        Parameters
        ----------
        x
            Counts (N, G).
        local_l_mean, local_l_var
            Mean and variance of the log library size in the cell's batch, (N, 1). Not used, and
            may be None, with the observed library size.
        batch_index, y
            As in :meth:`inference`.
        logs
            log(1 + x) and the logarithms of the totals, where they are known already; they are
            not computed again then, unless a part has been replaced that would.
        cat_covs, cont_covs, size_factor
            As in :meth:`inference`.

        Returns
        -------
        tuple
            :math:`-\log p(x|z, l) + KL(q(\log l)\|p(\log l))` (N,),
            :math:`KL(q(z)\|p(z))` (N,), and 0.0.

        Raises
        ------
        InputError
            As :meth:`inference`; or the prior of the library size is missing or malformed, or
            ``reconstruction_loss`` is not known.
        """
        more = CellCovariates(cat_covs, cont_covs, size_factor)
        if own_method(self, "inference") and self._expects_counts():
            one_of("reconstruction_loss", self.reconstruction_loss, LIKELIHOODS)
            if fused_forward_is_faithful(self):
                check_input(self, x, True)
                return steps.forward(self, x, local_l_mean, local_l_var, batch_index, y, logs, more)

        x = as_dense(x)
        # keywords for what is given alone: an override need not know them
        outputs = self.inference(x, as_column(batch_index), as_column(y), **more.given())
        loss = self.get_reconstruction_loss(
            x, outputs["px_rate"], outputs["px_r"], outputs["px_dropout"]
        )
        kl_z = functional.kl_normal(outputs["qz_m"], outputs["qz_v"])
        if self.use_observed_lib_size:
            return loss, kl_z, 0.0
        ql_m, ql_v = outputs["ql_m"], outputs["ql_v"]
        p_m, p_v = (
            prior(local_l_mean, "local_l_mean", ql_m),
            prior(local_l_var, "local_l_var", ql_m),
        )
        return loss + functional.kl_normal(ql_m, ql_v, p_m, p_v), kl_z, 0.0

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
        x = as_dense(x)
        refuse_non_counts(x, self.check_counts)
        if likelihood != "poisson":
            required("px_r", px_r, likelihood)
        if likelihood == "zinb":
            required("px_dropout", px_dropout, likelihood)
        return -log_prob_of(likelihood, x, px_rate, px_r, px_dropout).sum(dim=-1)

    def get_latents(
        self,
        x: Tensor,
        y: Tensor | None = None,
        *,
        batch_index: Tensor | None = None,
        cat_covs: Tensor | None = None,
        cont_covs: Tensor | None = None,
    ) -> list[Tensor]:
        """Return :meth:`sample_from_posterior_z` as the only element of a list."""
        # positional alone where that is all there is: an override need not know batch_index
        more: dict[str, Any] = {} if batch_index is None else {"batch_index": batch_index}
        more |= CellCovariates(cat_covs, cont_covs).given()
        return [self.sample_from_posterior_z(x, y, **more)]

    def sample_from_posterior_z(
        self,
        x: Tensor,
        y: Tensor | None = None,
        give_mean: bool = False,
        n_samples: int = 5000,
        *,
        batch_index: Tensor | None = None,
        cat_covs: Tensor | None = None,
        cont_covs: Tensor | None = None,
    ) -> Tensor:
        """Draw z, or give its posterior mean.

        Parameters
        ----------
        x
            Counts (N, G).
        y
            Labels, handed to the encoder; this class's own encoder ignores them.
        give_mean
            Return the mean. For ``latent_distribution="ln"`` it is the average of the softmax of
            `n_samples` draws, random and without gradient.
        n_samples
            Number of those draws.
        batch_index, cat_covs, cont_covs
            As in :meth:`inference`, needed with ``encode_covariates``.

        Returns
        -------
        Tensor
            (N, L).

        Raises
        ------
        InputError
            `x` has the wrong shape or is not made of counts.
        """
        check_input(self, x, self._expects_counts())
        more = CellCovariates(cat_covs, cont_covs)
        x_, covariates = encoder_input(self, x), covariates_of(self, x, batch_index, y, more)
        told, columns = encoder_covariates(self, covariates), encoder_columns(self, covariates, x_)
        qz_m, qz_v, z = self.z_encoder(x_, *told, **columns)
        if not give_mean:
            return z
        if self.latent_distribution != "ln":
            return qz_m
        return self.z_encoder.z_transformation(draws(qz_m, qz_v, n_samples)).mean(dim=0)

    def sample_from_posterior_l(
        self,
        x: Tensor,
        *,
        batch_index: Tensor | None = None,
        cat_covs: Tensor | None = None,
        cont_covs: Tensor | None = None,
    ) -> Tensor:
        """Draw the log library size (N, 1); that of the counts where it is not learned.

        The arguments are those of :meth:`sample_from_posterior_z`.
        """
        check_input(self, x, self._expects_counts())
        if self.use_observed_lib_size:
            return functional.log_library_size(x)
        more = CellCovariates(cat_covs, cont_covs)
        x_, covariates = encoder_input(self, x), covariates_of(self, x, batch_index, None, more)
        told = encoder_categories(self, self.l_encoder, covariates)
        return self.l_encoder(x_, *told, **encoder_columns(self, covariates, x_))[2]

    def get_sample_scale(
        self,
        x: Tensor,
        batch_index: Tensor | None = None,
        y: Tensor | None = None,
        n_samples: int = 1,
        transform_batch: Any = None,
        **covariates: Any,
    ) -> Tensor:
        """Expression frequencies (rows sum to 1) for a drawn z: ``inference(...)["px_scale"]``.

        Parameters
        ----------
        x, batch_index, y, n_samples, transform_batch
            As in :meth:`inference`.
        **covariates
            ``cat_covs``, ``cont_covs`` and ``size_factor``, as in :meth:`inference`.

        Returns
        -------
        Tensor
            (N, G), or (S, N, G) for `n_samples` > 1.
        """
        return self.inference(
            x,
            batch_index=batch_index,
            y=y,
            n_samples=n_samples,
            transform_batch=transform_batch,
            **covariates,
        )["px_scale"]

    def get_sample_rate(
        self,
        x: Tensor,
        batch_index: Tensor | None = None,
        y: Tensor | None = None,
        n_samples: int = 1,
        transform_batch: Any = None,
        **covariates: Any,
    ) -> Tensor:
        """Mean counts for a drawn z and library size: ``inference(...)["px_rate"]``.

        Parameters
        ----------
        x, batch_index, y, n_samples, transform_batch
            As in :meth:`inference`.
        **covariates
            ``cat_covs``, ``cont_covs`` and ``size_factor``, as in :meth:`inference`.

        Returns
        -------
        Tensor
            (N, G), or (S, N, G) for `n_samples` > 1.
        """
        return self.inference(
            x,
            batch_index=batch_index,
            y=y,
            n_samples=n_samples,
            transform_batch=transform_batch,
            **covariates,
        )["px_rate"]

    def _expects_counts(self) -> bool:
        return own_method(self, "get_reconstruction_loss")


remember(VAE)
