"""`EpochLog`: records the history of fastvae's loop as scvi-tools does."""

from __future__ import annotations

import math
from typing import Any

from ...train import Callback, TrainSettings, kl_weight_at


class EpochLog(Callback):
    """Write each epoch to the trainer's logger, with scvi-tools' names and step numbers.

    Parameters
    ----------
    trainer
        Its logger is scvi-tools'; its `note_epoch` is called after each epoch.
    sizes
        Numbers of cells in the minibatches of an epoch.
    n_validation
        Number of validation cells.
    """

    def __init__(self, trainer: Any, sizes: list[int], n_validation: int) -> None:
        self._trainer = trainer
        self._steps = len(sizes)
        self._n_cells = {"train": sum(sizes), "validation": n_validation}
        self._settings = TrainSettings()

    def on_train_begin(self, module: Any, settings: TrainSettings) -> None:
        """Clear the sums of the trial steps that precede the capture of a CUDA graph."""
        self._settings = settings
        module.clear()

    def on_epoch_end(self, epoch: int, row: dict[str, float], module: Any) -> bool:
        """Log the epoch; see `Callback`."""
        first, last = self._steps * (epoch - 1), self._steps * epoch
        log = self._trainer.logger.log_metrics
        number = {"epoch": epoch - 1}
        if self._trainer.plateau:
            log({"lr-Adam": row["learning_rate"]}, first)
        every = self._trainer.log_every_n_steps
        logged = last - last % every - 1 if every else -1  # steps count from 0
        if logged >= first:
            log({"kl_weight": kl_weight_at(self._settings, epoch - 1, logged), **number}, logged)
        metrics: dict[str, float] = {}
        if not math.isnan(row["validation_elbo"]):
            metrics = self._losses("validation", row, module)
            log({**metrics, **number}, last - 1)
        losses = self._losses("train", row, module)
        log({**losses, **number}, last - 1)
        return self._trainer.note_epoch(epoch, last, {**metrics, **losses})

    def _losses(self, cells: str, row: dict[str, float], module: Any) -> dict[str, float]:
        """Return the losses by scvi-tools' names; the KL divergence of the library is local."""
        training = cells == "train"
        extra = module.read(training)
        kl_library, weighted = (value / self._n_cells[cells] for value in extra)
        loss = row[f"{cells}_loss"]
        if training and module.warmup_steps is not None:  # the weight changed at each step
            loss = row["train_reconstruction_loss"] + weighted
        return {
            f"{cells}_loss": loss,
            f"elbo_{cells}": row[f"{cells}_elbo"],
            f"reconstruction_loss_{cells}": row[f"{cells}_reconstruction_loss"] - kl_library,
            f"kl_local_{cells}": row[f"{cells}_kl_local"] + kl_library,
            f"kl_global_{cells}": 0.0,
        }
