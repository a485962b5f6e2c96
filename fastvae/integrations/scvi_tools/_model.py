"""The models: scvi-tools' own, with fastvae's module behind them."""

from __future__ import annotations

from types import MethodType
from typing import Any, TypeVar

from scvi.model import SCANVI as TheirSCANVI
from scvi.model import SCVI as TheirSCVI
from scvi.model import LinearSCVI as TheirLinearSCVI
from scvi.model.base import BaseModelClass, RNASeqMixin
from scvi.module import LDVAE as TheirLDVAE
from scvi.module import SCANVAE as TheirSCANVAE
from scvi.module import VAE as TheirVAE

from ...errors import InputError
from ._evaluation import _make_data_loader
from ._methods import (
    _validate_anndata,
    checking_setup,
    get_normalized_expression,
    mapping_loader,
)
from ._minibatches import DataSplitter
from ._module import LDVAE, SCANVAE, VAE, Fused
from ._trainer import CheckingRunner, Runner
from ._training_plan import Plan, SemiSupervisedPlan

Model = TypeVar("Model", bound=BaseModelClass)


class SCVI(TheirSCVI):
    """``scvi.model.SCVI``, trained by fastvae: same arguments, methods, weights and files.

    Call ``SCVI.setup_anndata`` of this class. Saved models load with either class.

    ``train`` takes one keyword more: ``loop="fastvae"`` trains with fastvae's own loop - counts on
    the GPU if they fit there, each step replayed as a CUDA graph - and raises ``InputError`` where
    another option asks for what that cannot do; ``loop="lightning"`` trains with scvi-tools' own.
    "auto", the default, takes the first on a GPU where it can, and the second otherwise.
    """

    _module_cls = VAE
    _data_splitter_cls = DataSplitter
    _training_plan_cls = Plan
    _train_runner_cls = Runner
    _make_data_loader = _make_data_loader
    _validate_anndata = _validate_anndata
    get_normalized_expression = get_normalized_expression
    setup_anndata = checking_setup(TheirSCVI)
    load_query_data = mapping_loader(TheirSCVI)


class LinearSCVI(TheirLinearSCVI):
    """``scvi.model.LinearSCVI``, trained by fastvae; as :class:`SCVI`."""

    _module_cls = LDVAE
    _data_splitter_cls = DataSplitter
    _training_plan_cls = Plan
    _train_runner_cls = Runner
    _make_data_loader = _make_data_loader
    _validate_anndata = _validate_anndata
    get_normalized_expression = get_normalized_expression
    setup_anndata = checking_setup(TheirLinearSCVI)


class SCANVI(TheirSCANVI):
    """``scvi.model.SCANVI`` with fastvae's likelihood and encoder in its training.

    Its minibatches, of labelled and of all cells, are scvi-tools' own.
    """

    _module_cls = SCANVAE
    _training_plan_cls = SemiSupervisedPlan
    _train_runner_cls = CheckingRunner
    _make_data_loader = _make_data_loader
    _validate_anndata = _validate_anndata
    get_normalized_expression = get_normalized_expression
    setup_anndata = checking_setup(TheirSCANVI)
    load_query_data = mapping_loader(TheirSCANVI)


_SEAMS = "_module_cls", "_data_splitter_cls", "_training_plan_cls", "_train_runner_cls"
_METHODS: tuple[tuple[type, Any], ...] = (
    (BaseModelClass, _make_data_loader),
    (BaseModelClass, _validate_anndata),
    (RNASeqMixin, get_normalized_expression),
)
"""What an accelerated model has of its own, where its class has scvi-tools' method."""
_MODELS = {TheirVAE: SCVI, TheirLDVAE: LinearSCVI, TheirSCANVAE: SCANVI}


def accelerate(model: Model) -> Model:
    """Let an existing scvi-tools model compute and train with fastvae, in place.

    Weights, history and registered data stay as they are; so does the class of the model. A second
    call does nothing.

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
    module = getattr(model, "module", None)
    if isinstance(module, Fused):
        return model
    like: Any = _MODELS.get(type(module))
    if like is None:
        raise InputError(
            f"the module of this {type(model).__name__} is a {type(module).__name__}; accelerate "
            "takes models whose module is exactly scvi.module.VAE, LDVAE or SCANVAE (a model "
            "without data has none before it is trained: use fastvae.integrations.scvi_tools.SCVI)"
        )
    module.__class__ = like._module_cls
    for seam in _SEAMS:
        theirs = getattr(like.__mro__[1], seam)
        if getattr(type(model), seam) is theirs:  # a subclass's own choice stays
            setattr(model, seam, getattr(like, seam))
    for base, method in _METHODS:
        name = method.__name__
        if getattr(type(model), name) is getattr(base, name):
            setattr(model, name, MethodType(method, model))
    return model
