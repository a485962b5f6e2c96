"""Memory for the logits of one block, which the next call on the same thread uses again.

Memory that is new to a process costs a page fault for every 4 kB of it: as much as the products.
"""

from __future__ import annotations

import math
import threading

import torch
from torch import Tensor

MOST = 2**26  # bytes that are kept; more is asked for anew


class _Kept(threading.local):
    def __init__(self) -> None:
        self.memory = torch.empty(0, dtype=torch.uint8, device="cpu")


_kept = _Kept()


def workspace(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return memory of a shape whose contents are anything, and which the next call may be given.

    On a GPU torch itself keeps memory.
    """
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or size > MOST:
        return torch.empty(shape, dtype=dtype, device=device)
    if len(_kept.memory) < size:
        _kept.memory = torch.empty(0, dtype=torch.uint8, device="cpu")  # gone before there is more
        _kept.memory = torch.empty(size, dtype=torch.uint8, device="cpu")
    return _kept.memory[:size].view(dtype).view(shape)
