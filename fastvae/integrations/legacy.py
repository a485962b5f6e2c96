"""Checkpoints of scvi 0.5-0.6.8: state dicts of ``scvi.models.VAE`` and ``LDVAE``.

The network of such a checkpoint is that of `fastvae.VAE` with the same names, so its shape can be
read off the weights. What the weights do not show - likelihood, latent distribution, dropout rate -
must be given where it was not the default.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._files import atomic_path, check_new_file
from ..errors import InputError
from ..model.model import Model
from ..vae.ldvae import LDVAE
from ..vae.vae import VAE
from ._safe_load import load_without_code

__all__ = ["from_legacy_checkpoint", "load_vae", "to_legacy_checkpoint"]

_IN_POSTERIOR = "model_params.pt"
_LAYER = re.compile(r"z_encoder\.encoder\.fc_layers\.Layer (\d+)\.0\.weight")


def load_vae(checkpoint: str | os.PathLike[str], **options: Any) -> VAE:
    """Make a `fastvae.VAE` (or `fastvae.LDVAE`) from a checkpoint of scvi 0.5-0.6.8.

    Parameters
    ----------
    checkpoint
        A file written by ``torch.save(vae.state_dict(), FILE)``, or the folder that
        ``Posterior.save_posterior`` wrote. It is read by ``torch.load(weights_only=True)``: no
        code in it is run, so pickled trainers and whole models are refused.
    **options
        Of the constructor, where they were not the defaults and the weights do not show them:
        ``reconstruction_loss``, ``latent_distribution``, ``dropout_rate``, ``log_variational``;
        ``dispersion`` where there are as many labels as batches. Options that the weights do show
        must agree with them.

    Returns
    -------
    VAE
        In evaluation mode, every weight and buffer bit-equal. ``n_input``, ``n_batch`` (0 for one
        batch), ``n_labels``, ``n_hidden``, ``n_latent``, ``n_layers`` and ``dispersion`` are
        those of the weights.

    Raises
    ------
    InputError
        The file cannot be read safely, is not of such a network, or contradicts an option.
    """
    state = _read(Path(checkpoint))
    kind, seen = _shape_of(state, str(checkpoint), options.pop("dispersion", None))
    for name in sorted(set(options) & set(seen)):
        if options[name] != seen[name]:
            raise InputError(
                f"{checkpoint} has {name}={seen[name]}, not {options[name]!r}; leave it out"
            )
    module = kind(**{**seen, **options})
    _fill(module, state, str(checkpoint))
    return module.eval()


def from_legacy_checkpoint(
    checkpoint: str | os.PathLike[str],
    data: Any,
    *,
    batch_key: str | Sequence[str] | None = None,
    labels_key: str | Sequence[str] | None = None,
    device: str | torch.device = "cpu",
    use_observed_lib_size: bool = False,
    **options: Any,
) -> Model:
    """Make a trained `fastvae.Model` from a checkpoint of scvi 0.5-0.6.8 and its data.

    Parameters
    ----------
    checkpoint
        As in `load_vae`.
    data
        The cells it was trained on, or others with the same genes in the same order: a checkpoint
        has no gene names. Of any kind that `Model` takes.
    batch_key, labels_key
        Columns of obs. Their categories in the order of `Model` (that of a pandas categorical,
        else sorted) must be scvi's batch and label codes 0, 1, ...; a column of those codes, such
        as ``batch_indices``, always is.
    device
        Where the network goes.
    use_observed_lib_size
        False as in scvi 0.5-0.6.8, where the library size is a latent variable; its prior is the
        mean and variance per batch of the log total counts in `data`.
    **options
        As in `load_vae`, and ``layer``, ``use_raw``, ``genome``, ``residence``, ``memory_limit``
        and ``genes`` of `Model`.

    Returns
    -------
    Model
        With the weights of the checkpoint; `data` are its own.

    Raises
    ------
    InputError
        As `load_vae`; or the data have another number of genes, batches or labels.
    """
    if options.pop("log_variational", True) is not True:
        raise InputError(
            "fastvae.Model always encodes log(1 + x); for log_variational=False use load_vae"
        )
    state = _read(Path(checkpoint))
    kind, seen = _shape_of(state, str(checkpoint), options.pop("dispersion", None))
    if kind is not VAE:
        raise InputError(
            f"{checkpoint} is of an LDVAE, and fastvae.Model has the decoder of a VAE; use load_vae"
        )
    n_input, n_batch, n_labels = (seen.pop(name) for name in ("n_input", "n_batch", "n_labels"))
    model = Model(
        data,
        batch_key=batch_key,
        labels_key=labels_key,
        use_observed_lib_size=use_observed_lib_size,
        **{**seen, **options},
    )
    n_found = len(model.batch_categories)
    _agree(checkpoint, "genes", n_input, len(model.gene_names), "the data have")
    if n_batch or n_found > 1:
        _agree(checkpoint, "batches", n_batch or 1, max(n_found, 1), f"batch_key={batch_key!r} has")
    if n_labels:
        labels = len(model._setup.label_categories)
        _agree(checkpoint, "labels", n_labels, labels, f"labels_key={labels_key!r} has")
    _fill(model.module, state, str(checkpoint))
    model.to(device)
    model.is_trained = True
    model.origin = {"converted_from": "scvi 0.5-0.6.8", "checkpoint": Path(checkpoint).name}
    return model


def to_legacy_checkpoint(
    model: Model | VAE, path: str | os.PathLike[str], overwrite: bool = False
) -> None:
    """Write the weights as scvi 0.5-0.6.8 does: ``vae.load_state_dict(torch.load(path))`` there.

    Parameters
    ----------
    model
        A `Model`, `VAE` or `LDVAE`.
    path
        The file; it is written whole or not at all.
    overwrite
        Replace a file that is there.

    Raises
    ------
    InputError
        The file exists or cannot be written.
    """
    target = check_new_file(path, overwrite=overwrite)
    module = model.module if isinstance(model, Model) else model
    state = {name: value.detach().cpu() for name, value in module.state_dict().items()}
    with atomic_path(target) as temporary:
        # torch before 1.6, which scvi 0.6.8 asks for, reads no zip files
        torch.save(state, temporary, _use_new_zipfile_serialization=False)


def _read(path: Path) -> dict[str, Tensor]:
    path = path / _IN_POSTERIOR if path.is_dir() else path
    content = load_without_code(path)
    if not isinstance(content, Mapping) or not content:
        raise InputError(f"{path} holds a {type(content).__name__}; expected a state dict")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if len(tensors) < len(content):
        other = next(name for name, value in content.items() if not isinstance(value, Tensor))
        raise InputError(f"{path} is not a state dict: its entry {other!r} is not a tensor")
    return {name.removeprefix("module."): value for name, value in tensors.items()}


def _shape_of(
    state: Mapping[str, Tensor], path: str, dispersion: str | None
) -> tuple[type[VAE], dict[str, Any]]:
    """Read the class and the constructor's arguments off the weights."""
    linear = "decoder.factor_regressor.fc_layers.Layer 0.0.weight" in state
    into = "factor_regressor" if linear else "px_decoder"
    try:
        first = state["z_encoder.encoder.fc_layers.Layer 0.0.weight"]
        n_latent = state["z_encoder.mean_encoder.weight"].shape[0]
        n_columns = state[f"decoder.{into}.fc_layers.Layer 0.0.weight"].shape[1]
        n_hidden, n_input = first.shape
        _ = state["l_encoder.mean_encoder.weight"]
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(
            f"{path} is not of a scvi.models.VAE or LDVAE of scvi 0.5-0.6.8: no entry {error}"
        ) from error
    n_batch = n_columns - n_latent
    seen: dict[str, Any] = {
        "n_input": n_input,
        "n_batch": n_batch,
        "n_labels": 0,
        "n_hidden": n_hidden,
        "n_latent": n_latent,
        "n_layers" if not linear else "n_layers_encoder": sum(map(bool, map(_LAYER.match, state))),
    }
    if linear:
        layer = "decoder.factor_regressor.fc_layers.Layer 0"
        seen["use_batch_norm"] = f"{layer}.1.weight" in state
        seen["bias"] = f"{layer}.0.bias" in state
    table = state.get("px_r")
    if table is None:
        found = "gene-cell"
    elif table.dim() == 1:
        found = "gene"
    else:
        n_groups = table.shape[1]
        if n_groups != max(n_batch, 1):
            found = "gene-label"
        elif dispersion in ("gene-batch", "gene-label"):
            found = dispersion
        else:
            raise InputError(
                f"{path} has {n_groups} dispersions per gene and as many batches; say which it "
                "was: dispersion='gene-batch' or 'gene-label'"
            )
        seen["n_batch" if found == "gene-batch" else "n_labels"] = n_groups
    if dispersion not in (None, found):
        raise InputError(f"{path} has dispersion={found!r}, not {dispersion!r}; leave it out")
    return (LDVAE if linear else VAE), {**seen, "dispersion": found}


def _fill(module: VAE, state: Mapping[str, Tensor], path: str) -> None:
    try:
        module.load_state_dict(state, strict=True)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        raise InputError(
            f"{path} is not of a scvi.models.VAE or LDVAE of scvi 0.5-0.6.8: {first}"
        ) from error


def _agree(path: Any, what: str, theirs: int, ours: int, source: str) -> None:
    if theirs != ours:
        raise InputError(
            f"{path} was trained on {theirs} {what}, and {source} {ours}; give the data it was "
            "trained on, or others made in the same way"
        )
