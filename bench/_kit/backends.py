"""This package's backends as contenders."""

from __future__ import annotations

import torch

from . import contenders

NAMES = ("fastvae cpu", "fastvae triton", "fastvae torch")


def unavailable(device: torch.device) -> dict[str, str]:
    """Those that cannot be timed on this device, with the reason."""
    found = {f"fastvae {k}": v for k, v in contenders.available_backends(device).items() if v}
    if device.type == "cpu":
        found["fastvae triton"] = "needs a GPU (the interpreter's speed says nothing)"
    return found
