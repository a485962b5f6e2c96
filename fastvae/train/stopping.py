"""Reasons to end before the last epoch: early stopping, Ctrl-C, or SIGTERM."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from torch import Tensor, nn

from .settings import TrainSettings
from .state import copy_state


class EarlyStopping:
    """Watch the validation ELBO; keep the best weights.

    Parameters
    ----------
    patience
        Number of epochs in a row without improvement after which to stop.
    min_delta
        Only a fall of the loss by more than this is an improvement.
    """

    def __init__(self, patience: int, min_delta: float) -> None:
        self.patience = patience
        self.min_delta = min_delta
        self.best = float("inf")
        self.best_epoch: int | None = None
        self.best_state: dict[str, Tensor] = {}
        self._waited = 0

    @classmethod
    def of(cls, settings: TrainSettings) -> EarlyStopping | None:
        """Return the one that `settings` ask for, or None."""
        if not settings.early_stopping:
            return None
        return cls(settings.early_stopping_patience, settings.early_stopping_min_delta)

    def update(self, module: nn.Module, epoch: int, value: float) -> bool:
        """Record the loss `value` after `epoch`; return whether to stop."""
        if value < self.best - self.min_delta:
            self.best, self.best_epoch, self._waited = value, epoch, 0
            self.best_state = copy_state(module)
        else:
            self._waited += 1
        return self.exhausted

    @property
    def exhausted(self) -> bool:
        """Whether there have been too many epochs without improvement."""
        return self._waited >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """Return all but the best weights, as plain values."""
        best = self.best if self.best_epoch is not None else None
        return {"best": best, "best_epoch": self.best_epoch, "waited": self._waited}

    def load_state_dict(self, state: dict[str, Any], best_state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        self.best = float("inf") if state["best"] is None else state["best"]
        self.best_epoch, self._waited = state["best_epoch"], state["waited"]
        self.best_state = best_state

    def restore(self, module: nn.Module) -> None:
        """Put the best weights back into `module`."""
        if self.best_state:
            module.load_state_dict(self.best_state)


class Interrupt:
    """Whether Ctrl-C was pressed or SIGTERM came; see `interruptible`.

    Attributes
    ----------
    signal
        The number of the first signal; None before it, and where it came to another process.
    """

    def __init__(self) -> None:
        self.pressed = False
        self.signal: int | None = None


@contextmanager
def interruptible() -> Iterator[Interrupt]:
    """Turn the first Ctrl-C or SIGTERM into a flag, so that a step is never left half done.

    A second one raises KeyboardInterrupt. Outside the main thread, where Python delivers no
    signals, the flag stays false.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return

    def note(number: int, _frame: FrameType | None) -> None:
        if interrupt.pressed:
            raise KeyboardInterrupt
        interrupt.pressed, interrupt.signal = True, number

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, note) for number in numbers]
    try:
        yield interrupt
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
