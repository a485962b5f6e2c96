"""CSR minibatches for what scvi-tools' models compute from data after training.

Some methods of scvi-tools make one loader and hand what it loads on to the module, which takes CSR
counts. `csr_methods` wraps them: the loader that such a method makes has CSR counts. Every other
loader has dense ones, as scvi-tools documents, for code that computes with the counts itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextvars import ContextVar
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

# Each makes its loader before it calls another method of the model, and leaves the counts to the
# module. Draws of counts are not among them: rounding may change how many random numbers one takes,
# and with that all after it.
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

_next_loader: ContextVar[Any] = ContextVar("next_loader", default=None)
"""The model whose next loader may have CSR counts, or None."""

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
"""Methods of a module that receive the counts, or what was computed from them."""


class Cells:
    """The registered data of an AnnData, cut and converted minibatch by minibatch.

    Nothing is prepared or cached: a few cells of many cost little, and each call reads the counts
    as they are at that time.

    Parameters
    ----------
    counts
        CSR (N, G) of any dtype.
    columns
        Everything else that is registered, by registry key: arrays of N rows.
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


def with_csr_counts(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method of a model such that the loader which it makes has CSR counts.

    It has where `make_data_loader` finds that module, data and options allow it. The method must
    make one loader before it calls others that make some.
    """

    @functools.wraps(method)
    def evaluate(self: Any, *args: Any, **kwargs: Any) -> Any:
        before = _next_loader.set(self)
        try:
            return method(self, *args, **kwargs)
        finally:
            _next_loader.reset(before)

    return evaluate


def csr_methods(kind: type) -> dict[str, Callable[..., Any]]:
    """Return the methods of `kind` that only hand counts on, with CSR counts, by name.

    A method that a subclass has replaced is not among them.
    """
    own = {name: method for base, names in _HAND_ON.items() for name, method in _of(base, names)}
    return {
        name: with_csr_counts(method)
        for name, method in own.items()
        if getattr(kind, name, None) is method
    }


def _of(base: type, names: Sequence[str]) -> list[tuple[str, Callable[..., Any]]]:
    """Return the methods of `base` that this version of scvi-tools has."""
    return [(name, vars(base)[name]) for name in names if name in vars(base)]


def _are_rows(indices: Any) -> bool:
    """Whether scvi-tools' loader takes `indices` as row numbers or as a mask."""
    kind = np.asarray(indices).dtype.kind
    return kind in "iu" or (kind == "b" and isinstance(indices, np.ndarray))


def make_data_loader(
    self: Any,
    adata: Any,
    indices: Sequence[int] | None = None,
    batch_size: int | None = None,
    shuffle: bool = False,
    data_loader_class: Any = None,
    **data_loader_kwargs: Any,
) -> Any:
    """``BaseModelClass._make_data_loader``, with CSR counts for a method of `csr_methods`.

    Such a method gets them once. Everybody else gets dense counts, and so does the method where the
    module, the data or an option does not allow CSR.
    """
    asked_for = _next_loader.get() is self
    if asked_for:
        _next_loader.set(None)
    source = None
    if (
        asked_for
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
