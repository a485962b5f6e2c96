"""Minibatches: shuffled CSR slices of a store, as tensors on the training device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from ..errors import InputError
from ._csr import csr_tensor
from .store import CountStore


class Minibatch(NamedTuple):
    """B cells, with what `VAE.forward` takes.

    Attributes
    ----------
    x
        (B, G) ``torch.sparse_csr`` float32 counts with int32 indices.
    batch_index, y
        (B, 1) int64 batch and label codes.
    local_l_mean, local_l_var
        (B, 1) float32 statistics of the log library size in each cell's batch.
    cells
        (B,) int64 ndarray: rows of the store.
    """

    x: torch.Tensor
    batch_index: torch.Tensor
    y: torch.Tensor
    local_l_mean: torch.Tensor
    local_l_var: torch.Tensor
    cells: np.ndarray


class Minibatches:
    """Iterate over cells of a store in minibatches.

    The order depends on (`seed`, epoch) only: not on torch's generator, the device or what ran
    before. Call `set_epoch` before each epoch, or every epoch has the same order.

    Parameters
    ----------
    store
        Where the counts are.
    cells
        Rows to use, (M,) integers in any order; all by default.
    batch_size
        Cells per minibatch.
    shuffle
        Draw a new order in each epoch; otherwise `cells` are used in the order given. When
        shuffling, a last minibatch of a single cell joins the one before it, since batch
        normalisation needs two.
    seed
        Of the order.
    device
        Of the tensors.
    drop_last
        Leave out a last minibatch smaller than `batch_size`.

    Raises
    ------
    InputError
        No cells, rows outside the store, a batch size below 1, or no minibatch left by
        `drop_last`.
    """

    def __init__(
        self,
        store: CountStore,
        cells: np.ndarray | None = None,
        *,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        device: torch.device | str = "cpu",
        drop_last: bool = False,
    ) -> None:
        if cells is None:
            cells = np.arange(store.n_cells)
        cells = np.asarray(cells)
        if cells.ndim != 1 or cells.dtype.kind not in "iu":
            raise InputError(
                f"cells must be a 1-D array of row numbers, got {cells.dtype} of shape "
                f"{cells.shape}; for a mask pass np.flatnonzero(mask)"
            )
        if len(cells) == 0:
            raise InputError("cells is empty; at least one row is needed")
        if cells.min() < 0 or cells.max() >= store.n_cells:
            raise InputError(f"cells has rows outside 0..{store.n_cells - 1}")
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {batch_size}")
        if drop_last and len(cells) < batch_size:
            raise InputError(
                f"drop_last with {len(cells)} cells and batch_size {batch_size} leaves no "
                "minibatch; use a smaller batch_size"
            )
        self.store = store
        self.cells = cells.astype(np.int64)
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.device = torch.device(device)
        self.drop_last = drop_last
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self._starts())

    def __iter__(self) -> Iterator[Minibatch]:
        order = self.cells
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(order)
        starts = self._starts()
        stops = [*starts[1:], self._n_used()]
        for start, stop in zip(starts, stops, strict=True):
            yield self.gather(order[start:stop])

    def gather(self, cells: np.ndarray) -> Minibatch:
        """Make the minibatch of the given rows."""
        store = self.store
        crow, col, values = store.rows(cells)
        batches = store.batch_codes[cells]
        return Minibatch(
            x=csr_tensor(crow, col, values, (len(cells), store.n_genes), self.device),
            batch_index=self._column(batches),
            y=self._column(store.label_codes[cells]),
            local_l_mean=self._column(store.log_library_mean[batches]),
            local_l_var=self._column(store.log_library_var[batches]),
            cells=cells,
        )

    def _column(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).unsqueeze(1).to(self.device)

    def _starts(self) -> list[int]:
        n_used = self._n_used()
        starts = list(range(0, n_used, self.batch_size))
        lone = n_used % self.batch_size == 1 and n_used > 1
        return starts[:-1] if self.shuffle and lone else starts

    def _n_used(self) -> int:
        n_cells = len(self.cells)
        return n_cells - n_cells % self.batch_size if self.drop_last else n_cells
