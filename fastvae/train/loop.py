"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NoReturn

import numpy as np
import torch
from torch import nn

from ..data import Minibatch, Minibatches
from ..errors import InputError
from .guard import (
    Checkpoint,
    NonFiniteError,
    find_failure,
    first_non_finite,
    non_finite_error,
)
from .history import COLUMNS, History
from .progress import Progress, make_progress
from .schedules import kl_weight_at
from .settings import TrainSettings
from .step import apply_gradients, compute_gradients, device_of, evaluate_sums, evaluating, seeded
from .stopping import EarlyStopping, Interrupt, interruptible

VALIDATION_SEED = 0
"""Validation draws the same noise after every epoch, so that its curve shows the model alone."""

LOOK_EVERY_SECONDS = 1.0
"""How often the host reads a number from the device within an epoch."""

Ending = Literal["finished", "early stopping", "interrupted"]


@dataclass(frozen=True)
class TrainResult:
    """How a run of training ended.

    Parameters
    ----------
    ending
        "finished" (all epochs), "early stopping" or "interrupted" (Ctrl-C).
    epochs, steps
        Whole epochs and minibatches of this run.
    best_epoch
        With early stopping, the epoch whose weights the model has now; else None.
    """

    ending: Ending
    epochs: int
    steps: int
    best_epoch: int | None


def train_vae(
    module: nn.Module,
    train_batches: Minibatches,
    validation_batches: Minibatches | None,
    settings: TrainSettings,
    history: History,
    *,
    seed: int,
    n_train: int,
    n_validation: int = 0,
    completed_steps: int = 0,
    progress: bool = True,
) -> TrainResult:
    """Train `module` where it stands, on its device.

    The loss of a minibatch is ``mean(reconstruction + kl_weight * kl)``, as in scvi. A short last
    minibatch is a step like the others.

    Parameters
    ----------
    module
        ``module(x, local_l_mean, local_l_var, batch_index, y)`` returns the reconstruction loss
        and the KL divergence of each cell.
    train_batches, validation_batches
        Minibatches on the module's device; None for no validation.
    settings
        ``max_epochs`` must be set.
    history
        One row per whole epoch is appended; the numbers of the epochs go on from its last.
    seed
        Decides the random numbers; torch's own generators are left as they were.
    n_train, n_validation
        How many cells there are to train on and to validate on.
    completed_steps
        Minibatches seen in earlier runs, for a KL warm-up in steps.
    progress
        Show progress on standard error.

    Returns
    -------
    TrainResult
        How it ended. Ctrl-C is not an error: the model keeps what it has learned.

    Raises
    ------
    NonFiniteError
        A loss, gradient or weight stopped being finite; the last good weights are back in place.
    InputError
        Early stopping without validation cells.
    """
    if settings.max_epochs is None:
        raise InputError("max_epochs must be set before training")
    if settings.early_stopping and validation_batches is None:
        raise InputError(
            "early_stopping needs validation cells; choose a train_size below 1 (it was "
            f"{settings.train_size:g}) or give more cells"
        )
    run = _Run(module, train_batches, settings, seed, completed_steps, n_train)
    patience, min_delta = settings.early_stopping_patience, settings.early_stopping_min_delta
    stopper = EarlyStopping(patience, min_delta) if settings.early_stopping else None
    first = len(history["epoch"])
    last = first + settings.max_epochs
    run.progress = make_progress(progress, first + 1, last, n_train)
    ending: Ending = "finished"
    try:
        with interruptible() as interrupt, seeded(run.device, seed), torch.enable_grad():
            for epoch in range(first, last):
                row = run.train_epoch(epoch, interrupt)
                if row is None:
                    ending = "interrupted"
                    break
                if validation_batches is not None:
                    run.validate(validation_batches, n_validation, row)
                for name in COLUMNS:
                    history[name].append(row[name])
                run.progress.after_epoch(epoch + 1, row["train_elbo"], row["validation_elbo"])
                if stopper and stopper.update(module, epoch + 1, row["validation_elbo"]):
                    ending = "early stopping"
                    break
        if stopper:
            stopper.restore(module)
    finally:
        run.progress.close()
        run.optimizer.zero_grad(set_to_none=True)
        module.eval()
    return TrainResult(
        ending=ending,
        epochs=len(history["epoch"]) - first,
        steps=run.step - completed_steps,
        best_epoch=stopper.best_epoch if stopper else None,
    )


