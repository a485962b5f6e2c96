"""Reasons to end before the last epoch: no more progress, or Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from torch import Tensor, nn


def copy_state(module: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the weights and buffers that later training cannot change."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


class EarlyStopping:
    """Watch the validation ELBO; remember the best weights.

    Parameters
    ----------
    patience
        Stop after so many epochs in a row without improvement.
    min_delta
        Only a fall of the loss by more than this is an improvement.
    """

    def __init__(self, patience: int, min_delta: float) -> None:
        self.patience = patience
        self.min_delta = min_delta
        self.best = float("inf")
        self.best_epoch: int | None = None
        self._waited = 0
        self._state: dict[str, Tensor] = {}

    def update(self, module: nn.Module, epoch: int, value: float) -> bool:
        """Take note of the loss `value` after `epoch`; return whether to stop."""
        if value < self.best - self.min_delta:
            self.best, self.best_epoch, self._waited = value, epoch, 0
            self._state = copy_state(module)
        else:
            self._waited += 1
        return self._waited >= self.patience

    def restore(self, module: nn.Module) -> None:
        """Put the best weights back into `module`."""
        if self._state:
            module.load_state_dict(self._state)


class Interrupt:
    """Whether Ctrl-C was pressed; see `interruptible`."""

    def __init__(self) -> None:
        self.pressed = False


@contextmanager
def interruptible() -> Iterator[Interrupt]:
    """Turn the first Ctrl-C into a flag, so that a step is never left half done.

    A second Ctrl-C raises KeyboardInterrupt as usual. Outside the main thread, where Python
    delivers no signals, the flag stays false.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return

    def note(_signal: int, _frame: FrameType | None) -> None:
        if interrupt.pressed:
            raise KeyboardInterrupt
        interrupt.pressed = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before if before is not None else signal.SIG_DFL)
