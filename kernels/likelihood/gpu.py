"""ZINB, NB and Poisson negative log-likelihood from decoder logits, as Triton kernels.

    log mu = (s - max_g s) + (l - log sum_g exp(s - max_g s))
    nll_n  = -sum_g log p(x_ng | mu_ng, theta_g, pi_ng)

Forward, one program per cell: the softmax statistics of the row, then the likelihood and
S = sum_g d(-log p)/d log mu in one more pass; nothing of size N x G is written.
Backward, one program per block of genes and chunk of cells: entries are recomputed, gradients by
scale and zero-inflation logits written once, and the gradient by a dispersion that cells share is
summed in registers over the chunk, in a fixed order. Only inputs and the row statistics
(max s, log sum, S) are kept in between.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import math_gpu as sp
from ..counts import Counts
from ..gather.gpu import densify
from ..parameters import Parameters
from .gpu_entry import (
    LOG_MU_MAX,
    LOG_THETA_MAX,
    POISSON,
    ZINB,
    bounded_count,
    entry_grads,
    entry_nll,
    family_of,
    is_large,
    saddle_dispersion_grad,
    saddle_nll,
    saturate,
)
from .reference import Grads, laid_into


@triton.jit
def load(pointer, g, inside):
    """Logits in float32, -inf past the last gene."""
    return tl.load(pointer + g, mask=inside, other=-float("inf")).to(tl.float32)


@triton.jit
def load_theta(pointer, g, inside):
    """Log theta within its bounds, and theta."""
    r = tl.load(pointer + g, mask=inside, other=0.0).to(tl.float32)
    r = sp.at_most(sp.at_least(r, -LOG_THETA_MAX), LOG_THETA_MAX)
    return r, sp.exp_accurate(r)


@triton.jit
def load_offset(pointer, row, log_sum):
    """Log library - log_sum, below infinity, which would be NaN past the last gene."""
    return sp.at_most(tl.load(pointer + row).to(tl.float32) - log_sum, 3e38)


@triton.jit
def bounded(log_mu):
    """Log mu within its bound; -inf past the last gene, where every result comes out as 0."""
    if sp.INTERPRETED:  # 0 times -inf, in a branch not taken, is a warning there
        log_mu = sp.at_least(log_mu, -1e37)
    return sp.at_most(log_mu, LOG_MU_MAX)


@triton.jit
def forward_kernel(
    x_ptr, s_ptr, l_ptr, r_ptr, pi_ptr, index_ptr, nll_ptr, stats_ptr,
    G, x_stride, s_stride, r_stride, pi_stride,
    FAMILY: tl.constexpr, PER_CELL: tl.constexpr, GROUPED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One cell: likelihood and row statistics."""
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, BLOCK)
    s_row = s_ptr + row * s_stride
    top = tl.full((BLOCK,), -float("inf"), tl.float32)
    for start in range(0, G, BLOCK):
        g = start + lanes
        top = tl.maximum(top, load(s_row, g, g < G))
    shift = tl.max(top)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, G, BLOCK):
        g = start + lanes
        s = load(s_row, g, g < G)
        total += sp.exp(s - shift)
    total = tl.sum(total)
    log_sum = tl.where(total == total, sp.log(total), total)
    offset = load_offset(l_ptr, row, log_sum)

    r_row = r_ptr
    if PER_CELL:
        r_row += row * r_stride
    if GROUPED:
        r_row += tl.load(index_ptr + row) * r_stride
    nll = tl.zeros((BLOCK,), tl.float32)
    slope = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, G, BLOCK):
        g = start + lanes
        inside = g < G
        given = tl.load(x_ptr + row * x_stride + g, mask=inside, other=0)
        x = bounded_count(given)
        s = load(s_row, g, inside)
        log_mu = bounded((s - shift) + offset)
        r, theta, pi = log_mu, log_mu, log_mu
        if FAMILY != POISSON:
            r, theta = load_theta(r_row, g, inside)
        if FAMILY == ZINB:
            pi = load(pi_ptr + row * pi_stride, g, inside)
        value, d = entry_nll(x, log_mu, r, theta, pi, FAMILY)
        large = is_large(x)
        if tl.max(large.to(tl.int32)) > 0:
            value = tl.where(large, saddle_nll(x, given, log_mu, r, theta, pi, FAMILY), value)
            d = tl.where(given.to(tl.float32) < float("inf"), d, float("nan"))
        nll += value  # both are 0 past the last gene, where log mu and pi are -inf
        slope += d
    tl.store(nll_ptr + row, saturate(tl.sum(nll)))
    tl.store(stats_ptr + 3 * row, shift)
    tl.store(stats_ptr + 3 * row + 1, log_sum)
    tl.store(stats_ptr + 3 * row + 2, tl.sum(slope))


