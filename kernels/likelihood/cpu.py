"""The likelihood from logits by libfastvae_cpu, in float32.

Gradients are computed along with the value where they will be wanted, for the upstream gradient
seen last: in training it is the same at each step. Where it turns out another one they are
computed again, by the same instructions, so that a result never depends on what ran before.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..counts import Counts
from ..lent import lent
from ..native import NllCall, counts_argument, library, matrix, threads_for, vector
from ..parameters import Parameters
from .reference import Grads, laid_into

BLOCKS = 64  # partial sums of the dispersion's gradient, at most (and one per group more)
BLOCK_ROWS = 8  # cells in one, at least


class Blocks(NamedTuple):
    """How cells fall into the blocks that the dispersion's gradient is summed in.

    Never by the number of threads, so that sums do not depend on it.
    """

    n_blocks: int
    start: Tensor  # (n_blocks + 1,) where each begins in `order`
    order: Tensor | None  # (N,) cells; None for 0..N-1
    n_groups: int  # K
    groups: Tensor  # (K + 1,) where the blocks of each row of log theta begin


@functools.lru_cache(maxsize=64)
def even_blocks(n: int) -> Blocks:
    """Blocks of cells that share one row of log theta, or have one each."""
    start = [*range(0, n, _block_rows(n)), n]
    count = len(start) - 1
    return Blocks(count, torch.tensor(start), None, 1, torch.tensor([0, count]))


def grouped_blocks(theta_index: Tensor, groups: int) -> Blocks:
    """Blocks of cells of one group each."""
    index = theta_index.numpy()
    order, rows = np.argsort(index, kind="stable"), _block_rows(len(index))
    ends = np.cumsum(np.bincount(index, minlength=groups)).tolist()
    starts = [list(range(begin, end, rows)) for begin, end in itertools.pairwise([0, *ends])]
    first = np.cumsum([0, *map(len, starts)])
    start = torch.tensor([*itertools.chain.from_iterable(starts), len(index)])
    count, by_index = len(start) - 1, torch.from_numpy(order)
    return Blocks(count, start, by_index, groups, torch.from_numpy(first))


def _block_rows(n: int) -> int:
    return max(BLOCK_ROWS, -(-n // BLOCKS))


def _run(
    x: Counts,
    p: Parameters,
    grad: Tensor | None = None,
    want_theta: bool = False,
    in_place: bool = False,
) -> tuple[Tensor, Grads]:
    """Value and, with an upstream gradient, the gradients by everything.

    At a few hundred cells this function takes as long as the kernel, so it does little. With
    `in_place`, gradients take the place of the (N, G) matrices, all float32 or all bfloat16.
    """
    scale_logits, log_library, log_theta, zi_logits, theta_index = p
    n, g = x.shape
    if n == 0:
        nothing = (None if t is None else torch.zeros_like(t) for t in (log_theta, zi_logits))
        of_theta, of_zi = nothing
        none = torch.zeros_like(scale_logits), torch.zeros_like(log_library)
        return scale_logits.new_empty(0, dtype=torch.float32), (*none, of_theta, of_zi)
    rows = _as_they_are if in_place else matrix
    counts, scale = counts_argument(x), rows(scale_logits)
    log_library = vector(log_library)
    blocks = even_blocks(n)
    nll = log_library.new_empty(n)
    call = NllCall(
        n=n, g=g, x=counts.argument, scale_logits=scale.data_ptr(), scale_stride=scale.stride(0)
    )
    call.half = scale.dtype == torch.bfloat16
    call.log_library, call.nll = log_library.data_ptr(), nll.data_ptr()
    d_scale = d_library = d_theta = d_zi = theta = zi = None
    if log_theta is not None:
        per_cell = log_theta.dim() == 2 and theta_index is None
        theta = rows(log_theta) if per_cell else matrix(log_theta)
        call.family, call.log_theta = 1, theta.data_ptr()
        if theta.dim() == 2:
            call.theta_stride = theta.stride(0)
            call.theta_per_cell = per_cell
        if theta_index is not None:
            theta_index = theta_index.contiguous()
            blocks = grouped_blocks(theta_index, len(theta))
            call.theta_index = theta_index.data_ptr()
    if zi_logits is not None:
        zi = rows(zi_logits)
        call.family, call.zi_logits, call.zi_stride = 2, zi.data_ptr(), zi.stride(0)
    call.blocks, call.start = blocks.n_blocks, blocks.start.data_ptr()
    call.groups, call.n_groups = blocks.groups.data_ptr(), blocks.n_groups
    if blocks.order is not None:
        call.order = blocks.order.data_ptr()
    if grad is not None:
        grad = vector(grad)
        d_scale = scale if in_place else lent(n, g)
        d_library = nll.new_empty(n, 1)
        call.grad, call.d_scale = grad.data_ptr(), d_scale.data_ptr()
        call.d_library = d_library.data_ptr()
        if zi is not None:
            d_zi = zi if in_place else lent(n, g)
            call.d_zi = d_zi.data_ptr()
        if theta is not None and want_theta:
            d_theta = theta if in_place and per_cell else theta.new_empty(theta.shape)
            call.want_theta, call.d_theta = True, d_theta.data_ptr()
    call.threads = threads_for(n * g, blocks.n_blocks)
    library.fastvae_nll(ctypes.byref(call))
    return nll, (d_scale, d_library, d_theta, d_zi)


def _as_they_are(t: Tensor) -> Tensor:
    return t


def nll_in_place(
    grad: Tensor | None, x: Counts, p: Parameters, needs: tuple[bool, bool, bool, bool]
) -> tuple[Tensor, Grads]:
    """Value, and gradients in the memory of the logits where `grad` (N,) is given.

    Logits of another type than float32 and bfloat16, which the library does not write, are left
    as they are.
    """
    matrices = [t for t in (p.scale_logits, p.zi_logits) if t is not None]
    if p.log_theta is not None and p.log_theta.dim() == 2 and p.theta_index is None:
        matrices.append(p.log_theta)
    kind = matrices[0].dtype
    in_place = kind in (torch.float32, torch.bfloat16) and all(
        t.dtype == kind and t.is_contiguous() for t in matrices
    )
    nll, grads = _run(x, p, grad, grad is not None and needs[2], in_place)
    return nll, _needed(grads, needs)


def nll_forward(x: Counts, p: Parameters) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood per cell (N,), and nothing (N, 0) that backward needs."""
    nll, _ = _run(x, p)
    return nll, nll.new_empty(nll.shape[0], 0)


