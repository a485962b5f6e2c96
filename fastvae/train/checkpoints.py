"""When checkpoints are written, and what they are checked against when training goes on."""

from __future__ import annotations

import os
import time
import warnings
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .._files import WriteError
from ..errors import InputError, file_path, real_number, true_or_false, whole_number
from .checkpoint_files import CheckpointFiles, Loaded
from .group import Group


@dataclass(frozen=True)
class CheckpointOptions:
    """Where and how often checkpoints are written.

    Parameters
    ----------
    folder
        Where; None writes none.
    every
        After so many epochs; None: not by epochs.
    minutes
        After so many minutes, also within an epoch; None: not by time.
    keep
        How many of the newest stay.
    resume
        Go on from the newest one in `folder`; from the beginning if there is none.

    Raises
    ------
    InputError
        A value out of range, something asked for without a folder, or a folder with the
        checkpoints of another run.
    """

    folder: str | os.PathLike[str] | None = None
    every: int | None = None
    minutes: float | None = None
    keep: int = 2
    resume: bool = False

    def __post_init__(self) -> None:
        if self.folder is not None:
            file_path("checkpoint_dir", self.folder)
        true_or_false("resume", self.resume)
        if self.every is not None:
            whole_number("checkpoint_every", self.every, minimum=1)
        if self.minutes is not None:
            real_number("checkpoint_minutes", self.minutes, above=0.0)
        whole_number("keep_checkpoints", self.keep, minimum=1)
        asked = self.every is not None or self.minutes is not None or self.resume
        if self.folder is None and asked:
            name = "resume" if self.resume else "checkpoint_every and checkpoint_minutes"
            raise InputError(f"{name} needs checkpoint_dir, the folder for the checkpoints")

    def open(self, group: Group) -> Checkpoints | None:
        """Look at the folder, and read the newest checkpoint if training is to go on from it.

        Of several processes the first looks, and tells the others.
        """
        if self.folder is None:
            return None
        files = CheckpointFiles(self.folder, self.keep)
        found: Loaded | InputError | None = None
        if group.leads:
            try:
                found = self._look(files)
            except InputError as error:
                found = error
        found = group.share(found)
        if isinstance(found, InputError):
            raise found
        return Checkpoints(files, self.every, self.minutes, found)

    def _look(self, files: CheckpointFiles) -> Loaded | None:
        if files.numbers() and not self.resume:
            raise InputError(
                f"{files.folder} has checkpoints of another run; go on from them with "
                "resume=True, delete them, or choose another checkpoint_dir"
            )
        files.sweep()
        return files.newest()


class Checkpoints:
    """The checkpoints of one run of training.

    Attributes
    ----------
    found
        What training goes on from, or None.
    about
        What the data, the network and the order of the cells are; a checkpoint of a run in which
        any of it was different is refused.
    """

    def __init__(
        self,
        files: CheckpointFiles,
        every: int | None,
        minutes: float | None,
        found: Loaded | None,
    ) -> None:
        self.files = files
        self.found = found
        self.about: dict[str, Any] = {}
        self._every = every
        self._seconds = float("inf") if minutes is None else 60 * minutes
        self._written = time.perf_counter()

    def require_same(self, about: dict[str, Any]) -> None:
        """Set `about`.

        Raises
        ------
        InputError
            The checkpoint found is of a run with something else; names it.
        """
        self.about = about
        if self.found is None:
            return
        before = self.found.state["about"]
        for name in before.keys() | about.keys():
            old, new = before.get(name), about.get(name)
            if old != new:
                raise InputError(
                    f"{self.found.path} was written with {name} = {old}, and now it is {new}; "
                    "resume with the same data and options, or start again without --resume "
                    "(resume=False)"
                )

    def due(self) -> bool:
        """Whether it is time for one, by the clock."""
        return time.perf_counter() - self._written >= self._seconds

    def due_after(self, epochs: int) -> bool:
        """Whether it is time for one when so many epochs of this run are over."""
        return (self._every is not None and epochs % self._every == 0) or self.due()

    def write(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Write one; where the disk refuses, say so and let the training go on."""
        try:
            self.files.write(tensors, {**state, "about": self.about})
        except WriteError as error:
            warnings.warn(
                f"this checkpoint is missing: {error}. Training goes on",
                UserWarning,
                stacklevel=2,
            )
        self._written = time.perf_counter()
