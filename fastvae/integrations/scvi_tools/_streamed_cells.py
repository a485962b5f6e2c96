"""Cells that annbatch streams from disk, with CSR counts for the training."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
import scvi.dataloaders
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from ...data.checks import canonicalise
from ...data.csr import csr_tensor
from ...functional import log_library_size
from ._module import NO_COUNTS, Fused

# scvi-tools has it from 1.5 on
_ANNBATCH = getattr(scvi.dataloaders, "AnnbatchDataModule", None)


def streaming(data: Any, module: Any) -> Any:
    """Return the data module to train `module` with: `data`, or `StreamedCells` of it."""
    if type(data) is _ANNBATCH and isinstance(module, Fused) and module.why_dense() is None:
        return StreamedCells(data)
    return data


class StreamedCells(LightningDataModule):
    """The minibatches of an ``AnnbatchDataModule``, whose counts stay CSR.

    scvi-tools' class makes each of them dense, and adds up its totals from that. Everything else is
    left to it: which cells a minibatch has, their batches, labels and covariates.

    Parameters
    ----------
    annbatch
        The ``AnnbatchDataModule``, divided into training and validation cells.
    """

    def __init__(self, annbatch: Any) -> None:
        super().__init__()
        self._annbatch = annbatch
        # what scvi-tools reads of a splitter
        self.train_idx, self.val_idx = annbatch.train_idx, annbatch.val_idx
        self.test_idx = annbatch.test_idx
        self.n_train, self.n_val = annbatch.n_train, annbatch.n_val
        self.data_loader_kwargs = annbatch.data_loader_kwargs

    def train_dataloader(self) -> Any:
        """Return the training minibatches as annbatch reads them."""
        return self._annbatch.train_dataloader()

    def val_dataloader(self) -> Any:
        """Return the validation minibatches as annbatch reads them."""
        return self._annbatch.val_dataloader()

    def on_before_batch_transfer(self, batch: dict[str, Any], index: int) -> dict[str, Any]:
        """Return what scvi-tools' models take, with CSR counts where annbatch read such ones."""
        counts = _csr(batch["X"])
        if counts is None:
            return self._annbatch.on_before_batch_transfer(batch, index)
        n = counts.shape[0]
        found = self._annbatch.on_before_batch_transfer({**batch, "X": torch.ones(n, 1)}, index)
        totals = log_library_size(counts, floor=NO_COUNTS).exp()
        found["X"], found["size_factor"] = counts, totals / totals.mean()
        return found


def _csr(counts: Any) -> Tensor | None:
    """Return counts (N, G) in memory as canonical CSR float32, or None for anything else."""
    if isinstance(counts, Tensor):
        if counts.layout != torch.sparse_csr or counts.device.type != "cpu":
            return None
        parts = (counts.values(), counts.col_indices(), counts.crow_indices())
        block = sp.csr_matrix(tuple(part.numpy() for part in parts), shape=counts.shape)
    elif isinstance(counts, (sp.csr_matrix, sp.csr_array)):
        block = counts
    else:
        return None
    canonicalise(block)
    crow, col = (part.astype(np.int32, copy=False) for part in (block.indptr, block.indices))
    return csr_tensor(crow, col, block.data.astype(np.float32, copy=False), block.shape)
