"""The rows of an epoch on a GPU, those of the next made while the GPU is busy with this one."""

from __future__ import annotations

from torch import Tensor

from ..data import Minibatches
from ..data.csr import on_device


class EpochRows:
    """Rows of an epoch in order, on the device of its minibatches.

    Shuffling takes the host time that grows with the cells, for which the GPU would wait between
    two epochs. `prepare` does it while the steps that were launched before still run.

    Parameters
    ----------
    batches
        Whose epochs they are.
    """

    def __init__(self, batches: Minibatches) -> None:
        self._batches = batches
        self._epoch: int | None = None
        self._rows: Tensor | None = None

    def of(self, epoch: int) -> Tensor:
        """Return the rows of `epoch`, int64 on the device."""
        if not self._batches.shuffle:
            epoch = 0  # the same in all
        if self._rows is None or epoch != self._epoch:
            self._rows = on_device(self._batches.order(epoch), self._batches.device)
            self._epoch = epoch
        return self._rows

    def prepare(self, epoch: int) -> None:
        """Make the rows of `epoch`, so that `of` has them at hand."""
        self.of(epoch)
