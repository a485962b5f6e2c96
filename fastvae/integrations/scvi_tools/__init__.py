"""scvi-tools models that train with fastvae: ``SCVI``, ``LinearSCVI`` and `accelerate`."""

from ..convert import from_scvi_tools, to_scvi_tools
from ._model import SCVI, LinearSCVI

__all__ = ["SCVI", "LinearSCVI", "from_scvi_tools", "to_scvi_tools"]
