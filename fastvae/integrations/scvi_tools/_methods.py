"""`fast_methods`: what fastvae's models have in the place of methods of scvi-tools' models."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from scvi.model.base import BaseModelClass, RNASeqMixin

from ...errors import InputError, whole_number
from ._checks import check_categories, check_columns, check_data, check_genes, gene_names
from ._evaluation import csr_methods, make_data_loader, with_csr_counts

_CATEGORIES = ("batch_key", "labels_key", "categorical_covariate_keys")


def validate_anndata(self: Any, adata: Any = None, copy_if_view: bool = True) -> Any:
    """``BaseModelClass._validate_anndata``, which also checks genes, covariates and counts.

    All methods that take an AnnData call it first.

    Raises
    ------
    InputError
        Other genes than the model's, or in another order; missing categories; covariates, size
        factors or counts that are no numbers to compute with.
    """
    if adata is not None and adata is not self.adata:
        names = gene_names(self.registry_) if self.adata is None else self.adata.var_names
        if names is not None:
            check_genes(adata, names)
        given = self.registry_.get("setup_args", {})
        check_categories(adata.obs, {key: given.get(key) for key in _CATEGORIES})
    adata = BaseModelClass._validate_anndata(self, adata, copy_if_view)
    check_data(self, self.get_anndata_manager(adata, required=True))
    return adata


_EXPRESSION = with_csr_counts(RNASeqMixin.get_normalized_expression)


@functools.wraps(_EXPRESSION)
def get_normalized_expression(self: Any, *args: Any, **kwargs: Any) -> Any:
    # theirs, but for draws from all cells together, where theirs fails or names other cells
    bound = inspect.signature(_EXPRESSION).bind(self, *args, **kwargs)
    bound.apply_defaults()
    given = bound.arguments
    if given["n_samples_overall"] is None or given.get("dataloader") is not None:
        return _EXPRESSION(self, *args, **kwargs)
    whole_number("n_samples_overall", given["n_samples_overall"], minimum=1)
    if given["n_samples"] != 1:
        raise InputError(
            "n_samples is the number of draws per cell, and n_samples_overall their total number; "
            "give one of them"
        )
    likelihood = getattr(self.module, "gene_likelihood", None)
    if given["weights"] == "importance" and likelihood in ("poisson", "normal"):
        raise InputError(
            f"weights='importance' does not work with gene_likelihood={likelihood!r}; leave it out"
        )
    as_frame = not given["return_numpy"]
    if given["indices"] is not None and (as_frame or given["weights"] == "importance"):
        indices = np.asarray(given["indices"])
        given["indices"] = np.flatnonzero(indices) if indices.dtype == bool else indices
    given["return_numpy"] = True
    drawn = _EXPRESSION(*bound.args, **bound.kwargs)
    if not as_frame:
        return drawn
    # scvi-tools would name the rows after the cells, but the draws are others in number and order
    adata = self.adata if given["adata"] is None else given["adata"]
    genes, wanted = adata.var_names, given["gene_list"]
    genes = genes if wanted is None else genes[genes.isin(wanted)]
    return pd.DataFrame(drawn, columns=genes)


_REPLACED: tuple[tuple[type, str, Callable[..., Any]], ...] = (
    (BaseModelClass, "_make_data_loader", make_data_loader),
    (BaseModelClass, "_validate_anndata", validate_anndata),
    (RNASeqMixin, "get_normalized_expression", get_normalized_expression),
)


def fast_methods(kind: type) -> dict[str, Callable[..., Any]]:
    """Return the methods that replace those of the model class `kind`, by name.

    A method that a subclass of scvi-tools' classes has replaced itself stays as it is.
    """
    methods = csr_methods(kind)
    for base, name, method in _REPLACED:
        if getattr(kind, name, None) is getattr(base, name, None):
            methods[name] = method
    return methods


def checking_setup(theirs: Any) -> Any:
    """Return ``setup_anndata`` of `theirs`, which also checks genes, categories and covariates."""
    setup: Callable[..., None] = theirs.setup_anndata.__func__

    @functools.wraps(setup)
    def setup_anndata(cls: Any, adata: Any, *args: Any, **kwargs: Any) -> None:
        given = inspect.signature(setup).bind(cls, adata, *args, **kwargs).arguments
        source = kwargs.get("source_registry")
        names = None if source is None else gene_names(source)
        if names is not None:
            check_genes(adata, names, loading=True)
        check_categories(adata.obs, {key: given.get(key) for key in _CATEGORIES})
        setup(cls, adata, *args, **kwargs)
        check_columns(cls._get_most_recent_anndata_manager(adata, required=True))

    return classmethod(setup_anndata)


def mapping_loader(theirs: Any) -> Any:
    """Return ``load_query_data`` of `theirs`, which also leaves the batch embeddings trainable.

    scvi-tools does so from 1.5 on. Only rows of batches with cells in the query are trained.
    """
    load: Callable[..., Any] = theirs.load_query_data.__func__

    @functools.wraps(load)
    def load_query_data(cls: Any, *args: Any, **kwargs: Any) -> Any:
        model = load(cls, *args, **kwargs)
        for name, parameter in model.module.named_parameters():
            if name.startswith("_embeddings_dict."):
                parameter.requires_grad = True
        return model

    return classmethod(load_query_data)
