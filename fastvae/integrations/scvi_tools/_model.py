"""The models: scvi-tools' own, with fastvae's module behind them."""

from __future__ import annotations

from . import _scvi  # noqa: F401 - says what to install where scvi-tools is missing
from scvi.model import SCVI as TheirSCVI
from scvi.model import LinearSCVI as TheirLinearSCVI

from ._module import LDVAE, VAE


class SCVI(TheirSCVI):
    """``scvi.model.SCVI``, trained by fastvae."""

    _module_cls = VAE


class LinearSCVI(TheirLinearSCVI):
    """``scvi.model.LinearSCVI``, trained by fastvae."""

    _module_cls = LDVAE
