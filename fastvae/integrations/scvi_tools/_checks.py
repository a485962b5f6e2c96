"""Checks of the data that a model is given: genes, columns of obs, counts.

scvi-tools compares only the number of genes, and a NaN in the data gives a NaN loss there. Each
check reads all the data once; none runs for each minibatch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager

from ..._words import a_few
from ...data.checks import CountCheck, Origin, canonicalise
from ...data.genes import Genes, refusal
from ...data.sources.matrix import to_csr
from ...errors import InputError

_SOURCE = "the AnnData object"


def gene_names(registry: Mapping[str, Any]) -> np.ndarray | None:
    """Return the genes that a registry of scvi-tools was made with, or None if it has none."""
    fields = registry.get("field_registries", {})
    names = fields.get(REGISTRY_KEYS.X_KEY, {}).get("state_registry", {}).get("column_names")
    return None if names is None else np.asarray(names, dtype=object)


def check_genes(adata: Any, wanted: Sequence[str] | np.ndarray, loading: bool = False) -> None:
    """Check that the columns of `adata` are the genes `wanted`, in their order.

    Parameters
    ----------
    adata
        Anything with ``var_names`` and ``var``.
    wanted
        The genes of the model, in its order.
    loading
        There is no model yet. As many genes under other names are accepted: scvi-tools warns of
        them, and they may have been renamed.

    Raises
    ------
    InputError
        They are not; the message names genes and the line of code that corrects it.
    """
    genes, wanted = np.asarray(adata.var_names, dtype=object), np.asarray(wanted, dtype=object)
    if np.array_equal(genes, wanted):
        return
    there, known = set(genes), set(wanted)
    missing = [name for name in wanted if name not in there]
    if missing:
        if not (loading and len(genes) == len(wanted)):
            raise InputError(_without(missing, adata, wanted, loading))
        return
    line = "use adata[:, model.adata.var_names].copy()"
    if loading:
        line = "call SCVI.prepare_query_anndata(adata, reference_model) first"
    more = [name for name in genes if name not in known]
    if more:
        what = f"the model was not trained with {len(more)} of its genes: {a_few(more)}"
    elif len(genes) != len(wanted):
        repeated = adata.var_names[adata.var_names.duplicated()].unique()
        what = f"it has genes more than once: {a_few(repeated)}"
        line = f"call adata.var_names_make_unique(), then {line}"
    else:
        at = int(np.flatnonzero(genes != wanted)[0])
        what = (
            f"its genes are in another order than the model's: gene {at} is {str(genes[at])!r} "
            f"and should be {str(wanted[at])!r}"
        )
    raise InputError(f"{_SOURCE} does not have the genes of the model: {what}; {line}")


def _without(missing: list[str], adata: Any, wanted: np.ndarray, loading: bool) -> str:
    """Say which genes are missing and what to do."""
    genes, known = Genes.of(adata.var), Genes.of_model(wanted)
    text = refusal(_SOURCE, genes, [str(name) for name in missing], known, adata.var)
    if len(missing) == len(wanted) == adata.n_vars:
        return (
            f"{text}. If these are the same genes under other names, and in the same order: "
            "adata.var_names = model.adata.var_names"
        )
    model = "reference_model" if loading else "model"
    return (
        f"{text}. If they were not measured, SCVI.prepare_query_anndata(adata, {model}) gives "
        "them zero counts and puts the others in order"
    )


def check_categories(obs: pd.DataFrame, keys: Mapping[str, Any]) -> None:
    """Check that no category is missing.

    Parameters
    ----------
    obs
        One row per cell.
    keys
        Name or names of a column by the argument of ``setup_anndata`` that gave them.

    Raises
    ------
    InputError
        A cell lacks one.
    """
    for option, given in keys.items():
        for key in [given] if isinstance(given, str) else (given or ()):
            if key not in obs or obs[key].ndim != 1:
                continue  # scvi-tools reports it
            missing = obs[key].isna().to_numpy()
            if missing.any():
                example = str(obs.index[int(np.argmax(missing))])
                raise InputError(
                    f"obs[{key!r}] ({option}) is missing for {int(missing.sum())} of {len(obs)} "
                    f"cells (first: {example!r}); fill it (for example with 'unknown') or drop "
                    "these cells"
                )


def check_data(model: Any, manager: AnnDataManager, again: bool = False) -> None:
    """Check the columns and counts that `manager` has registered, once for each `model`.

    Raises
    ------
    InputError
        As `check_columns` and `check_counts`.
    """
    checked = model.__dict__.setdefault("_checked", set())
    if again or manager.id not in checked:
        check_columns(manager)
        check_counts(manager, getattr(model.module, "gene_likelihood", "normal"))
        checked.add(manager.id)


def check_columns(manager: AnnDataManager) -> None:
    """Check the numbers that go with the counts of each cell.

    Raises
    ------
    InputError
        A covariate or a size factor is not finite, or a size factor is negative.
    """
    registry = manager.data_registry
    cells = manager.adata.obs_names
    if REGISTRY_KEYS.SIZE_FACTOR_KEY in registry:
        values = np.asarray(manager.get_from_registry(REGISTRY_KEYS.SIZE_FACTOR_KEY))
        key = registry[REGISTRY_KEYS.SIZE_FACTOR_KEY].attr_key
        _check_column(values.reshape(-1), f"obs[{key!r}] (size_factor_key)", cells, least=0.0)
    if REGISTRY_KEYS.CONT_COVS_KEY in registry:
        table = pd.DataFrame(manager.get_from_registry(REGISTRY_KEYS.CONT_COVS_KEY))
        for key in table:
            name = f"obs[{key!r}] (continuous_covariate_keys)"
            _check_column(table[key].to_numpy(), name, cells)


def _check_column(values: np.ndarray, name: str, cells: pd.Index, least: float = -np.inf) -> None:
    try:
        values = np.asarray(values, dtype=np.float32)  # what the network receives
    except (TypeError, ValueError):
        raise InputError(f"{name} holds {values.dtype} values; numbers are needed") from None
    wrong = ~np.isfinite(values)
    expected = "it must be a finite number"
    if not wrong.any():
        wrong = values < least
        expected = "it cannot be negative"
    if wrong.any():
        at = int(np.argmax(wrong))
        raise InputError(
            f"{name} is {values[at]:g} for cell {str(cells[at])!r} (row {at}) and is wrong for "
            f"{int(wrong.sum())} of {len(values)} cells; {expected}: correct it or drop these "
            "cells, then call setup_anndata again"
        )


def check_counts(manager: AnnDataManager, likelihood: str) -> None:
    """Check that the counts are finite and, under a likelihood of counts, not negative.

    Counts in a file or in another kind of array are not checked: reading them all would cost as
    much as an epoch.

    Raises
    ------
    InputError
        They are not; the message names the first such cell and gene.
    """
    if manager.adata.isbacked:
        return
    x = manager.get_from_registry(REGISTRY_KEYS.X_KEY)
    x = x.to_numpy() if isinstance(x, pd.DataFrame) else x
    values = x.data if sp.issparse(x) else x
    if not (isinstance(values, np.ndarray) and values.size and values.dtype.kind in "iuf"):
        return
    low, high = values.min(), values.max()
    if np.isfinite(low) and np.isfinite(high) and (low >= 0 or likelihood == "normal"):
        return
    key = manager.data_registry[REGISTRY_KEYS.X_KEY].attr_key
    slot = "X" if key is None else f"layers[{key!r}]"
    origin = Origin(_SOURCE, slot, manager.adata.obs_names, manager.adata.var_names)
    counts = to_csr(x, x.shape, origin.where)
    canonicalise(counts)
    if likelihood == "normal":
        counts.data[np.isfinite(counts.data)] = 1.0  # negative values are allowed here
    CountCheck(origin).add(counts)
