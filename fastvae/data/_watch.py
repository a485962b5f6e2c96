"""Noticing that a file has changed or gone since it was opened."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ..errors import InputError


class Watch:
    """The state of files when they were first looked at.

    Parameters
    ----------
    source
        What the user calls the whole of them.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self._states: dict[Path, tuple[int, int, int]] = {}

    def check(self, paths: Iterable[Path]) -> None:
        """Compare each with its state at the first check.

        Raises
        ------
        InputError
            It is not there, or is another or longer or shorter or written to.
        """
        for path in paths:
            try:
                found = os.stat(path)
            except OSError as error:
                raise InputError(
                    f"{path}{self._part_of(path)} cannot be read any more ({error.strerror}): it "
                    "was deleted or moved while in use; put it back and start again"
                ) from error
            state = found.st_size, found.st_mtime_ns, found.st_ino
            if self._states.setdefault(path, state) != state:
                raise InputError(
                    f"{path}{self._part_of(path)} was changed while in use (it had "
                    f"{self._states[path][0]} bytes and has {state[0]}); start again, and leave "
                    "the file alone until the end"
                )

    def _part_of(self, path: Path) -> str:
        return "" if str(path) == self.source else f" (part of {self.source})"
