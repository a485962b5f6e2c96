"""The gradients of a stock VAE, written out: what a training step needs, without autograd.

The operations, their order and their random draws are those of ``VAE.forward`` and of autograd's
way back; sums may differ in their last bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from ..errors import one_of
from ..functional.derivatives import (
    BatchNorm,
    CountLinear,
    Counts,
    Heads,
    Latent,
    Layer,
    Layers,
    Linear,
    Parameter,
    Passed,
    Sample,
    log_library_size,
    ordered_counts,
)
from ..functional.gather import CountLogs
from ..nn import VARIANCE_FLOOR, DecoderSCVI, Encoder, FCLayers, identity, refuse_one_cell
from .arguments import prior
from .steps import (
    LIKELIHOODS,
    check_input,
    covariates_of,
    log_dispersion,
)

if TYPE_CHECKING:
    from .vae import VAE


class StockGradients:
    """Loss and gradients of a minibatch, for a VAE of which nothing has been replaced.

    Whether that is so `stock.stock_throughout` answers. The gradients of the parameters are
    written anew at each call, to memory that stays the same.

    Parameters
    ----------
    model
        In training mode.
    """

    def __init__(self, model: VAE) -> None:
        one_of("reconstruction_loss", model.reconstruction_loss, LIKELIHOODS)
        self._model = model
        self._of_z = _EncoderGradients(model.z_encoder, model._n_input)
        self._of_library = (
            None
            if model.use_observed_lib_size
            else _EncoderGradients(model.l_encoder, model._n_input)
        )
        decoder = cast(DecoderSCVI, model.decoder)
        self._decoder = _hidden_layers(decoder.px_decoder)
        self._told = decoder.px_decoder.n_cat_list[0]
        likelihood = model.reconstruction_loss
        of_cell = model.dispersion == "gene-cell" and likelihood != "poisson"
        self._heads = Heads(
            _linear(cast(nn.Linear, decoder.px_scale_decoder[0])),
            _linear(decoder.px_dropout_decoder) if likelihood == "zinb" else None,
            _linear(decoder.px_r_decoder) if of_cell else None,
        )
        self._table = None
        if likelihood != "poisson" and not of_cell:
            self._table = Parameter.of(model.px_r)
        parts = [self._of_z, self._of_library, self._decoder, self._heads]
        self._parameters = [p for part in parts if part is not None for p in part.parameters]
        if self._table is not None:
            self._parameters.append(self._table)
        self._means: dict[tuple[int, float, torch.dtype], Tensor] = {}
        networks = [model.z_encoder, decoder.px_decoder]
        networks += [] if self._of_library is None else [model.l_encoder]
        self._batches_seen = [
            cast(Tensor, norm.num_batches_tracked)
            for network in networks
            for norm in network.modules()
            if isinstance(norm, nn.BatchNorm1d)
        ]

    @torch.no_grad()
    def __call__(
        self,
        x: Tensor,
        local_l_mean: Any,
        local_l_var: Any,
        batch_index: Any,
        y: Any,
        kl_weight: Tensor,
        share: float = 1.0,
        logs: CountLogs | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Leave the gradients of ``share * mean(reconstruction + kl_weight * kl)`` in ``.grad``.

        Parameters
        ----------
        x, local_l_mean, local_l_var, batch_index, y, logs
            As for ``VAE.forward``.
        kl_weight
            0-d tensor on the device.
        share
            What the mean over these cells counts.

        Returns
        -------
        tuple of Tensor
            The two parts of the loss of each cell, (N,), as ``VAE.forward`` returns them.
        """
        model, n = self._model, x.shape[0]
        check_input(model, x, True)
        refuse_one_cell(n)
        covariates = covariates_of(model, x, batch_index, y)
        counts = ordered_counts(x)
        seen = _encoder_input(model, counts, logs)
        dtype = _values(seen).dtype
        told = [model.n_batch if model.encode_covariates and model.n_batch > 1 else 0, self._told]
        by_encoder, by_decoder = (
            covariates.batch.one_hot(n_cat, dtype) if n_cat else None for n_cat in told
        )

        hidden_z, passed_z, drawn = self._of_z.forward(seen, by_encoder, None)
        if self._of_library is None:
            library = log_library_size(counts) if logs is None else logs.log_library
            library = library.to(dtype)
        else:
            like = drawn.z[:, :1]
            of_prior = (
                prior(local_l_mean, "local_l_mean", like),
                prior(local_l_var, "local_l_var", like),
            )
            hidden_l, passed_l, drawn_l = self._of_library.forward(seen, by_encoder, of_prior)
            library = drawn_l.z
        hidden, passed = self._decoder.forward(drawn.z, by_decoder)

        upstream = self._upstream(n, share, drawn.kl)
        table = codes = None
        if self._table is not None or model.dispersion != "gene-cell":
            table, codes = log_dispersion(model, None, covariates)
        nll, by_hidden, by_library, by_table = self._heads.nll_and_gradients(
            counts,
            hidden,
            library,
            None if self._table is None else table,
            codes,
            upstream,
            by_library=self._of_library is not None,
        )
        if self._table is not None and by_table is not None:
            self._table.gradient.copy_(by_table if by_table.dim() == 1 else by_table.t())

        by_z = cast(Tensor, self._decoder.backward(by_hidden, passed, by_decoder, True))
        self._of_z.backward(by_z, upstream * kl_weight, hidden_z, passed_z, drawn, by_encoder)
        if self._of_library is not None:
            given = cast(Tensor, by_library), upstream, hidden_l, passed_l, drawn_l, by_encoder
            self._of_library.backward(*given)
            nll = nll + drawn_l.kl
        torch._foreach_add_(self._batches_seen, 1)
        self._hand_over()
        return nll, drawn.kl

    def _upstream(self, n: int, share: float, like: Tensor) -> Tensor:
        """The gradient of the mean by the loss of each of n cells, made once for each size."""
        key = n, share, like.dtype
        if key not in self._means:
            self._means[key] = torch.full((n,), share / n, dtype=like.dtype, device=like.device)
        return self._means[key]

    def _hand_over(self) -> None:
        for parameter, gradient in self._parameters:
            if parameter.grad is not gradient:
                parameter.grad = gradient


