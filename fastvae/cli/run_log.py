"""`RunLog`: what a command that trains does, line by line, in a file of the run."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..train.callbacks import Callback
from .user_errors import logged_to

if TYPE_CHECKING:
    from torch import nn

    from ..train.settings import TrainSettings


class RunLog(Callback):
    """A file to which every line is added with the time, at once.

    It begins when training does: a command that was refused leaves the files of a run alone. A disk
    that refuses does not end the training: the log is then left as it is.

    Parameters
    ----------
    path
        The file; None logs nothing.
    go_on
        Add to the file that is there, instead of replacing it.
    """

    def __init__(self, path: Path | None, *, go_on: bool = False) -> None:
        self._path, self._go_on = path, go_on
        self._waiting: list[str] | None = []  # lines from before training

    def write(self, text: str) -> None:
        """Add a line."""
        line = f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S%z}  {text}\n"
        if self._waiting is not None:
            self._waiting.append(line)
            return
        self._add(line)

    def on_train_begin(self, module: nn.Module, settings: TrainSettings) -> None:
        """Write the device and the options."""
        lines, self._waiting = self._waiting or [], None
        if self._path is not None and not self._go_on:
            with suppress(OSError):
                self._path.unlink(missing_ok=True)
        self._add("".join(lines))
        device = next(module.parameters()).device
        self.write(f"training on {device}: {settings.as_dict()}")

    def on_epoch_end(self, epoch: int, row: dict[str, float], module: nn.Module) -> None:
        """Write the losses."""
        names = ("train_elbo", "validation_elbo", "learning_rate", "seconds")
        values = "  ".join(f"{name} {row[name]:.5g}" for name in names)
        self.write(f"epoch {epoch}  {values}")

    def _add(self, lines: str) -> None:
        if self._path is None:
            return
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(lines)
        except OSError:
            self._path = None

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Write down warnings and what is logged, and the error that ends the block."""
        shown = warnings.showwarning

        def show(message: Warning | str, *more: Any, **options: Any) -> None:
            self.write(f"warning: {message}")
            shown(message, *more, **options)

        warnings.showwarning = show
        try:
            with logged_to(_Written(self)):
                yield
        except typer.Exit:
            raise
        except Exception as error:
            self.write(f"error: {error}")
            raise
        finally:
            warnings.showwarning = shown


class _Written(logging.Handler):
    """Writes what fastvae logs into the log of a run."""

    def __init__(self, log: RunLog) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        self._log.write(f"{record.levelname.lower()}: {record.getMessage()}")
