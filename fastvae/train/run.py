"""One run of training: its epochs, its failures, and its checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, nn

from .._status import note
from .._torch import device_of, evaluating, seed_generators, widest
from ..data import Minibatch, Minibatches
from ..errors import InputError
from .callbacks import Callback
from .checkpoints import Checkpoints, Loaded
from .cuda_graph import Readback, StaticSteps, StaticWork, make_static_steps
from .guard import (
    CORRECT_THE_DATA,
    NonFiniteError,
    all_finite,
    find_failure,
    non_finite_error,
    problem_with_input,
)
from .history import COLUMNS, History, enter_losses
from .processes import Group
from .progress import Progress
from .schedules import Plateau, epoch_seed, kl_weight_at
from .settings import TrainSettings
from .state import (
    Moment,
    Within,
    below,
    pack_history,
    pack_optimizer,
    random_states,
    set_learning_rate,
    set_random_states,
    unpack_history,
    unpack_optimizer,
    with_prefix,
)
from .step import (
    Gradients,
    apply_gradients,
    compute_gradients,
    evaluate_sums,
    without_autograd,
    write_gradients,
)
from .stopping import EarlyStopping, Interrupt
from .thread_watch import ThreadWatch

VALIDATION_SEED = 0
"""Validation draws the same noise after every epoch, so that its curve shows the model alone."""

LOOK_EVERY_SECONDS = 1.0
"""Seconds between two readings of the loss from the device within an epoch."""

Ending = Literal["finished", "early stopping", "callback", "interrupted"]


class Run:
    """One run of training: what its epochs share.

    Attributes
    ----------
    first_epoch, first_step
        Epochs and minibatches completed when the run began, over all earlier runs.
    step
        Minibatches completed when the current epoch began, over all runs.
    within
        The part of that epoch that is done.
    rate
        Learning rate of the next step; the optimiser's own is on the device.
    ended
        How the run ended before its last epoch, or None.
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
        self.group = Group(self.device)
        self.network = self.group.wrap(module, captured=bool(settings.cuda_graph))
        self._sizes = batches.sizes()
        self._weights, self._alike = self._shares()
        self._share = 1.0
        self._sums, self._validation_sums = (
            torch.zeros(2, dtype=widest(self.device), device=self.device) for _ in range(2)
        )
        self.within = Within(self._sums)
        self.ended: Ending | None = None
        self.progress = Progress(1, 1, n_train)
        self.kl_weight = torch.zeros((), device=self.device)
        self.stopper = EarlyStopping.of(settings)
        self.plateau = Plateau.of(settings)
        self.callbacks = list(callbacks)
        self._static: StaticSteps | None = None
        self.watch = ThreadWatch(self.device.type == "cpu" and self.group.alone, self.say)
        self._written: Gradients | None = None
        on_cuda = self.device.type == "cuda"
        self.optimizer = torch.optim.Adam(
            [p for p in module.parameters() if p.requires_grad],
            lr=torch.tensor(settings.rate, device=self.device) if on_cuda else settings.rate,
            capturable=on_cuda,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.rate = settings.rate
        self.anchor = Moment(module, self.optimizer)

    def train_epoch(self, epoch: int, interrupt: Interrupt) -> dict[str, float] | None:
        """Train for the rest of the epoch of index `epoch`.

        Returns
        -------
        dict or None
            Its row of the history; None if it was interrupted.
        """
        within = self.within
        self.anchor.take(within.steps)
        started = looked = time.perf_counter() - within.seconds
        bad, readback = False, Readback(self.device)
        for batch in self._minibatches(epoch, self._static):
            if self._static and isinstance(batch, Tensor):
                self._static.training[len(batch)](batch)
            else:
                self._gradients(batch, within.sums)
                self._apply()
            self.watch.after_step()
            within.cells += self._sizes[within.steps]
            within.steps += 1
            now = time.perf_counter()
            within.seconds = now - started
            if now - looked >= LOOK_EVERY_SECONDS:
                looked = now
                if news := readback.mean(within.sums, within.cells):
                    bad = not math.isfinite(news[0])
                    self.progress.within_epoch(epoch + 1, news[1] * self.group.size, news[0])
            if not self.group.agrees_after(within.steps):
                continue
            due = self.group.leads and self.checkpoints is not None and self.checkpoints.due()
            stop, due, bad = self.group.any(interrupt.pressed, due, bad)
            if bad or ((stop or due) and not self._checkpoint_if_finite()):
                break
            if stop:
                return None
        if not self._finite():
            self._fail(epoch)
        self.group.average_buffers(self.module)
        row = dict.fromkeys(COLUMNS, math.nan)
        row["epoch"] = epoch + 1
        row["kl_weight"] = kl_weight_at(self.settings, epoch, self.steps_done - 1)
        row["learning_rate"] = self.rate
        row["seconds"] = time.perf_counter() - started
        row["cells_per_second"] = self.n_train / row["seconds"]
        sums, n_cells = self._over_processes()
        enter_losses(row, "train", *(value / n_cells for value in sums))
        return row

    def validate(
        self, batches: Minibatches, n_cells: int, row: dict[str, float], interrupt: Interrupt
    ) -> bool:
        """Enter the losses of the validation cells into `row`; False if it was interrupted."""
        sums = self._validation_sums.zero_()

        def stop() -> bool:  # one process alone may; several would have to agree first
            return interrupt.pressed and self.group.alone

        with evaluating(self.module, VALIDATION_SEED):
            if self._static and self._static.validation:
                whole = self._static.evaluate(batches, stop)
            else:
                precision = self.settings.precision
                whole = evaluate_sums(self.module, batches, sums, stop, precision)
        if not whole:
            self._checkpoint_if_finite()
            return False
        reconstruction, kl = (value / n_cells for value in self.group.add(sums).tolist())
        if not math.isfinite(reconstruction + kl):
            self.anchor.restore()
            self.within.steps = self.anchor.steps
            bad = next(filter(None, map(problem_with_input, batches)), None)
            remedy = CORRECT_THE_DATA if bad else None
            raise self._error(int(row["epoch"]), None, bad or "the validation loss", remedy)
        enter_losses(row, "validation", reconstruction, kl)
        return True

    def finish_epoch(self, row: dict[str, float], last: int) -> None:
        """Record a finished epoch; write a checkpoint if one is due or this is the last."""
        for name in COLUMNS:
            self.history[name].append(row[name])
        self.step += self.within.steps
        self.within = Within(self._sums.zero_())
        epoch, validation = int(row["epoch"]), row["validation_elbo"]
        self.progress.after_epoch(epoch, row["train_elbo"], validation)
        if self.stopper and self.stopper.update(self.module, epoch, validation):
            self.ended = "early stopping"
        if self.plateau and self.plateau.update(row["train_elbo"], validation):
            rate = row["learning_rate"] * self.settings.lr_factor
            self._set_rate(max(rate, self.settings.lr_min))
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
        tensors, state = self.pack()
        if self.group.leads:
            self.checkpoints.write(tensors, state)

    def pack(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return everything that decides how the run continues; all processes call it together."""
        within, group = self.within, self.group
        sums, cells = self._over_processes()
        tensors = {
            **with_prefix("model", self.module.state_dict()),
            **with_prefix("optimizer", pack_optimizer(self.optimizer)),
        }
        for rank, states in enumerate(group.gather(random_states(self.device))):
            tensors |= with_prefix(f"random{rank}", states)
        state: dict[str, Any] = {
            "seed": self.seed,
            "settings": self.settings.as_dict(),
            "first_epoch": self.first_epoch,
            "first_step": self.first_step,
            "step": self.step,
            "steps": within.steps,
            "cells": cells,
            "seconds": within.seconds,
            "sums": sums,
            "learning_rate": self.rate,
            "history": pack_history(self.history),
        }
        if self.plateau:
            state["plateau"] = self.plateau.state_dict()
        if self.stopper:
            state["stopping"] = self.stopper.state_dict()
            tensors |= with_prefix("best", self.stopper.best_state)
        return tensors, state

    def unpack(self, found: Loaded) -> None:
        """Restore the state that `pack` returned."""
        tensors, state = found.tensors, found.state
        self.module.load_state_dict(below("model", tensors))
        unpack_optimizer(self.optimizer, below("optimizer", tensors))
        set_random_states(below(f"random{self.group.rank}", tensors), self.device)
        unpack_history(state["history"], self.history)
        self.first_epoch, self.first_step = state["first_epoch"], state["first_step"]
        self.step = state["step"]
        # The sums of all processes together are the first one's to carry on.
        sums = self._sums.copy_(torch.tensor(state["sums"], dtype=self._sums.dtype))
        cells = state["cells"]
        if not self.group.leads:
            sums, cells = sums.zero_(), 0
        self.within = Within(sums, state["steps"], cells, state["seconds"])
        if self.settings.learning_rate == state["settings"]["learning_rate"]:
            self._set_rate(state["learning_rate"])
        if self.plateau and "plateau" in state:
            self.plateau.load_state_dict(state["plateau"])
        if self.stopper and "stopping" in state:
            best = {k: v.to(self.device) for k, v in below("best", tensors).items()}
            self.stopper.load_state_dict(state["stopping"], best)
            self.ended = "early stopping" if self.stopper.exhausted else None

    def say(self, text: str) -> None:
        """Tell the user, in the log or where progress is shown."""
        note(text, self.progress.say)

    def show(self, progress: Progress) -> None:
        """Report to `progress` from here on."""
        self.progress = progress

    def prepare(self, validation: Minibatches | None = None) -> str | None:
        """Make and capture the steps in fixed memory; return why that is not possible, or None.

        `validation` are the minibatches that `validate` will be given.
        """
        self.module.train()
        self._written = without_autograd(self.module, self.settings)
        sums, validation_sums = self._sums, self._validation_sums
        work = StaticWork(self._own_gradients, self._apply, sums, self._evaluate, validation_sums)
        trained = self.module, self.optimizer, self.batches, validation, self.group, self.settings
        made = make_static_steps(*trained, work)
        if isinstance(made, str):
            return made
        self._static = made
        return None

    def _minibatches(self, epoch: int, static: StaticSteps | None = None) -> Iterator[Any]:
        """Yield what is left of an epoch from the anchor on: always the same, noise included.

        With `static`, the row numbers on the device of each minibatch that it has a step for.
        """
        done = self.anchor.steps
        self.module.train()
        # Asked at each epoch: a callback may have changed the module.
        if self._static is None:
            self._written = without_autograd(self.module, self.settings)
        self.batches.load_state_dict({"epoch": epoch, "position": done})
        if done:
            set_random_states(self.anchor.random, self.device)
        else:
            seed_generators(epoch_seed(self.seed, epoch, self.group.rank), self.device)
        batches: Iterable[Any] = self.batches
        if static is not None:
            goes_on = epoch + 1 < self.first_epoch + self.settings.epochs
            batches = static.batches(self.batches, done, self._alike, goes_on)
        set_to = None
        for number, batch in enumerate(batches, start=done):
            weight = kl_weight_at(self.settings, epoch, self.step + number)
            if weight != set_to:
                self.kl_weight.fill_(weight)
                set_to = weight
            self._share = self._weights[number]
            yield batch

    def _gradients(self, batch: Minibatch, sums: Tensor) -> None:
        """Leave the gradients of a minibatch in the parameters; add its losses to `sums`."""
        settings, share = self.settings, self._share
        if self._written is not None and self.group.alone:
            return write_gradients(self._written, batch, self.kl_weight, sums, share)
        given = self.network, self.optimizer, batch, self.kl_weight, sums
        compute_gradients(*given, settings.precision, share, settings.classification_ratio)

    def _own_gradients(self, batch: Minibatch, sums: Tensor) -> None:
        """Do as `_gradients` where every process has as many cells."""
        if self._written is not None:
            return write_gradients(self._written, batch, self.kl_weight, sums)
        given = batch, self.kl_weight, sums, self.settings.precision
        compute_gradients(self.module, self.optimizer, *given)

    def _evaluate(self, batch: Minibatch, sums: Tensor) -> None:
        evaluate_sums(self.module, [batch], sums, precision=self.settings.precision)

    def _apply(self) -> None:
        apply_gradients(self.module, self.optimizer, self.settings.max_grad_norm)

    def _over_processes(self) -> tuple[list[float], int]:
        """The sums of the epoch so far and the number of its cells, over all processes."""
        sums, cells = self.within.sums.tolist(), self.within.cells
        if self.group.alone:
            return sums, cells
        done = torch.tensor([*sums, cells], dtype=torch.float64).to(self.device)
        *sums, cell_count = self.group.add(done).tolist()
        return sums, int(cell_count)

    def _set_rate(self, rate: float) -> None:
        self.rate = rate
        set_learning_rate(self.optimizer, rate)

    def _finite(self) -> bool:
        fine = all_finite([self.within.sums, *self.module.state_dict().values()])
        return not self.group.any(not fine)[0]

    def _checkpoint_if_finite(self) -> bool:
        finite = self._finite()
        if finite and self.checkpoints:
            self.checkpoint()
        return finite

    def _shares(self) -> tuple[list[float], list[bool]]:
        """Return the weight of each minibatch, and whether all processes have the same size.

        The weight is that of its mean in the mean over the minibatches of all processes.
        """
        all_sizes = self.group.gather(self._sizes)
        if len({len(sizes) for sizes in all_sizes}) > 1:
            raise InputError(
                f"the {self.group.size} processes would have different numbers of minibatches; "
                "choose another batch_size"
            )
        alike = [len(set(sizes)) == 1 for sizes in zip(*all_sizes, strict=True)]
        mine = all_sizes[self.group.rank]
        totals = [sum(sizes) for sizes in zip(*all_sizes, strict=True)]
        shares = [self.group.size * n / total for n, total in zip(mine, totals, strict=True)]
        return shares, alike

    def _fail(self, epoch: int) -> NoReturn:
        """Go back to just before the first non-finite number and say where it was."""
        self.anchor.restore()
        batches, together = self._minibatches(epoch), self.group.any
        found = find_failure(self.module, batches, self._gradients, self._apply, together)
        if found is None:
            # The second run went well, so the failure was one of the hardware's rounding.
            self.anchor.restore()
            self.within.steps = self.anchor.steps
            raise self._error(epoch + 1, None, "the loss")
        step = self.anchor.steps + found.step
        self.within.steps = step - 1
        raise self._error(epoch + 1, step, found.what, found.remedy)

    def _error(
        self, epoch: int, step: int | None, what: str, remedy: str | None = None
    ) -> NonFiniteError:
        files = self.checkpoints.files if self.checkpoints else None
        return non_finite_error(
            epoch,
            step,
            what,
            self.settings.rate,
            self.steps_done - self.first_step,
            checkpoints=files.folder if files and files.numbers() else None,
            remedy=remedy,
        )