@triton.jit
def backward_kernel(
    x_ptr, s_ptr, l_ptr, r_ptr, pi_ptr, stats_ptr, grad_ptr, order_ptr, segment_ptr,
    ds_ptr, dr_ptr, dpi_ptr,
    N, G, x_stride, s_stride, r_stride, pi_stride, chunks,
    FAMILY: tl.constexpr, PER_CELL: tl.constexpr, GROUPED: tl.constexpr,
    WANT_S: tl.constexpr, WANT_THETA: tl.constexpr, WANT_PI: tl.constexpr,
    SHARED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of genes for a chunk of the cells, or of one group's cells."""
    g = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = g < G
    group = tl.program_id(1) // chunks
    chunk = tl.program_id(1) % chunks
    first = tl.zeros((), tl.int64)
    last = first + N
    if GROUPED:
        first += tl.load(segment_ptr + group)
        last = tl.load(segment_ptr + group + 1)
    length = tl.cdiv(last - first, chunks)
    first += chunk * length
    cells = tl.minimum(length, tl.maximum(last - first, 0))
    r = tl.zeros((BLOCK,), tl.float32)
    theta = r
    if FAMILY != POISSON and not PER_CELL:
        r, theta = load_theta(r_ptr + group * r_stride, g, inside)
    column = tl.zeros((BLOCK,), tl.float32)
    for i in range(0, cells):
        row = first + i
        if GROUPED:
            row = tl.load(order_ptr + row)
        grad = tl.load(grad_ptr + row).to(tl.float32)
        log_sum = tl.load(stats_ptr + 3 * row + 1)
        offset = load_offset(l_ptr, row, log_sum)
        given = tl.load(x_ptr + row * x_stride + g, mask=inside, other=0)
        x = bounded_count(given)
        s = load(s_ptr + row * s_stride, g, inside)
        below = s - tl.load(stats_ptr + 3 * row)
        log_mu = bounded(below + offset)
        pi = log_mu
        if PER_CELL:
            r, theta = load_theta(r_ptr + row * r_stride, g, inside)
        if FAMILY == ZINB:
            pi = load(pi_ptr + row * pi_stride, g, inside)
        d_mu, d_theta, d_pi = entry_grads(x, log_mu, r, theta, pi, FAMILY, WANT_THETA)
        if SHARED:
            tl.debug_barrier()  # x and the gradient by s share memory: all read before any write
        if WANT_S:
            slope = tl.load(stats_ptr + 3 * row + 2)
            softmax = sp.exp(below - log_sum)
            tl.store(ds_ptr + row * G + g, grad * (d_mu - softmax * slope), mask=inside)
        if WANT_PI:
            tl.store(dpi_ptr + row * G + g, grad * d_pi, mask=inside)
        if WANT_THETA:
            large = is_large(x)
            if tl.max(large.to(tl.int32)) > 0:
                exact = saddle_dispersion_grad(x, given, log_mu, r, theta)
                d_theta = tl.where(large, exact, d_theta)
            if PER_CELL:
                tl.store(dr_ptr + row * G + g, grad * d_theta, mask=inside)
            else:
                column += grad * d_theta
    if WANT_THETA and not PER_CELL:
        tl.store(dr_ptr + tl.program_id(1).to(tl.int64) * G + g, column, mask=inside)


# -- launchers ------------------------------------------------------------------------------------


def _rows(t: Tensor | None, like: Tensor) -> tuple[Tensor, int]:
    """A matrix with unit inner stride, and its row stride; a stand-in where there is none."""
    if t is None:
        return like, 0
    if t.stride(-1) != 1 and t.shape[-1] > 1:
        t = t.contiguous()
    return t, t.stride(0) if t.dim() == 2 else 0


def nll_forward(x: Counts, p: Parameters) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood per cell (N,), and the row statistics (N, 3) backward needs."""
    scale_logits, log_library, log_theta, zi_logits, theta_index = p
    n, genes = x.shape
    nll = torch.empty(n, dtype=torch.float32, device=scale_logits.device)
    stats = torch.empty(n, 3, dtype=torch.float32, device=scale_logits.device)
    if n == 0:
        return nll, stats
    s, s_stride = _rows(scale_logits, nll)
    r, r_stride = _rows(log_theta, nll)
    pi, pi_stride = _rows(zi_logits, nll)
    counts, x_stride = _rows(densify(x), nll)
    grouped = theta_index is not None
    # Few cells want many warps each; with many cells short loops and small tiles pay.
    warps = 8 if n < 1024 else 4
    forward_kernel[(n,)](
        counts, s, log_library.contiguous(), r, pi, theta_index if grouped else nll, nll, stats,
        genes, x_stride, s_stride, r_stride, pi_stride,
        FAMILY=family_of(log_theta, zi_logits),
        PER_CELL=log_theta is not None and log_theta.dim() == 2 and not grouped,
        GROUPED=grouped,
        BLOCK=128 * warps,
        num_warps=warps,
        maxnreg=128,  # two programs of eight warps per multiprocessor; left free, some spill
    )  # fmt: skip
    return nll, stats


def _chunks(cells: int, genes: int, groups: int, block: int) -> int:
    """Chunks of cells: about 1,000 programs, at least 16 cells each."""
    programs = triton.cdiv(genes, block) * groups
    return max(1, min(triton.cdiv(1024, programs), triton.cdiv(cells, 16 * groups)))


def nll_backward(
    grad: Tensor,
    x: Counts,
    p: Parameters,
    stats: Tensor,
    needs: tuple[bool, bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients by scale logits, log library, log theta and zi logits, where `needs` says so."""
    scale_logits, log_library, log_theta, zi_logits, theta_index = p
    by_scale, by_library, by_theta, by_zi = needs
    n, genes = x.shape
    d_library = (grad * stats[:, 2])[:, None] if by_library else None
    device = scale_logits.device
    grouped = theta_index is not None
    per_cell = log_theta is not None and log_theta.dim() == 2 and not grouped
    groups = log_theta.shape[0] if grouped and log_theta is not None else 1
    block, warps = 512, 4
    chunks = _chunks(n, genes, groups, block)
    rows = n if per_cell else groups * chunks
    d_theta = d_scale = d_zi = None
    if by_scale:
        d_scale = torch.empty(n, genes, dtype=scale_logits.dtype, device=device)
    if by_theta:
        d_theta = torch.empty(rows, genes, dtype=torch.float32, device=device)
    if by_zi and zi_logits is not None:
        d_zi = torch.empty(n, genes, dtype=zi_logits.dtype, device=device)
    if n == 0:
        zero = None if log_theta is None or d_theta is None else torch.zeros_like(log_theta)
        return d_scale, d_library, zero, d_zi
    if not (by_scale or by_theta or by_zi):
        return None, d_library, None, None
    order = segments = stats
    if theta_index is not None:
        ordered, order = torch.sort(theta_index, stable=True)
        segments = torch.searchsorted(ordered, torch.arange(groups + 1, device=device))
    # CSR counts are laid out in the gradient's own memory, where each entry is read before the
    # same program overwrites it.
    lend = x.dense is None and d_scale is not None and d_scale.dtype == torch.float32
    counts, x_stride = _rows(densify(x, out=d_scale if lend else None), stats)
    s, s_stride = _rows(scale_logits, stats)
    r, r_stride = _rows(log_theta, stats)
    pi, pi_stride = _rows(zi_logits, stats)
    backward_kernel[(triton.cdiv(genes, block), groups * chunks)](
        counts, s, log_library.contiguous(), r, pi, stats, grad.contiguous(), order, segments,
        stats if d_scale is None else d_scale,
        stats if d_theta is None else d_theta,
        stats if d_zi is None else d_zi,
        n, genes, x_stride, s_stride, r_stride, pi_stride, chunks,
        FAMILY=family_of(log_theta, zi_logits),
        PER_CELL=per_cell,
        GROUPED=grouped,
        WANT_S=by_scale,
        WANT_THETA=by_theta,
        WANT_PI=d_zi is not None,
        SHARED=lend,
        BLOCK=block,
        num_warps=warps,
        maxnreg=168,  # as many as three programs per multiprocessor allow; left free, some spill
    )  # fmt: skip
    if d_theta is not None and not per_cell:
        d_theta = d_theta.view(groups, chunks, genes).sum(dim=1)
        d_theta = d_theta if grouped else d_theta[0]
    return d_scale, d_library, d_theta, d_zi


def nll_and_gradients(
    grad: Tensor,
    x: Counts,
    p: Parameters,
    needs: tuple[bool, bool, bool, bool],
    out: tuple[Tensor | None, Tensor | None] = (None, None),
) -> tuple[Tensor, Grads]:
    """Negative log-likelihood per cell and its gradients for `grad`, as in ``reference.py``."""
    nll, stats = nll_forward(x, p)
    d_scale, d_library, d_theta, d_zi = nll_backward(grad, x, p, stats, needs)
    return nll, (laid_into(out[0], d_scale), d_library, d_theta, laid_into(out[1], d_zi))
