"""Layers, encoder and decoders, the building blocks of the model.

Names of submodules and parameters are those of ``scvi.models.modules`` in scvi 0.5-0.6.8, so a
state dict saved there loads here. Two things are added: the first layer takes sparse counts, and
encoders and decoders can stop at the numbers the fused likelihood starts from
(:meth:`Encoder.moments`, :meth:`DecoderSCVI.logits`).
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn

from . import functional
from ._covariates import Codes
from ._torch import has_hooks
from .errors import InputError, one_of
from .functional.linear import dense_linear

__all__ = [
    "DecoderSCVI",
    "Encoder",
    "FCLayers",
    "LinearDecoderSCVI",
    "identity",
    "one_hot",
    "reparameterize_gaussian",
]


def identity(x: Tensor) -> Tensor:
    """Return `x`: the latent transformation of the normal distribution."""
    return x


def one_hot(index: Tensor, n_cat: int) -> Tensor:
    """Indicator rows of category codes.

    Parameters
    ----------
    index
        Codes 0..n_cat-1 of any numeric dtype, shape (N, 1) or (N,); one-hot rows (N, n_cat)
        are returned as they are.
    n_cat
        Number of categories.

    Returns
    -------
    Tensor
        (N, n_cat), float32.

    Raises
    ------
    InputError
        Wrong shape, or (on CPU) a code out of range.
    """
    return Codes(index, index.shape[0], "index").one_hot(n_cat, torch.float32)


def reparameterize_gaussian(mu: Tensor, var: Tensor) -> Tensor:
    """Sample N(mu, var) as mu + sqrt(var) e, with gradient to both.

    Parameters
    ----------
    mu, var
        Mean and variance (not the standard deviation), same shape.

    Returns
    -------
    Tensor
        A sample of that shape.
    """
    return functional.reparameterize(mu, var)


class FCLayers(nn.Module):
    """Hidden layers: Linear, BatchNorm1d, ReLU, Dropout, each switched off where asked.

    Categories are one-hot encoded and appended to the input of every Linear layer, or of the first
    one alone.

    Parameters
    ----------
    n_in, n_out
        Width of the input and of the output.
    n_cat_list
        Number of categories of each covariate; one category or none adds nothing.
    n_layers, n_hidden
        Number of layers, and the width between them.
    dropout_rate
        Probability of zeroing a hidden unit in training.
    use_batch_norm, use_relu, bias
        Parts of a layer.
    inject_covariates
        Whether categories are appended to the input of every layer, not of the first alone.

    Attributes
    ----------
    compiled : callable or None
        The dense layers by ``torch.compile``, which run instead of the plain ones while training
        with ``compile=True`` lasts.
    of_counts : bool
        Whether the input is counts or their logarithms, which autocast would round: the first layer
        is then taken in the dtype of the weights, as it is of sparse counts.
    """

    compiled: Callable[..., Tensor] | None = None
    of_counts: bool = False
    inject_covariates = True  # also of layers that were pickled before there was a choice

    def __init__(
        self,
        n_in: int,
        n_out: int,
        n_cat_list: Iterable[int] | None = None,
        n_layers: int = 1,
        n_hidden: int = 128,
        dropout_rate: float = 0.1,
        use_batch_norm: bool = True,
        use_relu: bool = True,
        bias: bool = True,
        inject_covariates: bool = True,
    ) -> None:
        super().__init__()
        cats = () if n_cat_list is None else n_cat_list
        self.n_cat_list = [n_cat if n_cat > 1 else 0 for n_cat in cats]
        self.inject_covariates = inject_covariates
        widths = [n_in, *[n_hidden] * (n_layers - 1), n_out]
        blocks: OrderedDict[str, nn.Module] = OrderedDict()
        for k, (width_in, width_out) in enumerate(itertools.pairwise(widths)):
            # an absent part keeps its place, so that state dict keys never move
            parts: list[Any] = [
                nn.Linear(width_in + self._n_appended(k), width_out, bias=bias),
                nn.BatchNorm1d(width_out, momentum=0.01, eps=0.001) if use_batch_norm else None,
                nn.ReLU() if use_relu else None,
                nn.Dropout(p=dropout_rate) if dropout_rate > 0 else None,
            ]
            blocks[f"Layer {k}"] = nn.Sequential(*parts)
        self.fc_layers = nn.Sequential(blocks)

    def _n_appended(self, k: int) -> int:
        """Number of columns of categories that layer `k` has."""
        return sum(self.n_cat_list) if k == 0 or self.inject_covariates else 0

    def layers_told(self) -> list[nn.Linear]:
        """Return the linear layers whose input categories are appended to."""
        firsts = (next(iter(cast(nn.Sequential, block))) for block in self.fc_layers)
        told = [layer for k, layer in enumerate(firsts) if self._n_appended(k)]
        return [layer for layer in told if isinstance(layer, nn.Linear)]

    def forward(
        self,
        x: Tensor,
        *cat_list: Tensor | None,
        instance_id: int = 0,
        cont: Tensor | None = None,
    ) -> Tensor:
        """Apply the layers.

        Parameters
        ----------
        x
            (N, n_in) dense or ``torch.sparse_csr``, or (S, N, n_in) dense.
        *cat_list
            One entry per covariate: codes (N, 1) or (N,), or one-hot (N, n_cat). More entries
            than `n_cat_list` are ignored.
        instance_id
            Unused.
        cont
            (N, P) more columns of the input, which follow those of `x`; `n_in` counts them.

        Returns
        -------
        Tensor
            (N, n_out) or (S, N, n_out).

        Raises
        ------
        InputError
            A covariate is missing or malformed, or one cell alone in training mode.
        """
        indicators = self._indicators(x, cat_list)
        dense_layers = self.dense_layers if self.compiled is None else self.compiled
        sparse = x.layout == torch.sparse_csr
        rounded = self.of_counts and torch.is_autocast_enabled(x.device.type)
        first = next(iter(cast(nn.Sequential, self.fc_layers[0])))
        apart = sparse or rounded
        if (
            isinstance(first, nn.Linear)
            and apart
            and not (rounded and x.dtype != first.weight.dtype)
        ):
            columns = indicators if cont is None else [cont, *indicators]
            with torch.autocast(x.device.type, enabled=False) if rounded else nullcontext():
                hidden = _linear(first, x, columns)
            return dense_layers(hidden, indicators, begun=True)
        x = x.to_dense() if sparse else x
        if cont is not None:
            x = torch.cat([x, cont.expand(*x.shape[:-1], -1)], -1)
        return dense_layers(x, indicators)

    def dense_layers(self, x: Tensor, indicators: list[Tensor], begun: bool = False) -> Tensor:
        """Apply the layers to a dense x, without the first linear one where `begun`."""
        for number, block in enumerate(self.fc_layers):
            appended = indicators if number == 0 or self.inject_covariates else []
            for layer in cast(nn.Sequential, block):
                if begun or layer is None:
                    begun = False
                elif isinstance(layer, nn.Linear):
                    x = _linear(layer, x, appended)
                elif isinstance(layer, nn.BatchNorm1d):
                    x = _batch_norm(layer, x)
                else:
                    x = layer(x)
        return x

    def _indicators(self, x: Tensor, cat_list: tuple[Tensor | None, ...]) -> list[Tensor]:
        if len(cat_list) < len(self.n_cat_list):
            raise InputError(
                f"{len(cat_list)} covariates given, the layers were built for "
                f"{len(self.n_cat_list)}; pass one tensor (or None) for each."
            )
        return [
            Codes(given, x.shape[-2], f"covariate {k}", device=x.device).one_hot(n_cat)
            for k, (n_cat, given) in enumerate(zip(self.n_cat_list, cat_list, strict=False))
            if n_cat > 1
        ]


def _linear(layer: nn.Linear, x: Tensor, indicators: list[Tensor]) -> Tensor:
    if x.layout == torch.sparse_csr:
        # a parametrised layer is of a class of its own, which only makes the weight
        ordinary = type(layer).forward is nn.Linear.forward and "forward" not in layer.__dict__
        if ordinary and not has_hooks(layer):
            return _sparse_linear(layer, x, indicators)
        x = x.to_dense()
    if indicators:
        dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
        x = torch.cat([x, *(rows.to(dtype).expand(*x.shape[:-1], -1) for rows in indicators)], -1)
    return cast(Tensor, layer(x))


def plain_linear(layer: Any) -> bool:
    """Whether `layer` is an ordinary linear one whose calls nobody listens to."""
    return type(layer) is nn.Linear and "forward" not in layer.__dict__ and not has_hooks(layer)


def dense(layer: nn.Module, x: Tensor) -> Tensor:
    """`layer` of a dense matrix, by the fast way where it is an ordinary linear one."""
    if plain_linear(layer):
        linear = cast(nn.Linear, layer)
        return dense_linear(x, linear.weight, linear.bias)
    return cast(Tensor, layer(x))


def _sparse_linear(layer: nn.Linear, x: Tensor, indicators: list[Tensor]) -> Tensor:
    if not indicators:
        return functional.count_linear(x, layer.weight, layer.bias)
    first, weight = x.shape[1], layer.weight
    out = functional.count_linear(x, weight[:, :first], layer.bias)
    rows = torch.cat([one.to(out.dtype) for one in indicators], -1)
    return out + nn.functional.linear(rows, weight[:, first:])


def refuse_one_cell(n_cells: int) -> None:
    """Refuse a training minibatch that has no variance."""
    if n_cells == 1:
        raise InputError(
            "a training minibatch of one cell cannot be batch-normalised; use at least two cells "
            "per minibatch (drop or merge the last one), or call model.eval()."
        )


def _batch_norm(layer: nn.BatchNorm1d, x: Tensor) -> Tensor:
    if layer.training:
        refuse_one_cell(x.shape[-2])
    if x.dim() == 2:
        return cast(Tensor, layer(x))
    if layer.training:  # each sample is a minibatch of its own and moves the running statistics
        return torch.stack([layer(sample) for sample in x])
    return cast(Tensor, layer(x.flatten(0, 1)).unflatten(0, x.shape[:2]))


VARIANCE_FLOOR = 1e-4  # added to every encoder variance
ACTIVATIONS = ("softmax", "softplus")


class Encoder(nn.Module):
    """Network from expression to the mean and variance of a latent normal, and a sample of it.

    Parameters
    ----------
    n_input, n_output
        Number of genes and of latent dimensions.
    n_cat_list, n_layers, n_hidden, dropout_rate, inject_covariates
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
        inject_covariates: bool = True,
    ) -> None:
        super().__init__()
        self.distribution = distribution
        self.encoder = FCLayers(
            n_input,
            n_hidden,
            n_cat_list,
            n_layers,
            n_hidden,
            dropout_rate=dropout_rate,
            inject_covariates=inject_covariates,
        )
        self.encoder.of_counts = True
        self.mean_encoder = nn.Linear(n_hidden, n_output)
        self.var_encoder = nn.Linear(n_hidden, n_output)
        self.z_transformation = nn.Softmax(dim=-1) if distribution == "ln" else identity

    def moments(
        self, x: Tensor, *cat_list: Tensor | None, cont: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean and log-variance heads, both (N, n_output); the variance adds a floor of 1e-4."""
        # without the keyword where there is nothing to say: layers of others need not know it
        more = {} if cont is None else {"cont": cont}
        hidden = self.encoder(x, *cat_list, **more)
        return self.mean_encoder(hidden), self.var_encoder(hidden)

    def forward(
        self, x: Tensor, *cat_list: Tensor | None, cont: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Encode and draw one sample.

        Parameters
        ----------
        x
            (N, n_input), dense or ``torch.sparse_csr``, log-transformed by the caller if wanted.
        *cat_list
            Covariates as in :meth:`FCLayers.forward`; those beyond `n_cat_list` are ignored.
        cont
            As in :meth:`FCLayers.forward`.

        Returns
        -------
        tuple of Tensor
            Mean m, variance v = exp(h) + 1e-4 and sample t(m + sqrt(v) e), each (N, n_output);
            t is a softmax for ``"ln"`` and nothing otherwise.
        """
        more = {} if cont is None else {"cont": cont}
        q_m, q_log_v = self.moments(x, *cat_list, **more)
        q_v = torch.exp(q_log_v) + VARIANCE_FLOOR
        return q_m, q_v, self.z_transformation(reparameterize_gaussian(q_m, q_v))


class DecoderSCVI(nn.Module):
    """Network from latent space to the parameters of the count distribution.

    Parameters
    ----------
    n_input, n_output
        Number of latent dimensions, with continuous covariates that follow them, and of genes.
    n_cat_list, n_layers, n_hidden, inject_covariates
        As in :class:`FCLayers`; there is no dropout.
    scale_activation
        ``"softmax"``: expression is frequencies. ``"softplus"``: it is the mean of each gene for a
        factor of 1, as scvi-tools has it for size factors.

    Raises
    ------
    InputError
        The activation is not known.
    """

    scale_activation = "softmax"  # also of decoders that were pickled before there was a choice

    def __init__(
        self,
        n_input: int,
        n_output: int,
        n_cat_list: Iterable[int] | None = None,
        n_layers: int = 1,
        n_hidden: int = 128,
        inject_covariates: bool = True,
        scale_activation: str = "softmax",
    ) -> None:
        super().__init__()
        self.scale_activation = one_of("scale_activation", scale_activation, ACTIVATIONS)
        activation = nn.Softmax(dim=-1) if scale_activation == "softmax" else nn.Softplus()
        self.px_decoder = FCLayers(
            n_input,
            n_hidden,
            n_cat_list,
            n_layers,
            n_hidden,
            dropout_rate=0,
            inject_covariates=inject_covariates,
        )
        self.px_scale_decoder = nn.Sequential(nn.Linear(n_hidden, n_output), activation)
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
            scale logits s (mean expression is exp(library) softmax(s), or of their softplus), log
            theta or None, zero-inflation logits or None; each (..., N, n_output).
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
            px_scale = softmax(s) or softplus(s), px_r = log theta or None, px_rate = exp(library)
            px_scale, px_dropout = zero-inflation logits.
        """
        hidden = self.px_decoder(z, *cat_list)
        px_scale = self.px_scale_decoder(hidden)
        px_dropout = self.px_dropout_decoder(hidden)
        px_r = self.px_r_decoder(hidden) if dispersion == "gene-cell" else None
        return px_scale, px_r, torch.exp(library) * px_scale, px_dropout


def has_softplus(decoder: Any) -> bool:
    """Whether a decoder's expression is the softplus of its scale logits, not their softmax."""
    return isinstance(decoder, DecoderSCVI) and decoder.scale_activation == "softplus"


def scale_of(decoder: Any, scale_logits: Tensor) -> Tensor:
    """Expression that `decoder` makes of its scale logits (..., G)."""
    if has_softplus(decoder):
        return nn.functional.softplus(scale_logits)
    return torch.softmax(scale_logits, dim=-1)


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
