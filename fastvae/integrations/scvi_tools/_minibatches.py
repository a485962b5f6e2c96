"""Minibatches for scvi-tools' training loop with the counts as CSR.

`CountLoader` is scvi-tools' loader with another way to fetch: it draws the same random numbers, so
it yields the same cells in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from scvi import REGISTRY_KEYS, settings
from scvi.data import AnnDataManager
from scvi.data._utils import registry_key_to_default_dtype
from scvi.dataloaders import AnnDataLoader
from scvi.dataloaders import DataSplitter as TheirDataSplitter
from torch import Tensor, nn
from torch.utils.data import BatchSampler, RandomSampler, default_convert

from ..._status import hint_once
from ...data.checks import canonicalise
from ...data.csr import csr_tensor
from ...data.sources.matrix import sample, to_csr
from ...data.stores.host import _is_canonical
from ...errors import InputError
from ...functional.gather import gather_rows
from ._module import Fused

if TYPE_CHECKING:
    _Behind = Any
else:
    _Behind = object

DENSEST = 0.35
"""Share of nonzero counts above which a dense matrix stays dense."""


class Source:
    """The registered data of a model, ready to be cut into minibatches.

    Parameters
    ----------
    counts
        Canonical CSR float32 (N, G).
    columns
        Everything else that is registered, by registry key: tensors of N rows.
    """

    def __init__(self, counts: sp.csr_matrix, columns: dict[str, Tensor]) -> None:
        self.counts = counts
        self.columns = columns

    @classmethod
    def of(cls, manager: AnnDataManager, densest: float = DENSEST) -> Source:
        """Read what `manager` has registered.

        Parameters
        ----------
        densest
            Largest share of nonzero counts at which a dense matrix is converted to CSR.

        Raises
        ------
        InputError
            The data cannot be read in this form; the message says why.
        """
        columns = {
            key: _column(key, manager.get_from_registry(key))
            for key in manager.data_registry
            if key != REGISTRY_KEYS.X_KEY
        }
        return cls(_counts(manager, densest), columns)

    def minibatch(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Return the cells `rows` (B,) int64, as scvi-tools' loader does but for CSR counts."""
        crow, col, values = gather_rows(self.counts, rows)
        index = torch.from_numpy(rows)
        batch = {
            REGISTRY_KEYS.X_KEY: csr_tensor(crow, col, values, (len(rows), self.counts.shape[1]))
        }
        batch.update((key, column.index_select(0, index)) for key, column in self.columns.items())
        return batch


def _counts(manager: AnnDataManager, densest: float) -> sp.csr_matrix:
    if manager.adata.isbacked:
        raise InputError("the AnnData is backed by a file")
    x = manager.get_from_registry(REGISTRY_KEYS.X_KEY)
    if isinstance(x, pd.DataFrame):
        x = x.to_numpy()
    if _is_canonical(x):
        return x
    if not (sp.issparse(x) or isinstance(x, np.ndarray)):
        raise InputError(f"the counts are a {type(x).__name__}")
    if isinstance(x, np.ndarray) and np.mean(sample(x) != 0) > densest:
        raise InputError(f"more than {densest:.0%} of the counts are nonzero")
    counts = to_csr(x, x.shape, "the counts")
    canonicalise(counts)
    return counts


def _column(key: str, values: Any) -> Tensor:
    if isinstance(values, pd.DataFrame):
        values = values.to_numpy()
    if not isinstance(values, np.ndarray):
        raise InputError(f"{key!r} is registered as a {type(values).__name__}")
    return torch.from_numpy(np.ascontiguousarray(values, registry_key_to_default_dtype(key)))


