"""Launches of Triton: on the GPU that the tensors are on, and how many programs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def on_own_device(launcher: Callable[..., Any]) -> Callable[..., Any]:
    """Run `launcher` with the GPU of its tensors as the current one.

    Triton launches on the current device, whatever device the pointers are of. torch.compile sees
    to this itself, and where there is one GPU there is nothing to see to.
    """

    @functools.wraps(launcher)
    def launch(*arguments: Any, **options: Any) -> Any:
        if torch.compiler.is_compiling() or not _several_gpus():
            return launcher(*arguments, **options)
        device = _device_of(arguments)
        if device is None or device.index == torch.cuda.current_device():
            return launcher(*arguments, **options)
        with torch.cuda.device(device):
            return launcher(*arguments, **options)

    return launch


@functools.cache
def _several_gpus() -> bool:
    """Asked at the first launch, and not again: a launch takes the host microseconds."""
    return torch.cuda.device_count() > 1


def _device_of(arguments: tuple[Any, ...]) -> torch.device | None:
    """The GPU of the first tensor among `arguments` or in a tuple there; None on the CPU."""
    for value in arguments:
        if isinstance(value, Tensor):
            return value.device if value.is_cuda else None
        if isinstance(value, tuple) and any(isinstance(part, Tensor) for part in value):
            return _device_of(value)
    return None


def ceil_div(size: int, block: int) -> int:
    """Blocks that cover `size`; triton's own takes the host microseconds at each call."""
    return -(-size // block)


def next_power_of_2(size: int) -> int:
    """The least power of two that is at least `size`, for `size` of 1 or more; see `ceil_div`."""
    return 1 << (size - 1).bit_length()
