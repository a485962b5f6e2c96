"""Sums of the two loss terms over the cells of a minibatch, in torch."""

from __future__ import annotations

import torch
from torch import Tensor


def add_losses(sums: Tensor, reconstruction: Tensor, kl: Tensor) -> None:
    """Add the sums of two loss terms (N,) to `sums` (2,), in place and in its dtype."""
    sums += torch.stack((reconstruction, kl)).sum(dim=1, dtype=sums.dtype)
