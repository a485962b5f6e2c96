"""One run of training: its epochs, its failures, and its checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NoReturn

import numpy as np
import torch
from torch import nn

from ..data import Minibatch, Minibatches
from .callbacks import Callback
from .checkpoint_files import Loaded
from .checkpoints import Checkpoints
from .guard import NonFiniteError, find_failure, first_non_finite, non_finite_error
from .history import COLUMNS, History
from .moment import (
    Moment,
    Within,
    below,
    pack_history,
    pack_optimizer,
    random_states,
    set_random_states,
    unpack_history,
    unpack_optimizer,
    with_prefix,
)
from .progress import Progress
from .schedules import Plateau, kl_weight_at
from .settings import TrainSettings
from .step import apply_gradients, compute_gradients, device_of, evaluate_sums, evaluating
from .stopping import EarlyStopping, Interrupt

VALIDATION_SEED = 0
"""Validation draws the same noise after every epoch, so that its curve shows the model alone."""

LOOK_EVERY_SECONDS = 1.0
"""How often the host reads a number from the device within an epoch."""

Ending = Literal["finished", "early stopping", "callback", "interrupted"]


class Run:
    """What the epochs of one run share.

    Attributes
    ----------
    first_epoch, first_step
        Epochs and minibatches completed when the run began, over all earlier runs.
    step
        Minibatches completed when the current epoch began, over all runs.
    within
        How far that epoch has come.
    ended
        How the run has ended before its last epoch, or None.
    """

    def __init__(
        self,
        module: nn.Module,
        batches: Minibatches,
        settings: TrainSettings,
        history: History,
        seed: int,
        step: int,
        n_train: int,
        checkpoints: Checkpoints | None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.module = module
        self.batches = batches
        self.settings = settings
        self.history = history
        self.seed = seed
        self.first_epoch = len(history["epoch"])
        self.first_step = self.step = step
        self.n_train = n_train
        self.checkpoints = checkpoints
        self.device = device_of(module)
        self.within = self._fresh()
        self.ended: Ending | None = None
        self.progress = Progress(1, 1, n_train)
        self.kl_weight = torch.zeros((), device=self.device)
        self.stopper = EarlyStopping.of(settings)
        self.plateau = Plateau.of(settings)
        self.callbacks = list(callbacks)
        self.optimizer = torch.optim.Adam(
            [p for p in module.parameters() if p.requires_grad],
            lr=settings.rate,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            fused=True,
        )

    def train_epoch(self, epoch: int, interrupt: Interrupt) -> dict[str, float] | None:
        """Train for the rest of the epoch of index `epoch`.

        Returns
        -------
        dict or None
            Its row of the history; None if it was interrupted.
        """
        within = self.within
        self.anchor = Moment.of(self.module, self.optimizer, within.steps)
        started = looked = time.perf_counter() - within.seconds
        for batch in self._minibatches(epoch):
            if interrupt.pressed:
                self._checkpoint_if_finite()
                return None
            self._step(batch)
            within.steps += 1
            within.cells += batch.x.shape[0]
            now = time.perf_counter()
            within.seconds = now - started
            if now - looked >= LOOK_EVERY_SECONDS:
                looked = now
                elbo = float(within.sums.sum()) / within.cells
                if not math.isfinite(elbo):
                    break
                self.progress.within_epoch(epoch + 1, within.cells, elbo)
            due = self.checkpoints is not None and self.checkpoints.due()
            if due and not self._checkpoint_if_finite():
                break
        if not self._finite():
            self._fail(epoch)
        row = dict.fromkeys(COLUMNS, math.nan)
        row["epoch"] = epoch + 1
        row["kl_weight"] = kl_weight_at(self.settings, epoch, self.steps_done - 1)
        row["learning_rate"] = float(self.optimizer.param_groups[0]["lr"])
        row["seconds"] = time.perf_counter() - started
        row["cells_per_second"] = self.n_train / row["seconds"]
        reconstruction, kl = (value / within.cells for value in within.sums.tolist())
        _enter(row, "train", reconstruction, kl)
        return row

    def validate(
        self, batches: Minibatches, n_cells: int, row: dict[str, float], interrupt: Interrupt
    ) -> bool:
        """Enter the losses of the validation cells into `row`; False if it was interrupted."""
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        with evaluating(self.module, VALIDATION_SEED):
            whole = evaluate_sums(
                self.module, batches, sums, lambda: interrupt.pressed, self.settings.precision
            )
        if not whole:
            self._checkpoint_if_finite()
            return False
        reconstruction, kl = (value / n_cells for value in sums.tolist())
        if not math.isfinite(reconstruction + kl):
            self.anchor.restore(self.module, self.optimizer)
            self.within.steps = self.anchor.steps
            raise self._error(int(row["epoch"]), None, "the validation loss")
        _enter(row, "validation", reconstruction, kl)
        return True

    def finish_epoch(self, row: dict[str, float], last: int) -> None:
        """Take note of a whole epoch; write a checkpoint if it is time, or there are no more."""
        for name in COLUMNS:
            self.history[name].append(row[name])
        self.step += self.within.steps
        self.within = self._fresh()
        epoch, validation = int(row["epoch"]), row["validation_elbo"]
        self.progress.after_epoch(epoch, row["train_elbo"], validation)
        if self.stopper and self.stopper.update(self.module, epoch, validation):
            self.ended = "early stopping"
        if self.plateau and self.plateau.update(row["train_elbo"], validation):
            for group in self.optimizer.param_groups:
                group["lr"] = max(group["lr"] * self.settings.lr_factor, self.settings.lr_min)
        stops = [
            callback.on_epoch_end(epoch, dict(row), self.module) for callback in self.callbacks
        ]
        if self.ended is None and True in stops:
            self.ended = "callback"
        over = self.ended is not None or epoch == last
        if self.checkpoints and (over or self.checkpoints.due_after(epoch - self.first_epoch)):
            self.checkpoint()

    @property
    def steps_done(self) -> int:
        """Minibatches completed, over all runs."""
        return self.step + self.within.steps

    def checkpoint(self) -> None:
        """Write a checkpoint of this moment."""
        assert self.checkpoints is not None
        within = self.within
        tensors = {
            **with_prefix("model", self.module.state_dict()),
            **with_prefix("optimizer", pack_optimizer(self.optimizer)),
            **with_prefix("random", random_states(self.device)),
        }
        state: dict[str, Any] = {
            "seed": self.seed,
            "settings": self.settings.as_dict(),
            "first_epoch": self.first_epoch,
            "first_step": self.first_step,
            "step": self.step,
            "steps": within.steps,
            "cells": within.cells,
            "seconds": within.seconds,
            "sums": within.sums.tolist(),
            "learning_rate": float(self.optimizer.param_groups[0]["lr"]),
            "history": pack_history(self.history),
        }
        if self.plateau:
            state["plateau"] = self.plateau.state_dict()
        if self.stopper:
            state["stopping"] = self.stopper.state_dict()
            tensors |= with_prefix("best", self.stopper.best_state)
        self.checkpoints.write(tensors, state)

    def resume(self, found: Loaded) -> None:
        """Go back to the moment at which the checkpoint was written."""
        tensors, state = found.tensors, found.state
        self.module.load_state_dict(below("model", tensors))
        unpack_optimizer(self.optimizer, below("optimizer", tensors))
        set_random_states(below("random", tensors), self.device)
        unpack_history(state["history"], self.history)
        self.first_epoch, self.first_step = state["first_epoch"], state["first_step"]
        self.step = state["step"]
        sums = torch.tensor(state["sums"], dtype=torch.float64, device=self.device)
        self.within = Within(sums, state["steps"], state["cells"], state["seconds"])
        if self.settings.learning_rate == state["settings"]["learning_rate"]:
            for group in self.optimizer.param_groups:
                group["lr"] = state["learning_rate"]
        if self.plateau and "plateau" in state:
            self.plateau.load_state_dict(state["plateau"])
        if self.stopper and "stopping" in state:
            best = {k: v.to(self.device) for k, v in below("best", tensors).items()}
            self.stopper.load_state_dict(state["stopping"], best)
            self.ended = "early stopping" if self.stopper.exhausted else None

    def _fresh(self) -> Within:
        return Within(torch.zeros(2, dtype=torch.float64, device=self.device))

    def _minibatches(self, epoch: int) -> Iterator[Minibatch]:
        """Yield what is left of an epoch from the anchor on: always the same, noise included."""
        done = self.anchor.steps
        self.module.train()
        self.batches.load_state_dict({"epoch": epoch, "position": done})
        if done:
            set_random_states(self.anchor.random, self.device)
        else:
            torch.manual_seed(epoch_seed(self.seed, epoch))
        for number, batch in enumerate(self.batches, start=self.step + done):
            self.kl_weight.fill_(kl_weight_at(self.settings, epoch, number))
            yield batch

    def _step(self, batch: Minibatch) -> None:
        settings, sums = self.settings, self.within.sums
        compute_gradients(
            self.module, self.optimizer, batch, self.kl_weight, sums, settings.precision
        )
        apply_gradients(self.module, self.optimizer, settings.max_grad_norm)

    def _finite(self) -> bool:
        if not math.isfinite(float(self.within.sums.sum())):
            return False
        return first_non_finite(self.module.state_dict().items()) is None

    def _checkpoint_if_finite(self) -> bool:
        finite = self._finite()
        if finite and self.checkpoints:
            self.checkpoint()
        return finite

    def _fail(self, epoch: int) -> NoReturn:
        """Go back to just before the first non-finite number and say where it was."""
        self.anchor.restore(self.module, self.optimizer)
        clip = self.settings.max_grad_norm
        batches, precision = self._minibatches(epoch), self.settings.precision
        found = find_failure(self.module, self.optimizer, batches, self.kl_weight, clip, precision)
        if found is None:
            # The second run went well, so the failure was one of the hardware's rounding.
            self.anchor.restore(self.module, self.optimizer)
        number, what = found or (None, "the loss")
        step = None if number is None else self.anchor.steps + number
        self.within.steps = self.anchor.steps if step is None else step - 1
        raise self._error(epoch + 1, step, what)

    def _error(self, epoch: int, step: int | None, what: str) -> NonFiniteError:
        rate = self.settings.rate
        return non_finite_error(epoch, step, what, rate, self.steps_done - self.first_step)


def _enter(row: dict[str, float], cells: str, reconstruction: float, kl: float) -> None:
    row[f"{cells}_reconstruction_loss"] = reconstruction
    row[f"{cells}_kl_local"] = kl
    row[f"{cells}_elbo"] = reconstruction + kl
    row[f"{cells}_loss"] = reconstruction + row["kl_weight"] * kl


def epoch_seed(seed: int, epoch: int) -> int:
    """Mix both, so that neighbouring seeds share no epoch's random numbers."""
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0] >> 1)
