"""The training loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from .._status import note, print_status
from .._torch import current, device_of, seeded
from ..data import Minibatches
from ..errors import InputError
from .callbacks import Callback
from .checkpoints import Checkpoints
from .compiled import compiled_layers
from .history import History
from .progress import make_progress
from .run import Ending, Run
from .schedules import resolved
from .settings import TrainSettings
from .step import matrix_precision
from .stopping import Interrupt, interruptible


@dataclass(frozen=True)
class TrainResult:
    """How a run of training ended.

    Parameters
    ----------
    ending
        "finished" (all epochs), "early stopping", "callback" (one asked for the end) or
        "interrupted" (Ctrl-C, SIGTERM).
    epochs, steps
        Whole epochs and minibatches of this run.
    best_epoch
        With early stopping, the epoch whose weights the model has now; else None.
    signal
        Number of the signal that interrupted it, where this process received one.
    """

    ending: Ending
    epochs: int
    steps: int
    best_epoch: int | None
    signal: int | None = None


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
    checkpoints: Checkpoints | None = None,
    callbacks: Sequence[Callback] = (),
    validate_every: int = 1,
) -> TrainResult:
    """Train `module` in place, on its device.

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
        Gets one more row for each whole epoch; epochs are numbered on from its last.
    seed
        Seed of the random numbers; torch's own generators stay as they were.
    n_train, n_validation
        How many cells there are to train on and to validate on.
    completed_steps
        Minibatches seen in earlier runs, for a KL warm-up in steps.
    progress
        Show progress on standard error.
    checkpoints
        Where to write checkpoints and which to resume from; a last one is written at the end.
        Epochs before the checkpoint that training resumes from count as part of this run.
    callbacks
        Called when training begins, after each epoch and at the end, in this order.
    validate_every
        Validate after every so many epochs of this run; the others have NaN for it.

    Returns
    -------
    TrainResult
        How it ended. Ctrl-C and SIGTERM are no errors: the model keeps what it has learned.

    Raises
    ------
    NonFiniteError
        A loss, gradient or weight stopped being finite; the last good weights are back in place.
    InputError
        Early stopping without validation cells, or early stopping or a falling rate without
        validation after every epoch.
    """
    _check(settings, validate_every, validates=validation_batches is not None)
    settings = resolved(settings, n_train + n_validation, n_train, device_of(module))
    step = completed_steps
    run = Run(module, train_batches, settings, history, seed, step, n_train, checkpoints, callbacks)
    validation = Validation(validation_batches, n_validation, validate_every)
    try:
        with (
            interruptible() as interrupt,
            current(run.device),
            seeded(run.device, seed),
            torch.enable_grad(),
            matrix_precision(settings.precision, run.device),
            run.group.working(module, settings.sync_batch_norm),
            compiled_layers(module, settings.compile, run.device),
        ):
            if checkpoints and checkpoints.found:
                run.unpack(checkpoints.found)
            _prepare(run, settings, validation, progress)
            for callback in callbacks:
                callback.on_train_begin(module, settings)
            interrupted = not _train_epochs(run, settings, validation, interrupt)
        if run.stopper:
            run.stopper.restore(module)
    finally:
        run.progress.close()
        run.optimizer.zero_grad(set_to_none=True)
        module.eval()
        for callback in callbacks:
            callback.on_train_end(module)
    return TrainResult(
        ending="interrupted" if interrupted else run.ended or "finished",
        epochs=len(history["epoch"]) - run.first_epoch,
        steps=run.steps_done - run.first_step,
        best_epoch=run.stopper.best_epoch if run.stopper else None,
        signal=interrupt.signal if interrupted else None,
    )


class Validation(NamedTuple):
    """What a run validates on, and when.

    Parameters
    ----------
    batches
        Minibatches on the device of the module; None for no validation.
    n_cells
        Number of cells in them.
    every
        Number of epochs from one validation to the next.
    """

    batches: Minibatches | None
    n_cells: int
    every: int


def _check(settings: TrainSettings, validate_every: int, *, validates: bool) -> None:
    """Refuse settings that cannot be met."""
    if settings.max_epochs is None:
        raise InputError("max_epochs must be set before training")
    if settings.early_stopping and not validates:
        raise InputError(
            "early_stopping needs validation cells; choose a train_size below 1 (it was "
            f"{settings.train_size:g}) or give more cells"
        )
    if validate_every > 1 and (settings.early_stopping or settings.reduce_lr_on_plateau):
        raise InputError(
            "early_stopping and reduce_lr_on_plateau look at every epoch; leave out one of them "
            f"or validate_every={validate_every}"
        )


def _prepare(run: Run, settings: TrainSettings, validation: Validation, progress: bool) -> None:
    """Show the progress from here on, and capture the steps where that is possible."""
    shown = progress and run.group.leads
    first, last = len(run.history["epoch"]) + 1, run.first_epoch + settings.epochs
    run.show(make_progress(shown, first, last, run.n_train))
    not_captured = run.prepare(validation.batches)
    if run.group.leads and run.device.type == "cuda":
        text = f"not captured: {not_captured}" if not_captured else "captured as a CUDA graph"
        note(f"training step {text}", print_status if shown else None)


def _train_epochs(
    run: Run, settings: TrainSettings, validation: Validation, interrupt: Interrupt
) -> bool:
    """Train and validate to the last epoch or an earlier end; False if interrupted."""
    last = run.first_epoch + settings.epochs
    while run.ended is None and len(run.history["epoch"]) < last:
        epoch = len(run.history["epoch"])
        row = run.train_epoch(epoch, interrupt)
        if row is None:
            return False
        due = (epoch + 1 - run.first_epoch) % validation.every == 0
        if (
            validation.batches is not None
            and due
            and not run.validate(validation.batches, validation.n_cells, row, interrupt)
        ):
            return False
        run.finish_epoch(row, last)
    return True
