"""Minibatches: shuffled CSR slices of a store, as tensors on the training device."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from ..errors import InputError
from .order import BlockOrder, Order, WholeOrder, shuffled
from .prefetch import Ahead
from .stores.minibatch import Minibatch, Part, SpareMemory
from .stores.store import Store


class Minibatches:
    """Iterate over cells of a store in minibatches.

    The order depends on (`seed`, epoch) only: not on torch's generator, the device, the number of
    threads or what ran before. Call `set_epoch` before each epoch, or every epoch has the same
    order. Counts on disk are shuffled in blocks: the order then also depends on `batch_size` and
    on the store's ``pool_cells``.

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
    rank, world_size
        This process is number `rank` of `world_size` that share the cells: each cell of an epoch
        is seen by exactly one of them, and their numbers of cells differ by one at most.

    Raises
    ------
    InputError
        No cells, rows outside the store, a batch size below 1, or no minibatch left by
        `drop_last`.
    """

    def __init__(
        self,
        store: Store,
        cells: np.ndarray | None = None,
        *,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        device: torch.device | str = "cpu",
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
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
        if not 0 <= rank < world_size:
            raise InputError(f"rank must be from 0 to world_size - 1, got {rank} of {world_size}")
        self._fewest = len(cells) // world_size
        self._first = rank * len(cells) // world_size
        self._n_cells = (rank + 1) * len(cells) // world_size - self._first
        if self._n_cells == 0:
            raise InputError(
                f"{len(cells)} cells cannot be shared by {world_size} processes; use fewer"
            )
        if drop_last and self._n_cells < batch_size:
            raise InputError(
                f"drop_last with {self._n_cells} cells and batch_size {batch_size} leaves no "
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
        self._position = self._resume_at = 0
        self._counting = False  # whether each iteration is of another epoch
        self._known: tuple[int, Order] | None = None
        self._memory = SpareMemory()
        self._parts = Ahead[tuple[int, int], Part](store.workers)
        self._blocks = store.block_edges if shuffle else None
        if self._blocks is not None:
            self.cells = np.sort(self.cells)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next iteration."""
        self._counting = True
        if epoch != self.epoch:
            self._resume_at = 0
        self.epoch = epoch

    def state_dict(self) -> dict[str, int]:
        """Return the epoch, and how many of its minibatches have been handed out."""
        return {"epoch": self.epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue in that epoch after that many minibatches.

        Raises
        ------
        InputError
            The epoch has fewer minibatches than that.
        """
        epoch, position = int(state["epoch"]), int(state["position"])
        if not 0 <= position <= len(self):
            raise InputError(
                f"the saved position is minibatch {position}, and an epoch has {len(self)}; "
                "go on with the same cells and batch_size"
            )
        self.epoch, self._position, self._resume_at = epoch, position, position

    def __len__(self) -> int:
        return len(self._starts())

    def __iter__(self) -> Iterator[Minibatch]:
        starts = self._starts()
        edges = [*starts, self._n_used()]
        at = self._position = self._resume_at
        self._resume_at = 0
        step, epoch = self._step(), self.epoch
        ended = False
        try:
            for number in range(at // step, -(-len(starts) // step)):
                part = self._parts.take((epoch, number), self._load, self._following)
                first = number * step
                begin = edges[first]
                for i in range(max(at, first), min(first + step, len(starts))):
                    minibatch = part.minibatch(edges[i] - begin, edges[i + 1] - begin)
                    self._position = i + 1
                    yield minibatch
                part.done()
                del part  # its memory is free before the next is taken
            ended = True
        finally:
            if not ended:
                self._parts.drop()
        self._position = 0

    def _step(self) -> int:
        """Minibatches per part: whole ones, so that none needs counts of two parts."""
        return max(1, self.store.pool_cells // self.batch_size)

    def _load(self, key: tuple[int, int]) -> Part:
        """Prepare a part of an epoch."""
        epoch, number = key
        starts, step = self._starts(), self._step()
        edges = [*starts, self._n_used()]
        start = edges[number * step] + self._first
        stop = edges[min((number + 1) * step, len(starts))] + self._first
        cells = self._order(epoch).at(start, stop)
        if self._blocks is not None:
            cells = shuffled(cells, self.seed, epoch, number)
        return self.store.part(cells, self.device, self._memory)

    def _following(self, key: tuple[int, int]) -> tuple[int, int] | None:
        """Return the part after one: in training the first of the next epoch after the last."""
        epoch, number = key
        if (number + 1) * self._step() < len(self):
            return epoch, number + 1
        return (epoch + self._counting, 0) if self.shuffle else None

    def sizes(self) -> list[int]:
        """Return the number of cells of each minibatch of an epoch."""
        return np.diff([*self._starts(), self._n_used()]).tolist()

    def order(self, epoch: int) -> np.ndarray:
        """Return this process's cells of an epoch in order, where any row is as quick."""
        assert self._blocks is None
        return self._order(epoch).at(self._first, self._first + self._n_used())

    def gather(self, cells: np.ndarray) -> Minibatch:
        """Make the minibatch of the given rows."""
        return self.store.part(cells, self.device).minibatch(0, len(cells))

    def _order(self, epoch: int) -> Order:
        known = self._known
        if known is not None and known[0] == epoch:
            return known[1]
        if self._blocks is not None:
            order: Order = BlockOrder(
                self.cells, self._blocks, self.seed, epoch, self.store.pool_cells
            )
        else:
            order = WholeOrder(self.cells, self.shuffle, self.seed, epoch)
        self._known = epoch, order
        return order

    def _starts(self) -> list[int]:
        n_used = self._n_used()
        starts = list(range(0, n_used, self.batch_size))
        lone = n_used % self.batch_size == 1 and n_used > 1
        # Processes with one cell more do the same, so that all have as many minibatches.
        lone |= n_used % self.batch_size == 2 and self._fewest % self.batch_size == 1 < self._fewest
        return starts[:-1] if self.shuffle and lone else starts

    def _n_used(self) -> int:
        return self._n_cells - self._n_cells % self.batch_size if self.drop_last else self._n_cells
