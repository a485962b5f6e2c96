"""Which backend runs an operation: chosen per call, by the tensors and by what was forced."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from .errors import InputError
from .kernels import reference

NAMES = ("auto", "triton", "cpu", "torch")
_MODULES = {"torch": reference}

_forced: str | None = None  # a plain global, which torch.compile can guard on


def _check(name: str, origin: str) -> str:
    if name not in NAMES:
        raise InputError(f"{origin} is {name!r}; expected one of {', '.join(NAMES)}")
    return name


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Force a backend inside a ``with`` block; it outranks ``FASTVAE_BACKEND``.

    The choice holds for the whole process, as the environment variable does.

    Parameters
    ----------
    name : {"auto", "triton", "cpu", "torch"}
        ``auto`` picks by the tensors. A forced backend that cannot run raises, it is never
        replaced silently.

    Raises
    ------
    InputError
        For any other name.
    """
    global _forced
    before, _forced = _forced, _check(name, "backend")
    try:
        yield
    finally:
        _forced = before


def select() -> ModuleType:
    """Return the backend module for this call.

    Raises
    ------
    InputError
        If the forced backend is unknown or not part of this version.
    """
    name = _forced
    if name is None:
        name = _check(os.environ.get("FASTVAE_BACKEND") or "auto", "FASTVAE_BACKEND")
    if name == "auto":
        name = "torch"
    if name not in _MODULES:
        raise InputError(
            f"backend {name!r} is not part of this version of fastvae, which has: "
            f"{', '.join(_MODULES)}; use one of those or 'auto'"
        )
    return _MODULES[name]
