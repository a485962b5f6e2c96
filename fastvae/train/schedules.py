"""Number of epochs, size of minibatches, and what changes over the epochs."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from .settings import BASE_BATCH_SIZE, BASE_LEARNING_RATE, TrainSettings

LARGEST_AUTO_BATCH = 4096
FEWEST_AUTO_STEPS = 64


def default_max_epochs(n_cells: int) -> int:
    """Return ``min(round(20000 / n_cells * 400), 400)``, at least 1.

    The number of epochs that scvi-tools takes for `n_cells` cells: about 8 million cells seen.
    """
    return max(1, min(round(20_000 / max(n_cells, 1) * 400), 400))


def kl_weight_at(settings: TrainSettings, epoch: int, step: int) -> float:
    """Return the weight of the KL term, in [0, 1].

    Parameters
    ----------
    settings
        ``n_steps_kl_warmup`` is used when given, else ``n_epochs_kl_warmup``; 0 or None is 1.
    epoch
        Epochs completed before this one: the first epoch has weight 0, as in scvi.
    step
        Minibatches completed before this one.
    """
    if settings.n_steps_kl_warmup is not None:
        done, length = step, settings.n_steps_kl_warmup
    else:
        done, length = epoch, settings.n_epochs_kl_warmup or 0
    return min(1.0, done / length) if length > 0 else 1.0


def auto_batch_size(n_train: int, device: torch.device) -> int:
    """Return a size of minibatches that suits the device and the number of training cells.

    On a CPU 128: larger ones are hardly quicker per cell there, and learn less per epoch. On a
    GPU, which small ones leave idle, the largest power of two from 128 to 4096 that leaves at
    least 64 steps per epoch.
    """
    if device.type != "cuda":
        return BASE_BATCH_SIZE
    most = min(max(n_train // FEWEST_AUTO_STEPS, BASE_BATCH_SIZE), LARGEST_AUTO_BATCH)
    return int(2 ** math.floor(math.log2(most)))


def scaled_learning_rate(batch_size: int) -> float:
    """Return ``1e-3 * sqrt(batch_size / 128)``.

    The noise of the gradient falls with the square root of the size of the minibatch, and an
    Adam step does not depend on the gradient's scale: with the rate growing likewise, the weights
    diffuse as far per cell seen as they do at 128 (Malladi et al. 2022, "On the SDEs and scaling
    rules for adaptive gradient algorithms").
    """
    return BASE_LEARNING_RATE * math.sqrt(batch_size / BASE_BATCH_SIZE)


def resolved(
    settings: TrainSettings, n_cells: int, n_train: int, device: torch.device
) -> TrainSettings:
    """Return `settings` with a number for every option that was left open."""
    epochs, size, rate = settings.max_epochs, settings.batch_size, settings.learning_rate
    if not isinstance(size, int):
        size = auto_batch_size(n_train, device)
    if rate is None and settings.batch_size != "auto":
        rate = BASE_LEARNING_RATE
    elif not isinstance(rate, float):
        rate = scaled_learning_rate(size)
    return replace(
        settings,
        max_epochs=default_max_epochs(n_cells) if epochs is None else epochs,
        batch_size=size,
        learning_rate=rate,
    )


class Plateau:
    """Notice that the loss no longer falls.

    Parameters
    ----------
    patience
        Epochs in a row without a new best after which the rate is kept; one more lowers it.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.best: float | None = None
        self._waited = 0

    @classmethod
    def of(cls, settings: TrainSettings) -> Plateau | None:
        """Return the one that `settings` ask for, or None."""
        return cls(settings.lr_patience) if settings.reduce_lr_on_plateau else None

    def update(self, train: float, validation: float) -> bool:
        """Record the losses of an epoch; return whether to lower the rate now.

        Without validation (NaN), the training loss counts.
        """
        value = train if math.isnan(validation) else validation
        if self.best is None or value < self.best:
            self.best, self._waited = value, 0
            return False
        self._waited += 1
        if self._waited <= self.patience:
            return False
        self._waited = 0
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {"best": self.best, "waited": self._waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.best, self._waited = state["best"], state["waited"]


def epoch_seed(seed: int, epoch: int, rank: int = 0) -> int:
    """Return a seed such that near seeds, epochs and processes share no random numbers."""
    words = (seed, epoch, rank) if rank else (seed, epoch)
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0]) >> 1
