"""The one exception type for input that a user can mend, and what it is raised for most."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

Option = TypeVar("Option")


class InputError(ValueError):
    """Input, option or file that cannot be used; the message says what to do.

    A ``ValueError``, so existing ``except ValueError`` code keeps working. The command line
    shows its message alone; any other exception is a defect and keeps its traceback.
    """


def one_of(name: str, value: Option, options: Iterable[str]) -> Option:
    """Return `value` if it is among `options`.

    Raises
    ------
    InputError
        It is not; the message lists them.
    """
    options = tuple(options)
    if value not in options:
        known = ", ".join(repr(option) for option in options)
        raise InputError(f"{name}={value!r} is not known; choose one of {known}")
    return value
