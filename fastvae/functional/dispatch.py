"""Which backend runs an operation: chosen per call, by the tensors and by what was forced."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..errors import InputError
from ..kernels.backend import Backend
from ..kernels.backends.reference import REFERENCE

_log = logging.getLogger("fastvae")

NAMES = ("auto", "triton", "cpu", "torch")

_MODULES = {"triton": "fastvae.kernels.backends.triton", "cpu": "fastvae.kernels.backends.cpu"}

_imported: dict[str, Backend | str] = {}  # or why not
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


def select(*tensors: Tensor | None) -> Backend:
    """Return the backend for these tensors.

    Raises
    ------
    InputError
        If the forced backend is unknown, not installed, or cannot take these tensors.
    """
    name = _forced
    if name is None:
        name = _check(os.environ.get("FASTVAE_BACKEND") or "auto", "FASTVAE_BACKEND")
    if name == "torch":
        return REFERENCE
    if name == "auto":
        name = "triton" if all(t is None or t.is_cuda for t in tensors) else "cpu"
        if _misfit(name, tensors):
            return REFERENCE
        backend = _backend(name)
        return REFERENCE if isinstance(backend, str) else backend
    problem = _misfit(name, tensors)
    if problem is not None:
        raise InputError(f"backend {name!r} {problem}; use 'torch' or 'auto'")
    backend = _backend(name)
    if isinstance(backend, str):
        raise InputError(f"backend {name!r} cannot be loaded: {backend}; or use 'auto'")
    return backend


def describe(device: torch.device) -> str:
    """What computes float32 tensors of a device now, for people."""
    return select(torch.empty(0, device=device)).title


def _backend(name: str) -> Backend | str:
    """The backend, imported when first wanted, or why it cannot be."""
    _import(name)
    return _imported[name]


def _import(name: str) -> bool:
    if name in _imported:
        return True
    try:
        _imported[name] = importlib.import_module(_MODULES[name]).BACKEND
    except ImportError as error:
        _imported[name] = str(error)
        if name == "cpu":  # triton's absence is ordinary; a missing library costs speed
            _log.warning("fastvae computes in torch, which is slower: %s", error)
    return True


# torch.compile cannot trace an import. This is torch.compiler.assume_constant_result without
# importing its compiler, and triton with it, along with fastvae.
_import._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _misfit(name: str, tensors: tuple[Tensor | None, ...]) -> str | None:
    """Why these kernels cannot take these tensors."""
    for t in tensors:
        if t is None:
            continue
        if not (t.is_cpu if name == "cpu" else t.is_cuda or (t.is_cpu and _interpreted())):
            device = "CPU" if name == "cpu" else "CUDA"
            return f"runs on {device} tensors, one is on {t.device}"
        if name == "triton" and t.is_cuda and torch.version.hip is not None:
            return "runs on NVIDIA GPUs, and this torch is built for ROCm (AMD)"
        if t.dtype == torch.float64:
            return "computes in float32, one tensor is float64"
    return None


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"
