"""Training: one loop for every device.

``train_vae`` (``loop``) is the whole of it; the other modules hold its parts: ``settings`` (what
may be chosen), ``split``, ``schedules``, ``run`` (the epochs), ``step`` (what one minibatch does),
``cuda_graph`` (the same in memory of fixed size), ``guard`` (non-finite values), ``stopping``
(early stopping, signals), ``callbacks``, ``state`` and ``checkpoints`` (going on after a break),
``processes`` (several of them), ``history`` and ``progress``.
"""

from __future__ import annotations

from .._torch import resolve_device
from .callbacks import Callback, TensorBoard
from .guard import NonFiniteError
from .history import COLUMNS, History, new_history, read_history, write_history
from .loop import TrainResult, train_vae
from .schedules import default_max_epochs, kl_weight_at
from .settings import TrainSettings
from .split import split_cells

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
