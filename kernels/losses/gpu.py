# mypy: disallow-untyped-defs=False
"""Sums of the two loss terms over the cells of a minibatch, in Triton; see `reference`."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def add_kernel(sums_ptr, reconstruction_ptr, kl_ptr, N, BLOCK: tl.constexpr):
    """Sum both terms in 64 bits, in a fixed order; one program."""
    lanes = tl.arange(0, BLOCK)
    first = tl.zeros((BLOCK,), tl.float64)
    second = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, N, BLOCK):
        i = start + lanes
        first += tl.load(reconstruction_ptr + i, mask=i < N, other=0.0).to(tl.float64)
        second += tl.load(kl_ptr + i, mask=i < N, other=0.0).to(tl.float64)
    tl.store(sums_ptr, tl.load(sums_ptr) + tl.sum(first, 0))
    tl.store(sums_ptr + 1, tl.load(sums_ptr + 1) + tl.sum(second, 0))


def add_losses(sums: Tensor, reconstruction: Tensor, kl: Tensor) -> None:
    """Add the sums of two loss terms (N,) to `sums` (2,); as in ``reference.py``."""
    terms = reconstruction.contiguous(), kl.contiguous()
    add_kernel[(1,)](sums, *terms, reconstruction.numel(), BLOCK=1024, enable_fp_fusion=True)
