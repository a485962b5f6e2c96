"""Checkpoints: when they are written, what they hold, and what is checked when training resumes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from .._files import WriteError, atomic_path, check_writable_folder
from ..errors import InputError
from .processes import Group
from .settings import CheckpointOptions


def open_checkpoints(options: CheckpointOptions, group: Group) -> Checkpoints | None:
    """Check the folder, and read the newest checkpoint if training resumes from it.

    With several processes, the first does so and shares the result.

    Raises
    ------
    InputError
        The folder has checkpoints of another run.
    """
    if options.checkpoint_dir is None:
        return None
    files = CheckpointFiles(options.checkpoint_dir, options.keep_checkpoints)
    found: Loaded | InputError | None = None
    if group.leads:
        try:
            found = _look(files, options.resume)
        except InputError as error:
            found = error
    found = group.share(found)
    if isinstance(found, InputError):
        raise found
    return Checkpoints(files, options.checkpoint_every, options.checkpoint_minutes, found)


def _look(files: CheckpointFiles, resume: bool) -> Loaded | None:
    if files.numbers() and not resume:
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
        The checkpoint that training resumes from, or None.
    about
        Describes the data, the network and the order of the cells. A checkpoint of a run in which
        any of these was different is refused.
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
            The checkpoint found was written with another value; the message names it.
        """
        self.about = about
        if self.found is None:
            return
        before = self.found.state["about"]
        # digests last: that a column is missing says more than that values differ
        for name in sorted({**before, **about}, key=lambda name: "SHA-256" in name):
            old, new = before.get(name), about.get(name)
            if old != new:
                raise InputError(
                    f"{self.found.path} was written with {name} = {old}, and now it is {new}; "
                    "resume with the same data and options, or start again without --resume "
                    "(resume=False)"
                )

    def due(self) -> bool:
        """Whether a checkpoint is due by the clock."""
        return time.perf_counter() - self._written >= self._seconds

    def due_after(self, epochs: int) -> bool:
        """Whether a checkpoint is due after `epochs` epochs of this run."""
        return (self._every is not None and epochs % self._every == 0) or self.due()

    def write(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Write a checkpoint; if the disk refuses, warn and let training go on."""
        try:
            self.files.write(tensors, {**state, "about": self.about})
        except WriteError as error:
            warnings.warn(
                f"this checkpoint is missing: {error}. Training goes on",
                UserWarning,
                stacklevel=2,
            )
        self._written = time.perf_counter()


FORMAT = "fastvae-checkpoint"
FORMAT_VERSION = 1

_NAME = re.compile(r"(\d{6,})\.json")


class Loaded(NamedTuple):
    """What a checkpoint holds."""

    path: Path
    tensors: dict[str, Tensor]
    state: dict[str, Any]


class CheckpointFiles:
    """The checkpoints in one folder, numbered in the order in which they were written.

    Parameters
    ----------
    folder
        Made when the first is written.
    keep
        How many of the newest are kept; one more while the next is being written.
    """

    def __init__(self, folder: str | os.PathLike[str], keep: int = 2) -> None:
        self.folder = Path(folder)
        self.keep = keep

    def numbers(self) -> list[int]:
        """Return the numbers of the checkpoints, oldest first."""
        names = os.listdir(self.folder) if self.folder.is_dir() else []
        return sorted(int(found[1]) for name in names if (found := _NAME.fullmatch(name)))

    def write(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> Path:
        """Write a checkpoint and remove the oldest ones beyond `keep`.

        Raises
        ------
        InputError
            The folder cannot be written.
        """
        from safetensors.torch import save

        check_writable_folder(self.folder, overwrite=True)
        numbers = self.numbers()
        number = numbers[-1] + 1 if numbers else 1
        content = save({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
        with atomic_path(self._tensors(number)) as temporary:
            temporary.write_bytes(content)
        body = _body(state)
        head = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "tensors_sha256": hashlib.sha256(content).hexdigest(),
            "state_sha256": hashlib.sha256(body.encode()).hexdigest(),
        }
        with atomic_path(self._state(number)) as temporary:
            temporary.write_text(json.dumps({**head, "state": state}, allow_nan=False) + "\n")
        for old in numbers[: max(0, len(numbers) + 1 - self.keep)]:
            self._remove(old)
        return self._state(number)

    def newest(self) -> Loaded | None:
        """Read the newest checkpoint that is intact; None if there is no checkpoint.

        Warns
        -----
        UserWarning
            A newer one is damaged; the message says how.

        Raises
        ------
        InputError
            There are checkpoints, and every one is damaged.
        """
        numbers = self.numbers()
        problem = None
        for number in reversed(numbers):
            path = self._state(number)
            try:
                found = self._read(number)
            except (OSError, ValueError, KeyError, TypeError) as error:
                problem = f"{path} cannot be used ({error})"
                if number != numbers[0]:
                    before = "going on from the checkpoint before it"
                    warnings.warn(f"{problem}; {before}", UserWarning, stacklevel=2)
                continue
            return found
        if problem is not None:
            raise InputError(
                f"{problem}, nor any other checkpoint in {self.folder}; start again without "
                "--resume (resume=False)"
            )
        return None

    def sweep(self) -> None:
        """Remove what an interrupted write left behind."""
        if not self.folder.is_dir():
            return
        whole = {self._tensors(number).name for number in self.numbers()}
        for path in self.folder.iterdir():
            partial = re.fullmatch(r"\.\d{6,}-.*\.(json|safetensors)", path.name)
            orphan = re.fullmatch(r"\d{6,}\.safetensors", path.name) and path.name not in whole
            if partial or orphan:
                path.unlink()

    def clear(self) -> None:
        """Remove every checkpoint."""
        for number in self.numbers():
            self._remove(number)
        self.sweep()

    def _read(self, number: int) -> Loaded:
        from safetensors.torch import load

        path = self._state(number)
        entry = json.loads(path.read_text())
        if not isinstance(entry, dict) or entry.get("format") != FORMAT:
            raise ValueError("it is not a fastvae checkpoint")
        if entry["format_version"] > FORMAT_VERSION:
            raise ValueError("it was written by a newer fastvae; upgrade")
        body = _body(entry["state"])
        if hashlib.sha256(body.encode()).hexdigest() != entry["state_sha256"]:
            raise ValueError("its content is not what was written")
        content = self._tensors(number).read_bytes()
        if hashlib.sha256(content).hexdigest() != entry["tensors_sha256"]:
            raise ValueError(f"{self._tensors(number).name} is not what was written")
        return Loaded(path, load(content), entry["state"])

    def _remove(self, number: int) -> None:
        self._state(number).unlink(missing_ok=True)
        self._tensors(number).unlink(missing_ok=True)

    def _state(self, number: int) -> Path:
        return self.folder / f"{number:06d}.json"

    def _tensors(self, number: int) -> Path:
        return self.folder / f"{number:06d}.safetensors"


def _body(state: dict[str, Any]) -> str:
    """Return the state as the text that is hashed: the same before writing and after reading."""
    return json.dumps(state, sort_keys=True, separators=(",", ":"), allow_nan=False)
