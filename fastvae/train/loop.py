"""The training loop."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

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
from .stopping import interruptible


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
    checkpoints: Checkpoints | None = None,
    callbacks: Sequence[Callback] = (),
    validate_every: int = 1,
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
    checkpoints
        Where to write checkpoints and what to go on from; a last one is written at the end. What
        has come before the checkpoint that training goes on from counts as part of this run.
    callbacks
        Told of the beginning, each epoch and the end, in this order.
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
    if settings.max_epochs is None:
        raise InputError("max_epochs must be set before training")
    if settings.early_stopping and validation_batches is None:
        raise InputError(
            "early_stopping needs validation cells; choose a train_size below 1 (it was "
            f"{settings.train_size:g}) or give more cells"
        )
    if validate_every > 1 and (settings.early_stopping or settings.reduce_lr_on_plateau):
        raise InputError(
            "early_stopping and reduce_lr_on_plateau look at every epoch; leave out one of them "
            f"or validate_every={validate_every}"
        )
    settings = resolved(settings, n_train + n_validation, n_train, device_of(module))
    step, epochs = completed_steps, settings.epochs
    run = Run(module, train_batches, settings, history, seed, step, n_train, checkpoints, callbacks)
    interrupted = False
    try:
        with (
            interruptible() as interrupt,
            current(run.device),
            seeded(run.device, seed),
            torch.enable_grad(),
            matrix_precision(settings.precision, run.device),
            run.group.working(module, settings.sync_batch_norm),
            run.watch,
            compiled_layers(module, settings.compile, run.device),
        ):
            if checkpoints and checkpoints.found:
                run.unpack(checkpoints.found)
            last = run.first_epoch + epochs
            shown = progress and run.group.leads
            run.show(make_progress(shown, len(history["epoch"]) + 1, last, n_train))
            eager = run.prepare(validation_batches)
            if shown and run.device.type == "cuda":
                text = "captured as a CUDA graph" if eager is None else f"not captured: {eager}"
                print(f"training step {text}", file=sys.stderr, flush=True)
            for callback in callbacks:
                callback.on_train_begin(module, settings)
            while run.ended is None and len(history["epoch"]) < last:
                row = run.train_epoch(len(history["epoch"]), interrupt)
                whole = row is not None
                due = (len(history["epoch"]) + 1 - run.first_epoch) % validate_every == 0
                if row is not None and validation_batches is not None and due:
                    whole = run.validate(validation_batches, n_validation, row, interrupt)
                if row is None or not whole:
                    interrupted = True
                    break
                run.finish_epoch(row, last)
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
    )
