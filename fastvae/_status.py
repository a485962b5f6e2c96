"""`print_status`: a line about what is going on."""

from __future__ import annotations

import sys


def print_status(text: str) -> None:
    """Write a line to standard error; in a notebook to standard output.

    Notebooks show standard error in a red box, as if something had gone wrong.
    """
    from rich.console import Console

    stream = sys.stdout if Console(stderr=True).is_jupyter else sys.stderr
    print(text, file=stream, flush=True)
