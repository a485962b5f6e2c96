"""The history of fastvae's loop in the form that scvi-tools gives it."""

from __future__ import annotations

import math
from typing import Any

from ...train import Callback, TrainSettings, kl_weight_at


class EpochLog(Callback):
    """Writes each epoch into the trainer's logger, under the names and at the steps of theirs.

    Parameters
    ----------
    trainer
        Told of each epoch; its logger is scvi-tools'.
    sizes
        Of the minibatches of an epoch.
    n_validation
        Cells to validate on.
    """

    def __init__(self, trainer: Any, sizes: list[int], n_validation: int) -> None:
        self._trainer = trainer
        self._steps = len(sizes)
        self._n_cells = {"train": sum(sizes), "validation": n_validation}
        self._settings = TrainSettings()

    def on_train_begin(self, module: Any, settings: TrainSettings) -> None:
        """Forget what the trial steps before a capture have summed up."""
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
        """Their names; the KL divergence of a learned library counts as local, as with them."""
        training = cells == "train"
        extra = module.read(training)
        kl_library, weighted = (value / self._n_cells[cells] for value in extra)
        loss = row[f"{cells}_loss"]
        if training and module.warmup_steps is not None:  # the weight was another at each step
            loss = row["train_reconstruction_loss"] + weighted
        return {
            f"{cells}_loss": loss,
            f"elbo_{cells}": row[f"{cells}_elbo"],
            f"reconstruction_loss_{cells}": row[f"{cells}_reconstruction_loss"] - kl_library,
            f"kl_local_{cells}": row[f"{cells}_kl_local"] + kl_library,
            f"kl_global_{cells}": 0.0,
        }
