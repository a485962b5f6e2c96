"""`Described`: the parts of a scvi-tools model, read from the model or from its saved folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..data.categories import text_of
from ..data.covariates import CovariateKeys
from ..errors import InputError
from ._safe_load import load_without_code

_FILE = "model.pt"
_LEGACY_FILE = "model_params.pt"
_CLASSES = ("SCVI", "SCANVI")


@dataclass(frozen=True)
class Described:
    """Parts of a ``scvi.model.SCVI`` or ``scvi.model.SCANVI``.

    Attributes
    ----------
    model_name
        Which of them.
    init, setup_args
        Arguments of its constructor, and of its ``setup_anndata``.
    field_registries
        What was registered of the data.
    state
        Weights and buffers.
    adata
        Its data if they have counts, else None.
    """

    model_name: str
    version: str
    init: Mapping[str, Any]
    setup_args: Mapping[str, Any]
    field_registries: Mapping[str, Any]
    gene_names: tuple[str, ...]
    state: Mapping[str, Tensor]
    is_trained: bool
    adata: Any = None

    def categories(self, field: str) -> tuple[str, ...]:
        """Return the texts of the categories of ``"batch"`` or ``"labels"``, in code order."""
        values = np.asarray(self.field_registries[field]["state_registry"]["categorical_mapping"])
        return _texts(values, field)

    def unlabeled_category(self) -> str:
        """Return the text of the label that stands for an unknown one, of a SCANVI."""
        value = self.field_registries["labels"]["state_registry"]["unlabeled_category"]
        return text_of(value, "the scvi-tools field 'labels'")

    def covariates(self) -> tuple[CovariateKeys, tuple[tuple[str, ...], ...]]:
        """Return the columns of covariates, and the categories of each categorical one."""
        names = ("categorical_covariate_keys", "continuous_covariate_keys")
        categorical, continuous = (tuple(self.setup_args.get(name) or ()) for name in names)
        size_factor = self.setup_args.get("size_factor_key") or None
        field = "extra_categorical_covs"
        mappings: Mapping[str, Any] = {}
        if categorical:
            mappings = self.field_registries[field]["state_registry"]["mappings"]
        categories = tuple(_texts(np.asarray(mappings[name]), field) for name in categorical)
        return CovariateKeys(categorical, continuous, size_factor), categories


def _texts(values: np.ndarray, field: str) -> tuple[str, ...]:
    return tuple(text_of(value, f"the scvi-tools field {field!r}") for value in values.tolist())


def describe_model(model: Any) -> Described:
    """Describe a model in memory.

    Raises
    ------
    InputError
        It is of another class, or its module is not made yet.
    """
    names = [base.__name__ for base in type(model).__mro__]
    found = [name for name in _CLASSES if name in names]
    if not found or not hasattr(model, "init_params_"):
        raise InputError(
            f"from_scvi_tools takes a scvi.model.SCVI or SCANVI or the folder it was saved to, not "
            f"{type(model).__module__}.{type(model).__qualname__}"
        )
    if model.module is None:
        raise InputError("the scvi-tools model has no network yet; train it first")
    adata = model.adata if model.minified_data_type is None else None
    state = {name: value.detach().clone() for name, value in model.module.state_dict().items()}
    genes = tuple(map(str, model.get_var_names()))
    given = model.registry_, model.init_params_, genes, state, model.is_trained_
    return _described(found[0], *given, adata)


def read_folder(folder: str | os.PathLike[str]) -> Described:
    """Describe a model that ``SCVI.save`` wrote, without running code from the file.

    Raises
    ------
    InputError
        No such file, one of another kind, or one that cannot be read without running code.
    """
    folder = Path(folder)
    found = sorted(folder.glob(f"*{_FILE}")) if folder.is_dir() else []
    if len(found) != 1:
        if folder.is_dir() and list(folder.glob(f"*{_LEGACY_FILE}")):
            raise InputError(
                f"{folder} was written by scvi-tools before 0.15; bring it up to date with "
                "scvi.model.SCVI.convert_legacy_save(folder, new_folder) and give the new one"
            )
        problem = f"has {len(found)} of them" if folder.is_dir() else "is not a folder"
        raise InputError(
            f"{folder} {problem}: expected the folder that scvi.model.SCVI.save wrote, with one "
            f"{_FILE}"
        )
    content = load_without_code(found[0])
    try:
        attributes = content["attr_dict"]
        names = tuple(map(str, np.asarray(content["var_names"]).tolist()))
        state = {k: v for k, v in content["model_state_dict"].items() if isinstance(v, Tensor)}
        described = _described(
            attributes["registry_"].get("model_name", _CLASSES[0]),
            attributes["registry_"],
            attributes["init_params_"],
            names,
            state,
            bool(attributes.get("is_trained_", True)),
        )
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(
            f"{found[0]} is not a model that scvi.model.SCVI.save wrote "
            f"({type(error).__name__}: {error})"
        ) from error
    return described


def _described(
    name: str,
    registry: Mapping[str, Any],
    init_params: Mapping[str, Any],
    genes: tuple[str, ...],
    state: Mapping[str, Tensor],
    is_trained: bool,
    adata: Any = None,
) -> Described:
    if name not in _CLASSES:
        raise InputError(
            f"the scvi-tools model is of the class {name}; only {' and '.join(_CLASSES)} have a "
            "counterpart here"
        )
    if registry.get("setup_method_name", "setup_anndata") != "setup_anndata":
        raise InputError(
            f"the scvi-tools model was set up by {registry['setup_method_name']}; only "
            "setup_anndata has a counterpart here"
        )
    init = dict(init_params["non_kwargs"])
    for more in init_params["kwargs"].values():
        init.update(more)
    return Described(
        model_name=name,
        version=str(registry.get("scvi_version", "of unknown version")),
        init=init,
        setup_args=registry["setup_args"],
        field_registries=registry["field_registries"],
        gene_names=genes,
        state=state,
        is_trained=bool(is_trained),
        adata=adata,
    )
