"""On which GPU Triton launches: the one that the tensors are on."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def on_own_device(launcher: Callable[..., Any]) -> Callable[..., Any]:
    """Run `launcher` with the GPU of its tensors as the current one.

    Triton launches on the current device, whatever device the pointers are of. torch.compile sees
    to this itself.
    """

    @functools.wraps(launcher)
    def launch(*arguments: Any, **options: Any) -> Any:
        if torch.compiler.is_compiling():
            return launcher(*arguments, **options)
        device = _device_of(arguments)
        if device is None or device.index == torch.cuda.current_device():
            return launcher(*arguments, **options)
        with torch.cuda.device(device):
            return launcher(*arguments, **options)

    return launch


def _device_of(arguments: tuple[Any, ...]) -> torch.device | None:
    """The GPU of the first tensor among `arguments` or in a tuple there; None on the CPU."""
    for value in arguments:
        if isinstance(value, Tensor):
            return value.device if value.is_cuda else None
        if isinstance(value, tuple) and any(isinstance(part, Tensor) for part in value):
            return _device_of(value)
    return None
