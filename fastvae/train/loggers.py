"""`ToLogger`: hand the history to a logger of Lightning, such as those of W&B, MLflow and CSV."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from torch import nn

from ..errors import InputError, shown
from .callbacks import Callback
from .settings import TrainSettings


class Logger(Protocol):
    """What a logger has to have.

    Loggers of Lightning have it. ``save()`` and ``finalize(status)`` are called where they are
    there: after each epoch, and at the end with "success" or "failed".
    """

    def log_hyperparams(self, params: dict[str, Any], /) -> Any:
        """Take the options, before the first epoch."""

    def log_metrics(self, metrics: dict[str, float], step: int) -> Any:
        """Take the columns of the history of epoch `step`, which counts from 1."""


class ToLogger(Callback):
    """Hand options and the history's columns to a logger.

    Parameters
    ----------
    logger
        See `Logger`.
    about
        What it is told beside the settings of the training.
    """

    def __init__(self, logger: Logger, about: Mapping[str, Any]) -> None:
        self._logger = logger
        self._about = about

    def on_train_begin(self, module: nn.Module, settings: TrainSettings) -> None:
        """Hand over the options."""
        self._logger.log_hyperparams({**self._about, **settings.as_dict()})

    def on_epoch_end(self, epoch: int, row: dict[str, float], module: nn.Module) -> None:
        """Hand over a row of the history without what was not measured."""
        row = {k: v for k, v in row.items() if k != "epoch" and not math.isnan(v)}
        self._logger.log_metrics(row, step=epoch)
        _call_if_there(self._logger, "save")


def checked_loggers(given: Any) -> list[Logger]:
    """Return the loggers as a list.

    Raises
    ------
    InputError
        One lacks a method.
    """
    if given is None:
        return []
    found = list(given) if isinstance(given, (list, tuple)) else [given]
    for one in found:
        methods = [getattr(one, name, None) for name in ("log_hyperparams", "log_metrics")]
        if isinstance(one, type) or not all(map(callable, methods)):
            raise InputError(
                "logger must be an object with log_hyperparams and log_metrics, such as "
                f"Lightning's CSVLogger('logs'), or a list of such, not {shown(one)}"
            )
    return found


@contextmanager
def finalizing(loggers: Sequence[Logger]) -> Iterator[None]:
    """Tell loggers at the end whether the training went well."""
    status = "failed"
    try:
        yield
        status = "success"
    finally:
        for logger in loggers:
            _call_if_there(logger, "finalize", status)


def _call_if_there(logger: Logger, name: str, *arguments: str) -> None:
    method = getattr(logger, name, None)
    if callable(method):
        method(*arguments)
