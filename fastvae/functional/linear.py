"""The first layer on counts, layers on dense input, and the library size."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..kernels.backends.reference import REFERENCE
from ..kernels.counts import Counts
from ..kernels.linear.function import CountLinear
from . import arguments as _check
from . import dispatch as _backend


def count_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, log1p: bool = False
) -> Tensor:
    """Apply a linear layer to counts: ``[log1p](x) @ weight.T + bias``.

    With CSR `x` this is a weighted sum of columns of `weight`, or on a GPU a dense product of `x`
    where an estimate says that it is faster; `x` gets no gradient.

    Parameters
    ----------
    x : Tensor, (N, G)
        Counts, dense or CSR.
    weight : Tensor, (H, G)
    bias : Tensor, (H,), optional
    log1p : bool
        Take log(1 + x) first.

    Returns
    -------
    Tensor, (N, H)

    Raises
    ------
    InputError
        If the number of genes differs.
    """
    counts = _check.counts(x)
    if weight.dim() != 2 or weight.shape[1] != counts.shape[1]:
        raise _check.mismatch("weight", weight, ("H", counts.shape[1]), "x")
    if x.layout == torch.sparse_csr:
        _, _, crow, col, values = counts
        parts = counts.shape, crow, col, values
        return CountLinear.apply(_backend.select(values, weight), *parts, weight, bias, log1p)
    dense = x.to(weight.dtype)
    return F.linear(torch.log1p(dense) if log1p else dense, weight, bias)


def dense_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``, x (..., H) and weight (G, H) dense, by the fastest library here."""
    if torch.is_autocast_enabled(x.device.type):
        return F.linear(x, weight, bias)
    return _backend.select(weight).dense_linear(x, weight, bias)


def log_library_size(x: Tensor, floor: float = 1.0) -> Tensor:
    """Natural log of each cell's total count, (N, 1); a total below `floor` counts as that.

    The floor keeps a cell without counts finite; a total beyond the largest float32 (float64 where
    the counts are) counts as that. `x` is dense or CSR.
    """
    return _log_total(_check.counts(x), floor)


def _log_total(counts: Counts, floor: float) -> Tensor:
    plain = counts.values is None or counts.values.dtype != torch.float32
    total = (REFERENCE if plain else _backend.select(counts.values)).row_sums(counts)
    return total.clamp(floor, torch.finfo(total.dtype).max).log()
