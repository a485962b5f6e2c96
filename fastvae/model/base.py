"""The state that the methods of `Model` share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .._torch import device_of, seeded
from ..data import Minibatches
from ..data.opening import Frames
from ..data.stores.store import Store
from ..errors import InputError
from ..train import History, new_history, resolve_device, split_cells
from ..vae.vae import VAE
from .new_data import check_reading
from .posterior.noise import minibatches_of_blocks
from .setup import Setup

if TYPE_CHECKING:
    from typing import Self


class State:
    """Setup, network, data and history of one model.

    Attributes
    ----------
    training
        Summary of the training so far; empty before it.
    is_trained
        Whether questions are answered. Set it after putting weights into `module` yourself.
    origin
        Where the weights came from before any training here: empty, or what they were converted
        from, or the reference that the model was mapped onto.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._module: VAE | None = None
        self._store: Store | None = None
        self._frames: Frames | None = None
        self._residence = "auto"
        self._history = new_history()
        self.training: dict[str, Any] = {}
        self.is_trained = False
        self.origin: dict[str, Any] = {}

    @classmethod
    def _with_weights(
        cls,
        setup: Setup,
        state: Mapping[str, torch.Tensor],
        *,
        device: str | torch.device,
        is_trained: bool,
    ) -> Self:
        """Make a model without data from its setup and the state of its network."""
        model = cls.__new__(cls)
        State.__init__(model, setup)
        where = resolve_device(device)
        with seeded(torch.device("cpu"), 0):  # the weights drawn here are replaced
            module = model.module
        try:
            module.load_state_dict(state)
        except RuntimeError as error:
            raise InputError(f"the weights do not fit: {str(error).splitlines()[1].strip()}") from (
                error
            )
        module.to(where)
        model.is_trained = is_trained
        return model

    def _attach(self, store: Store, frames: Frames) -> None:
        self._store, self._frames = store, frames

    @property
    def module(self) -> VAE:
        """The network. Its first weights are drawn when it is first needed: here, or in `fit`."""
        if self._module is None:
            self._module = self._setup.build().eval()
        return self._module

    @property
    def gene_names(self) -> list[str]:
        """Names of the genes, in the order of the network's inputs."""
        return list(self._setup.gene_names)

    @property
    def batch_categories(self) -> list[str]:
        """Names of the batches; empty without a batch key."""
        return list(self._setup.batch_categories)

    def to(self, device: str | torch.device) -> Self:
        """Move the network to `device`, where every answer is then computed."""
        self.module.to(resolve_device(device))
        return self

    def _minibatches(self, store: Store, rows: np.ndarray, batch_size: int) -> Minibatches:
        """Of whole blocks, so that draws do not depend on `batch_size`; see `noise.BlockNoise`."""
        if not self.is_trained:
            raise InputError(
                "the model has not been trained yet; call fit() first (or set "
                "model.is_trained = True after putting weights into model.module yourself)"
            )
        return minibatches_of_blocks(store, rows, batch_size, device_of(self.module))

    def _own_store(self) -> Store:
        if self._store is None:
            raise InputError(
                "the model was loaded without data; give them to this call (data=...) or to "
                "Model.load(folder, data)"
            )
        return self._store

    def _store_for(self, data: Any, reading: Mapping[str, Any]) -> Store:
        return self._opened(data, reading)[0]

    def _opened_to_encode(self, data: Any, reading: Mapping[str, Any]) -> tuple[Store, Frames]:
        """Return `data` to find latent positions of: by the counts, if the encoder sees no more."""
        by_counts = not self._setup.options.encode_covariates
        return self._opened(data, reading, by_counts=by_counts)

    def _opened(
        self, data: Any, reading: Mapping[str, Any], *, by_counts: bool = False
    ) -> tuple[Store, Frames]:
        """Return `data` as the model reads it, or the model's own where that is None."""
        check_reading(data, reading)
        if data is not None:
            return self._setup.store_of(data, reading=reading, by_counts=by_counts)
        store, frames = self._own_store(), self._frames
        assert frames is not None
        return store, frames


class Trained(State):
    """The part of `Model` that says how it was trained."""

    def _summarise(
        self, summary: dict[str, Any], ending: str, steps: int, best_epoch: int | None
    ) -> None:
        history = self._history
        kept = -1 if best_epoch is None else history["epoch"].index(best_epoch)
        self.training = {
            **summary,
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
    def history(self) -> History:
        """One list per column of ``history.csv``, one entry per epoch.

        The columns ``*_elbo`` hold the negative ELBO per cell: lower is better.
        """
        return {name: list(values) for name, values in self._history.items()}

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
        return line
