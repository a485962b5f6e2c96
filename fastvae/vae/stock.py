"""What of a model has been replaced: a subclass, an instance attribute, another module, a hook.

A replacement is always used. These functions say whether a short cut computes the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn

from .._torch import has_hooks
from ..nn import (
    DecoderSCVI,
    Encoder,
    FCLayers,
    LinearDecoderSCVI,
    has_softplus,
    identity,
    plain_linear,
)
from .autoencoder import Autoencoder

# kept as functions, so that replacing a method on the class itself is noticed too
_ENCODE = Encoder.forward
_DECODE = (DecoderSCVI.forward, LinearDecoderSCVI.forward)
_LAYERS = FCLayers.forward
_CODE: dict[type[nn.Module], dict[str, Any]] = {}


def remember_code(names: Mapping[type[nn.Module], Sequence[str]]) -> None:
    """Take note of methods of classes as they are defined, for `untouched` to compare with."""
    for kind, methods in names.items():
        _CODE[kind] = {name: getattr(kind, name, None) for name in methods}


remember_code(
    {
        Encoder: ("forward", "moments"),
        DecoderSCVI: ("forward", "logits"),
        FCLayers: ("forward", "dense_layers", "_indicators"),
        **dict.fromkeys((nn.Linear, nn.BatchNorm1d, nn.ReLU), ("forward",)),
        **dict.fromkeys((nn.Dropout, nn.Softmax, nn.Softplus, nn.Sequential), ("forward",)),
    }
)
_METHODS: dict[str, Any] = dict.fromkeys(("forward", "inference", "get_reconstruction_loss"))


def stock_encoder(module: Any) -> bool:
    """Whether `module` encodes as :class:`Encoder` does."""
    return (
        isinstance(module, Encoder)
        and type(module).forward is _ENCODE
        and "forward" not in module.__dict__
    )


def stock_decoder(module: Any) -> bool:
    """Whether `module` decodes as one of this package's decoders does."""
    return (
        isinstance(module, (DecoderSCVI, LinearDecoderSCVI))
        and type(module).forward in _DECODE
        and "forward" not in module.__dict__
    )


def categories(network: Any, k: int) -> int:
    """Number of categories that a stock network tells apart in covariate `k`; 0 for all others."""
    if not (stock_encoder(network) or stock_decoder(network)):
        return 0
    covariates = getattr(_layers(network)[0], "n_cat_list", None)
    return covariates[k] if covariates and k < len(covariates) else 0


def takes_one_hot(network: Any) -> bool:
    """Whether a stock network may be given one-hot rows for codes: nobody else looks at them."""
    return (
        type(network) in (Encoder, DecoderSCVI, LinearDecoderSCVI)
        and not has_hooks(network)
        and all(_plain_layers(part) for part in _layers(network))
    )


def _plain_layers(part: Any) -> bool:
    own = type(part).forward is _LAYERS and "forward" not in part.__dict__
    return own and not has_hooks(part)


def _layers(network: Any) -> list[Any]:
    """The parts of a stock network that read its covariates."""
    if isinstance(network, Encoder):
        return [network.encoder]
    if isinstance(network, DecoderSCVI):
        return [network.px_decoder]
    return [network.factor_regressor, network.px_dropout_decoder]


def takes_sparse(module: Any) -> bool:
    """Whether an encoder may be given CSR counts: nobody else looks at its input."""
    return stock_encoder(module) and not has_hooks(module) and not has_hooks(module.encoder)


def takes_logs(model: Autoencoder) -> bool:
    """Whether ``VAE.forward`` may be given logarithms of the counts: nobody else sees the call."""
    module = cast(nn.Module, model)
    dtypes = {parameter.dtype for parameter in module.parameters()}
    return own_method(model, "forward") and not has_hooks(module) and dtypes == {torch.float32}


def sparse_first_layers(model: Autoencoder) -> list[nn.Linear] | None:
    """First layers of the encoders in use, if CSR counts go from `forward` to the operations only.

    Then nobody else can see arrays that are longer than their rows.
    """
    if not all(own_method(model, name) for name in _METHODS):
        return None
    if (
        has_hooks(cast(nn.Module, model))
        or model.check_counts
        or not fused_forward_is_faithful(model)
    ):
        return None
    encoders = [model.z_encoder, *([] if model.use_observed_lib_size else [model.l_encoder])]
    if not all(map(takes_sparse, (model.z_encoder, model.l_encoder))):
        return None
    found = []
    for encoder in encoders:
        layers = encoder.encoder
        if type(layers) is not FCLayers or "forward" in layers.__dict__:
            return None
        layer: Any = next(iter(cast(nn.Sequential, layers.fc_layers[0])), None)
        if type(layer) is not nn.Linear or has_hooks(layer):
            return None
        found.append(layer)
    return found


def remember(kind: type[nn.Module]) -> None:
    """Take note of the methods of VAE as they are defined, before anybody can replace them."""
    for name in _METHODS:
        _METHODS[name] = getattr(kind, name)


