"""The likelihood from logits by libfastvae_cpu, in float32.

Gradients are computed along with the value where they will be wanted, for the upstream gradient
seen last: in training it is the same at each step. Where it turns out another one they are
computed again, by the same instructions, so that a result never depends on what ran before.
"""

from __future__ import annotations

import ctypes
import functools
from typing import NamedTuple

import torch
from torch import Tensor

from .entries import Counts
from .native import NllCall, address, counts_argument, library, matrix, threads_for

BLOCKS = 64  # partial sums of the dispersion's gradient, at most (and one per group more)
BLOCK_ROWS = 8  # cells in one, at least

Grads = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]


@functools.lru_cache(maxsize=64)
def _even_blocks(n: int) -> tuple[Tensor, Tensor]:
    """Where blocks of equal size begin, and the one group that all belong to."""
    rows = max(BLOCK_ROWS, -(-n // BLOCKS))
    start = torch.tensor([*range(0, n, rows), n])
    return start, torch.tensor([0, len(start) - 1])


def _grouped_blocks(theta_index: Tensor, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cells in the order of their row of log theta, blocks of them, and each group's blocks."""
    order = torch.argsort(theta_index, stable=True)
    n, size = len(order), torch.bincount(theta_index, minlength=groups)
    rows = max(BLOCK_ROWS, -(-n // BLOCKS))
    end = size.cumsum(0)
    starts = [torch.arange(int(e - s), int(e), rows) for s, e in zip(size, end, strict=True)]
    first = torch.tensor([0, *(len(s) for s in starts)]).cumsum(0)
    return order, torch.cat([*starts, torch.tensor([n])]), first


def _run(
    x: Counts,
    scale_logits: Tensor,
    log_library: Tensor,
    log_theta: Tensor | None,
    zi_logits: Tensor | None,
    theta_index: Tensor | None,
    grad: Tensor | None = None,
    want_theta: bool = False,
) -> tuple[Tensor, Grads]:
    """Value and, with an upstream gradient, the gradients by everything."""
    n, g = x.shape
    counts, scale = counts_argument(x), matrix(scale_logits)
    log_library = log_library.detach().float().reshape(n).contiguous()
    theta = None if log_theta is None else matrix(log_theta)
    zi = None if zi_logits is None else matrix(zi_logits)
    per_cell = theta is not None and theta.dim() == 2 and theta_index is None
    order = None
    start, group = _even_blocks(n)
    if theta_index is not None and theta is not None:
        theta_index = theta_index.contiguous()
        order, start, group = _grouped_blocks(theta_index, theta.shape[0])
    threads = min(threads_for(n * g), max(1, len(start) - 1))
    nll = scale.new_empty(n)
    d_scale = d_library = d_theta = blocks = d_zi = None
    if grad is not None:
        grad = grad.detach().float().contiguous()
        d_scale, d_library = scale.new_empty(n, g), scale.new_empty(n, 1)
        d_zi = None if zi is None else scale.new_empty(n, g)
        want_theta = want_theta and theta is not None
        if want_theta:
            blocks = scale.new_empty(n if per_cell else len(start) - 1, g)
    workspace = scale.new_empty(threads * library.fastvae_nll_workspace(g))
    call = NllCall(
        n=n,
        g=g,
        family=0 if theta is None else 1 if zi is None else 2,
        threads=threads,
        x=counts.argument,
        scale_logits=address(scale),
        scale_stride=scale.stride(0),
        log_library=address(log_library),
        log_theta=address(theta),
        theta_stride=0 if theta is None or theta.dim() == 1 else theta.stride(0),
        theta_index=address(theta_index) if theta is not None else None,
        theta_per_cell=per_cell,
        want_theta=want_theta,
        zi_logits=address(zi),
        zi_stride=0 if zi is None else zi.stride(0),
        order=address(order),
        start=address(start),
        blocks=len(start) - 1,
        nll=address(nll),
        grad=address(grad),
        d_scale=address(d_scale),
        d_library=address(d_library),
        d_theta=address(blocks),
        d_zi=address(d_zi),
        workspace=address(workspace),
    )
    library.fastvae_nll(ctypes.byref(call))
    if blocks is not None and theta is not None:
        d_theta = blocks
        if not per_cell:
            d_theta = torch.empty_like(theta, memory_format=torch.contiguous_format)
            library.fastvae_sum_blocks(
                address(blocks), address(group), len(group) - 1, g, address(d_theta)
            )
    return nll, (d_scale, d_library, d_theta, d_zi)


def nll_forward(
    x: Counts,
    scale_logits: Tensor,
    log_library: Tensor,
    log_theta: Tensor | None,
    zi_logits: Tensor | None,
    theta_index: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood per cell (N,), and nothing (N, 0) that backward needs."""
    parameters = scale_logits, log_library, log_theta, zi_logits, theta_index
    nll, _ = _run(x, *parameters)
    return nll, nll.new_empty(len(nll), 0)


def nll_backward(
    grad: Tensor,
    x: Counts,
    scale_logits: Tensor,
    log_library: Tensor,
    log_theta: Tensor | None,
    zi_logits: Tensor | None,
    theta_index: Tensor | None,
    stats: Tensor,
    needs: tuple[bool, bool, bool, bool],
) -> Grads:
    """Gradients by scale logits, log library, log theta and zi logits, where `needs` says so."""
    parameters = scale_logits, log_library, log_theta, zi_logits, theta_index
    return _needed(_run(x, *parameters, grad, needs[2])[1], needs)


def _needed(grads: Grads, needs: tuple[bool, bool, bool, bool]) -> Grads:
    by_scale, by_library, by_theta, by_zi = (
        g if need else None for g, need in zip(grads, needs, strict=True)
    )
    return by_scale, by_library, by_theta, by_zi


class Early(NamedTuple):
    """Gradients for an upstream gradient of `expected` in every cell."""

    expected: float
    grads: Grads


_expected: dict[int, float] = {}  # the upstream gradient seen last, by number of cells


def nll_with_gradients(
    x: Counts,
    scale_logits: Tensor,
    log_library: Tensor,
    log_theta: Tensor | None,
    zi_logits: Tensor | None,
    theta_index: Tensor | None,
    needs: tuple[bool, bool, bool, bool],
) -> tuple[Tensor, Early]:
    """Negative log-likelihood per cell, and gradients that `finish` may use."""
    n = x.shape[0]
    expected = _expected.get(n, 1.0)
    grad = torch.full((n,), expected, device="cpu")
    parameters = scale_logits, log_library, log_theta, zi_logits, theta_index
    nll, grads = _run(x, *parameters, grad, needs[2])
    return nll, Early(expected, _needed(grads, needs))


def finish(early: Early, grad: Tensor) -> Grads | None:
    """Return the gradients if `grad` is what they were made for; remember it if not."""
    n = len(grad)
    if n == 0:
        return early.grads
    grad = grad.float().contiguous()
    if library.fastvae_all_equal(address(grad), n, early.expected):
        return early.grads
    first = grad[0].item()
    if library.fastvae_all_equal(address(grad), n, first):
        if len(_expected) >= 64:
            _expected.clear()
        _expected[n] = first
    return None
