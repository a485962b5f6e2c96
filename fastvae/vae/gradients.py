"""The gradients of a stock VAE, written out: what a training step needs, without autograd.

The operations, their order and their random draws are those of ``VAE.forward`` and of autograd's
way back; sums may differ in their last bits.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from .._covariates import CellCovariates, Codes
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
from ..functional.softplus_heads import SoftplusHeads
from ..nn import VARIANCE_FLOOR, DecoderSCVI, FCLayers, refuse_one_cell
from .arguments import prior
from .steps import (
    LIKELIHOODS,
    check_input,
    covariates_of,
    log_dispersion,
)

if TYPE_CHECKING:
    from .vae import VAE


class Losses(NamedTuple):
    """Loss of each cell (N,): -log p(x | z, l), and the divergences of z and of log l."""

    nll: Tensor
    kl_z: Tensor
    kl_library: Tensor | None


class NetworkGradients:
    """Loss and gradients of the networks of a VAE, from prepared input.

    Networks of scvi-tools, whose parts have the same names, are taken as well. The gradients of the
    parameters are written anew at each call, to memory that stays the same unless it is replaced.

    Parameters
    ----------
    model
        Has `z_encoder`, `l_encoder` and `decoder` in training mode, `use_observed_lib_size`,
        `dispersion` and, where it is no head of the decoder, its logarithm `px_r`, (G,) or (G, K).
    n_genes
        Number of genes.
    likelihood
        ``"zinb"``, ``"nb"`` or ``"poisson"``.
    products
        The dtype of the products of the decoder's heads, where it is not that of the weights;
        those of a softplus have no other.

    Attributes
    ----------
    has_table
        Whether the likelihood takes its dispersion from `px_r`.
    parameters
        All that get a gradient.
    """

    def __init__(
        self, model: Any, n_genes: int, likelihood: str, products: torch.dtype | None = None
    ) -> None:
        z_encoder, decoder = model.z_encoder, model.decoder
        l_encoder = None if model.use_observed_lib_size else model.l_encoder
        of_cell = likelihood != "poisson" and model.dispersion == "gene-cell"
        self.has_table = likelihood != "poisson" and not of_cell
        self._of_z = _EncoderGradients(z_encoder, n_genes)
        self._of_library = None if l_encoder is None else _EncoderGradients(l_encoder, n_genes)
        self._decoder = _hidden_layers(decoder.px_decoder)
        scale, activation = decoder.px_scale_decoder
        self._heads = (SoftplusHeads if isinstance(activation, nn.Softplus) else Heads)(
            _linear(scale),
            _linear(decoder.px_dropout_decoder) if likelihood == "zinb" else None,
            _linear(decoder.px_r_decoder) if of_cell else None,
            products,
        )
        self._table = Parameter(model.px_r) if self.has_table else None
        parts = [self._of_z, self._of_library, self._decoder, self._heads]
        self.parameters = [p for part in parts if part is not None for p in part.parameters]
        if self._table is not None:
            self.parameters.append(self._table)
        self._means: dict[tuple[int, float, torch.dtype], Tensor] = {}
        networks = [z_encoder, decoder.px_decoder, *([] if l_encoder is None else [l_encoder])]
        self._batches_seen = [
            cast(Tensor, norm.num_batches_tracked)
            for network in networks
            for norm in network.modules()
            if isinstance(norm, nn.BatchNorm1d)
        ]

    def run(
        self,
        x: Counts,
        seen: Counts,
        by_encoder: Tensor | None,
        by_decoder: Tensor | None,
        library: Tensor | tuple[Any, Any],
        theta: tuple[Tensor | None, Tensor | None],
        kl_weight: Tensor,
        share: float,
    ) -> Losses:
        """Write the gradients of ``share * mean(nll + kl_weight * kl_z + kl_library)``.

        Parameters
        ----------
        x, seen
            Counts, and what the encoders see of them.
        by_encoder, by_decoder
            Columns of covariates (N, K), where the networks are told some: those that the first
            layers alone are given, then those of all.
        library
            The observed log library size (N, 1), or mean and variance of the prior of a learned
            one, (N, 1) each.
        theta
            Log dispersion (G,) or (K, G) and the row of each cell, as far as there are any.
        kl_weight
            0-d tensor on the device.
        share
            What the mean over these cells counts.
        """
        hidden_z, passed_z, drawn = self._of_z.forward(seen, by_encoder, None)
        drawn_l = None
        if self._of_library is not None:
            assert isinstance(library, tuple)
            like = drawn.z[:, :1]
            names = ("local_l_mean", "local_l_var")
            mean, var = (
                prior(value, name, like) for value, name in zip(library, names, strict=True)
            )
            hidden_l, passed_l, drawn_l = self._of_library.forward(seen, by_encoder, (mean, var))
            library = drawn_l.z
        assert isinstance(library, Tensor)
        hidden, passed = self._decoder.forward(drawn.z, by_decoder)

        upstream = self._upstream(x.shape[0], share, drawn.kl)
        by_gene = None  # a table with a column for each category is turned over first
        if self._table is not None and self._table.value.dim() == 1:
            by_gene = self._table.gradient
        of_library = drawn_l is not None
        nll, by_hidden, by_library, by_theta = self._heads.nll_and_gradients(
            x, hidden, library, *theta, upstream, by_library=of_library, table_gradient=by_gene
        )
        if self._table is not None and by_theta is not None and by_gene is None:
            self._table.gradient.copy_(by_theta.t())

        by_z = cast(Tensor, self._decoder.backward(by_hidden, passed, by_decoder, True))
        self._of_z.backward(by_z, upstream * kl_weight, hidden_z, passed_z, drawn, by_encoder)
        if self._of_library is not None and drawn_l is not None:
            given = hidden_l, passed_l, drawn_l, by_encoder
            self._of_library.backward(cast(Tensor, by_library), upstream, *given)
        torch._foreach_add_(self._batches_seen, 1)
        return Losses(nll, drawn.kl, None if drawn_l is None else drawn_l.kl)

    def attach(self) -> None:
        """Leave the gradients in ``.grad`` of the parameters."""
        for parameter in self.parameters:
            if parameter.value.grad is not parameter.gradient:
                parameter.value.grad = parameter.gradient

    def _upstream(self, n: int, share: float, like: Tensor) -> Tensor:
        """The gradient of the mean by the loss of each of n cells, made once for each size."""
        key = n, share, like.dtype
        if key not in self._means:
            self._means[key] = torch.full((n,), share / n, dtype=like.dtype, device=like.device)
        return self._means[key]


class StockGradients:
    """Loss and gradients of a minibatch, for a VAE of which nothing has been replaced.

    Whether that is so `stock.stock_throughout` answers.

    Parameters
    ----------
    model
        In training mode.
    products
        As for `NetworkGradients`.
    """

    def __init__(self, model: VAE, products: torch.dtype | None = None) -> None:
        one_of("reconstruction_loss", model.reconstruction_loss, LIKELIHOODS)
        self._model = model
        self._networks = NetworkGradients(
            model, model._n_input, model.reconstruction_loss, products
        )

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
        **covariates: Any,
    ) -> tuple[Tensor, Tensor]:
        """Leave the gradients of ``share * mean(reconstruction + kl_weight * kl)`` in ``.grad``.

        Parameters
        ----------
        x, local_l_mean, local_l_var, batch_index, y, logs
            As for ``VAE.forward``.
        kl_weight, share
            As for :meth:`NetworkGradients.run`.
        **covariates
            ``cat_covs``, ``cont_covs`` and ``size_factor``, as for ``VAE.forward``.

        Returns
        -------
        tuple of Tensor
            The two parts of the loss of each cell, (N,), as ``VAE.forward`` returns them.

        Raises
        ------
        InputError
            As ``VAE.forward``.
        """
        model = self._model
        check_input(model, x, True)
        refuse_one_cell(x.shape[0])
        told = covariates_of(model, x, batch_index, y, CellCovariates(**covariates))
        counts = ordered_counts(x)
        dtype = model.z_encoder.mean_encoder.weight.dtype
        seen = encoder_counts(counts, dtype, model.log_variational, logs)
        columns = [told.continuous.columns(dtype)] if model.n_continuous_cov else []
        by_decoder = covariate_columns(_layers_of(model.decoder), columns, told.codes, dtype)
        by_encoder = None
        if model.encode_covariates:
            by_encoder = covariate_columns(model.z_encoder.encoder, columns, told.codes, dtype)
        library: Any = local_l_mean, local_l_var
        if model.use_size_factor_key:
            library = told.size_factor.log(torch.get_default_dtype()).to(dtype)
        elif model.use_observed_lib_size:
            library = log_library_size(counts) if logs is None else logs.log_library
            library = library.to(dtype)
        theta: tuple[Tensor | None, Tensor | None] = None, None
        if model.dispersion != "gene-cell":
            # also for poisson, so that missing covariates are refused alike
            found = log_dispersion(model, None, told)
            theta = found if self._networks.has_table else theta
        nll, kl_z, kl_library = self._networks.run(
            counts, seen, by_encoder, by_decoder, library, theta, kl_weight, share
        )
        self._networks.attach()
        return nll if kl_library is None else nll + kl_library, kl_z


def encoder_counts(
    counts: Counts, dtype: torch.dtype, log1p: bool, logs: CountLogs | None = None
) -> Counts:
    """What encoders of `dtype` see of counts: log(1 + x), which may be known, or x."""
    values = counts.values if counts.dense is None else counts.dense
    assert values is not None
    if logs is not None and log1p:
        seen = logs.log1p.to(dtype)
    else:
        values = values.to(torch.promote_types(values.dtype, dtype))
        seen = (torch.log1p(values) if log1p else values).to(dtype)
    if counts.dense is None:
        return counts._replace(values=seen)
    return counts._replace(dense=seen)


@functools.lru_cache(maxsize=64)
def _categories(n_cat: int, device: torch.device) -> Tensor:
    """All codes of a covariate (1, n_cat), made once for each device."""
    return torch.arange(n_cat, device=device)[None]


def _one_hot(codes: Codes, n_cat: int, dtype: torch.dtype) -> Tensor:
    """One-hot rows (N, n_cat) by a single comparison, or the given ones."""
    column = codes.column(n_cat)
    if column.shape[1] == n_cat:
        return column.to(dtype)
    rows = torch.empty(len(column), n_cat, dtype=dtype, device=column.device)
    return torch.eq(column, _categories(n_cat, column.device), out=rows)


def _layers_of(decoder: Any) -> FCLayers:
    return cast(DecoderSCVI, decoder).px_decoder


def covariate_columns(
    layers: Any, continuous: list[Tensor], codes: Sequence[Codes], dtype: torch.dtype
) -> Tensor | None:
    """Continuous covariates and one-hot rows of the others side by side, None without any.

    `layers` has the numbers of categories, as ``n_cat_list``; codes beyond those are not told.
    """
    rows = [
        _one_hot(one, n_cat, dtype)
        for one, n_cat in zip(codes, layers.n_cat_list, strict=False)
        if n_cat > 1
    ]
    parts = [*continuous, *rows]
    if len(parts) < 2:
        return parts[0] if parts else None
    return torch.cat(parts, dim=1)


class _EncoderGradients:
    """One encoder: hidden layers on counts, posterior, sample."""

    def __init__(self, encoder: Any, n_genes: int) -> None:
        self._layers = _hidden_layers(encoder.encoder, n_genes)
        self._latent = Latent(
            _linear(encoder.mean_encoder),
            _linear(encoder.var_encoder),
            isinstance(encoder.z_transformation, nn.Softmax),
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


def _hidden_layers(module: Any, n_genes: int | None = None) -> Layers:
    """The layers of `module`; the first is on counts where their number of genes is given."""
    found: list[Layer] = []
    for block in module.fc_layers:
        linear = next(part for part in block if isinstance(part, nn.Linear))
        norm: Any = next(part for part in block if isinstance(part, nn.BatchNorm1d))
        dropout = next((part for part in block if isinstance(part, nn.Dropout)), None)
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
                (Parameter(norm.weight), Parameter(norm.bias)),
                0.0 if dropout is None else dropout.p,
            )
        )
    return Layers(found)
