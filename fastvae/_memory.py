"""Find out how much memory is free, and refuse a read that cannot fit."""

from __future__ import annotations

import os
import re
from pathlib import Path

from .errors import InputError, shown, size_text

_ADVICE = (
    "keep fewer genes (a few thousand highly variable ones are usual) or fewer cells, "
    "close other programs, or use a machine with more memory"
)


def available_memory() -> int | None:
    """Bytes of memory that can be taken now; None where the system does not say.

    Linux: ``MemAvailable``, lowered to what the control group allows. Elsewhere (macOS) the
    installed memory, an upper bound.
    """
    found = [_meminfo(), _control_group()]
    known = [value for value in found if value is not None]
    if known:
        return min(known)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def require_memory(needed: int, what: str, advice: str = _ADVICE) -> None:
    """Refuse work that needs more bytes than are available.

    Parameters
    ----------
    needed
        Estimated bytes.
    what
        What is being done, for the message ("reading X of atlas.h5ad (...)").
    advice
        What the user can do about it.

    Raises
    ------
    InputError
        With the estimate and what is available.
    """
    available = available_memory()
    if available is not None and needed > available:
        raise InputError(
            f"not enough memory: {what} needs about {size_text(needed)}, "
            f"{size_text(available)} are available; {advice}"
        )


def parse_size(size: str | int, what: str) -> int:
    """Return bytes from 500_000_000, "500MB", "1.5 GB" or "2GiB".

    Raises
    ------
    InputError
        It is not a size above zero; `what` names the option.
    """
    n_bytes = 0
    given = size if isinstance(size, str) else shown(size)
    match = re.fullmatch(r"\s*([0-9]{0,18}\.?[0-9]{1,18})\s*([kmgt]?)(i?)b?\s*", given.lower())
    if match is not None:
        number, prefix, binary = match.groups()
        n_bytes = int(float(number) * (1024 if binary else 1000) ** " kmgt".index(prefix or " "))
    if n_bytes <= 0 or isinstance(size, bool):
        raise InputError(f"{what} must be a size such as 500MB or 4GB, not {shown(size)}")
    return n_bytes


def _meminfo() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _control_group() -> int | None:
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        root = Path("/sys/fs/cgroup")
        try:
            # "max" (no limit) is not a number and falls through to None.
            return max(int((root / limit).read_text()) - int((root / used).read_text()), 0)
        except (OSError, ValueError):
            continue
    return None
