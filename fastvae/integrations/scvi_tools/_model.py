"""The models: scvi-tools' own, with fastvae's module behind them."""

from __future__ import annotations

from typing import TypeVar

from scvi.model import SCANVI as TheirSCANVI
from scvi.model import SCVI as TheirSCVI
from scvi.model import LinearSCVI as TheirLinearSCVI

from ._methods import checking_setup, fast_methods, mapping_loader
from ._minibatches import DataSplitter
from ._module import LDVAE, SCANVAE, VAE
from ._semisupervised_minibatches import SemiSupervisedDataSplitter
from ._semisupervised_plan import SemiSupervisedPlan
from ._trainer import CheckingRunner, Runner
from ._training_plan import Plan

Class = TypeVar("Class", bound=type)


def with_fast_methods(cls: Class) -> Class:
    """Give a class of models the `fast_methods`."""
    for name, method in fast_methods(cls).items():
        setattr(cls, name, method)
    return cls


@with_fast_methods
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
    setup_anndata = checking_setup(TheirSCVI)
    load_query_data = mapping_loader(TheirSCVI)


@with_fast_methods
class LinearSCVI(TheirLinearSCVI):
    """``scvi.model.LinearSCVI``, trained by fastvae; as :class:`SCVI`."""

    _module_cls = LDVAE
    _data_splitter_cls = DataSplitter
    _training_plan_cls = Plan
    _train_runner_cls = Runner
    setup_anndata = checking_setup(TheirLinearSCVI)


@with_fast_methods
class SCANVI(TheirSCANVI):
    """``scvi.model.SCANVI``, trained by fastvae; as :class:`SCVI`, but always with Lightning."""

    _module_cls = SCANVAE
    _data_splitter_cls = SemiSupervisedDataSplitter
    _training_plan_cls = SemiSupervisedPlan
    _train_runner_cls = CheckingRunner
    setup_anndata = checking_setup(TheirSCANVI)
    load_query_data = mapping_loader(TheirSCANVI)
