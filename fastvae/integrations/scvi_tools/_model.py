"""The models: scvi-tools' own, with fastvae's module behind them."""

from __future__ import annotations

from . import _scvi  # noqa: F401 - says what to install where scvi-tools is missing
from scvi.model import SCVI as TheirSCVI
from scvi.model import LinearSCVI as TheirLinearSCVI

from ._data import CountSplitter
from ._module import LDVAE, VAE
from ._plan import Plan
from ._runner import Runner


class SCVI(TheirSCVI):
    """``scvi.model.SCVI``, trained by fastvae."""

    _module_cls = VAE
    _data_splitter_cls = CountSplitter
    _training_plan_cls = Plan
    _train_runner_cls = Runner


class LinearSCVI(TheirLinearSCVI):
    """``scvi.model.LinearSCVI``, trained by fastvae."""

    _module_cls = LDVAE
    _data_splitter_cls = CountSplitter
    _training_plan_cls = Plan
    _train_runner_cls = Runner
