"""Lines about what is going on, as text and below the cell of a notebook."""

from __future__ import annotations

import functools
import logging
import sys
import time
from collections.abc import Callable
from typing import Literal

_log = logging.getLogger("fastvae")


def progress_style() -> Literal["terminal", "notebook", "lines"]:
    """Return how progress can be shown where standard error goes.

    A bar moves on a terminal alone: FORCE_COLOR, which notebooks and CI set for their commands,
    asks for colours, and does not make a file able to move a cursor.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_jupyter:
        return "notebook"
    return "terminal" if sys.stderr.isatty() and console.is_interactive else "lines"


def print_status(text: str) -> None:
    """Write a line to standard error; in a notebook to standard output.

    Notebooks show standard error in a red box, as if something had gone wrong.
    """
    stream = sys.stdout if progress_style() == "notebook" else sys.stderr
    print(text, file=stream, flush=True)


def note(text: str, show: Callable[[str], None] | None) -> None:
    """Tell what was decided, such as where the counts are kept.

    Parameters
    ----------
    text
        One line, logged at level INFO where the logger "fastvae" is at that level.
    show
        Shows the line where it is not logged; None where no progress is shown.
    """
    if _log.isEnabledFor(logging.INFO):
        _log.info(text)
    elif show is not None:
        show(text)


@functools.cache
def hint_once(text: str) -> None:
    """Log a text at level WARNING; each text once in a process."""
    _log.warning(text)


class PercentLines:
    """Lines that say every few seconds how much of a long job is done.

    Parameters
    ----------
    wanted
        Whether anything is said.
    """

    EVERY_SECONDS = 5.0

    def __init__(self, wanted: bool) -> None:
        self._wanted, self._said = wanted, time.perf_counter()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Say how much of `what` is done, if all of it is or the last line is old enough."""
        now = time.perf_counter()
        if self._wanted and (done == total or now - self._said > self.EVERY_SECONDS):
            self._said = now
            print_status(f"{what}: {100 * done // total} %")


class NotebookLine:
    """A line below the cell of a notebook that changes in place.

    It needs no widgets, which rich's bars do; without ipywidgets these show a warning alone.
    """

    def __init__(self, text: str) -> None:
        from IPython.display import display

        self._shown = display({"text/plain": text}, raw=True, display_id=True)

    def show(self, text: str) -> None:
        """Show another text."""
        self._shown.update({"text/plain": text}, raw=True)
