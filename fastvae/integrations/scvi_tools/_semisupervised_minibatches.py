"""CSR minibatches for scvi-tools' semi-supervised training: of all cells, and of labelled ones."""

from __future__ import annotations

from typing import Any

from scvi.data import AnnDataManager
from scvi.dataloaders import AnnDataLoader, SemiSupervisedDataLoader
from scvi.dataloaders import SemiSupervisedDataSplitter as TheirSemiSupervisedDataSplitter

from ._minibatches import CountLoader, CountSplitter, Source


class SemiSupervisedLoader(SemiSupervisedDataLoader):
    """``SemiSupervisedDataLoader`` whose counts are CSR where there is a `source`.

    It draws the same random numbers, so it yields the same cells in the same order.
    """

    dataloaders: list[Any]
    largest_dl: Any

    def __init__(
        self,
        adata_manager: AnnDataManager,
        *args: Any,
        source: Source | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(adata_manager, *args, **kwargs)
        self._source = source
        if source is not None and len(self.indices):
            largest = self.dataloaders.index(self.largest_dl)
            self.dataloaders = [self._loader_of(part.indices) for part in self.dataloaders]
            self.largest_dl = self.dataloaders[largest]

    def resample_labels(self) -> None:
        """Draw the labelled cells of an epoch."""
        if self._source is None:
            super().resample_labels()
        else:
            self.dataloaders[1] = self._loader_of(self.subsample_labels())

    def _loader_of(self, indices: Any) -> CountLoader:
        return CountLoader(
            self.adata_manager,
            indices=indices,
            shuffle=self._shuffle,
            batch_size=self._batch_size,
            drop_last=self._drop_last,
            source=self._source,
            **self.data_loader_kwargs,
        )


_LOADERS = {AnnDataLoader: CountLoader, SemiSupervisedDataLoader: SemiSupervisedLoader}


class SemiSupervisedDataSplitter(CountSplitter, TheirSemiSupervisedDataSplitter):
    """``scvi.dataloaders.SemiSupervisedDataSplitter``; see `CountSplitter`."""

    data_loader_class: Any

    def setup(self, stage: str | None = None) -> None:
        """Split the cells and read the counts."""
        super().setup(stage)
        if self.source is not None:
            self.data_loader_class = _LOADERS[self.data_loader_class]