def own_method(model: object, name: str) -> bool:
    """Whether the method `name` of `model` is still the one that VAE was defined with."""
    return getattr(type(model), name) is _METHODS[name] and name not in vars(model)


def _plain_softmax(module: Any) -> bool:
    return type(module) is nn.Softmax and module.dim == -1 and not has_hooks(module)


def _plain_softplus(module: Any) -> bool:
    usual = type(module) is nn.Softplus and (module.beta, module.threshold) == (1, 20)
    return usual and not has_hooks(module)


def _plain_encoder(module: Any) -> bool:
    if not stock_encoder(module) or has_hooks(module):
        return False
    transformation = module.z_transformation
    return transformation is identity or _plain_softmax(transformation)


def _plain_decoder(module: Any, zero_inflation: bool) -> bool:
    if not stock_decoder(module) or has_hooks(module):
        return False
    if isinstance(module, DecoderSCVI):
        scale = module.px_scale_decoder
        if type(scale) is not nn.Sequential or len(scale) != 2 or has_hooks(scale):
            return False
        plain = _plain_softplus if has_softplus(module) else _plain_softmax
        if not plain(scale[1]):
            return False
    return zero_inflation or not any(map(has_hooks, module.px_dropout_decoder.modules()))


def plain_heads(decoder: Any, zero_inflation: bool, dispersion: bool) -> bool:
    """Whether the heads that a likelihood needs are linear layers that nobody looks into.

    Then heads and likelihood may be one operation, which makes no logits that could be seen, and
    whose frequencies are a softmax.
    """
    if (
        not isinstance(decoder, DecoderSCVI)
        or type(decoder).logits is not _CODE[DecoderSCVI]["logits"]
    ):
        return False
    if "logits" in decoder.__dict__ or type(decoder.px_scale_decoder) is not nn.Sequential:
        return False
    if has_softplus(decoder):
        return False
    heads = [decoder.px_scale_decoder[0]]
    heads += [decoder.px_dropout_decoder] if zero_inflation else []
    heads += [decoder.px_r_decoder] if dispersion else []
    return all(map(plain_linear, heads))


def fused_forward_is_faithful(model: Autoencoder) -> bool:
    """Whether going from logits to the loss gives what calling the modules would give."""
    return (
        _plain_encoder(model.z_encoder)
        and _plain_encoder(model.l_encoder)
        and _plain_decoder(model.decoder, model.reconstruction_loss == "zinb")
    )


def stock_throughout(model: nn.Module) -> bool:
    """Whether `model` is a VAE in training of which nothing at all is replaced, hooked or frozen.

    Then its gradients may be computed without calling its modules (`gradients.StockGradients`).
    """
    if _METHODS["forward"] is not getattr(type(model), "forward", None):
        return False
    vae = cast(Autoencoder, model)
    if not all(own_method(model, name) for name in _METHODS) or hides_a_method(model):
        return False
    networks = vae.z_encoder, vae.l_encoder, vae.decoder
    return (
        not has_hooks(model)
        and fused_forward_is_faithful(vae)
        and type(vae.decoder) is DecoderSCVI
        and model.training
        and all(untouched(network, FCLayers) for network in networks)
        and all(map(trained_as_it_is, model.parameters()))
    )


def untouched(network: nn.Module, layers: type[nn.Module]) -> bool:
    """Whether every part of a network in training is of a known class, with that class's code.

    The hidden layers are of the class `layers`, and each has batch normalisation and ReLU.
    """
    parts = list(network.modules())
    hidden = [part for part in parts if type(part) is layers]
    return all(_own_code(part) and part.training for part in parts) and all(map(_whole, hidden))


def _own_code(module: nn.Module) -> bool:
    own = _CODE.get(type(module))
    if own is None or any(getattr(type(module), name) is not code for name, code in own.items()):
        return False
    return not (hides_a_method(module) or has_hooks(module))


def hides_a_method(module: nn.Module) -> bool:
    """Whether an attribute of the instance stands before a method of its class."""
    own = vars(module).items()
    return any(callable(value) and hasattr(type(module), name) for name, value in own)


def trained_as_it_is(parameter: nn.Parameter) -> bool:
    """Whether nothing is made of a parameter, it is not frozen, and no hook gets its gradient."""
    return bool(
        type(parameter) is nn.Parameter
        and parameter.requires_grad
        and parameter.is_contiguous()
        and not parameter._backward_hooks
        and not getattr(parameter, "_post_accumulate_grad_hooks", None)
    )


def _whole(layers: Any) -> bool:
    """Whether each hidden layer has all its parts, with the options that are usual here."""
    for block in layers.fc_layers:
        parts: list[Any] = [part for part in block if part is not None]
        if [type(part) for part in parts[:3]] != [nn.Linear, nn.BatchNorm1d, nn.ReLU]:
            return False
        linear, norm, _, *rest = parts
        if linear.bias is None or not norm.affine or norm.running_mean is None:
            return False
        if norm.momentum is None or [type(part) for part in rest] not in ([], [nn.Dropout]):
            return False
    return True
