"""Where a latent space comes from, as values that ``uns`` of an AnnData can hold."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import __version__
from ..data.keys import Key
from .setup import Setup

KEY = "fastvae"
"""Where it is in ``uns``."""


def provenance(
    setup: Setup, training: Mapping[str, Any], state: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Describe the model that `state` has the weights of; what there is not is left out.

    Returns
    -------
    dict
        ``version``, ``torch``, ``weights_sha256``, ``n_genes``, ``layer`` or ``use_raw``,
        ``batch_key`` and ``labels_key`` (an array, of several columns), ``seed`` and ``epochs`` of
        the training, and ``options`` of the network.
    """
    values = {
        "version": __version__,
        "torch": str(torch.__version__),
        "weights_sha256": weights_digest(state),
        "n_genes": len(setup.gene_names),
        "layer": setup.slot.layer,
        "use_raw": setup.slot.use_raw or None,
        "batch_key": _storable(setup.batch_key),
        "labels_key": _storable(setup.labels_key),
        "seed": training.get("seed"),
        "epochs": training.get("epochs"),
        "options": asdict(setup.options),
    }
    return {name: value for name, value in values.items() if value is not None}


def _storable(key: Key | None) -> Any:
    return key if key is None or isinstance(key, str) else np.array(key, dtype=object)


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """Return the beginning of the SHA-256 of all weights, by name."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
