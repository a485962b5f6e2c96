"""Heads and likelihood by libfastvae_cpu: gradients take the place of the logits."""

from __future__ import annotations

from ..likelihood.cpu import nll_in_place
from ..linear.dense import FASTEST
from .driver import BlockedHeads

CACHE = 2**25  # bytes: a share of the last-level cache of a server
LEAST = 256

HEADS = BlockedHeads(nll_in_place, FASTEST, CACHE, LEAST, early=True)
