"""`Callback`: called when training begins, after each epoch, and when it ends."""

from __future__ import annotations

import math
import os
import tempfile
from typing import TYPE_CHECKING

from torch import nn

from ..errors import InputError, file_path
from .settings import TrainSettings

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Callback:
    """Base class of callbacks; override the methods you need.

    Random numbers drawn here do not disturb the training: each epoch begins with its own.
    """

    def on_train_begin(self, module: nn.Module, settings: TrainSettings) -> None:
        """Run before the first epoch."""

    def on_epoch_end(self, epoch: int, row: dict[str, float], module: nn.Module) -> bool | None:
        """Run after the validation of epoch number `epoch` (from 1); True ends the training.

        `row` has the columns of the history.
        """

    def on_train_end(self, module: nn.Module) -> None:
        """Run when training is over, however it ended."""


class TensorBoard(Callback):
    """Write the history's columns for TensorBoard, one curve each.

    Parameters
    ----------
    folder
        Where the event files go.

    Raises
    ------
    InputError
        The tensorboard package is missing; when training begins: the folder cannot be written.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = file_path("folder", folder)
        try:
            from torch.utils import tensorboard
        except ImportError as error:
            raise InputError(
                "writing for TensorBoard needs the tensorboard package; "
                "pip install 'fastvae-scvi[tensorboard]' (or pip install tensorboard)"
            ) from error
        self._make = tensorboard.SummaryWriter
        self._writer: SummaryWriter | None = None

    def on_train_begin(self, module: nn.Module, settings: TrainSettings) -> None:
        """Make the folder, and check that a file can be written there."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self._folder):
                pass
        except OSError as error:
            raise InputError(
                f"cannot write curves for TensorBoard to {self._folder} "
                f"({error.strerror or error}); choose another folder"
            ) from error

    def on_epoch_end(self, epoch: int, row: dict[str, float], module: nn.Module) -> None:
        """Write a point of each curve."""
        if self._writer is None:
            # Hides what an interrupted run wrote for this epoch and later ones.
            self._writer = self._make(str(self._folder), purge_step=epoch)
        for name, value in row.items():
            if name != "epoch" and not math.isnan(value):
                self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def on_train_end(self, module: nn.Module) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
