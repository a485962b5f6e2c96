"""Most memory that a call needs beyond what the process had before."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from . import timing

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
MEGABYTE = 1e6


def resident(key: str) -> float:
    """``VmRSS`` (now) or ``VmHWM`` (most so far) of this process in bytes."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{key}:"))
    return 1024.0 * int(line.split()[1])


def forget_peak() -> None:
    """Give freed memory back to the system, and let the most so far be what is there now."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    RESET.write_text("5")


def peak_megabytes(function: Callable[[], Any], device: torch.device) -> float | None:
    """None where the system does not tell: on a CPU this is Linux with glibc only."""
    if device.type == "cuda":
        peak = timing.peak_bytes(function, device)
        return None if peak is None else peak / MEGABYTE
    try:
        forget_peak()
        before = resident("VmRSS")
        function()
        return max(0.0, resident("VmHWM") - before) / MEGABYTE
    except (OSError, AttributeError, StopIteration):
        return None
