"""The three products of a linear layer and its gradients on the CPU, in float32.

torch multiplies float32 matrices by MKL, which on AMD processors keeps to 256-bit instructions;
oneDNN, which torch carries as well, does not. oneDNN is slow where it has to write its result
transposed, so that the gradient by the weight is made as (H, G) and turned over afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

WORTH = 2**22  # multiplications below which oneDNN's call costs more than it saves


class Products(NamedTuple):
    """Products of one library, for x (N, H), a weight (G, H) and an upstream gradient (N, G).

    Attributes
    ----------
    layer
        ``x @ weight.T + bias`` of x, weight and a bias (G,) or None; (N, G).
    input_gradient
        ``grad @ weight`` of grad and weight; (N, H).
    weight_gradient
        ``grad.T @ x`` of grad and x; (G, H).
    """

    layer: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    input_gradient: Callable[[Tensor, Tensor], Tensor]
    weight_gradient: Callable[[Tensor, Tensor], Tensor]


def available() -> bool:
    """Whether this torch has oneDNN's product."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def pays(a: Tensor, b: Tensor, shared: int) -> bool:
    """Whether two matrices that share a side are large enough for oneDNN, and of its kind."""
    return (
        a.dim() == b.dim() == 2
        and a.dtype == b.dtype == torch.float32
        and a.is_contiguous()
        and b.is_contiguous()
        and a.numel() * b.numel() >= WORTH * max(1, shared)
    )


def _product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")


def _layer(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if pays(x, weight, weight.shape[1]):
        return _product(x, weight, bias)
    return F.linear(x, weight, bias)


def _input_gradient(grad: Tensor, weight: Tensor) -> Tensor:
    if pays(grad, weight, weight.shape[0]):
        return _product(grad, weight.t())
    return grad @ weight


def _weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    if pays(grad, x, x.shape[0]):
        return _product(x.t(), grad.t()).t().contiguous()
    return grad.t() @ x


TORCH = Products(F.linear, torch.matmul, lambda grad, x: grad.t() @ x)
ONEDNN = Products(_layer, _input_gradient, _weight_gradient)
