"""CSR minibatches for what scvi-tools' models compute from data after training."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Sequence
from types import CodeType
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from scvi import REGISTRY_KEYS, settings
from scvi.data import AnnDataManager
from scvi.data._utils import registry_key_to_default_dtype
from scvi.dataloaders import AnnDataLoader
from scvi.model.base import BaseModelClass, RNASeqMixin, VAEMixin
from torch import Tensor

from ..._torch import has_hooks
from ...data.checks import canonicalise
from ...data.csr import csr_tensor
from ._minibatches import CountLoader
from ._module import LDVAE, SCANVAE, VAE

# Methods that hand the counts to the module and do nothing else with them. Draws of counts are not
# among them: rounding may change how many random numbers one takes, and with that all after it.
_HAND_ON = {
    VAEMixin: (
        "get_elbo",
        "get_marginal_ll",
        "get_reconstruction_error",
        "get_latent_representation",
        "get_aggregated_posterior",
        "differential_abundance",
    ),
    RNASeqMixin: (
        "get_normalized_expression",
        "get_likelihood_parameters",
        "get_latent_library_size",
    ),
}
_STEPS = {
    "forward",
    "inference",
    "generative",
    "loss",
    "marginal_ll",
    "_get_inference_input",
    "_get_generative_input",
    "_regular_inference",
}
"""Methods of a module that see the counts, or what has been made of them."""


class Cells:
    """The registered data of an AnnData, cut and converted minibatch by minibatch.

    Nothing is prepared and nothing kept: a few cells of many cost little, and counts that somebody
    changed since the last time are read as they are now.

    Parameters
    ----------
    counts
        CSR (N, G) of any dtype.
    columns
        What goes with them, by registry key: arrays of N rows.
    """

    def __init__(self, counts: sp.csr_matrix, columns: dict[str, np.ndarray]) -> None:
        self._counts = counts
        self._columns = columns

    @classmethod
    def of(cls, manager: AnnDataManager) -> Cells | None:
        """Return what `manager` has registered, or None where the counts are not CSR in memory."""
        data = {key: manager.get_from_registry(key) for key in manager.data_registry}
        counts = data.pop(REGISTRY_KEYS.X_KEY)
        if not (isinstance(counts, (sp.csr_matrix, sp.csr_array)) and counts.dtype.kind in "iuf"):
            return None
        columns = {
            key: values.to_numpy() if isinstance(values, pd.DataFrame) else values
            for key, values in data.items()
        }
        if not all(isinstance(values, np.ndarray) for values in columns.values()):
            return None
        return cls(counts, columns)

    def minibatch(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Return the cells `rows` (B,) int64, as scvi-tools' loader does but for CSR counts."""
        block = self._counts[rows]
        canonicalise(block)
        counts = block.astype(np.float32, copy=False)
        crow, col = (part.astype(np.int32, copy=False) for part in (counts.indptr, counts.indices))
        batch = {REGISTRY_KEYS.X_KEY: csr_tensor(crow, col, counts.data, counts.shape)}
        for key, values in self._columns.items():
            part = values[rows].astype(registry_key_to_default_dtype(key), copy=False)
            batch[key] = torch.from_numpy(part)
        return batch


def _takes_csr(model: Any) -> bool:
    """Whether the module of `model` computes with CSR counts all the way."""
    module = model.module
    return (
        type(module) in (VAE, LDVAE, SCANVAE)
        and not _STEPS & module.__dict__.keys()
        and not has_hooks(module)
        and module.why_dense() is None
    )


@functools.cache
def _known() -> frozenset[CodeType]:
    """The code of the methods above, without what decorates it."""
    methods = [
        getattr(kind, name)
        for kind, names in _HAND_ON.items()
        for name in names
        if hasattr(kind, name)
    ]
    return frozenset(inspect.unwrap(method).__code__ for method in methods)


def _are_rows(indices: Any) -> bool:
    """Whether scvi-tools' loader takes `indices` as row numbers or as a mask."""
    kind = np.asarray(indices).dtype.kind
    return kind in "iu" or (kind == "b" and isinstance(indices, np.ndarray))


def _make_data_loader(
    self: Any,
    adata: Any,
    indices: Sequence[int] | None = None,
    batch_size: int | None = None,
    shuffle: bool = False,
    data_loader_class: Any = None,
    **data_loader_kwargs: Any,
) -> Any:
    """``BaseModelClass._make_data_loader``, with CSR counts for those who only hand them on.

    Who asks decides: scvi-tools' own methods that are known to leave the counts to the module.
    Anybody else - also a method of the same name that somebody wrote - gets dense counts, and so
    does everybody where the module, the data or an option does not allow CSR.
    """
    source = None
    if (
        sys._getframe(1).f_code in _known()
        and data_loader_class is None
        and self._data_loader_cls is AnnDataLoader
        and not (data_loader_kwargs or settings.dl_num_workers)
        and (indices is None or _are_rows(indices))
        and _takes_csr(self)
    ):
        manager = self.get_anndata_manager(adata)
        source = None if manager is None else Cells.of(manager)
    if source is not None:
        data_loader_class = CountLoader
        data_loader_kwargs = {"source": source}
    return BaseModelClass._make_data_loader(
        self, adata, indices, batch_size, shuffle, data_loader_class, **data_loader_kwargs
    )
