"""From the word a user gives to a device that works."""

from __future__ import annotations

import torch

from ..errors import InputError, shown


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """Return the device called `device`; "auto" is the first CUDA device if there is one.

    Raises
    ------
    InputError
        An unknown name, or a device that this machine or this torch does not have.
    """
    if isinstance(device, str) and device == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        found = torch.device(device)
    except Exception:  # torch raises many kinds, for values that are no name
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise InputError(f"unknown device {shown(device)}; use 'auto', 'cpu', 'cuda' or 'cuda:N'")
    if found.type == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise InputError(
            f"device {str(device)!r} is not available: torch sees no CUDA device here; use 'cpu' "
            "or 'auto', or install a CUDA build of torch"
        )
    index = found.index if found.index is not None else torch.cuda.current_device()
    if index >= torch.cuda.device_count():
        raise InputError(
            f"device {str(device)!r} is not available: this machine has CUDA devices 0 to "
            f"{torch.cuda.device_count() - 1}"
        )
    return torch.device("cuda", index)
