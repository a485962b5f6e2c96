"""Trained models from and to scvi-tools, weight for weight."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .._torch import device_of, seeded
from ..data.keys import BETWEEN, Key, encode, key_column
from ..data.request import Source
from ..data.sources.slots import Slot
from ..data.stores.host import CountStore
from ..errors import InputError
from ..model.labels import SemiSupervision
from ..model.model import Model
from ..model.new_data import Reading, check_reading
from ..model.setup import Setup
from .convert_options import options_from, options_to
from .convert_saved import Described, describe_model, read_folder

if TYPE_CHECKING:
    from anndata import AnnData
    from typing_extensions import Unpack

__all__ = ["from_scvi_tools", "to_scvi_tools"]

_LIBRARY = ("library_log_means", "library_log_vars")
_HISTORY = {
    "elbo": "elbo",
    "reconstruction_loss": "reconstruction_loss",
    "kl_local": "kl_local",
}


def to_scvi_tools(model: Model, adata: AnnData, *, model_class: Any = None) -> Any:
    """Make a trained ``scvi.model.SCVI`` with the weights of `model`.

    Parameters
    ----------
    model
        Trained.
    adata
        Cells to register with it: raw counts where `model` had them (``X`` or the same layer),
        with the columns of obs that it was made with. Batches and categories need not all be
        present.
        scvi-tools writes into its ``obs`` and ``uns``, and batches or labels that are combinations
        of columns get a column such as "donor | kit". If it has other genes too, or the genes
        in another order, the scvi-tools model has a copy with the genes of `model`; likewise if
        the counts are in ``raw``.
    model_class
        ``scvi.model.SCVI`` by default, or a class derived from it.

    Returns
    -------
    scvi.model.SCVI
        Every weight and buffer is bit-equal, the codes of batches, labels and covariates are the
        same, and the model counts as trained. ``history_`` has the losses of each epoch under the
        names of scvi-tools.

    Raises
    ------
    InputError
        The model is not trained, or `adata` lacks genes, columns or categories.
    ImportError
        scvi-tools is not installed.

    Notes
    -----
    Cells without any count differ: fastvae gives them a finite latent position and loss,
    scvi-tools takes the logarithm of 0.
    """
    if model_class is None:
        from scvi.model import SCVI

        model_class = SCVI

    if not model.is_trained:
        raise InputError("the model has not been trained yet; call fit() before converting it")
    if model._setup.semi_supervision is not None:
        raise InputError(
            "a model that has learned labels has no way into scvi-tools yet; convert the model "
            "that it started from"
        )
    setup = model._setup
    adata = _with_genes(adata, setup)
    batch_key = _one_column(adata, setup.batch_key, "batch_key")
    labels_key = _one_column(adata, setup.labels_key, "labels_key")
    registries: dict[str, Any] = {}
    for field, key, categories in (
        ("batch", batch_key, setup.batch_categories),
        ("labels", labels_key, setup.label_categories),
    ):
        if key is not None:
            what = "batch" if field == "batch" else "label"
            mapping = _original_values(adata.obs, key, categories, what)
            state = {"categorical_mapping": mapping, "original_key": key}
            registries[field] = {"state_registry": state}
    keys = setup.covariates
    if keys.categorical:
        registries["extra_categorical_covs"] = {"state_registry": _covariates(adata.obs, setup)}
    model_class.setup_anndata(
        adata,
        layer=setup.slot.layer if setup.slot.in_layer else None,
        batch_key=batch_key,
        labels_key=labels_key,
        size_factor_key=keys.size_factor,
        categorical_covariate_keys=list(keys.categorical) or None,
        continuous_covariate_keys=list(keys.continuous) or None,
        source_registry={"field_registries": registries} if registries else None,
    )
    with seeded(torch.device("cpu"), 0):  # the weights drawn here are replaced below
        converted = model_class(adata, **options_to(setup.options))
    state_dict = dict(model.module.state_dict())
    if not setup.options.use_observed_lib_size:
        for name, values in zip(
            _LIBRARY, (setup.log_library_mean, setup.log_library_var), strict=True
        ):
            state_dict[name] = torch.tensor([values], dtype=torch.float32)
    converted.module.load_state_dict(state_dict, strict=True)
    converted.to_device(device_of(model.module))
    converted.module.eval()
    converted.is_trained_ = True
    _copy_history(model, converted)
    return converted


def from_scvi_tools(
    source: Any,
    data: Any = None,
    *,
    device: str | torch.device = "cpu",
    **reading: Unpack[Reading],
) -> Model:
    """Make a `fastvae.Model` with the weights of a ``scvi.model.SCVI`` or ``SCANVI``.

    Parameters
    ----------
    source
        The model, or the folder that its ``save`` wrote (scvi-tools 0.15 or newer). The folder
        is read by ``torch.load(weights_only=True)``: no code in it is run, and scvi-tools need
        not be installed. Objects in it that are neither numbers, texts nor arrays are skipped.
    data
        Cells for the model to answer for, of any kind that `Model` takes. None: those of the
        scvi-tools model if it has their counts; otherwise each call must be given its own.
    device
        Where the network goes.
    **reading
        How `data` are read: ``layer``, ``use_raw``, ``genome``, ``allow_fractional``,
        ``allow_links`` and ``gene_names``, as in the methods of `Model` that take new data.

    Returns
    -------
    Model
        Every weight and buffer is bit-equal, the codes of batches, labels and covariates are the
        same. Of a SCANVI it gives labels (`Model.predict`), which are read from `data` when it is
        trained further.

    Raises
    ------
    InputError
        Options that fastvae does not have - the message names the option -, a folder that cannot
        be read safely, or data that do not fit.
    """
    check_reading(data, reading)
    if isinstance(source, (str, os.PathLike)):
        described = read_folder(source)
    else:
        described = describe_model(source)
        data = described.adata if data is None else data
    setup, state = _setup_of(described)
    model = Model._with_weights(setup, state, device=device, is_trained=described.is_trained)
    model.origin = {"converted_from": f"scvi-tools {described.version}"}
    if data is not None:
        model._attach(*setup.store_of(data, Source(), reading))
    return model


def _setup_of(described: Described) -> tuple[Setup, dict[str, Tensor]]:
    state = dict(described.state)
    batch_key: Any = described.setup_args.get("batch_key")
    labels_key: Any = described.setup_args.get("labels_key")
    batches, labels = described.categories("batch"), described.categories("labels")
    init = dict(described.init)
    one_column = {"gene-batch": batch_key, "gene-label": labels_key}
    if one_column.get(init.get("dispersion", "gene"), "") is None:
        # scvi-tools has one batch (label) where there is no key: a dispersion per gene
        init["dispersion"] = "gene"
        state["px_r"] = state["px_r"].squeeze(1)
    how = None
    if described.model_name == "SCANVI":
        linear = bool(init.pop("linear_classifier", False))
        how = SemiSupervision(described.unlabeled_category(), linear)
        labels = how.labels_among(labels, labels_key)
    covariates, categories = described.covariates()
    options = options_from(init, len(batches), covariates)
    n_groups = max(len(batches), 1)
    mean, var = (0.0,) * n_groups, (1.0,) * n_groups  # not used with the observed library size
    if not options.use_observed_lib_size:
        mean, var = (tuple(state.pop(name).reshape(-1).tolist()) for name in _LIBRARY)
    setup = Setup(
        options=options,
        batch_key=batch_key,
        labels_key=labels_key,
        slot=Slot(layer=described.setup_args.get("layer")),
        gene_names=described.gene_names,
        batch_categories=batches if batch_key is not None else (),
        label_categories=labels if labels_key is not None else (),
        log_library_mean=mean,
        log_library_var=var,
        covariates=covariates,
        covariate_categories=categories,
        semi_supervision=how,
    )
    return setup, state


def _with_genes(adata: Any, setup: Setup) -> Any:
    """Return `adata` itself if it has the model's genes in order, else a copy that has."""
    if not hasattr(adata, "obs") or not hasattr(adata, "var_names"):
        raise InputError(
            f"to_scvi_tools needs an AnnData, not {type(adata).__name__}; read the file with "
            "anndata.read_h5ad first"
        )
    if setup.slot.use_raw:
        if adata.raw is None:
            raise InputError("the model's counts are in raw, and this AnnData has no raw")
        adata = adata.raw.to_adata()
    names = list(setup.gene_names)
    if list(map(str, adata.var_names)) == names:
        return adata
    missing = sorted(set(names) - set(map(str, adata.var_names)))
    if missing:
        from .._words import a_few

        raise InputError(
            f"{len(missing)} of the model's {len(names)} genes are not in the data: "
            f"{a_few(missing)}"
        )
    return adata[:, names].copy()


