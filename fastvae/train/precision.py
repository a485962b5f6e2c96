"""In which precision matrices are multiplied."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

PRECISIONS = ("float32", "tf32", "bf16")


@contextmanager
def matrix_precision(precision: str, device: torch.device) -> Iterator[None]:
    """Multiply float32 matrices on a GPU as `precision` says inside the block, as before after it.

    A CPU has no TF32 and multiplies in float32 throughout. A user who has chosen through
    ``torch.backends`` instead, which torch does not mix with this, keeps that choice.
    """
    try:
        before = torch.get_float32_matmul_precision() if device.type == "cuda" else None
    except RuntimeError:
        before = None
    if before is None:
        yield
        return
    torch.set_float32_matmul_precision("highest" if precision == "float32" else "high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return the context of a forward pass: dense layers in bfloat16 where that is asked for.

    Counts never pass through it, and likelihoods are computed and summed in float32.
    """
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
