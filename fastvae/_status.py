"""Lines about what is going on: `print_status`, and `NotebookLine` that changes in place."""

from __future__ import annotations

import sys


def print_status(text: str) -> None:
    """Write a line to standard error; in a notebook to standard output.

    Notebooks show standard error in a red box, as if something had gone wrong.
    """
    from rich.console import Console

    stream = sys.stdout if Console(stderr=True).is_jupyter else sys.stderr
    print(text, file=stream, flush=True)


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