def _one_column(adata: Any, key: Key | None, option: str) -> str | None:
    """Return the name of the column of `key`; that of several is added to ``obs``."""
    if key is None or isinstance(key, str):
        return key
    name = BETWEEN.join(key)
    adata.obs[name] = key_column(adata.obs, key, option)
    return name


def _original_values(obs: Any, key: str, categories: tuple[str, ...], what: str) -> np.ndarray:
    """Return the model's categories as the values that `obs` has for them.

    scvi-tools compares values, fastvae their texts. A category without cells gets the type of
    the others.
    """
    codes, _ = encode(obs, key, categories, what)
    values: list[Any] = list(categories)
    kinds = set()
    for code, row in zip(*np.unique(codes, return_index=True), strict=True):
        values[code] = obs[key].iloc[int(row)]
        kinds.add(type(values[code]))
    (kind,) = kinds if len(kinds) == 1 else (str,)
    if not issubclass(kind, str):
        absent = set(range(len(categories))) - set(np.unique(codes).tolist())
        for code in absent:
            is_bool = issubclass(kind, (bool, np.bool_))
            values[code] = values[code] == "True" if is_bool else kind(values[code])
        return np.array(values)
    return np.array(values, dtype=object)


def _covariates(obs: Any, setup: Setup) -> dict[str, Any]:
    """Return the categories of covariates as scvi-tools registers them."""
    each = list(zip(setup.covariates.categorical, setup.covariate_categories, strict=True))
    return {
        "mappings": {key: _original_values(obs, key, names, "covariate") for key, names in each},
        "field_keys": [key for key, _ in each],
        "n_cats_per_key": [len(names) for _, names in each],
    }


def _copy_history(model: Model, converted: Any) -> None:
    import pandas as pd

    history = model.history
    if len(history):
        index = pd.Index(history["epoch"].to_numpy() - 1, name="epoch")
        converted.history_ = {
            f"{theirs}_{kind}": pd.DataFrame(
                {f"{theirs}_{kind}": history[f"{kind}_{ours}"].to_numpy()}, index=index
            )
            for theirs, ours in _HISTORY.items()
            for kind in ("train", "validation")
        }
    same_cells = model.training and model.training["n_cells"] == converted.adata.n_obs
    if same_cells and isinstance(model._store, CountStore):
        names = np.asarray(converted.adata.obs_names, dtype=object)
        if np.array_equal(names, model._store.cell_names):
            converted.train_indices_ = model.train_cells
            converted.validation_indices_ = model.validation_cells
