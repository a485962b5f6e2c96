"""The one exception type for input that a user can fix, and the checks that raise it."""

from __future__ import annotations

import math
import numbers
import operator
import os
import reprlib
from collections.abc import Collection, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import numpy as np


Option = TypeVar("Option")

LARGEST = 2**63 - 1
"""The largest whole number that arrays, generators and files hold."""

MOST_DRAWS = 1_000_000
"""More draws than this change no digit of an answer, and would not end."""

MOST_NAMES = 10_000_000

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
_SHORT.maxlong = 60


class InputError(ValueError):
    """Input, option or file that cannot be used; the message says what to do.

    A ``ValueError``, so existing ``except ValueError`` code keeps working. The command line
    shows its message alone; any other exception is a defect and keeps its traceback.
    """


def shown(value: Any) -> str:
    """Return a value as messages show it: short, and whatever it is."""
    try:
        if getattr(value, "shape", ()):
            kind = f"{type(value).__name__} of shape {tuple(value.shape)}"
            return f"{kind} and dtype {value.dtype}" if hasattr(value, "dtype") else kind
        return _SHORT.repr(value).replace("\n", " ")
    except Exception:  # whatever the object's own methods raise
        return f"a value of type {type(value).__name__}"


def shortened(message: str, most: int = 300) -> str:
    """Return another library's message on one line of bounded length."""
    line = " ".join(message.split())
    return line if len(line) <= most else f"{line[:most]} ..."


def size_text(n_bytes: int) -> str:
    """Return a size in words, such as "1.5 GB"."""
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:.1f} MB"


def one_of(name: str, value: Option, options: Iterable[str]) -> Option:
    """Return `value` if it is among `options`.

    Raises
    ------
    InputError
        It is not; the message lists them.
    """
    options = tuple(options)
    if not isinstance(value, str) or value not in options:
        known = ", ".join(repr(option) for option in options)
        raise InputError(f"{name}={shown(value)} is not known; choose one of {known}")
    return value


def whole_number(name: str, value: Any, *, minimum: int, maximum: int = LARGEST) -> int:
    """Return `value` as int; refuse anything but a whole number in the range.

    Raises
    ------
    InputError
        Names the option, what it must be and what it was.
    """
    try:
        number = operator.index(value)
    except Exception:  # arrays and tensors raise their own
        number = None
    if number is None or _is_bool(value) or number < minimum:
        raise InputError(f"{name} must be a whole number of at least {minimum}, not {shown(value)}")
    if number > maximum:
        raise InputError(
            f"{name} must be a whole number from {minimum} to {maximum:,}, not {shown(value)}"
        )
    return number


def seed_number(value: Any) -> int | None:
    """Return a seed as int, and None as it is.

    Raises
    ------
    InputError
        It is not a whole number from 0 to 2**63 - 1.
    """
    return None if value is None else whole_number("seed", value, minimum=0)


def real_number(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    least: float = 0.0,
    below: float | None = None,
    most: float | None = None,
) -> float:
    """Return `value` as a finite float within the bounds.

    Parameters
    ----------
    above, least
        It is greater than `above` or else at least `least`.
    below, most
        It is below `below` and at most `most`, where they are given.

    Raises
    ------
    InputError
        Names the option, what it must be and what it was.
    """
    number = math.nan
    single = not getattr(value, "ndim", 0)
    if single and not _is_bool(value) and not isinstance(value, (str, bytes, bytearray)):
        try:
            number = float(value)
        except Exception:  # arrays and tensors raise their own
            number = math.nan
    if not math.isfinite(number) or (number <= above if above is not None else number < least):
        wanted = f"greater than {above:g}" if above is not None else f"of at least {least:g}"
        raise InputError(f"{name} must be a number {wanted}, not {shown(value)}")
    if below is not None and number >= below:
        raise InputError(f"{name} must be below {below:g}, not {shown(value)}")
    if most is not None and number > most:
        raise InputError(f"{name} must be at most {most:g}, not {shown(value)}")
    return number


def _is_bool(value: Any) -> bool:
    """Whether a value is True or False, of Python or NumPy (which is not imported for it)."""
    return isinstance(value, bool) or (
        type(value).__module__ == "numpy" and type(value).__name__ in ("bool", "bool_")
    )


def true_or_false(name: str, value: Any) -> bool:
    """Return `value` as bool: True, False, 1 or 0, of Python or NumPy.

    Raises
    ------
    InputError
        It is anything else, such as a text, which would always count as true.
    """
    if _is_bool(value) or (isinstance(value, (int, numbers.Integral)) and value in (0, 1)):
        return bool(value)
    raise InputError(f"{name} must be True or False, not {shown(value)}")


def text(name: str, value: Any, what: str = "a text") -> str:
    """Return `value` if it is a string that is not empty.

    Raises
    ------
    InputError
        It is empty or not a string; `what` says what it should be.
    """
    if not isinstance(value, str) or not value:
        raise InputError(f"{name} must be {what}, not {shown(value)}")
    return str(value)


def file_path(name: str, value: Any) -> Path:
    """Return `value` as a path that the system can look up, whether or not it is there.

    Raises
    ------
    InputError
        It is not a path, or the system refuses it.
    """
    try:
        path = os.fspath(value)
    except Exception:  # an object's own methods may raise anything
        path = None
    if not isinstance(path, str) or not path:
        raise InputError(f"{name} must be a path, not {shown(value)}")
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{name}={shown(path)} is not a path that can be used: {reason}") from None
    return Path(path).expanduser()


def listed(name: str, value: Any, what: str, most: int = MOST_NAMES) -> list[Any]:
    """Return what a list, an array or another collection holds.

    Raises
    ------
    InputError
        It is a single value, a mapping, or longer than `most`; `what` says what it should hold.
    """
    several = not isinstance(value, (str, bytes, bytearray, dict, type)) and (
        not hasattr(value, "ndim") or getattr(value, "ndim", 0) == 1
    )
    try:
        if several and (not isinstance(value, Collection) or len(value) <= most):
            found = list(islice(iter(value), most + 1))
            if len(found) <= most:
                return found
    except Exception:  # an object's own methods may raise anything
        pass
    raise InputError(f"{name} must be {what}, not {shown(value)}")


def number_array(name: str, value: Any, what: str) -> np.ndarray:
    """Return `value` as an array of float64.

    Raises
    ------
    InputError
        It holds something else; `what` says what it should be.
    """
    import numpy as np

    try:
        array = np.asarray(value)
        if array.dtype.kind in "biuf" or array.dtype == object:
            return array.astype(np.float64)
    except Exception:  # nested lists, tensors, objects: each raises its own
        pass
    raise InputError(f"{name} must be {what}, not {shown(value)}")


def mapping(name: str, value: Any, what: str) -> dict[Any, Any]:
    """Return a mapping, or None, as a dictionary.

    Raises
    ------
    InputError
        It is something else; `what` says what it should be.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InputError(f"{name} must be {what}, not {shown(value)}")
    return dict(value)


def at_least(minimum: int, **sizes: int) -> None:
    """Refuse a size below `minimum`."""
    for name, size in sizes.items():
        if not size >= minimum:
            raise InputError(f"{name}={size} is too small; it must be at least {minimum}.")
