"""What is recorded of each epoch, and its CSV file."""

from __future__ import annotations

import csv
import io
import math
import os
from pathlib import Path

from .._files import atomic_path, check_regular
from ..errors import InputError

COLUMNS = (
    "epoch",
    "kl_weight",
    "train_loss",
    "train_elbo",
    "train_reconstruction_loss",
    "train_kl_local",
    "validation_loss",
    "validation_elbo",
    "validation_reconstruction_loss",
    "validation_kl_local",
    "learning_rate",
    "seconds",
    "cells_per_second",
)
"""Columns of a history.

Losses are means per cell, lower is better; ``elbo`` is the negative ELBO (KL weight 1), ``loss``
has the KL weight of the epoch (of its last minibatch); NaN where there is no validation. A learned
library's KL divergence is part of the reconstruction loss, as in the network's forward.
``seconds`` is the time spent training, without the validation.
"""

History = dict[str, list[float]]


def new_history() -> History:
    """Return a history without any epoch."""
    return {name: [] for name in COLUMNS}


def write_history(history: History, path: str | os.PathLike[str]) -> None:
    """Write `history` as CSV, every number with all its digits, NaN as an empty field."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(history_text(history).encode())


def history_text(history: History) -> str:
    """Return what `write_history` writes."""
    rows = zip(*(history[name] for name in COLUMNS), strict=True)
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow(["" if math.isnan(value) else repr(value) for value in row])
    return file.getvalue()


def read_history(path: str | os.PathLike[str]) -> History:
    """Read what `write_history` wrote, to the last bit.

    Raises
    ------
    InputError
        The file has other columns or something that is not a number.
    """
    path = Path(path)
    check_regular(path)
    return parse_history(path.read_bytes(), path)


def parse_history(content: bytes, path: Path) -> History:
    """Return the history in the content of a file; `path` is named in errors.

    Raises
    ------
    InputError
        As `read_history`.
    """
    history = new_history()
    try:
        reader = csv.DictReader(io.StringIO(content.decode(), newline=""))
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise InputError(f"{path} is not a training history: its columns are others")
        for row in reader:
            for name in COLUMNS:
                history[name].append(_number(row[name]))
    except (ValueError, csv.Error) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is damaged: {error}; delete it or restore it") from error
    return history


def _number(text: str | None) -> float:
    """Whole numbers stay int, so that epochs print as 3 and not as 3.0."""
    if text is None:
        raise ValueError("a row is short")
    if text == "":
        return math.nan
    return int(text) if text.isdecimal() else float(text)


def enter_losses(row: dict[str, float], cells: str, reconstruction: float, kl: float) -> None:
    """Enter the two means per cell of the loss into a row, for `cells` "train" or "validation"."""
    row[f"{cells}_reconstruction_loss"] = reconstruction
    row[f"{cells}_kl_local"] = kl
    row[f"{cells}_elbo"] = reconstruction + kl
    row[f"{cells}_loss"] = reconstruction + row["kl_weight"] * kl
