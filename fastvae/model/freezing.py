"""Frozen weights of a reference while a query trains what is new.

While training lasts, a weight matrix with columns of old and of new batches is parametrised
(`torch.nn.utils.parametrize`): the new columns are the parameter, all others a buffer. So no
gradient, weight decay or moment of the optimiser reaches the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..errors import InputError, shown
from ..nn import FCLayers
from ..vae.semi_supervised import SemiSupervisedVAE
from ..vae.vae import VAE

MODES = (True, "decoder", "encoder", False)
"""What is frozen: all but the new columns, the decoder alone, the encoders alone, or nothing."""

_DECODER = ("decoder",)
_ENCODERS = ("z_encoder", "l_encoder")
_LABELS = ("classifier", "encoder_z2_z1", "decoder_z1_z2")
_TOLD = {"decoder": "px_decoder", "z_encoder": "encoder", "l_encoder": "encoder"}


def check_mode(freeze: Any) -> bool | str:
    """Return `freeze` if it is a mode.

    Raises
    ------
    InputError
        It is not; the message lists them.
    """
    if isinstance(freeze, (bool, str)) and freeze in MODES:
        return freeze
    raise InputError(f"freeze must be True, 'decoder', 'encoder' or False, not {shown(freeze)}")


def what_is_frozen(origin: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of the origin that a checkpoint must have too; empty without a reference."""
    names = {"freeze": "freeze", "the reference's weights (SHA-256)": "reference_sha256"}
    return {name: origin[key] for name, key in names.items() if key in origin}


@contextmanager
def held_still(module: VAE, origin: Mapping[str, Any]) -> Iterator[None]:
    """Freeze inside the block what the origin of the model says, and undo it afterwards.

    With any of these modes, what a model has learned of labels is frozen too.

    Frozen parts run as in evaluation: their batch normalisation uses and keeps the statistics of
    the reference, and they have no dropout.
    """
    freeze = origin.get("freeze", False)
    if freeze is False:
        yield
        return
    decoder = freeze in (True, "decoder")
    names = (_DECODER if decoder else ()) + (_ENCODERS if freeze in (True, "encoder") else ())
    names += _LABELS if isinstance(module, SemiSupervisedVAE) else ()
    parts = [module.get_submodule(name) for name in names]
    frozen = [weight for part in parts for weight in part.parameters()]
    split = _with_new_columns(module, names, int(origin["reference_columns"]))
    if decoder and isinstance(getattr(module, "px_r", None), Tensor):
        frozen.append(module.px_r)
    before = [weight.requires_grad for weight in frozen]
    try:
        for weight in frozen:
            weight.requires_grad_(False)
        for owner, name, columns in split:
            _split(owner, name, columns)
        module.frozen_parts = names
        yield
    finally:
        module.frozen_parts = ()
        for owner, name, _ in split:
            if parametrize.is_parametrized(owner, name):
                _join(owner, name)
        for weight, flag in zip(frozen, before, strict=True):
            weight.requires_grad_(flag)


def _with_new_columns(
    module: VAE, names: tuple[str, ...], n_reference: int
) -> list[tuple[nn.Module, str, slice]]:
    """Return each weight in these parts with columns of batches, and which of them are new."""
    n_batch = module.n_batch
    if n_batch <= n_reference:
        return []
    n_new = n_batch - n_reference
    told = [
        name
        for name in names
        if name in _DECODER or (name in _ENCODERS and module.encode_covariates)
    ]
    networks = [module.get_submodule(f"{name}.{_TOLD[name]}") for name in told]
    n_after = sum(n_cat for n_cat in module.n_cats_per_cov if n_cat > 1)
    found: list[tuple[nn.Module, str, slice]] = []
    for layers in (one for network in networks for one in network.modules()):
        if not isinstance(layers, FCLayers):
            continue
        for layer in layers.layers_told():
            end = layer.in_features - n_after
            found.append((layer, "weight", slice(end - n_new, end)))
    if "decoder" in names and module.dispersion == "gene-batch":
        found.append((module, "px_r", slice(n_reference, n_batch)))
    return found


class _NewColumns(nn.Module):
    """Parametrisation: a weight is the columns of the reference, two buffers, and the new ones."""

    before: Tensor
    after: Tensor

    def __init__(self, before: Tensor, after: Tensor) -> None:
        super().__init__()
        self.register_buffer("before", before)
        self.register_buffer("after", after)

    def forward(self, new: Tensor) -> Tensor:
        return torch.cat([self.before, new, self.after], dim=1)

    def right_inverse(self, weight: Tensor) -> Tensor:
        n_before, n_after = self.before.shape[1], self.after.shape[1]
        return weight[:, n_before : weight.shape[1] - n_after].clone()


def _split(owner: nn.Module, name: str, columns: slice) -> None:
    """Make these columns of a weight the parameter."""
    weight: Tensor = getattr(owner, name).detach()
    before, after = weight[:, : columns.start].clone(), weight[:, columns.stop :].clone()
    # unsafe: what is learned has another shape than the weight
    parametrize.register_parametrization(owner, name, _NewColumns(before, after), unsafe=True)
    parametrizations: Any = owner.parametrizations
    parametrizations[name].original.requires_grad_(True)


def _join(owner: nn.Module, name: str) -> None:
    """Make the whole weight the parameter again, in its place among the parameters."""
    parametrize.remove_parametrizations(owner, name, leave_parametrized=True)
    getattr(owner, name).requires_grad_(True)
    if isinstance(owner, nn.Linear) and owner.bias is not None:
        bias = owner.bias  # registered again: it comes after the weight
        del owner.bias
        owner.bias = bias
