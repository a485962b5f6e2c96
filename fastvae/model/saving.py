"""The folder of a saved model: weights, configuration, history and model card."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._files import atomic_path, check_regular
from ..errors import InputError
from .card import CARD, card_text, is_written

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
HISTORY = "history.csv"
FORMAT = "fastvae-model"
FORMAT_VERSION = 1
_NOT_FETCHED = b"version https://git-lfs.github.com/spec/"


def write_saved(
    folder: Path, state: dict[str, Tensor], config: dict[str, Any], history: str
) -> None:
    """Write the files of a model so that one model, old or new, is always there.

    The configuration carries the digests of weights and history. All are written whole under
    hidden names first; the new model is in place from the moment the configuration is, and
    `read_part` finds them under either name. The model card is left as it is where somebody made
    it theirs.

    Parameters
    ----------
    history
        The text of history.csv.

    Raises
    ------
    WriteError
        A file could not be written; the model that was there before is untouched.
    """
    from safetensors.torch import save

    weights = save({name: value.detach().cpu().contiguous() for name, value in state.items()})
    parts = {WEIGHTS: weights, HISTORY: history.encode()}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in parts.items()}
    config = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "weights_sha256": digests[WEIGHTS],
        "history_sha256": digests[HISTORY],
        **config,
    }
    text = json.dumps(config, indent=1, allow_nan=False)
    card = folder / CARD
    if not card.exists() or (card.is_file() and is_written(card.read_bytes())):
        parts[CARD] = card_text(config).encode()
    ready = {name: folder / f".{name}.new" for name in parts}
    committed = False
    try:
        for name, content in parts.items():
            with atomic_path(ready[name], name=folder / name) as temporary:
                temporary.write_bytes(content)
        with atomic_path(folder / CONFIG) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
        committed = True
        for name, path in ready.items():
            with suppress(OSError):  # found under its hidden name
                path.replace(folder / name)
    finally:
        if not committed:
            for path in ready.values():
                path.unlink(missing_ok=True)


def read_part(folder: Path, name: str, digest: str | None) -> bytes | None:
    """Read the weights or the history that belong to the configuration beside them.

    Returns
    -------
    bytes or None
        What has the digest; else what is there under the plain name, or None.
    """
    plain = folder / name
    if plain.exists():
        check_regular(plain)
    content = plain.read_bytes() if plain.exists() else None
    ready = folder / f".{name}.new"
    if digest is None or not ready.is_file():
        return content
    if content is not None and hashlib.sha256(content).hexdigest() == digest:
        return content
    # A save was cut short after its configuration was in place.
    late = ready.read_bytes()
    return late if hashlib.sha256(late).hexdigest() == digest else content


def read_config(folder: Path) -> dict[str, Any]:
    """Read the configuration of the model saved in `folder`.

    Raises
    ------
    InputError
        No model there, or its configuration is damaged, foreign or of a newer version.
    """
    path = folder / CONFIG
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give the folder that a model was saved to")
    if not path.is_file():
        raise InputError(
            f"{folder} holds no saved model: {CONFIG} is missing; give the folder that "
            "Model.save or fastvae train wrote"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); restore it or train again") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise InputError(f"{path} does not describe a fastvae model; was another program's given?")
    version = config.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise InputError(
            f"{path} has format version {version}, and this fastvae reads up to "
            f"{FORMAT_VERSION}: it was saved by fastvae {config.get('fastvae_version')}; "
            "upgrade with pip install -U fastvae-scvi"
        )
    return config


def read_weights(folder: Path, config: dict[str, Any]) -> dict[str, Tensor]:
    """Read the weights that belong to `config`.

    Raises
    ------
    InputError
        The file is missing, damaged, or of another model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = folder / WEIGHTS
    content = read_part(folder, WEIGHTS, config.get("weights_sha256"))
    if content is None:
        raise InputError(f"{path} is missing; restore it or train again")
    if content.startswith(_NOT_FETCHED):
        raise InputError(
            f"{path} stands for a file that Git LFS keeps elsewhere; fetch it with git lfs pull"
        )
    if hashlib.sha256(content).hexdigest() != config.get("weights_sha256"):
        raise InputError(
            f"{path} is damaged or does not belong to the {CONFIG} beside it (its SHA-256 is not "
            "the one written there); restore both files from one save or train again"
        )
    try:
        return load(content)
    except SafetensorError as error:
        raise InputError(f"{path} is not a safetensors file: {error}") from error


def fill_module(module: torch.nn.Module, state: dict[str, Tensor], folder: Path) -> None:
    """Load `state` into `module`.

    Raises
    ------
    InputError
        Names or shapes differ from those the configuration asks for.
    """
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()  # the others are the same for other weights
        raise InputError(
            f"{folder / WEIGHTS} does not fit {CONFIG}: {first} Restore both files from one save"
        ) from error
