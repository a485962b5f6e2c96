"""`Model.fit` and what it leaves behind."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from .._options import documented, picked
from .._torch import APPLE, seeded, training_device
from ..data.stores.residence import RESIDENCES
from ..data.stores.store import Store
from ..errors import InputError, file_path, listed, one_of, shown, true_or_false
from ..train import (
    Callback,
    NonFiniteError,
    TensorBoard,
    TrainSettings,
    split_cells,
    train_vae,
)
from ..train.loggers import Logger, ToLogger, checked_loggers, finalizing
from ..train.processes import Group
from ..train.schedules import default_max_epochs
from ..train.settings import CheckpointOptions
from .base import State
from .fit_plan import FitPlan
from .freezing import held_still, what_is_frozen
from .label_answers import probabilities_at
from .labels import with_labels_of
from .scvi_names import with_scvi_names

if TYPE_CHECKING:
    from typing import Self

    import pandas as pd


class Fitting(State):
    """Training, and what it leaves: history, split and summary."""

    @with_scvi_names()
    @documented(TrainSettings, CheckpointOptions)
    def fit(
        self,
        max_epochs: int | None = None,
        batch_size: int | Literal["auto"] = 128,
        train_size: float = 0.9,
        *,
        early_stopping: bool = False,
        device: str | torch.device = "auto",
        seed: int | None = None,
        progress: bool = True,
        early_stopping_patience: int = 45,
        early_stopping_min_delta: float = 0.0,
        learning_rate: float | Literal["auto"] | None = None,
        eps: float = 0.01,
        weight_decay: float = 1e-6,
        n_epochs_kl_warmup: int | None = 400,
        n_steps_kl_warmup: int | None = None,
        max_grad_norm: float | None = None,
        reduce_lr_on_plateau: bool = False,
        lr_factor: float = 0.6,
        lr_patience: int = 30,
        lr_min: float = 0.0,
        classification_ratio: float = 50.0,
        precision: str = "tf32",
        callbacks: Sequence[Callback] = (),
        tensorboard: str | os.PathLike[str] | None = None,
        logger: Logger | Sequence[Logger] | None = None,
        cuda_graph: bool | None = None,
        sync_batch_norm: bool = False,
        compile: bool = False,
        residence: str | None = None,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        checkpoint_every: int | None = None,
        checkpoint_minutes: float | None = None,
        keep_checkpoints: int = 2,
        resume: bool = False,
    ) -> Self:
        """Train; called again, train further from where the weights are.

        Where the program has initialised ``torch.distributed``, all its processes train one
        model: each on its share of the cells, with minibatches of `batch_size` each. All return
        the same model; the first alone shows progress and writes checkpoints.

        Parameters
        ----------
        {TrainSettings}
        device
            "auto" (CUDA if there is one), "cpu", "cuda" or "cuda:N". The network stays there. "mps"
            trains on an Apple GPU through torch operations, and the network comes back to the CPU.
        seed
            Decides first weights, split, order and noise: on a CPU the same seed gives the same
            losses. None takes that of an earlier `fit`, so that its validation cells stay
            unseen, or else draws one from torch's generator.
        progress
            Show a progress bar (plain lines where standard error is not a terminal).
        callbacks
            `fastvae.train.Callback` objects, whose methods are called as training goes on.
        tensorboard
            Folder for TensorBoard's event files; needs the tensorboard package.
        logger
            A logger of Lightning, such as its ``CSVLogger``, ``WandbLogger`` or ``MLFlowLogger``,
            another object with ``log_hyperparams(params)`` and ``log_metrics(metrics, step)``, or
            a list of such. It gets the options, and after each epoch the row of the history.
        residence
            Where the counts are kept during training: "device" (in compact form in the memory of
            `device`), "host", "disk", or "auto". None is what the model was made with. "host" and
            "disk" must be where the data are already; the choice and its reason are logged at level
            INFO, or else printed on standard error with `progress`.
        {CheckpointOptions}

        Returns
        -------
        Model
            Itself. Ctrl-C and SIGTERM end the training early and keep what was learned.

        Raises
        ------
        InputError
            An option out of range, an unavailable device or compiler, too few cells, a model
            loaded without data, or a checkpoint of another run.
        NonFiniteError
            A NaN or an infinity appeared; the model keeps the last good weights.
        """
        arguments = locals()  # taken before any other name is bound
        settings = picked(TrainSettings, arguments)
        checkpoint_options = picked(CheckpointOptions, arguments)
        residence = self._residence if residence is None else residence
        one_of("residence", residence, RESIDENCES)
        progress = true_or_false("progress", progress)
        listeners = _listeners(callbacks)
        folder = None if tensorboard is None else file_path("tensorboard", tensorboard)
        loggers = checked_loggers(logger)
        store = self._store_to_train_on()
        settings = self._with_epochs(settings, store.n_cells)
        group = Group(training_device(device))
        if folder is not None and group.leads:
            listeners.append(TensorBoard(folder))
        plan = FitPlan.of(
            store,
            settings,
            checkpoint_options,
            group,
            residence=residence,
            seed=seed,
            earlier=self.training or self.origin,
            progress=progress,
        )
        loggers = loggers if group.leads else []
        about = {**asdict(self._setup.options), "seed": plan.seed, **plan.numbers_of_cells()}
        listeners += [ToLogger(one, about) for one in loggers]
        with finalizing(loggers):
            return self._follow(plan, listeners, progress)

    train = fit  # its name in scvi-tools

    def _follow(self, plan: FitPlan, listeners: list[Callback], progress: bool) -> Self:
        """Train as planned, and keep the summary also where training fails."""
        if plan.checkpoints:
            about = plan.fingerprint(self._setup) | what_is_frozen(self.origin)
            plan.checkpoints.require_same(about)
        labelled = self._learns_labels
        training, validation = plan.minibatches(labelled=labelled)
        device = plan.group.device
        with seeded(torch.device("cpu"), plan.seed):
            module = self.module.to(device)
        try:
            with held_still(module, self.origin):
                result = train_vae(
                    module,
                    training,
                    validation,
                    plan.settings,
                    self._history,
                    seed=plan.seed,
                    **plan.numbers_of_cells(),
                    completed_steps=plan.steps_before,
                    progress=progress,
                    checkpoints=plan.checkpoints,
                    callbacks=listeners,
                )
        except NonFiniteError as error:
            self._summarise(plan, "non-finite", error.steps, None)
            raise
        finally:
            if device.type in APPLE:
                module.to("cpu")
        self._signal = result.signal
        self._summarise(plan, result.ending, result.steps, result.best_epoch)
        if labelled and self.is_trained and len(known := plan.labelled_validation_cells()):
            self.training["validation_accuracy"] = self._accuracy(plan.store, known)
        return self

    @property
    def _learns_labels(self) -> bool:
        """Whether `fit` reads labels: those of a query that was mapped are not known."""
        return self._setup.semi_supervision is not None and "mapped_onto" not in self.origin

    def _store_to_train_on(self) -> Store:
        """Return the model's own cells, with the codes of their labels where these are learned."""
        store, setup = self._own_store(), self._setup
        if not self._learns_labels:
            return store
        how, key, frames = setup.semi_supervision, setup.labels_key, self._frames
        assert how is not None
        assert key is not None
        assert frames is not None
        return with_labels_of(store, frames.obs, key, setup.label_categories, how)

    def _with_epochs(self, settings: TrainSettings, n_cells: int) -> TrainSettings:
        """Return the settings with fewer epochs where trained weights are told labels first."""
        first = "weights_without_labels" in self.origin and not self.is_trained
        if settings.max_epochs is not None or not first:
            return settings
        usual = default_max_epochs(n_cells)
        return replace(settings, max_epochs=min(10, max(2, round(usual / 3))))

    def _accuracy(self, store: Store, cells: np.ndarray) -> float:
        """Return the share of labelled cells that get their own label."""
        probabilities = probabilities_at(self.module, self._latent_means(store, cells))
        return float((probabilities.argmax(axis=1) == store.label_codes[cells]).mean())

    def _summarise(self, plan: FitPlan, ending: str, steps: int, best_epoch: int | None) -> None:
        history, steps = self._history, plan.steps_before + steps
        kept = -1 if best_epoch is None else history["epoch"].index(best_epoch)
        self.training = {
            **plan.summary(),
            "ending": ending,
            "steps": steps,
            "epochs": len(history["epoch"]),
            "best_epoch": best_epoch,
            "seconds": sum(history["seconds"]),
        }
        for name in ("train_elbo", "validation_elbo"):
            value = history[name][kept] if history[name] else math.nan
            self.training[name] = None if math.isnan(value) else value
        self.is_trained = self.is_trained or steps > 0

    @property
    def history(self) -> pd.DataFrame:
        """The table of ``history.csv``: one row per epoch, columns as in `fastvae.train.COLUMNS`.

        The columns ``*_elbo`` hold the negative ELBO per cell: lower is better.
        """
        import pandas as pd

        columns = {
            name: np.array(values, dtype=np.int64 if name == "epoch" else np.float64)
            for name, values in self._history.items()
        }
        return pd.DataFrame(columns)

    @property
    def train_cells(self) -> np.ndarray:
        """Rows of the training data that the last `fit` trained on."""
        return self._split()[0]

    @property
    def validation_cells(self) -> np.ndarray:
        """Rows of the training data that the last `fit` kept for validation."""
        return self._split()[1]

    def _split(self) -> tuple[np.ndarray, np.ndarray]:
        if not self.training:
            raise InputError("the model has not been trained yet; call fit() first")
        done = self.training
        return split_cells(done["n_cells"], done["settings"]["train_size"], done["seed"])

    def _training_line(self) -> str:
        if not self.is_trained:
            return "not trained: call fit()"
        done = self.training
        if not done:
            return "marked as trained"
        line = f"trained for {done['epochs']} epochs ({done['ending']})"
        for name, label in (("train_elbo", "training"), ("validation_elbo", "validation")):
            if done[name] is not None:
                line += f", {label} -ELBO {done[name]:.2f}"
        if "validation_accuracy" in done:
            line += f", {done['validation_accuracy']:.1%} of labels of validation cells right"
        return line


def _listeners(callbacks: Any) -> list[Callback]:
    """Return the callbacks as a list; refuse objects that are none."""
    found = listed("callbacks", callbacks, "a list of fastvae.train.Callback objects")
    for one in found:
        if not isinstance(one, Callback):
            raise InputError(
                f"callbacks must hold fastvae.train.Callback objects, not {shown(one)}"
            )
    return found
