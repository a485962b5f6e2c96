"""scvi-tools models that train with fastvae: ``SCVI``, ``LinearSCVI`` and `accelerate`."""

from ._model import SCVI, LinearSCVI

__all__ = ["SCVI", "LinearSCVI"]
