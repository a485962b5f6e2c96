"""Checkpoint files: tensors as safetensors, everything else as JSON, each pair whole or not at all.

A checkpoint is ``NUMBER.safetensors`` and ``NUMBER.json``. The second is written last and removed
first, and has the digests of both, so that whatever moment a process dies at, a JSON file that is
there belongs to tensors that are complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from .._files import atomic_path, check_writable_folder
from ..errors import InputError

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
        So many of the newest are kept; one more while the next is being written.
    """

    def __init__(self, folder: str | os.PathLike[str], keep: int = 2) -> None:
        self.folder = Path(folder)
        self.keep = keep

    def numbers(self) -> list[int]:
        """Return the numbers of the checkpoints, oldest first."""
        names = os.listdir(self.folder) if self.folder.is_dir() else []
        return sorted(int(found[1]) for name in names if (found := _NAME.fullmatch(name)))

    def write(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> Path:
        """Write a checkpoint and forget those that are too many.

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
        """Read the newest checkpoint that is whole; None where there is none at all.

        Warns
        -----
        UserWarning
            A newer one is damaged, and why.

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
    """The form of the state that is digested: the same before writing and after reading."""
    return json.dumps(state, sort_keys=True, separators=(",", ":"), allow_nan=False)
