"""scvi-tools' train runner, which checks the data first, and chooses the loop."""

from __future__ import annotations

from typing import Any

from scvi.train import TrainRunner

from ._checks import check_data
from ._data import DataSplitter
from ._trainer import Trainer


class CheckingRunner(TrainRunner):
    """``TrainRunner`` that refuses data whose loss would be NaN."""

    def __init__(self, model: Any, training_plan: Any, data_splitter: Any, **kwargs: Any) -> None:
        manager = getattr(data_splitter, "adata_manager", None)
        if manager is not None:
            check_data(model, manager, again=True)
        super().__init__(model, training_plan, data_splitter, **kwargs)


class Runner(CheckingRunner):
    """``TrainRunner`` for fastvae's modules."""

    _trainer_cls = Trainer

    def __init__(self, model: Any, training_plan: Any, data_splitter: Any, **kwargs: Any) -> None:
        if isinstance(data_splitter, DataSplitter):
            data_splitter.use(model.module)
        super().__init__(model, training_plan, data_splitter, **kwargs)
        if isinstance(self.trainer, Trainer):
            ckpt_path = getattr(self, "ckpt_path", None)
            self.trainer.choose(training_plan, data_splitter, ckpt_path)
