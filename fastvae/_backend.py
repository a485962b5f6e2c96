"""Which backend runs an operation: chosen per call, by the tensors and by what was forced."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import Tensor

from .errors import InputError
from .kernels import reference

NAMES = ("auto", "triton", "cpu", "torch")

_imported: dict[str, ModuleType | None] = {}
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


def select(*tensors: Tensor | None) -> ModuleType:
    """Return the backend module for these tensors.

    Raises
    ------
    InputError
        If the forced backend is unknown, not installed, or cannot take these tensors.
    """
    name = _forced
    if name is None:
        name = _check(os.environ.get("FASTVAE_BACKEND") or "auto", "FASTVAE_BACKEND")
    if name == "torch":
        return reference
    if name == "cpu":
        raise InputError(
            "backend 'cpu' is not part of this version of fastvae, which has torch and triton; "
            "use one of those or 'auto'"
        )
    if name == "auto":
        on_gpu = all(t is None or t.is_cuda for t in tensors)
        fused = _triton() if on_gpu else None
        return reference if fused is None or _misfit(tensors) else fused
    fused = _triton()
    if fused is None:
        raise InputError("backend 'triton' needs the triton package; install it, or use 'auto'")
    problem = _misfit(tensors)
    if problem is not None:
        raise InputError(f"backend 'triton' {problem}; use 'torch' or 'auto'")
    return fused


def _triton() -> ModuleType | None:
    """The Triton kernels, imported when first wanted; None without triton."""
    if "fused" not in _imported:
        try:
            _imported["fused"] = importlib.import_module("fastvae.kernels.fused")
        except ImportError:
            _imported["fused"] = None
    return _imported["fused"]


def _misfit(tensors: tuple[Tensor | None, ...]) -> str | None:
    """Why the Triton kernels cannot take these tensors."""
    for t in tensors:
        if t is None:
            continue
        if not t.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
            return f"runs on CUDA tensors, one is on {t.device}"
        if t.dtype == torch.float64:
            return "computes in float32, one tensor is float64"
    return None
