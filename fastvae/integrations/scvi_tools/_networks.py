"""scvi-tools' networks, run by fastvae's operations: same layers, same weights, same draws.

A changed network (a subclass, a replaced method, a hook) runs its own ``forward`` instead;
`encodes_plainly` and `decodes_plainly` say whether a network is unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from scvi.nn import DecoderSCVI, Encoder, FCLayers, LinearDecoderSCVI
from torch import Tensor, nn

from ... import functional
from ..._covariates import Codes
from ..._torch import has_hooks
from ...errors import InputError
from ...nn import _batch_norm, dense, plain_linear
from .._decoder_output import Logits, Undecoded, versions_of
from ._posterior import Posterior

_ONE_CELL = (
    "a training minibatch of one cell cannot be batch-normalised; choose another batch_size, or "
    "leave out a last minibatch that is short: datasplitter_kwargs={'drop_last': True}"
)
_ENCODE = Encoder.forward
_LAYERS = {
    name: vars(FCLayers)[name]
    for name in ("forward", "_is_linear_layer", "_apply_batch_norm", "_apply_layer")
    if name in vars(FCLayers)  # scvi-tools before 1.5 has the first alone
}
_DECODE = {DecoderSCVI: DecoderSCVI.forward, LinearDecoderSCVI: LinearDecoderSCVI.forward}


def _plain(module: Any, forward: Any) -> bool:
    """Whether calling `module` runs `forward` and nothing else: no replacement, no hook."""
    return (
        type(module).forward is forward
        and "forward" not in module.__dict__
        and not has_hooks(module)
    )


def _plain_layers(layers: Any) -> bool:
    """Whether calling `layers` does what `run_layers` does."""
    return not has_hooks(layers) and all(
        getattr(type(layers), name, None) is method and name not in layers.__dict__
        for name, method in _LAYERS.items()
    )


def load_in_place(module: nn.Module, state: Mapping[str, Tensor]) -> Any:
    """Do as ``module.load_state_dict(state)``, and keep every tensor of `module` the same object.

    scvi-tools' ``Embedding`` replaces its parameter by a new one when it loads. An optimiser would
    not train that one, and it would not be frozen where the old one was.
    """
    own = module.state_dict()
    if own.keys() != state.keys():
        return module.load_state_dict(state)  # its error names what is missing
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(state[name])
    return None


def encodes_plainly(encoder: Any) -> bool:
    """Whether `encode` gives what calling `encoder` would give."""
    return (
        type(encoder) is Encoder
        and _plain(encoder, _ENCODE)
        and encoder.var_activation is torch.exp
        and encoder.return_dist
        and _plain_layers(encoder.encoder)
        and (encoder.distribution == "ln") == isinstance(encoder.z_transformation, nn.Softmax)
        and not any(map(has_hooks, (encoder.mean_encoder, encoder.var_encoder)))
    )


def decodes_plainly(decoder: Any) -> bool:
    """Whether `decode` gives what calling `decoder` would give."""
    kind = type(decoder)
    if kind not in _DECODE or not _plain(decoder, _DECODE[kind]):
        return False
    if kind is LinearDecoderSCVI:
        parts = decoder.factor_regressor, decoder.px_dropout_decoder
        return all(map(_plain_layers, parts))
    scale = decoder.px_scale_decoder
    return (
        _plain_layers(decoder.px_decoder)
        and type(scale) is nn.Sequential
        and len(scale) == 2
        and (_is_softmax(scale[1]) or type(scale[1]) is nn.Softplus)
        and not any(map(has_hooks, (scale, *scale)))
    )


def _is_softmax(module: nn.Module) -> bool:
    return type(module) is nn.Softmax and module.dim == -1


def encode(
    encoder: Encoder, x: Tensor, log1p: bool, extra: Sequence[Tensor], cats: Sequence[Codes]
) -> tuple[Posterior, Tensor]:
    """Return the posterior and a sample of it.

    Parameters
    ----------
    x
        (N, G) counts, dense or CSR.
    log1p
        Whether the network sees log(1 + x).
    extra
        (N, K) columns that follow the genes in the first layer.
    cats
        Codes of the covariates; `codes_of` makes them.
    """
    hidden = run_layers(encoder.encoder, x, cats, extra=extra, counts=True, log1p=log1p)
    z, q_m, q_v, kl = functional.sample_and_kl(
        dense(encoder.mean_encoder, hidden),
        dense(encoder.var_encoder, hidden),
        var_eps=encoder.var_eps,
        latent_distribution="ln" if encoder.distribution == "ln" else "normal",
    )
    return Posterior.of(q_m, q_v, kl), z


def decode(
    decoder: DecoderSCVI | LinearDecoderSCVI,
    dispersion: str,
    z: Tensor,
    log_library: Tensor,
    cats: Sequence[Codes],
    zero_inflation: bool,
) -> Logits | Undecoded:
    """Return the logits of the counts; log theta only for the dispersion "gene-cell".

    Where gradients are wanted, heads that nobody listens to are left to the likelihood.
    """
    if isinstance(decoder, LinearDecoderSCVI):
        scale = run_layers(decoder.factor_regressor, z, cats)
        zi = run_layers(decoder.px_dropout_decoder, z, cats) if zero_inflation else None
        return Logits(scale, log_library, None, zi)
    hidden = run_layers(decoder.px_decoder, z, cats)
    scale, zi, theta = decoder.px_scale_decoder[0], None, None
    if zero_inflation:
        zi = decoder.px_dropout_decoder
    if dispersion == "gene-cell":
        theta = decoder.px_r_decoder
    heads = [head for head in (scale, zi, theta) if head is not None]
    lazily = torch.is_grad_enabled() and hidden.dim() == 2 and all(map(plain_linear, heads))
    if lazily and _is_softmax(decoder.px_scale_decoder[1]):
        return Undecoded(
            hidden, log_library, scale, zi, theta, versions=versions_of(scale, zi, theta)
        )
    return Logits(
        dense(decoder.px_scale_decoder[0], hidden),
        log_library,
        dense(decoder.px_r_decoder, hidden) if dispersion == "gene-cell" else None,
        dense(decoder.px_dropout_decoder, hidden) if zero_inflation else None,
        softmax=_is_softmax(decoder.px_scale_decoder[1]),
    )


def run_layers(
    layers: FCLayers,
    x: Tensor,
    cats: Sequence[Codes],
    *,
    extra: Sequence[Tensor] = (),
    counts: bool = False,
    log1p: bool = False,
) -> Tensor:
    """Return ``layers(x, *cats)``; with `counts`, x may be CSR and `extra` columns follow it."""
    covariates = _covariates(layers, cats)
    for i, block in enumerate(layers.fc_layers):
        for layer in block:
            if layer is None:
                continue
            if isinstance(layer, nn.Linear):
                added = covariates if layers.inject_into_layer(i) else []
                if counts and i == 0:
                    x = _first(layer, x, [*extra, *added], log1p)
                else:
                    x = dense(layer, _joined(x, added))
            elif isinstance(layer, nn.BatchNorm1d):
                if layer.training and x.shape[-2] == 1:
                    raise InputError(_ONE_CELL)
                x = _batch_norm(layer, x)
            else:
                x = layer(x)
    return x


def codes_of(values: Tensor | None, name: str) -> Codes:
    """Take codes (N, 1) or (N,) or one-hot rows, for all networks that read them to check once."""
    if values is None:
        return Codes(None, 0, name)
    column = values if values.dim() == 2 else values.reshape(-1, 1)
    return Codes(column, column.shape[0], name)


def _covariates(layers: FCLayers, cats: Sequence[Codes]) -> list[Tensor]:
    if len(layers.n_cat_list) > len(cats):
        raise ValueError("nb. categorical args provided doesn't match init. params.")
    rows = []
    for n_cat, codes in zip(layers.n_cat_list, cats, strict=False):
        if n_cat and codes.given is None:
            raise ValueError("cat not provided while n_cat != 0 in init. params.")
        if n_cat > 1:
            rows.append(codes.one_hot(n_cat))
    return rows


def _joined(x: Tensor, columns: Sequence[Tensor]) -> Tensor:
    if not columns:
        return x
    return torch.cat([x, *(part.expand(*x.shape[:-1], -1) for part in columns)], -1)


def _first(layer: nn.Linear, x: Tensor, columns: Sequence[Tensor], log1p: bool) -> Tensor:
    if has_hooks(layer) or type(layer) is not nn.Linear:  # a hook or a subclass receives the input
        x = x.to_dense() if x.layout != torch.strided else x
        return layer(_joined(torch.log1p(x) if log1p else x, columns))
    if not columns:
        return functional.count_linear(x, layer.weight, layer.bias, log1p=log1p)
    genes = x.shape[1]
    out = functional.count_linear(x, layer.weight[:, :genes], layer.bias, log1p=log1p)
    rows = torch.cat([part.to(out.dtype) for part in columns], -1)
    return out + nn.functional.linear(rows, layer.weight[:, genes:])
