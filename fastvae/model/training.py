"""`Model.fit` and what it leaves behind."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from .._options import documented, picked
from .._torch import seeded
from ..data import Minibatches
from ..data.stores.residence import RESIDENCES, place
from ..data.stores.store import Store
from ..errors import InputError, file_path, listed, one_of, shown, true_or_false, whole_number
from ..functional import dispatch as _backend
from ..train import (
    Callback,
    NonFiniteError,
    TensorBoard,
    TrainSettings,
    resolve_device,
    split_cells,
    train_vae,
)
from ..train.checkpoints import open_checkpoints
from ..train.processes import Group
from ..train.schedules import resolved
from ..train.settings import CheckpointOptions
from .base import Trained
from .freezing import held_still, what_is_frozen
from .setup import Setup

if TYPE_CHECKING:
    from typing import Self


class Fitting(Trained):
    """The part of `Model` that trains."""

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
        precision: str = "tf32",
        callbacks: Sequence[Callback] = (),
        tensorboard: str | os.PathLike[str] | None = None,
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
            "auto" (CUDA if there is one), "cpu", "cuda" or "cuda:N". The network stays there.
        seed
            Decides first weights, split, order and noise: on a CPU the same seed gives the same
            losses. None takes that of an earlier `fit`, so that its validation cells stay
            unseen, or else draws one from torch's generator.
        progress
            Show a progress bar (plain lines where standard error is not a terminal).
        callbacks
            `fastvae.train.Callback` objects, told of every epoch.
        tensorboard
            Folder for TensorBoard's event files; needs the tensorboard package.
        residence
            Where the counts are kept meanwhile: "device" (in compact form in the memory of
            `device`), "host", "disk", or "auto". None is what the model was made with. The last
            two must be where the data is already; with `progress` the choice and its reason are
            said on standard error.
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
        options = picked(CheckpointOptions, arguments)
        asked = self._residence if residence is None else residence
        one_of("residence", asked, RESIDENCES)
        progress = true_or_false("progress", progress)
        listeners = _listeners(callbacks)
        if tensorboard is not None:
            tensorboard = file_path("tensorboard", tensorboard)
        store = self._own_store()
        where = resolve_device(device)
        group = Group(where)
        if tensorboard is not None and group.leads:
            listeners.append(TensorBoard(tensorboard))
        checkpoints = open_checkpoints(options, group)
        found = checkpoints.found if checkpoints else None
        if seed is None and found:
            seed = found.state["seed"]
        if seed is None:
            seed = self.training.get("seed", int(torch.randint(2**31, ())))
        seed = group.share(whole_number("seed", seed, minimum=0))
        train_cells, validation_cells = split_cells(store.n_cells, settings.train_size, seed)
        settings = resolved(settings, store.n_cells, len(train_cells), where)
        store, reason = place(store, asked, where)
        if progress and group.leads:
            print(f"{reason}; {_backend.describe(where)}", file=sys.stderr, flush=True)
        if checkpoints:
            about = fingerprint(self._setup, store, settings, seed, group.size)
            checkpoints.require_same(about | what_is_frozen(self.origin))
        size = settings.cells_per_minibatch
        part: dict[str, Any] = {
            "batch_size": size,
            "device": where,
            "rank": group.rank,
            "world_size": group.size,
        }
        batches = Minibatches(store, train_cells, shuffle=True, seed=seed, **part)
        some = len(validation_cells) > 0
        validation = Minibatches(store, validation_cells, **part) if some else None
        with seeded(torch.device("cpu"), seed):
            module = self.module.to(where)
        steps = found.state["first_step"] if found else self.training.get("steps", 0)
        cells = {"n_train": len(train_cells), "n_validation": len(validation_cells)}
        summary = {
            "n_cells": store.n_cells,
            **cells,
            "seed": seed,
            "device": str(where),
            "residence": store.residence,
            "processes": group.size,
            "settings": settings.as_dict(),
        }
        try:
            with held_still(module, self.origin):
                result = train_vae(
                    module,
                    batches,
                    validation,
                    settings,
                    self._history,
                    seed=seed,
                    **cells,
                    completed_steps=steps,
                    progress=progress,
                    checkpoints=checkpoints,
                    callbacks=listeners,
                )
        except NonFiniteError as error:
            self._summarise(summary, "non-finite", steps + error.steps, None)
            raise
        self._summarise(summary, result.ending, steps + result.steps, result.best_epoch)
        return self


def _listeners(callbacks: Any) -> list[Callback]:
    """Return the callbacks as a list; refuse what cannot be told of the training."""
    found = listed("callbacks", callbacks, "a list of fastvae.train.Callback objects")
    for one in found:
        if not isinstance(one, Callback):
            raise InputError(
                f"callbacks must hold fastvae.train.Callback objects, not {shown(one)}"
            )
    return found


def fingerprint(
    setup: Setup, store: Store, settings: TrainSettings, seed: int, processes: int
) -> dict[str, Any]:
    """Describe the network, the data and the order of the cells, as plain values.

    The counts themselves are not read again: cells are told apart by how many genes they have,
    and by batch and label.
    """
    genes = hashlib.sha256("\n".join(map(str, store.gene_names)).encode())
    cells = hashlib.sha256()
    for array in (store.lengths(), store.batch_codes, store.label_codes):
        cells.update(np.asarray(array, dtype=np.int64).tobytes())
    options = asdict(setup.options)
    if not options["encode_covariates"]:  # older checkpoints do not say so
        del options["encode_covariates"]
    blocks = store.block_edges
    if blocks is None:
        order = "whole"
    else:
        order = f"by {len(blocks) - 1} blocks on disk, {store.pool_cells} cells at a time"
    return {
        "number of cells": store.n_cells,
        "number of genes": store.n_genes,
        "names of the genes (SHA-256)": genes.hexdigest()[:16],
        "the cells (SHA-256)": cells.hexdigest()[:16],
        "batch_categories": list(setup.batch_categories),
        "label_categories": list(setup.label_categories),
        **options,
        "seed": seed,
        "batch_size": settings.batch_size,
        "train_size": settings.train_size,
        "the order of the cells": order,
        "number of processes": processes,
    }