class CountLoader(AnnDataLoader):
    """``AnnDataLoader`` whose counts are CSR where there is a `source`."""

    def __init__(
        self,
        adata_manager: AnnDataManager,
        indices: Sequence[int] | np.ndarray | None = None,
        *args: Any,
        source: Source | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(adata_manager, indices, *args, **kwargs)
        self._source = source

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        if self._source is None:
            return super().__iter__()
        # a DataLoader draws this for its workers before the sampler draws the order
        torch.empty((), dtype=torch.int64).random_(generator=self.generator)
        return self._minibatches(self._source)

    def _minibatches(self, source: Source) -> Iterator[dict[str, Tensor]]:
        for positions in self.sampler:
            yield source.minibatch(np.asarray(self.indices[positions], dtype=np.int64))


class JoinedBatchSampler(BatchSampler):
    """``torch.utils.data.BatchSampler`` that adds a single last index to the batch before it.

    Batch normalisation cannot train on a batch of one cell.
    """

    def __iter__(self) -> Iterator[list[int]]:
        rest = iter(super().__iter__())
        batch = next(rest, None)
        for following in rest:
            assert batch is not None
            if len(following) > 1:
                yield batch
                batch = following
            else:
                batch = batch + following
        if batch is not None:
            yield batch

    def __len__(self) -> int:
        return super().__len__() - 1


def is_alone(n_cells: int, batch_size: int, drop_last: Any) -> bool:
    """Whether the last of several minibatches would have one cell."""
    return not drop_last and n_cells > batch_size > 1 and n_cells % batch_size == 1


def _only(batch: list[Any]) -> Any:
    """Return the single minibatch of a list as tensors; the sampler has assembled it already."""
    return default_convert(batch[0])


class CountSplitter(_Behind):
    """Mixin for a splitter of scvi-tools: CSR counts for modules that take them.

    Where the counts, the options or the module do not allow it, the splitter works as scvi-tools'
    class does and logs why.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.module: Any = None
        self.source: Source | None = None
        self._asked = False

    def use(self, module: Any) -> None:
        """Yield CSR counts if `module` takes them."""
        self.module = module

    def setup(self, stage: str | None = None) -> None:
        """Split the cells and read the counts."""
        super().setup(stage)
        if self._asked:
            return
        self._asked = True
        reason = self._why_not()
        if reason is None:
            try:
                self.source = Source.of(self.adata_manager)
            except InputError as error:
                reason = str(error)
        if reason is None:
            self.data_loader_kwargs["source"] = self.source
        else:
            hint_once(f"fastvae trains from scvi-tools' own dense minibatches: {reason}")

    def _why_not(self) -> str | None:
        if not isinstance(self.module, Fused):
            return f"the module is a {type(self.module).__name__}, not one of fastvae's"
        return self.module.why_dense() or self.why_theirs()

    def why_theirs(self) -> str | None:
        """Return which option fastvae's loader does not support, or None."""
        kwargs = self.data_loader_kwargs
        if kwargs.get("distributed_sampler"):
            return "several processes train together"
        if kwargs.get("num_workers", settings.dl_num_workers):
            return "loader workers were asked for"
        for name in ("data_and_attributes", "iter_ndarray", "sampler", "collate_fn"):
            if kwargs.get(name):
                return f"{name} was given"
        return None

    def transfer_batch_to_device(self, batch: Any, device: torch.device, index: int) -> Any:
        """Move a minibatch, or several of them, to the device of the training."""
        parts = batch if isinstance(batch, (tuple, list)) else [batch]
        if all(_is_there(part, device) for part in parts):
            return batch
        return super().transfer_batch_to_device(batch, device, index)


def _is_there(batch: Any, device: torch.device) -> bool:
    return isinstance(batch, dict) and all(
        isinstance(part, Tensor) and part.device == device for part in batch.values()
    )


class DataSplitter(CountSplitter, TheirDataSplitter):
    """``scvi.dataloaders.DataSplitter`` with CSR counts for modules that take them.

    It has the same name because scvi-tools compares the name.
    """

    data_loader_cls = CountLoader

    def setup(self, stage: str | None = None) -> None:
        """Split the cells and read the counts."""
        super().setup(stage)
        if self.source is not None:
            self.load_sparse_tensor = False  # scvi-tools' way, which ends in dense counts

    def train_dataloader(self) -> Any:
        """Return the training minibatches; a single last cell joins the minibatch before."""
        if not self._joins():
            return super().train_dataloader()
        options = {**self.data_loader_kwargs, "collate_fn": _only}
        size = options.pop("batch_size")
        cells = RandomSampler(range(len(self.train_idx)))
        return self.data_loader_cls(
            self.adata_manager,
            indices=self.train_idx,
            sampler=JoinedBatchSampler(cells, size, drop_last=False),
            load_sparse_tensor=self.load_sparse_tensor,
            pin_memory=self.pin_memory,
            **options,
        )

    def _joins(self) -> bool:
        """Whether the last training minibatch would otherwise have one cell, which fails."""
        if not isinstance(self.module, Fused):
            return False
        options = self.data_loader_kwargs
        if any(options.get(name) for name in ("distributed_sampler", "sampler", "collate_fn")):
            return False
        size = options.get("batch_size")
        if not (isinstance(size, int) and is_alone(len(self.train_idx), size, self.drop_last)):
            return False
        parts = self.module.modules()
        return any(part.training for part in parts if isinstance(part, nn.BatchNorm1d))


_INPUTS = {
    REGISTRY_KEYS.X_KEY: "a count",
    REGISTRY_KEYS.SIZE_FACTOR_KEY: "the size factor",
    REGISTRY_KEYS.CONT_COVS_KEY: "a continuous covariate",
}


def wrong_input(trainer: Any) -> str | None:
    """Return the first number in the data of `trainer` that is not finite, or None.

    It reads all the data, so it is called only after training has failed.
    """
    manager = getattr(trainer.datamodule, "adata_manager", None)
    if manager is not None:
        loader: Any = AnnDataLoader(manager, batch_size=settings.batch_size)
    else:
        loader = trainer.train_dataloader
    first = 0
    for batch in loader:
        if not isinstance(batch, Mapping):
            return None
        for key, value in batch.items():
            if not (isinstance(value, Tensor) and value.is_floating_point()):
                continue
            dense = value if value.layout == torch.strided else value.to_dense()
            wrong = (~dense.isfinite()).reshape(len(dense), -1).any(1).nonzero()
            if len(wrong):
                row = first + int(wrong[0])
                cell = f"row {row} of what the data module hands out"
                if manager is not None:
                    cell = f"cell {str(manager.adata.obs_names[row])!r} (row {row})"
                return f"{_INPUTS.get(key, key)} of {cell}"
        first += len(batch[REGISTRY_KEYS.X_KEY])
    return None
