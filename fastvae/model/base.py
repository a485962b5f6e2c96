"""The state that the methods of `Model` share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .._torch import device_of, seeded
from ..data import Minibatches
from ..data.opening import Frames
from ..data.stores.store import Store
from ..errors import InputError
from ..train import new_history, resolve_device
from ..vae.vae import VAE
from .new_data import check_reading
from .posterior import encode
from .posterior.noise import minibatches_of_blocks
from .provenance import provenance
from .scvi_names import with_scvi_names
from .setup import Setup

if TYPE_CHECKING:
    from typing import Self

EVALUATION_BATCH = 512
"""Cells per minibatch unless the question says otherwise."""

LARGEST_LIBRARY = 1e12
"""Counts of a cell with more than this leave the range of float32 somewhere."""


class State:
    """Setup, network, data and history of one model.

    Attributes
    ----------
    training
        Summary of the training so far; empty before it.
    is_trained
        Whether the model answers questions. Set it after putting weights into `module` yourself.
    origin
        Where the first weights came from: empty, or the model they were converted from, or the
        reference that the model was mapped onto.
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
        self._signal: int | None = None  # that interrupted the last training
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
        model = cls(setup)
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
        """Let questions and `fit` be about these cells."""
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

    @with_scvi_names()
    def to(self, device: str | torch.device) -> Self:
        """Move the network to `device`, where every answer is then computed."""
        self.module.to(resolve_device(device))
        return self

    def _provenance(self) -> dict[str, Any]:
        """Say where answers come from, for ``uns``."""
        return provenance(self._setup, self.training, self.module.state_dict())

    def _check_trained(self) -> None:
        if not self.is_trained:
            raise InputError(
                "the model has not been trained yet; call fit() first (or set "
                "model.is_trained = True after putting weights into model.module yourself)"
            )

    def _minibatches(self, store: Store, rows: np.ndarray, batch_size: int) -> Minibatches:
        """Of whole blocks, so that draws do not depend on `batch_size`; see `noise.BlockNoise`."""
        self._check_trained()
        return minibatches_of_blocks(store, rows, batch_size, device_of(self.module))

    def _latent_means(
        self, store: Store, rows: np.ndarray | None = None, batch_size: int = EVALUATION_BATCH
    ) -> np.ndarray:
        """Return the mean positions (N, n_latent) of some cells of `store`, all by default."""
        rows = np.arange(store.n_cells) if rows is None else rows
        batches = self._minibatches(store, rows, batch_size)
        return encode.latent(self.module, batches, len(rows), give_mean=True, seed=0)

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
        """Open data for latent positions: the counts suffice unless encoders see covariates."""
        by_counts = not self._setup.options.encode_covariates
        return self._opened(data, reading, by_counts=by_counts)

    def _opened(
        self, data: Any, reading: Mapping[str, Any], *, by_counts: bool = False
    ) -> tuple[Store, Frames]:
        """Open `data` as the model reads it; None is the model's own data."""
        check_reading(data, reading)
        if data is not None:
            return self._setup.store_of(data, reading=reading, by_counts=by_counts)
        store, frames = self._own_store(), self._frames
        assert frames is not None
        return store, frames
