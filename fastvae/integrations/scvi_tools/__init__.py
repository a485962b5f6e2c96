"""scvi-tools' models with fastvae underneath.

``SCVI``, ``LinearSCVI`` and ``SCANVI`` take the place of the classes of these names in
``scvi.model``; `accelerate` lets a model that exists already train like them. `to_scvi_tools` and
`from_scvi_tools` convert trained models.
"""

from ... import _installation  # noqa: F401 - first: the modules below would miss names

# isort: split
from . import _scvi  # noqa: F401 - first: it says what to install where scvi-tools is missing

# isort: split
from ..convert import from_scvi_tools, to_scvi_tools
from ._accelerate import accelerate
from ._model import SCANVI, SCVI, LinearSCVI

__all__ = ["SCANVI", "SCVI", "LinearSCVI", "accelerate", "from_scvi_tools", "to_scvi_tools"]
