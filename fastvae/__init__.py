"""The scVI variational autoencoder, fast.

Importing this package loads nothing heavy: each public name is imported when it is first used.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

# The name to install. The distribution `fastvae` is another project (see _installation.py).
DISTRIBUTION = "fastvae-scvi"

# OpenMP reads this when torch loads it. Threads that spin for long while they wait make training
# many times slower as soon as another program wants the same processors.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

if TYPE_CHECKING:
    from . import data, datasets, distributions, functional, integrations, nn, plots, report, train
    from .errors import InputError
    from .model.model import Model
    from .vae.ldvae import LDVAE
    from .vae.vae import VAE

    __version__: str

__all__ = [
    "LDVAE",
    "VAE",
    "InputError",
    "Model",
    "data",
    "datasets",
    "distributions",
    "functional",
    "integrations",
    "nn",
    "plots",
    "report",
    "train",
]

_HOME = {"VAE": "vae", "LDVAE": "vae", "Model": "model", "InputError": "errors"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    elif name in __all__:
        value = importlib.import_module(f".{name}", __name__)
    elif name == "__version__":
        value = _version()
    else:
        raise AttributeError(f"module 'fastvae' has no attribute {name!r}")
    globals()[name] = value
    return value


def _version() -> str:
    """Return the version of the distribution: the tag it was built from."""
    from importlib import metadata  # slower than all the rest of this file

    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:  # a copy of the files that was never installed
        return "0+unknown"


def __dir__() -> list[str]:
    return sorted({*(name for name in globals() if name.startswith("__")), "__version__", *__all__})
