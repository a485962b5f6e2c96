"""The ``fastvae`` command."""

from .. import _installation  # noqa: F401 - first: the modules below would miss names

# isort: split
from .app import app, main

__all__ = ["app", "main"]
