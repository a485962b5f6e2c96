"""A minibatch, and the sequences of cells that minibatches are cut from."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple, Protocol

import numpy as np
import torch

from ..._covariates import NO_COVARIATES, CellCovariates
from ...functional.gather import CountLogs

_MARGIN = 32  # parts differ in length by less than their 32nd part, mostly


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
    logs
        Logarithms of the counts, where the store has computed them.
    covariates
        Covariates beside the batch, of the shapes and dtypes (B, C) int64, (B, P) float32 and
        (B, 1) float32; None each where the data set has none.
    labelled
        Cells with known labels that are trained on beside these, where there are such.
    """

    x: torch.Tensor
    batch_index: torch.Tensor
    y: torch.Tensor
    local_l_mean: torch.Tensor
    local_l_var: torch.Tensor
    cells: np.ndarray
    logs: CountLogs | None = None
    covariates: CellCovariates = NO_COVARIATES
    labelled: Minibatch | None = None


class Part(Protocol):
    """A sequence of cells that minibatches are cut from."""

    def minibatch(self, start: int, stop: int) -> Minibatch:
        """Return the minibatch of the cells at positions `start` to `stop` of the sequence."""

    def done(self) -> None:
        """Release its memory; no minibatch is cut from it afterwards."""


class SpareMemory:
    """Memory of parts that are no longer needed, for the parts that are read next.

    Fresh memory of this size comes from the system page by page, which can take longer than
    reading what goes into it.
    """

    def __init__(self) -> None:
        self._free: deque[tuple[np.ndarray, np.ndarray]] = deque()

    def take(self, entries: int) -> tuple[np.ndarray, np.ndarray]:
        """Return int32 and float32 arrays of that many entries, with anything in them."""
        try:
            columns, values = self._free.popleft()
        except IndexError:
            columns = values = np.empty(0)
        if len(columns) < entries:
            size = entries + entries // _MARGIN
            columns, values = np.empty(size, dtype=np.int32), np.empty(size, dtype=np.float32)
        return columns[:entries], values[:entries]

    def give_back(self, columns: np.ndarray, values: np.ndarray) -> None:
        """Take back what `take` returned; anything else is left alone."""
        if columns.base is not None and values.base is not None and columns.dtype == np.int32:
            self._free.append((columns.base, values.base))