def nll_backward(
    grad: Tensor,
    x: Counts,
    p: Parameters,
    stats: Tensor,
    needs: tuple[bool, bool, bool, bool],
) -> Grads:
    """Gradients by scale logits, log library, log theta and zi logits, where `needs` says so."""
    return _needed(_run(x, p, grad, needs[2])[1], needs)


def nll_and_gradients(
    grad: Tensor,
    x: Counts,
    p: Parameters,
    needs: tuple[bool, bool, bool, bool],
    out: tuple[Tensor | None, Tensor | None] = (None, None),
) -> tuple[Tensor, Grads]:
    """Negative log-likelihood per cell and its gradients for `grad`, as in ``reference.py``."""
    nll, grads = _run(x, p, grad, needs[2])
    d_scale, d_library, d_theta, d_zi = _needed(grads, needs)
    return nll, (laid_into(out[0], d_scale), d_library, d_theta, laid_into(out[1], d_zi))


def _needed(grads: Grads, needs: tuple[bool, bool, bool, bool]) -> Grads:
    if needs == (True, True, True, True):
        return grads
    by_scale, by_library, by_theta, by_zi = (
        g if need else None for g, need in zip(grads, needs, strict=True)
    )
    return by_scale, by_library, by_theta, by_zi


class Early(NamedTuple):
    """Gradients for the upstream gradient `expected` in every cell."""

    expected: float
    grads: Grads


_expected: dict[int, tuple[float, Tensor]] = {}  # what came last, by number of cells


def expected_upstream(n: int) -> tuple[float, Tensor]:
    """Return the upstream gradient of N cells seen last, as a number and as (N,)."""
    return _expected.get(n) or _remember(n, 1.0)


def _remember(n: int, upstream: float) -> tuple[float, Tensor]:
    if len(_expected) >= 64:
        _expected.clear()
    _expected[n] = found = upstream, torch.full((n,), upstream, device="cpu")
    return found


def nll_with_gradients(
    x: Counts, p: Parameters, needs: tuple[bool, bool, bool, bool]
) -> tuple[Tensor, Early]:
    """Negative log-likelihood per cell, and gradients that `finish` may use."""
    n = x.shape[0]
    expected, grad = expected_upstream(n)
    nll, grads = _run(x, p, grad, needs[2])
    return nll, Early(expected, _needed(grads, needs))


def finish(early: Early, grad: Tensor, x: Counts, p: Parameters) -> Grads | None:
    """Return the gradients if `grad` is what they were made for."""
    return early.grads if is_expected(early.expected, grad) else None


def is_expected(expected: float, grad: Tensor) -> bool:
    """Whether `grad` (N,) is `expected` in every cell; it is what comes to be expected if not."""
    n, grad = grad.shape[0], vector(grad)
    if library.fastvae_all_equal(grad.data_ptr(), n, expected):
        return True
    first = grad[0].item()
    if library.fastvae_all_equal(grad.data_ptr(), n, first):
        _remember(n, first)
    return False
