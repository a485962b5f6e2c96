"""Errors and warnings as the user of the command line sees them."""

from __future__ import annotations

import logging
import re
import shlex
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer

from ..errors import InputError

_COMMANDS = {"Model.map_query": "fastvae map"}
"""Commands that do what a method does in Python."""

_OPTIONS: dict[str, str] = {}
"""The option of the command line for each Python argument, of all commands."""


def know_options(app: typer.Typer) -> None:
    """Record the options of the commands of `app`, so that messages can name them."""
    group: Any = typer.main.get_command(app)
    for command in group.commands.values():
        for parameter in command.params:
            if parameter.param_type_name == "option":
                names = (name for name in parameter.opts if name.startswith("--"))
                _OPTIONS[parameter.name] = next(names)


class Shown(logging.Handler):
    """Prints what fastvae logs to standard error, with options in the place of arguments."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one line."""
        level = record.levelname.lower()
        typer.echo(f"{level}: {as_options(record.getMessage())}", err=True)


@contextmanager
def logged_to(handler: logging.Handler) -> Iterator[None]:
    """Send what fastvae logs to `handler` too."""
    log = logging.getLogger("fastvae")
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


@contextmanager
def user_errors() -> Iterator[None]:
    """Print an error that the user can correct as one line, and exit with status 2.

    Ctrl-C ends with status 130. Messages name options in the place of arguments. A defect keeps its
    traceback.
    """

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        typer.echo(f"warning: {as_options(str(message))}", err=True)

    try:
        with warnings.catch_warnings(), logged_to(Shown(logging.WARNING)):
            warnings.showwarning = show
            yield
    except (InputError, OSError) as error:
        text = " ".join(str(error).split())
        typer.echo(f"error: {as_options(text)}", err=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt as error:
        typer.echo("interrupted", err=True)
        raise typer.Exit(128 + signal.SIGINT) from error


def as_options(text: str) -> str:
    """Word a message about Python arguments for the command line.

    ``layer='counts'`` becomes ``--layer counts``, ``use_raw=True`` ``--use-raw``, ``genome=``
    ``--genome`` and ``batch_key`` ``--batch-key``; a word such as ``layer`` alone stays.
    """
    for method, command in _COMMANDS.items():
        text = text.replace(method, command)
    for name, option in _OPTIONS.items():
        value = r"=(?:True\b|'(?P<single>[^']*)'|\"(?P<double>[^\"]*)\"|(?P<number>\d[\w.]*)|)"
        optional = "?" if "_" in name else ""
        pattern = rf"(?<![\w'\"./-]){name}(?:{value}){optional}(?![\w'\"\[])"
        text = re.sub(pattern, lambda found, option=option: _given(option, found), text)  # type: ignore[misc]
    # a message that names both the option and the argument now has the option twice
    return re.sub(r"(--[\w-]+) \(\1\)", r"\1", text)


def _given(option: str, found: re.Match[str]) -> str:
    values = [value for value in found.groups() if value is not None]
    return f"{option} {shlex.quote(values[0])}" if values else option
