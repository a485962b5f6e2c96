"""The building blocks of the model: fully connected layers, encoder and decoders.

Names of submodules and parameters are those of ``scvi.models.modules`` in scvi 0.5-0.6.8, so a
state dict saved there loads here. Two things are added: the first layer takes sparse counts, and
encoders and decoders can stop at the numbers the fused likelihood starts from
(:meth:`Encoder.moments`, :meth:`DecoderSCVI.logits`).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ._vae.layers import FCLayers, dense, identity, one_hot, reparameterize_gaussian

__all__ = [
    "DecoderSCVI",
    "Encoder",
    "FCLayers",
    "LinearDecoderSCVI",
    "identity",
    "one_hot",
    "reparameterize_gaussian",
]

VARIANCE_FLOOR = 1e-4  # added to every encoder variance


class Encoder(nn.Module):
    """Network from expression to the mean and variance of a latent normal, and a sample of it.

    Parameters
    ----------
    n_input, n_output
        Number of genes and of latent dimensions.
    n_cat_list, n_layers, n_hidden, dropout_rate
        As in :class:`FCLayers`.
    distribution
        ``"normal"``, or ``"ln"`` for a sample mapped to the simplex by a softmax.
    """

    def __init__(
        self,
        n_input: int,
        n_output: int,
        n_cat_list: Iterable[int] | None = None,
        n_layers: int = 1,
        n_hidden: int = 128,
        dropout_rate: float = 0.1,
        distribution: str = "normal",
    ) -> None:
        super().__init__()
        self.distribution = distribution
        self.encoder = FCLayers(
            n_input, n_hidden, n_cat_list, n_layers, n_hidden, dropout_rate=dropout_rate
        )
        self.mean_encoder = nn.Linear(n_hidden, n_output)
        self.var_encoder = nn.Linear(n_hidden, n_output)
        self.z_transformation = nn.Softmax(dim=-1) if distribution == "ln" else identity

    def moments(self, x: Tensor, *cat_list: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and log-variance heads, both (N, n_output); the variance adds a floor of 1e-4."""
        hidden = self.encoder(x, *cat_list)
        return self.mean_encoder(hidden), self.var_encoder(hidden)

    def forward(self, x: Tensor, *cat_list: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Encode and draw one sample.

        Parameters
        ----------
        x
            (N, n_input), dense or ``torch.sparse_csr``, log-transformed by the caller if wanted.
        *cat_list
            Covariates as in :meth:`FCLayers.forward`; those beyond `n_cat_list` are ignored.

        Returns
        -------
        tuple of Tensor
            Mean m, variance v = exp(h) + 1e-4 and sample t(m + sqrt(v) e), each (N, n_output);
            t is a softmax for ``"ln"`` and nothing otherwise.
        """
        q_m, q_log_v = self.moments(x, *cat_list)
        q_v = torch.exp(q_log_v) + VARIANCE_FLOOR
        return q_m, q_v, self.z_transformation(reparameterize_gaussian(q_m, q_v))


class DecoderSCVI(nn.Module):
    """Network from latent space to the parameters of the count distribution.

    Parameters
    ----------
    n_input, n_output
        Number of latent dimensions and of genes.
    n_cat_list, n_layers, n_hidden
        As in :class:`FCLayers`; there is no dropout.
    """

    def __init__(
        self,
        n_input: int,
        n_output: int,
        n_cat_list: Iterable[int] | None = None,
        n_layers: int = 1,
        n_hidden: int = 128,
    ) -> None:
        super().__init__()
        self.px_decoder = FCLayers(
            n_input, n_hidden, n_cat_list, n_layers, n_hidden, dropout_rate=0
        )
        self.px_scale_decoder = nn.Sequential(nn.Linear(n_hidden, n_output), nn.Softmax(dim=-1))
        self.px_r_decoder = nn.Linear(n_hidden, n_output)
        self.px_dropout_decoder = nn.Linear(n_hidden, n_output)

    def logits(
        self, dispersion: str, z: Tensor, *cat_list: Tensor | None, zero_inflation: bool = True
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Decode without making the rate.

        Parameters
        ----------
        dispersion
            The log-dispersion head is run for ``"gene-cell"`` only.
        z
            (N, n_input) or (S, N, n_input).
        *cat_list
            Covariates as in :meth:`FCLayers.forward`.
        zero_inflation
            Whether to run the zero-inflation head.

        Returns
        -------
        tuple
            scale logits s (mean expression is exp(library) softmax(s)), log theta or None,
            zero-inflation logits or None; each (..., N, n_output).
        """
        hidden = self.px_decoder(z, *cat_list)
        return (
            dense(self.px_scale_decoder[0], hidden),
            dense(self.px_r_decoder, hidden) if dispersion == "gene-cell" else None,
            dense(self.px_dropout_decoder, hidden) if zero_inflation else None,
        )

    def forward(
        self, dispersion: str, z: Tensor, library: Tensor, *cat_list: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """Decode to the distribution's parameters.

        Parameters
        ----------
        dispersion, z, *cat_list
            As in :meth:`logits`.
        library
            Log library size, (N, 1) or (S, N, 1).

        Returns
        -------
        tuple
            px_scale = softmax(s), px_r = log theta or None, px_rate = exp(library) px_scale,
            px_dropout = zero-inflation logits.
        """
        hidden = self.px_decoder(z, *cat_list)
        px_scale = self.px_scale_decoder(hidden)
        px_dropout = self.px_dropout_decoder(hidden)
        px_r = self.px_r_decoder(hidden) if dispersion == "gene-cell" else None
        return px_scale, px_r, torch.exp(library) * px_scale, px_dropout


class LinearDecoderSCVI(nn.Module):
    """Decoder of one linear layer per output, so that latent dimensions have gene loadings.

    Parameters
    ----------
    n_input, n_output
        Number of latent dimensions and of genes.
    n_cat_list
        Number of categories of each covariate.
    use_batch_norm, bias
        Parts of the linear layer.
    """

    def __init__(
        self,
        n_input: int,
        n_output: int,
        n_cat_list: Iterable[int] | None = None,
        use_batch_norm: bool = True,
        bias: bool = False,
    ) -> None:
        super().__init__()
        n_cats = None if n_cat_list is None else list(n_cat_list)

        def linear() -> FCLayers:
            return FCLayers(
                n_input,
                n_output,
                n_cats,
                use_batch_norm=use_batch_norm,
                use_relu=False,
                bias=bias,
                dropout_rate=0,
            )

        self.factor_regressor = linear()
        self.px_dropout_decoder = linear()

    def logits(
        self, dispersion: str, z: Tensor, *cat_list: Tensor | None, zero_inflation: bool = True
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Decode without making the rate, as in :meth:`DecoderSCVI.logits`; log theta is None."""
        zi_logits = self.px_dropout_decoder(z, *cat_list) if zero_inflation else None
        return self.factor_regressor(z, *cat_list), None, zi_logits

    def forward(
        self, dispersion: str, z: Tensor, library: Tensor, *cat_list: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """Decode to the distribution's parameters, as in :meth:`DecoderSCVI.forward`."""
        px_scale = torch.softmax(self.factor_regressor(z, *cat_list), dim=-1)
        px_dropout = self.px_dropout_decoder(z, *cat_list)
        return px_scale, None, torch.exp(library) * px_scale, px_dropout
