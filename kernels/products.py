"""The three products of a dense layer, into memory that is there; here by torch, on any device."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Products(NamedTuple):
    """Who multiplies, for x (N, H), a weight (G, H), a bias (G,) and an upstream gradient (N, G).

    Attributes
    ----------
    layer
        ``layer(x, weight, bias, out)``: x @ weight.T + bias, (N, G); `bias` may be None.
    input_gradient
        ``input_gradient(grad, weight, out, add)``: grad @ weight, (N, H).
    weight_gradient
        ``weight_gradient(grad, x, out, bias_out, add)``: grad.T @ x, (G, H), and the column sums
        of grad in `bias_out` (G,) unless that is None.
    rounds
        ``rounds(dtype)``: whether x, weight and bias may be float32 beside an (N, G) matrix of
        this dtype, to which they are rounded as they are read. Elsewhere all have one dtype.

    Results are written to the memory given as `out`, or are added to what is there with `add`.
    """

    layer: Callable[[Tensor, Tensor, Tensor | None, Tensor], None]
    input_gradient: Callable[[Tensor, Tensor, Tensor, bool], None]
    weight_gradient: Callable[[Tensor, Tensor, Tensor, Tensor | None, bool], None]
    rounds: Callable[[torch.dtype], bool]

    def factor(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        """Return x, a weight or a bias as it is given beside an (N, G) matrix of `dtype`."""
        return t if t.dtype == torch.float32 and self.rounds(dtype) else t.to(dtype)


def _layer(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    x, weight = x.to(out.dtype), weight.to(out.dtype)
    if bias is None:
        torch.mm(x, weight.t(), out=out)
    else:
        torch.addmm(bias.to(out.dtype), x, weight.t(), out=out)


def _input_gradient(grad: Tensor, weight: Tensor, out: Tensor, add: bool) -> None:
    weight = weight.to(grad.dtype)
    if out.dtype != grad.dtype:  # half precision, added up in float32
        product = grad @ weight
        out.copy_(out + product if add else product)
    elif add:
        out.addmm_(grad, weight)
    else:
        torch.mm(grad, weight, out=out)


def _weight_gradient(
    grad: Tensor, x: Tensor, out: Tensor, bias_out: Tensor | None, add: bool
) -> None:
    _input_gradient(grad.t(), x, out, add)
    if bias_out is None:
        return
    if add:
        bias_out += column_sums(grad, bias_out.dtype)
    elif grad.is_cpu and grad.dtype != bias_out.dtype:
        bias_out.copy_(column_sums(grad, bias_out.dtype))
    else:
        torch.sum(grad, 0, dtype=bias_out.dtype, out=bias_out)


def column_sums(grad: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum of every column, taken in `dtype`."""
    if grad.dtype == dtype or not grad.is_cpu or not len(grad):
        return grad.sum(dim=0, dtype=dtype)
    few = [rows.sum(dim=0, dtype=dtype) for rows in grad.split(16)]  # torch converts all it sums
    return torch.stack(few).sum(dim=0)


def _rounds(dtype: torch.dtype) -> bool:
    return False


TORCH = Products(_layer, _input_gradient, _weight_gradient, _rounds)
