"""`accelerate`: a scvi-tools model that exists already, made to compute with fastvae.

Notebooks and other models hold the object, so the very object has to change, and scvi-tools reads
everything from it: the classes for training, and its methods. The class stays scvi-tools' own,
since saving, loading and ``isinstance`` depend on it. So the object is given attributes that stand
before those of its class. Only this file does so; `SCVI`, `LinearSCVI` and `SCANVI` are ordinary
subclasses.
"""

from __future__ import annotations

from types import MethodType
from typing import Any, TypeVar

from scvi.model.base import BaseModelClass
from scvi.module import LDVAE as TheirLDVAE
from scvi.module import SCANVAE as TheirSCANVAE
from scvi.module import VAE as TheirVAE

from ..._torch import sharing
from ...errors import InputError
from ._methods import fast_methods
from ._model import SCANVI, SCVI, LinearSCVI
from ._module import Fused

Model = TypeVar("Model", bound=BaseModelClass)

_TRAINING = "_module_cls", "_data_splitter_cls", "_training_plan_cls", "_train_runner_cls"
"""Attributes by which scvi-tools finds the classes that a model is trained with."""

_MODELS = {TheirVAE: SCVI, TheirLDVAE: LinearSCVI, TheirSCANVAE: SCANVI}


def accelerate(model: Model) -> Model:
    """Let an existing scvi-tools model compute and train with fastvae, in place.

    Weights, history and registered data stay as they are; so does the class of the model. Its
    module becomes one of fastvae's, with the same parameters. A second call does nothing.

    Parameters
    ----------
    model
        A ``scvi.model.SCVI``, ``LinearSCVI`` or ``SCANVI``, trained or not.

    Returns
    -------
    The same object.

    Raises
    ------
    InputError
        Its module is none of ``scvi.module.VAE``, ``LDVAE`` and ``SCANVAE``, or not made yet.
    """
    module: Any = getattr(model, "module", None)
    if isinstance(module, Fused):
        return model
    like: Any = _MODELS.get(type(module))
    if like is None:
        raise InputError(
            f"the module of this {type(model).__name__} is a {type(module).__name__}; accelerate "
            "takes models whose module is exactly scvi.module.VAE, LDVAE or SCANVAE (a model "
            "without data has none before it is trained: use fastvae.integrations.scvi_tools.SCVI)"
        )
    model.module = sharing(like._module_cls, module)
    for name in _TRAINING:
        theirs = getattr(like.__bases__[0], name)
        if getattr(type(model), name) is theirs:  # a subclass's own choice stays
            setattr(model, name, getattr(like, name))
    for name, method in fast_methods(type(model)).items():
        setattr(model, name, MethodType(method, model))
    return model