class _EncoderGradients:
    """One encoder: hidden layers on counts, posterior, sample."""

    def __init__(self, encoder: Encoder, n_genes: int) -> None:
        self._layers = _hidden_layers(encoder.encoder, n_genes)
        self._latent = Latent(
            _linear(encoder.mean_encoder),
            _linear(encoder.var_encoder),
            encoder.z_transformation is not identity,
            VARIANCE_FLOOR,
        )

    @property
    def parameters(self) -> list[Parameter]:
        return [*self._layers.parameters, *self._latent.parameters]

    def forward(
        self, x: Counts, indicators: Tensor | None, of_prior: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, list[Passed], Sample]:
        hidden, passed = self._layers.forward(x, indicators)
        return hidden, passed, self._latent.forward(hidden, of_prior)

    def backward(
        self,
        by_sample: Tensor,
        by_kl: Tensor,
        hidden: Tensor,
        passed: list[Passed],
        drawn: Sample,
        indicators: Tensor | None,
    ) -> None:
        by_hidden = self._latent.backward(by_sample, by_kl, hidden, drawn)
        self._layers.backward(by_hidden, passed, indicators, by_input=False)


def _linear(module: nn.Linear) -> Linear:
    return Linear(module.weight, module.bias)


def _hidden_layers(module: FCLayers, n_genes: int | None = None) -> Layers:
    """The layers of `module`; the first is on counts where their number of genes is given."""
    found: list[Layer] = []
    for block in module.fc_layers:
        parts: Any = block
        linear, norm, dropout = parts[0], parts[1], parts[3]
        of_norm = norm.weight, norm.bias, norm.running_mean, norm.running_var
        product: Linear | CountLinear
        if n_genes is not None and not found:
            product = CountLinear(linear.weight, linear.bias, n_genes)
        else:
            product = _linear(linear)
        found.append(
            Layer(
                product,
                BatchNorm(*of_norm, norm.momentum, norm.eps),
                (Parameter.of(norm.weight), Parameter.of(norm.bias)),
                0.0 if dropout is None else dropout.p,
            )
        )
    return Layers(found)


def _encoder_input(model: VAE, counts: Counts, logs: CountLogs | None) -> Counts:
    """What the encoders see: log(1 + x) or x, in their dtype."""
    dtype = model.z_encoder.mean_encoder.weight.dtype
    if logs is not None and model.log_variational:
        seen = logs.log1p.to(dtype)
    else:
        values = _values(counts)
        values = values.to(torch.promote_types(values.dtype, dtype))
        seen = (torch.log1p(values) if model.log_variational else values).to(dtype)
    if counts.dense is None:
        return counts._replace(values=seen)
    return counts._replace(dense=seen)


def _values(counts: Counts) -> Tensor:
    values = counts.values if counts.dense is None else counts.dense
    assert values is not None
    return values
