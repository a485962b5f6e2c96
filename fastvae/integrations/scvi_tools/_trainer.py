"""scvi-tools' trainer, which uses fastvae's own loop where that supports the options."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from lightning.pytorch.trainer.states import TrainerStatus
from scvi.train import Trainer as TheirTrainer
from scvi.train import TrainRunner

from ..._status import note, print_status
from ..._torch import current
from ...data import Minibatches
from ...data.stores.residence import place
from ...errors import InputError, one_of
from ...functional import dispatch as _backend
from ...train import NonFiniteError, new_history, train_vae
from ...train.step import written_gradients
from ._checks import check_data
from ._epoch_log import EpochLog
from ._gradients import gradients_of
from ._loop_module import ByRow, store_of
from ._minibatches import CountSplitter, Source
from ._streamed_cells import streaming
from ._training_plan import in_their_words
from ._watched_threads import WatchedThreads
from ._which_loop import AUTOMATIC, LOOPS, say, training_settings, why_lightning

_log = logging.getLogger("fastvae")

written_gradients.register(ByRow, gradients_of)


class Trainer(TheirTrainer):
    """``scvi.train.Trainer`` that can train with fastvae's own loop.

    Parameters
    ----------
    loop
        "fastvae": fastvae's own loop. "lightning": scvi-tools'. "auto": on a GPU fastvae's if it
        supports the other options, and Lightning's with the reason in the log if it does not;
        elsewhere Lightning's.
    **given
        As for ``scvi.train.Trainer``.

    Attributes
    ----------
    chosen : str
        The loop that trains.

    Raises
    ------
    InputError
        An unknown `loop`.
    """

    def __init__(self, *args: Any, loop: str = "auto", **given: Any) -> None:
        self.loop = one_of("loop", loop, LOOPS)
        self.chosen = "lightning"
        self.plateau = False
        self._given = dict(given)
        self._source: Source | None = None
        super().__init__(*args, **given)

    def choose(self, plan: Any, splitter: Any, ckpt_path: Any = None) -> None:
        """Decide which loop trains.

        Raises
        ------
        InputError
            fastvae's loop was asked for and does not support another option.
        """
        on = self.strategy.root_device.type
        if self.loop == "lightning" or (self.loop == "auto" and on not in AUTOMATIC):
            return
        self.plateau = getattr(plan, "reduce_lr_on_plateau", False)
        reason = why_lightning(self, self._given, plan, splitter, ckpt_path)
        if reason is None:
            try:
                self._source = Source.of(splitter.adata_manager, densest=1.0)
                self.chosen = "fastvae"
                return
            except InputError as error:
                reason = str(error)
        if self.loop == "fastvae":
            raise InputError(
                f"loop='fastvae' cannot train this: {reason}; change that, or leave out loop"
            )
        say(reason)

    def fit(self, *args: Any, **kwargs: Any) -> None:
        """Train."""
        if self._source is None:
            super().fit(*args, **kwargs)
            return
        source, self._source = self._source, None
        device = self.strategy.root_device
        try:
            with current(device):
                self._fit(source, device, *args[:2])
        except NonFiniteError as error:
            raise in_their_words(error) from error

    def _fit(self, source: Source, device: torch.device, plan: Any, splitter: Any) -> None:
        splitter.setup("fit")
        module = plan.module.to(device)
        settings = training_settings(self, plan, splitter)
        cell_names = splitter.adata_manager.adata.obs_names
        store, where = place(store_of(source, cell_names), "auto", device)
        bar = self.progress_bar_callback
        shown = bar is not None and not bar.is_disabled
        note(f"{where}; {_backend.describe(device)}", print_status if shown else None)
        seed = int(torch.randint(2**31, ()))
        cells: dict[str, Any] = {"batch_size": settings.cells_per_minibatch, "device": device}
        batches = Minibatches(
            store, _rows(splitter.train_idx), shuffle=True, seed=seed,
            drop_last=splitter.drop_last, **cells,
        )  # fmt: skip
        held_out = _rows(splitter.val_idx)
        validates = len(held_out) > 0 and self.check_val_every_n_epoch <= settings.epochs
        columns = {key: column.to(device) for key, column in source.columns.items()}
        by_row = ByRow(module, columns, settings.n_steps_kl_warmup)
        log = EpochLog(self, batches.sizes(), len(held_out))
        try:
            result = train_vae(
                by_row,
                batches,
                Minibatches(store, held_out, **cells) if validates else None,
                settings,
                new_history(),
                seed=seed,
                n_train=sum(batches.sizes()),
                n_validation=len(held_out),
                progress=shown,
                callbacks=[log],
                validate_every=self.check_val_every_n_epoch if validates else 1,
            )
        except BaseException:
            self.state.status = TrainerStatus.INTERRUPTED
            raise
        self.state.status = TrainerStatus.FINISHED
        if result.ending == "interrupted":
            self.state.status = TrainerStatus.INTERRUPTED
            done = f"after {result.epochs} whole epochs"
            _log.warning("training was interrupted %s; the model keeps what it has learned", done)
        stopper = self.early_stopping_callback
        if stopper is not None:
            stopper.teardown(self, plan, "fit")  # says why it stopped
        self.logger.finalize("success")

    def note_epoch(self, epoch: int, steps: int, metrics: dict[str, float]) -> bool:
        """Record an epoch as Lightning does; return whether to stop."""
        self.fit_loop.epoch_progress.current.completed = epoch
        loop = self.fit_loop.epoch_loop.automatic_optimization
        loop.optim_progress.optimizer.step.total.completed = steps
        self.callback_metrics.update({k: torch.tensor(v) for k, v in metrics.items()})
        stopper = self.early_stopping_callback
        if stopper is not None and stopper.monitor in metrics:
            stopper._run_early_stopping_check(self)
        return bool(self.should_stop)


def _rows(indices: Any) -> np.ndarray:
    return np.asarray(indices).astype(np.int64)


class CheckingRunner(TrainRunner):
    """``TrainRunner`` that refuses data whose loss would be NaN, and asks for CSR counts."""

    def __init__(self, model: Any, training_plan: Any, data_splitter: Any, **kwargs: Any) -> None:
        manager = getattr(data_splitter, "adata_manager", None)
        if manager is not None:
            check_data(model, manager, again=True)
        if isinstance(data_splitter, CountSplitter):
            data_splitter.use(model.module)
        data_splitter = streaming(data_splitter, model.module)
        super().__init__(model, training_plan, data_splitter, **kwargs)
        self.trainer.callbacks.append(WatchedThreads())


class Runner(CheckingRunner):
    """``TrainRunner`` for fastvae's modules."""

    _trainer_cls = Trainer

    def __init__(self, model: Any, training_plan: Any, data_splitter: Any, **kwargs: Any) -> None:
        super().__init__(model, training_plan, data_splitter, **kwargs)
        if isinstance(self.trainer, Trainer):
            ckpt_path = getattr(self, "ckpt_path", None)
            self.trainer.choose(training_plan, data_splitter, ckpt_path)
