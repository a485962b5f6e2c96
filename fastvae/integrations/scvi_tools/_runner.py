"""scvi-tools' train runner, which introduces the module to the data."""

from __future__ import annotations

from typing import Any

from scvi.train import TrainRunner

from ._data import DataSplitter


class Runner(TrainRunner):
    """``TrainRunner`` for fastvae's modules."""

    def __init__(self, model: Any, training_plan: Any, data_splitter: Any, **kwargs: Any) -> None:
        if isinstance(data_splitter, DataSplitter):
            data_splitter.use(model.module)
        super().__init__(model, training_plan, data_splitter, **kwargs)
