"""The first layer on counts and row sums in torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..counts import Counts

dense_linear = F.linear


def row_sums(x: Counts) -> Tensor:
    """Total of each cell, (N, 1), in float64 where the counts are and float32 elsewhere."""
    counts = x.values if x.dense is None else x.dense
    assert counts is not None
    counts = counts.to(counts.dtype if counts.dtype == torch.float64 else torch.float32)
    if x.dense is not None:
        return counts.sum(dim=1, keepdim=True)
    row, _ = x.stored()
    return counts.new_zeros((x.shape[0], 1)).index_add_(0, row, counts[:, None])


def linear_forward(x: Counts, weight: Tensor, bias: Tensor | None, log1p: bool) -> Tensor:
    """``[log1p](x) @ weight.T + bias`` for CSR x: weighted sums of the weight's columns."""
    assert x.col is not None
    assert x.values is not None
    values = x.values.to(weight.dtype)
    out = F.embedding_bag(
        x.col,
        weight.t().contiguous(),
        x.crow,
        mode="sum",
        per_sample_weights=torch.log1p(values) if log1p else values,
        include_last_offset=True,
    )
    return out if bias is None else out + bias


def linear_weight_grad(grad: Tensor, x: Counts, log1p: bool, out: Tensor | None = None) -> Tensor:
    """Gradient by the weight (H, G), in `out` where that is given.

    One dense product beats scattering on the CPUs tried.
    """
    dense = x.to_dense(grad.dtype)
    return torch.mm(grad.t(), torch.log1p(dense) if log1p else dense, out=out)
