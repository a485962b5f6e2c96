"""Checks of the operations' arguments; every message names the argument and what fits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..kernels.counts import Counts


def mismatch(name: str, got: Tensor, expected: tuple[Any, ...], by: str) -> InputError:
    """Return the error for a wrong shape."""
    shape = ", ".join(map(str, expected))
    return InputError(f"{name} has shape {tuple(got.shape)}; expected ({shape}) to fit {by}")


def shape(name: str, got: Tensor, expected: tuple[int, ...], by: str) -> None:
    """Require a dense tensor of the exact shape."""
    if got.layout != torch.strided:
        raise InputError(f"{name} is sparse ({got.layout}); only x may be sparse")
    if tuple(got.shape) != expected:
        raise mismatch(name, got, expected, by)


def counts(x: Tensor) -> Counts:
    """Take apart a dense or CSR matrix of counts."""
    if not isinstance(x, Tensor):
        raise InputError(f"x is a {type(x).__name__}; expected a dense or sparse_csr torch.Tensor")
    if x.dim() != 2:
        raise InputError(f"x has shape {tuple(x.shape)}; expected (cells, genes)")
    if x.dtype.is_complex or x.dtype == torch.bool:
        raise InputError(f"x has dtype {x.dtype}; expected an integer or floating-point dtype")
    n, g = x.shape
    if x.layout == torch.strided:
        return Counts((n, g), x)
    if x.layout == torch.sparse_csr:
        return Counts((n, g), None, x.crow_indices(), x.col_indices(), x.values())
    raise InputError(f"x has layout {x.layout}; make it dense or call x.to_sparse_csr()")


def refuse_gradient(x: Tensor) -> None:
    """Refuse counts that want a gradient: a likelihood has none by its counts."""
    if x.requires_grad and torch.is_grad_enabled():
        raise InputError(
            "x requires a gradient, but the likelihood is not differentiated by its counts; pass "
            "x.detach(), or differentiate the output of inference(x) instead"
        )


def per_cell(name: str, got: Tensor, n: int) -> Tensor:
    """Accept (N, 1) or (N,) and return (N, 1)."""
    if tuple(got.shape) not in ((n, 1), (n,)):
        raise mismatch(name, got, (n, 1), "x")
    return got.reshape(n, 1)


def dispersion(
    log_theta: Tensor | None, theta_index: Tensor | None, n: int, g: int, in_range: bool = False
) -> tuple[Tensor | None, Tensor | None]:
    """Accept the three layouts of log theta; return it with the row index of each cell.

    `in_range` says that the caller has checked the range of `theta_index`.
    """
    if log_theta is None:
        return None, None
    if log_theta.dim() not in (1, 2) or log_theta.shape[-1] != g:
        raise mismatch("log_theta", log_theta, (f"{g},) or (K, {g}) or ({n}, {g}",), "x")
    if theta_index is not None:
        if log_theta.dim() != 2:
            raise InputError(
                f"theta_index was given, but log_theta has shape {tuple(log_theta.shape)}; "
                f"expected a table (K, {g}) with one row per index"
            )
        if theta_index.dtype.is_floating_point or tuple(theta_index.shape) not in ((n,), (n, 1)):
            raise InputError(
                f"theta_index has shape {tuple(theta_index.shape)} and dtype {theta_index.dtype}; "
                f"expected ({n},) integers, one row of log_theta per cell"
            )
        theta_index = theta_index.reshape(n).long().contiguous()
        if not in_range:
            index_range("theta_index", theta_index, log_theta.shape[0], "rows of log_theta")
        return log_theta, theta_index
    if log_theta.dim() == 2 and log_theta.shape[0] != n:
        if log_theta.shape[0] != 1:
            raise InputError(
                f"log_theta has shape {tuple(log_theta.shape)} for {n} cells; give theta_index, "
                "the row of each cell"
            )
        log_theta = log_theta[0]
    return log_theta, None


def index_range(name: str, index: Tensor, size: int, what: str) -> None:
    """Require 0 <= index < size, on the CPU only: elsewhere looking would stall the device."""
    if index.device.type != "cpu" or index.numel() == 0 or torch.compiler.is_compiling():
        return
    low, high = (int(v) for v in torch.aminmax(index))
    if low < 0 or high >= size:
        raise InputError(f"{name} runs from {low} to {high}; there are {size} {what}, from 0")


def broadcast(tensors: Sequence[Tensor]) -> torch.Size:
    """Return the common shape of dense tensors."""
    for t in tensors:
        if t.layout != torch.strided:
            raise InputError(f"an argument has layout {t.layout}; this operation takes dense ones")
    try:
        return torch.broadcast_shapes(*(t.shape for t in tensors))
    except RuntimeError:
        shapes = ", ".join(str(tuple(t.shape)) for t in tensors)
        raise InputError(f"shapes {shapes} of x and its parameters do not broadcast") from None


def expand(name: str, got: Tensor, like: Tensor) -> Tensor:
    """Expand to the shape of another tensor."""
    try:
        return got.to(like.device).expand_as(like)
    except RuntimeError:
        raise mismatch(name, got, tuple(like.shape), "the posterior mean") from None
