"""The linearly decoded variational autoencoder, as ``scvi.models.LDVAE`` (scvi 0.6)."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import nn

from ..nn import Encoder, LinearDecoderSCVI
from .vae import VAE

__all__ = ["LDVAE"]


class LDVAE(VAE):
    """scVI with a linear decoder, whose weights are gene loadings of each latent dimension.

    Parameters
    ----------
    n_input, n_batch, n_labels, n_hidden, n_latent, dropout_rate, log_variational, reconstruction_loss, latent_distribution, use_observed_lib_size, check_counts
        As in :class:`VAE`; `n_hidden` and `dropout_rate` are the encoders'.
    n_layers_encoder
        Number of hidden layers of the z encoder.
    dispersion
        As in :class:`VAE` but not ``"gene-cell"``: a linear decoder has no dispersion head.
    use_batch_norm, bias
        Whether the linear decoder has batch normalisation, and a bias.

    Raises
    ------
    InputError
        An option is not known (a ``ValueError``).

    Notes
    -----
    The zero-inflation head has batch normalisation of its own; for ``"nb"`` and ``"poisson"``
    `forward` does not run that head, so its running statistics stay where they are.
    """  # noqa: E501

    def __init__(
        self,
        n_input: int,
        n_batch: int = 0,
        n_labels: int = 0,
        n_hidden: int = 128,
        n_latent: int = 10,
        n_layers_encoder: int = 1,
        dropout_rate: float = 0.1,
        dispersion: str = "gene",
        log_variational: bool = True,
        reconstruction_loss: str = "nb",
        use_batch_norm: bool = True,
        bias: bool = False,
        latent_distribution: str = "normal",
        *,
        use_observed_lib_size: bool = False,
        check_counts: bool | None = None,
    ) -> None:
        super().__init__(
            n_input,
            n_batch,
            n_labels,
            n_hidden,
            n_latent,
            n_layers_encoder,
            dropout_rate,
            dispersion,
            log_variational,
            reconstruction_loss,
            latent_distribution,
            use_observed_lib_size=use_observed_lib_size,
            check_counts=check_counts,
        )
        self.use_batch_norm = use_batch_norm
        # drawn a second time, as in scvi: the seed decides the same initial weights
        self.z_encoder = Encoder(
            n_input,
            n_latent,
            n_layers=n_layers_encoder,
            n_hidden=n_hidden,
            dropout_rate=dropout_rate,
            distribution=latent_distribution,
        )
        self.decoder = LinearDecoderSCVI(
            n_latent, n_input, n_cat_list=[n_batch], use_batch_norm=use_batch_norm, bias=bias
        )

    @torch.no_grad()
    def get_loadings(self) -> np.ndarray:
        """Weight of each latent dimension for each gene.

        With batch normalisation the weights are those of the whole affine map in evaluation mode,
        W scaled by gamma / sqrt(running variance + eps) of each gene.

        Returns
        -------
        numpy.ndarray
            (G, L); columns of the batches are left out.
        """
        layers = cast(LinearDecoderSCVI, self.decoder).factor_regressor
        block = cast(nn.Sequential, layers.fc_layers[0])
        loadings = cast(nn.Linear, block[0]).weight
        if self.use_batch_norm:
            batch_norm = cast(Any, block[1])
            scale = batch_norm.weight / torch.sqrt(batch_norm.running_var + batch_norm.eps)
            loadings = scale.unsqueeze(1) * loadings
        return loadings[:, : loadings.shape[1] - sum(layers.n_cat_list)].cpu().numpy()
