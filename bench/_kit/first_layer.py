"""The first layer on sparse counts: every contender, alone and with gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastvae import functional as fn

from .contenders import on_backend

HIDDEN = 128
TF32_LIMIT = 2e-3  # its products keep 10 bits
LINEAR_RESULTS = ["out", "weight", "bias"]


def with_tf32(function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            return function(*args)
        finally:
            torch.set_float32_matmul_precision(before)

    return run


def densify_matmul(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.linear(x.to_dense().log1p_(), weight, bias)


def dense_layer(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.linear(x.log1p(), weight, bias)


def first_layer(name: str) -> Callable[..., Tensor]:
    """log1p(x) @ W.T + b for CSR x, by a backend or by densifying."""
    if name == "densify + matmul":
        return densify_matmul

    def sparse(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return fn.count_linear(x, weight, bias, log1p=True)

    return on_backend(sparse, name)


def with_gradients(
    layer: Callable[..., Tensor], upstream: Tensor, x: Tensor, *leaves: Tensor
) -> tuple[Tensor, ...]:
    out = layer(x, *leaves)
    return (out.detach(), *torch.autograd.grad(out, leaves, upstream.to(out.dtype)))
