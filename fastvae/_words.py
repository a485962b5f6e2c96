"""Names in messages: a few of many, and the one that was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from .errors import shortened

_LONGEST = 80
NO_CATEGORY = frozenset(
    {"", "na", "nan", "none", "unassigned", "unknown", "unlabeled", "unlabelled"}
)


def a_few(names: Iterable[object], limit: int = 5) -> str:
    """Return the first names quoted, and how many more there are."""
    names = list(names)
    shown = ", ".join(_quoted(str(name)) for name in names[:limit])
    more = len(names) - limit
    return f"{shown} and {more} more" if more > 0 else shown


def reason(error: BaseException) -> str:
    """Return what another library says in one line that is not too long."""
    return shortened(str(error)) or type(error).__name__


def _quoted(name: str) -> str:
    return repr(name if len(name) <= _LONGEST else f"{name[:_LONGEST]}...")


def those_there(names: Sequence[str], wanted: str | None = None, none: str = "none") -> str:
    """Return ``"there are 'a', 'b'; did you mean 'a'?"`` for a name that was not found."""
    if not names:
        return f"there are {none}"
    text = f"there are {a_few(names, 30)}"
    meant = closest(names, wanted) if wanted else None
    return text if meant is None else f"{text}; did you mean {meant!r}?"


def closest(names: Sequence[str], wanted: str) -> str | None:
    """Return the name that `wanted` probably means, None if no name is similar."""
    by_case = {name.lower(): name for name in names}
    wanted = wanted.lower()
    found = difflib.get_close_matches(wanted, by_case, 1)
    found = found or [name for name in by_case if wanted in name or (name and name in wanted)]
    return by_case[found[0]] if found else None


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


def is_no_category(name: str) -> bool:
    """Whether `name` says that a cell has no label."""
    return name.strip().lower() in NO_CATEGORY
