"""Training: one loop for every device.

``train_vae`` (``loop``) trains a model. The other modules hold its parts: ``settings`` (the
options), ``split``, ``schedules``, ``run`` (the epochs), ``step`` (one minibatch), ``cuda_graph``
(the same in memory of fixed size), ``compiled`` (torch.compile), ``guard`` (non-finite values),
``stopping`` (early stopping, signals), ``callbacks``, ``loggers``, ``state`` and ``checkpoints``
(to resume), ``processes`` and ``synced_batch_norm`` (several processes), ``history`` and
``progress``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .._torch import resolve_device
    from .callbacks import Callback, TensorBoard
    from .guard import NonFiniteError
    from .history import COLUMNS, History, new_history, read_history, write_history
    from .loop import TrainResult, train_vae
    from .schedules import default_max_epochs, kl_weight_at
    from .settings import TrainSettings
    from .split import split_cells

_HOME = {
    "resolve_device": ".._torch",
    "Callback": ".callbacks",
    "TensorBoard": ".callbacks",
    "NonFiniteError": ".guard",
    "COLUMNS": ".history",
    "History": ".history",
    "new_history": ".history",
    "read_history": ".history",
    "write_history": ".history",
    "TrainResult": ".loop",
    "train_vae": ".loop",
    "default_max_epochs": ".schedules",
    "kl_weight_at": ".schedules",
    "TrainSettings": ".settings",
    "split_cells": ".split",
}
"""Imported when first used, so that the command line reads the settings without torch."""

__all__ = [
    "COLUMNS",
    "Callback",
    "History",
    "NonFiniteError",
    "TensorBoard",
    "TrainResult",
    "TrainSettings",
    "default_max_epochs",
    "kl_weight_at",
    "new_history",
    "read_history",
    "resolve_device",
    "split_cells",
    "train_vae",
    "write_history",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fastvae.train' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_HOME[name], __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
