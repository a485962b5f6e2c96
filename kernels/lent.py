"""Memory for results on the CPU that is used again once nothing refers to it.

Memory that is new to a process costs a page fault for every 4 kB of it, and large tensors get new
memory at every call: for a minibatch of 128 cells that takes as long as computing what goes there.
"""

from __future__ import annotations

import math
import threading
import weakref
from typing import Any

import torch
from torch import Tensor

MOST = 2**26  # bytes that a thread keeps
LEAST = 2**17  # bytes below which the allocator keeps memory itself


class Piece:
    """Memory of a fixed size, lent to one tensor at a time."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._memory = torch.empty(size, dtype=torch.uint8, device="cpu").numpy()
        self._lent: weakref.ref[Any] | None = None

    @property
    def is_free(self) -> bool:
        """Whether no tensor, view or array refers to it."""
        return self._lent is None or self._lent() is None

    def lend(self, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        """Return a tensor in this memory."""
        view = self._memory[:]  # torch keeps it as long as anything uses the tensor's storage
        self._lent = weakref.ref(view)
        return torch.from_numpy(view).view(dtype).view(shape)


class Lender:
    """Lends memory for results, and lends it again when the last tensor in it is gone.

    Parameters
    ----------
    most
        Bytes that are kept. What is asked for beyond them is the allocator's.
    """

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._pieces: list[Piece] = []

    @property
    def held(self) -> int:
        """Bytes that are kept now, lent or not."""
        return sum(piece.size for piece in self._pieces)

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return a tensor on the CPU whose contents are anything."""
        size = math.prod(shape) * dtype.itemsize
        if size < LEAST or size > self._most:
            return torch.empty(shape, dtype=dtype, device="cpu")
        for piece in self._pieces:
            if piece.size == size and piece.is_free:
                return piece.lend(dtype, shape)
        return self._another(size, dtype, shape)

    def _another(self, size: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        """Return memory of a size of which all pieces are lent; drop free ones to make room."""
        room = self._most - self.held - size
        for piece in list(self._pieces):
            if room >= 0:
                break
            if piece.is_free:
                self._pieces.remove(piece)
                room += piece.size
        if room < 0:
            return torch.empty(shape, dtype=dtype, device="cpu")
        piece = Piece(size)
        self._pieces.append(piece)
        return piece.lend(dtype, shape)


class _OfThread(threading.local):
    def __init__(self) -> None:
        self.lender = Lender()


_of_thread = _OfThread()


def lent(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a tensor on the CPU whose contents are anything, from this thread's `Lender`."""
    return _of_thread.lender.empty(*shape, dtype=dtype)
