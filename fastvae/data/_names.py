"""Names in messages: a few of many, and the one that was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def a_few(names: Iterable[object], limit: int = 5) -> str:
    """Return the first names quoted, and how many more there are."""
    names = list(names)
    shown = ", ".join(repr(str(name)) for name in names[:limit])
    more = len(names) - limit
    return f"{shown} and {more} more" if more > 0 else shown


def those_there(names: Sequence[str], wanted: str | None = None, none: str = "none") -> str:
    """Return ``"there are 'a', 'b'; did you mean 'a'?"`` for a name that was not found."""
    if not names:
        return f"there are {none}"
    text = f"there are {a_few(names, 30)}"
    close = (
        difflib.get_close_matches(wanted.lower(), [n.lower() for n in names], 1) if wanted else []
    )
    if close:
        meant = next(name for name in names if name.lower() == close[0])
        text += f"; did you mean {meant!r}?"
    return text


def make_unique(names: Sequence[str]) -> list[str]:
    """Give repeated names the suffixes -1, -2, ... from their second occurrence on.

    A suffix that would collide with a name already there is skipped.
    """
    taken = set(names)
    if len(taken) == len(names):
        return list(names)
    seen: set[str] = set()
    last: dict[str, int] = {}
    unique = []
    for name in names:
        if name in seen:
            number = last.get(name, 0) + 1
            while f"{name}-{number}" in taken:
                number += 1
            last[name] = number
            taken.add(f"{name}-{number}")
            unique.append(f"{name}-{number}")
        else:
            seen.add(name)
            unique.append(name)
    return unique
