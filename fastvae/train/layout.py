"""How a minibatch of fixed size is laid out: densely, or as CSR arrays that any cells fit in."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import nn

from .. import _backend
from .._vae.overrides import own_method, sparse_first_layers
from ..data import Minibatches
from ..data.device import DeviceStore
from ..kernels.compact import LARGEST
from ..vae import VAE

FORCED: Literal["dense", "csr"] | None = None
"""A layout for the tests; sparse only where it is possible."""

_FORWARD, _INFERENCE = VAE.forward, VAE.inference
_MATRICES = 6  # float32 of the counts' size in a dense step: x, log(1 + x), two logits, gradients


def capacity_of(batches: Minibatches) -> int:
    """Entries that any minibatch of different cells fits in: those of the longest rows together.

    The lengths are known to the host; the device is not asked.
    """
    lengths = batches.store.lengths()[batches.cells]
    longest = min(batches.batch_size, len(lengths))
    return int(np.partition(lengths, -longest)[-longest:].sum(dtype=np.int64))


def csr_capacity(module: nn.Module, batches: Minibatches, precision: str) -> int | None:
    """Return how many entries a CSR minibatch of fixed size needs, or None for a dense one.

    CSR arrays are taken where the kernels move fewer bytes with them (``csr_pays``; a count, not
    measured) or a dense step would not fit in the free memory of a GPU. Columns and values are
    then longer than the rows say, which only the Triton kernels take: with another backend, or a
    model of which a part has been replaced that would see them, minibatches are dense.
    """
    store = batches.store
    assert isinstance(store, DeviceStore)
    pays = getattr(_backend.select(store.columns[2]), "csr_pays", None)
    if pays is None or FORCED == "dense" or not isinstance(module, VAE):
        return None
    own = own_method(module, "forward", _FORWARD) and own_method(module, "inference", _INFERENCE)
    layers = sparse_first_layers(module) if own and module._expects_counts() else None
    capacity = capacity_of(batches)
    if layers is None or capacity > LARGEST:
        return None
    size, genes = batches.batch_size, store.n_genes
    if FORCED == "csr" or 4 * _MATRICES * size * genes > _free_bytes(store.columns[2].device):
        return capacity
    fewer_bytes = pays(
        size,
        genes,
        layers[0].out_features,
        capacity,
        encoders=len(layers),
        row_sums=module.use_observed_lib_size,
        log1p=module.log_variational,
        tf32=precision != "float32",
    )
    return capacity if fewer_bytes else None


def _free_bytes(device: torch.device) -> float:
    if device.type != "cuda":
        return math.inf
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept
