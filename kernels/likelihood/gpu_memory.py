"""What a launch of the likelihood kernel writes, and the memory for it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..counts import Counts
from ..launching import ceil_div
from ..parameters import Parameters
from .reference import Grads

PROGRAMS = 1024  # at most: as many as an H100 holds at once, about; each needs scratch memory


class Memory(NamedTuple):
    """What a launch writes: results, and the partial sums of the gradient by log theta.

    Attributes
    ----------
    nll
        (N,).
    d_scale, d_library, d_zi
        (N, G), (N, 1), (N, G); None where not wanted.
    d_theta
        (N, G) for a dispersion of each cell, else a row for each program: `chunks` of them for
        each of `groups`.
    """

    nll: Tensor
    d_scale: Tensor | None
    d_library: Tensor | None
    d_theta: Tensor | None
    d_zi: Tensor | None
    groups: int
    chunks: int
    per_cell: bool
    grouped: bool

    def grads(self) -> Grads:
        """The gradients, with the dispersion's summed in the order of the programs."""
        d_theta = self.d_theta
        if d_theta is not None and not self.per_cell:
            genes = d_theta.shape[1]
            d_theta = d_theta.view(self.groups, self.chunks, genes).sum(dim=1)
            d_theta = d_theta if self.grouped else d_theta[0]
        return self.d_scale, self.d_library, d_theta, self.d_zi


def memory_of(
    x: Counts,
    p: Parameters,
    needs: tuple[bool, bool, bool, bool],
    out: tuple[Tensor | None, Tensor | None],
) -> Memory:
    """Memory for the results that `needs` asks for; `out` may lend that of the matrices."""
    scale_logits, _, log_theta, zi_logits, theta_index = p
    by_scale, by_library, by_theta, by_zi = needs
    n, genes = x.shape
    grouped = theta_index is not None
    per_cell = log_theta is not None and log_theta.dim() == 2 and not grouped
    groups = log_theta.shape[0] if grouped and log_theta is not None else 1
    chunks = max(1, ceil_div(min(n, PROGRAMS), groups))
    if not grouped and n:
        chunks = ceil_div(n, ceil_div(n, chunks))  # none of them empty

    def matrix(like: Tensor | None, wanted: bool, lent: Tensor | None) -> Tensor | None:
        if like is None or not wanted:
            return None
        return torch.empty(n, genes, dtype=like.dtype, device=like.device) if lent is None else lent

    def float32(*shape: int, zero: bool = False) -> Tensor:
        make = torch.zeros if zero else torch.empty
        return make(shape, dtype=torch.float32, device=scale_logits.device)

    d_theta = None
    if by_theta and log_theta is not None:
        d_theta = float32(n if per_cell else groups * chunks, genes, zero=grouped or n == 0)
    return Memory(
        nll=float32(n),
        d_scale=matrix(scale_logits, by_scale, out[0]),
        d_library=float32(n, 1) if by_library else None,
        d_theta=d_theta,
        d_zi=matrix(zi_logits, by_zi, out[1]),
        groups=groups,
        chunks=chunks,
        per_cell=per_cell,
        grouped=grouped,
    )