class _Run:
    """What the epochs of one run share."""

    def __init__(
        self,
        module: nn.Module,
        batches: Minibatches,
        settings: TrainSettings,
        seed: int,
        step: int,
        n_train: int,
    ) -> None:
        self.module = module
        self.batches = batches
        self.settings = settings
        self.seed = seed
        self.first_step = self.step = step  # minibatches completed, over all runs
        self.n_train = n_train
        self.device = device_of(module)
        self.progress = Progress(1, 1, n_train)
        self.kl_weight = torch.zeros((), device=self.device)
        self.optimizer = torch.optim.Adam(
            [p for p in module.parameters() if p.requires_grad],
            lr=settings.learning_rate,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            fused=True,
        )

    def train_epoch(self, epoch: int, interrupt: Interrupt) -> dict[str, float] | None:
        """Train for the epoch of index `epoch`; its row of the history, None if interrupted."""
        self.epoch_start = Checkpoint(self.module, self.optimizer)
        started = looked = time.perf_counter()
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        cells = steps = 0
        for batch in self._minibatches(epoch):
            if interrupt.pressed:
                self.step += steps
                return None
            compute_gradients(self.module, self.optimizer, batch, self.kl_weight, sums)
            apply_gradients(self.module, self.optimizer, self.settings.max_grad_norm)
            steps += 1
            cells += batch.x.shape[0]
            now = time.perf_counter()
            if now - looked >= LOOK_EVERY_SECONDS:
                looked = now
                elbo = float(sums.sum()) / cells
                if not math.isfinite(elbo):
                    break
                self.progress.within_epoch(epoch + 1, cells, elbo)
        reconstruction, kl = (value / max(cells, 1) for value in sums.tolist())
        bad = not math.isfinite(reconstruction + kl)
        if bad or first_non_finite(self.module.state_dict().items()):
            self._fail(epoch)
        self.step += steps
        seconds = time.perf_counter() - started
        row = dict.fromkeys(COLUMNS, math.nan)
        row["epoch"] = epoch + 1
        row["kl_weight"] = kl_weight_at(self.settings, epoch, self.step - 1)
        row["learning_rate"] = self.settings.learning_rate
        row["seconds"] = seconds
        row["cells_per_second"] = self.n_train / seconds
        _enter(row, "train", reconstruction, kl)
        return row

    def validate(self, batches: Minibatches, n_cells: int, row: dict[str, float]) -> None:
        """Enter the losses of the validation cells into `row`."""
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        with evaluating(self.module, VALIDATION_SEED):
            evaluate_sums(self.module, batches, sums)
        reconstruction, kl = (value / n_cells for value in sums.tolist())
        if not math.isfinite(reconstruction + kl):
            self.epoch_start.restore(self.module, self.optimizer)
            self.step -= len(self.batches)
            raise self._error(int(row["epoch"]), None, "the validation loss")
        _enter(row, "validation", reconstruction, kl)

    def _minibatches(self, epoch: int) -> Iterator[Minibatch]:
        """Yield the minibatches of an epoch: for one seed always the same, noise included."""
        self.module.train()
        self.batches.set_epoch(epoch)
        torch.manual_seed(_epoch_seed(self.seed, epoch))
        for number, batch in enumerate(self.batches):
            self.kl_weight.fill_(kl_weight_at(self.settings, epoch, self.step + number))
            yield batch

    def _fail(self, epoch: int) -> NoReturn:
        """Go back to just before the first non-finite number and say where it was."""
        self.epoch_start.restore(self.module, self.optimizer)
        clip = self.settings.max_grad_norm
        found = find_failure(
            self.module, self.optimizer, self._minibatches(epoch), self.kl_weight, clip
        )
        if found is None:
            # The second run went well, so the failure was one of the hardware's rounding.
            self.epoch_start.restore(self.module, self.optimizer)
        step, what = found or (None, "the loss")
        self.step += step - 1 if step else 0
        raise self._error(epoch + 1, step, what)

    def _error(self, epoch: int, step: int | None, what: str) -> NonFiniteError:
        rate = self.settings.learning_rate
        return non_finite_error(epoch, step, what, rate, self.step - self.first_step)


def _enter(row: dict[str, float], cells: str, reconstruction: float, kl: float) -> None:
    row[f"{cells}_reconstruction_loss"] = reconstruction
    row[f"{cells}_kl_local"] = kl
    row[f"{cells}_elbo"] = reconstruction + kl
    row[f"{cells}_loss"] = reconstruction + row["kl_weight"] * kl


def _epoch_seed(seed: int, epoch: int) -> int:
    """Mix both, so that neighbouring seeds share no epoch's random numbers."""
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0] >> 1)
