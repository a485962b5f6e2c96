"""Heads and likelihood by Triton kernels and the vendor's products.

Launches and half-filled waves cost more than the memory saves while logits are small: blocks are
large, and smaller minibatches go through layers and likelihood one after the other.
"""

from __future__ import annotations

from ..likelihood import gpu as likelihood
from ..products import TORCH
from .driver import BlockedHeads, sweep_of

CACHE = 2**28  # bytes: of device memory rather than of a cache
LEAST = 512

HEADS = BlockedHeads(
    sweep_of(likelihood.nll_forward, likelihood.nll_and_gradients), TORCH, CACHE, LEAST, early=False
)
