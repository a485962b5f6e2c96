"""The watch over torch's threads while Lightning trains."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from typing import Any

from lightning.pytorch.callbacks import Callback

from ...train.thread_watch import ThreadWatch

_log = logging.getLogger("fastvae")


class WatchedThreads(Callback):
    """Trains with fewer threads while other programs use the processors: see `ThreadWatch`."""

    def __init__(self) -> None:
        self._watch: ThreadWatch | None = None
        self._training = ExitStack()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin to watch, on a CPU with one process."""
        alone = trainer.strategy.root_device.type == "cpu" and trainer.world_size == 1
        self._watch = self._training.enter_context(ThreadWatch(alone, _log.warning))

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Count a step."""
        if self._watch is not None:
            self._watch.after_step()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Set the number of threads that there was before."""
        self._training.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Set the number of threads that there was before."""
        self._training.close()
