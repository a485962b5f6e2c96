"""ZINB, NB and Poisson negative log-likelihood from decoder logits, as one Triton kernel.

    log mu = (s - max_g s) + (l - log sum_g exp(s - max_g s))
    nll_n  = -sum_g log p(x_ng | mu_ng, theta_g, pi_ng)
    d nll_n / d s_ng = D_ng - softmax(s)_ng S_n,    D = d(-log p)/d log mu,    S_n = sum_g D_ng

A program takes some cells, one after the other, and goes through the genes of each: for the
statistics of its logits; for the sweep, which has no branch, computes all gradients but what the
gamma function adds to counts above 1, and lists these; through two lists of them, of the counts
that take a product and of those that take the saddle-point form; and for the gradient by s, where
S is known. D of one cell and
the sum of the gradients by theta over the program's cells lie in scratch memory that is small
enough to stay in the second-level cache. All sums have one order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import math_gpu as sp
from ..counts import Counts
from ..gather.gpu import densify
from ..launching import ceil_div, next_power_of_2
from ..parameters import Parameters
from .gpu_entry import (
    LOG_MU_MAX,
    LOG_THETA_MAX,
    POISSON,
    ZINB,
    bounded_count,
    entry,
    family_of,
    is_large,
    saddle_dispersion_grad,
    saddle_nll,
    saturate,
    small_harmonic,
    small_nll,
)
from .reference import Grads

WARP = tl.constexpr(128)  # genes per warp and pass: four for each thread
LANES = tl.constexpr(32)
PROGRAMS = 1024  # at most: as many as an H100 holds at once, about; each needs scratch memory


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
def bounded(log_mu):
    """Log mu within its bound; -inf past the last gene, where every result comes out as 0."""
    if sp.INTERPRETED:  # 0 times -inf, in a branch not taken, is a warning there
        log_mu = sp.at_least(log_mu, -1e37)
    return sp.at_most(log_mu, LOG_MU_MAX)


@triton.jit
def genes_of(start, WARPS: tl.constexpr):
    """Genes of one pass: WARP successive ones for each warp."""
    warp = tl.arange(0, WARPS)[:, None]
    return start + warp * WARP + tl.arange(0, WARP)[None, :]


@triton.jit
def total_of(tile):
    """Sum over the program, within warps first."""
    return tl.sum(tl.sum(tile, axis=1), axis=0)


@triton.jit
def row_statistics(s_row, G, WARPS: tl.constexpr):
    """max s, and log sum exp of what lies below it."""
    top = tl.full((WARPS, WARP), -float("inf"), tl.float32)
    for start in range(0, G, WARPS * WARP):
        g = genes_of(start, WARPS)
        top = tl.maximum(top, load(s_row, g, g < G))
    shift = tl.max(tl.max(top, axis=1), axis=0)
    total = tl.zeros((WARPS, WARP), tl.float32)
    for start in range(0, G, WARPS * WARP):
        g = genes_of(start, WARPS)
        total += sp.exp(load(s_row, g, g < G) - shift)
    total = total_of(total)
    return shift, tl.where(total == total, sp.log(total), total)


@triton.jit
def sweep(
    x_row, s_row, r_row, pi_row, dpi_row, column_ptr, slope_ptr, list_ptr,
    shift, offset, grad, first, G, SLOTS,
    FAMILY: tl.constexpr, PER_CELL: tl.constexpr, WANT_S: tl.constexpr, WANT_THETA: tl.constexpr,
    WANT_PI: tl.constexpr, WARPS: tl.constexpr,
):  # fmt: skip
    """All genes of one cell: sums of -log p and of D, and the lengths of the warps' lists.

    Writes D, the gradient by pi, and the column of gradients by r, to which all but the `first`
    cell of a program add. Lists have the first of every four genes that a thread has here if one
    of them has a count above 1, or a fractional one.
    """
    warp = tl.arange(0, WARPS)[:, None]
    nll = tl.zeros((WARPS, WARP), tl.float32)
    slope = tl.zeros((WARPS, WARP), tl.float32)
    fours = tl.zeros((WARPS, 1), tl.int32)
    for start in range(0, G, WARPS * WARP):
        g = genes_of(start, WARPS)
        inside = g < G
        x = bounded_count(tl.load(x_row + g, mask=inside, other=0))
        large = is_large(x)
        above_one = tl.reshape(((x > 1.0) | large).to(tl.int32), (WARPS, LANES, 4))
        four = start + warp * WARP + tl.arange(0, LANES)[None, :] * 4
        wanted = tl.max(above_one, axis=2)
        to = fours + tl.cumsum(wanted, axis=1)
        tl.store(list_ptr + warp * SLOTS + (to - 1), four, mask=wanted > 0)
        fours += tl.sum(wanted, axis=1, keep_dims=True)
        log_mu = bounded((load(s_row, g, inside) - shift) + offset)
        r, theta, pi = log_mu, log_mu, log_mu
        if FAMILY != POISSON:
            r, theta = load_theta(r_row, g, inside)
        if FAMILY == ZINB:
            pi = load(pi_row, g, inside)
        value, by_log_mu, by_r, by_pi = entry(x, large, log_mu, r, theta, pi, FAMILY)
        nll += value  # both are 0 past the last gene, where log mu and pi are -inf
        slope += by_log_mu
        if WANT_S:
            tl.store(slope_ptr + g, by_log_mu, mask=inside)
        if WANT_PI:
            tl.store(dpi_row + g, grad * by_pi, mask=inside)
        if WANT_THETA:
            by_r = tl.where(large, 0.0, grad * by_r)
            if not PER_CELL:
                by_r += tl.load(column_ptr + g, mask=inside & (first == 0), other=0.0)
            tl.store(column_ptr + g, by_r, mask=inside)
    return nll, slope, fours


@triton.jit
def part_counts(x_row, list_ptr, gene_ptr, fours, G, SLOTS, WARPS: tl.constexpr):
    """Genes with counts above 1 of each warp, and how many have small ones and large ones.

    Of a warp's 4 SLOTS places, genes with whole counts from 2 to 7 have those from the first one
    on, the others those from the last one back.
    """
    small = tl.zeros((WARPS, 1), tl.int32)
    large = tl.zeros((WARPS, 1), tl.int32)
    warp = tl.arange(0, WARPS)[:, None]
    lane = tl.arange(0, LANES)[None, :]
    for start in range(0, tl.max(tl.max(fours, axis=1), axis=0), LANES // 4):
        place = start + lane // 4
        here = place < fours
        g = tl.load(list_ptr + warp * SLOTS + place, mask=here, other=0) + lane % 4
        x = bounded_count(tl.load(x_row + g, mask=here & (g < G), other=0))
        is_far = is_large(x)
        # both numbers, of at most 32 each, in one
        kind = tl.where(is_far, 256, (x > 1.0).to(tl.int32))
        to = tl.cumsum(kind, axis=1)
        to = tl.where(is_far, 4 * SLOTS - large - (to >> 8), small + (to & 255) - 1)
        tl.store(gene_ptr + warp * (4 * SLOTS) + to, g, mask=kind > 0)
        both = tl.sum(kind, axis=1, keep_dims=True)
        small += both & 255
        large += both >> 8
    return small, large


@triton.jit
def small_counts(
    x_row, r_row, column_ptr, gene_ptr, number, grad, SLOTS,
    FAMILY: tl.constexpr, WANT_THETA: tl.constexpr, WARPS: tl.constexpr,
):  # fmt: skip
    """What the gamma function adds for whole counts from 2 to 7: a sum, and into the column."""
    nll = tl.zeros((WARPS, LANES), tl.float32)
    gene_ptr += tl.arange(0, WARPS)[:, None] * (4 * SLOTS)
    for start in range(0, tl.max(tl.max(number, axis=1), axis=0), LANES):
        place = start + tl.arange(0, LANES)[None, :]
        here = place < number
        g = tl.load(gene_ptr + place, mask=here, other=0)
        x = tl.load(x_row + g, mask=here, other=0).to(tl.float32)
        theta = x
        if FAMILY != POISSON:
            _, theta = load_theta(r_row, g, here)
        nll += tl.where(here, small_nll(x, theta, FAMILY), 0.0)
        if WANT_THETA:
            so_far = tl.load(column_ptr + g, mask=here, other=0.0)
            by_r = grad * small_harmonic(x, theta)
            tl.store(column_ptr + g, so_far + by_r, mask=here)
    return nll


@triton.jit
def large_counts(
    x_row, s_row, r_row, column_ptr, gene_ptr, number, shift, offset, grad, SLOTS,
    FAMILY: tl.constexpr, WANT_THETA: tl.constexpr, WARPS: tl.constexpr,
):  # fmt: skip
    """-log p of the listed counts but for pi, and NaN for D where one is infinite."""
    nll = tl.zeros((WARPS, LANES), tl.float32)
    slope = tl.zeros((WARPS, LANES), tl.float32)
    gene_ptr += tl.arange(0, WARPS)[:, None] * (4 * SLOTS)
    for start in range(0, tl.max(tl.max(number, axis=1), axis=0), LANES):
        place = start + tl.arange(0, LANES)[None, :]
        here = place < number
        g = tl.load(gene_ptr + (4 * SLOTS - 1 - place), mask=here, other=0)
        given = tl.load(x_row + g, mask=here, other=0)
        x = bounded_count(given)
        log_mu = bounded((load(s_row, g, here) - shift) + offset)
        r, theta = log_mu, log_mu
        if FAMILY != POISSON:
            r, theta = load_theta(r_row, g, here)
        nll += tl.where(here, saddle_nll(x, given, log_mu, r, theta, FAMILY), 0.0)
        slope += tl.where(here & (given.to(tl.float32) == float("inf")), float("nan"), 0.0)
        if WANT_THETA:
            by_r = grad * saddle_dispersion_grad(x, given, log_mu, r, theta)
            by_r += tl.load(column_ptr + g, mask=here, other=0.0)
            tl.store(column_ptr + g, by_r, mask=here)
    return nll, slope


@triton.jit
def through_softmax(
    s_row, ds_row, slope_ptr, shift, log_sum, slope, grad, G, WARPS: tl.constexpr
):  # fmt: skip
    """Gradient by the scale logits of one cell, from D and its sum."""
    for start in range(0, G, WARPS * WARP):
        g = genes_of(start, WARPS)
        inside = g < G
        softmax = sp.exp((load(s_row, g, inside) - shift) - log_sum)
        by_log_mu = tl.load(slope_ptr + g, mask=inside, other=0.0)
        tl.store(ds_row + g, grad * (by_log_mu - softmax * slope), mask=inside)


@triton.jit
def nll_kernel(
    x_ptr, s_ptr, l_ptr, r_ptr, pi_ptr, grad_ptr, order_ptr, segment_ptr, redo_ptr,
    nll_ptr, ds_ptr, dl_ptr, dr_ptr, dpi_ptr, scratch_ptr, list_ptr,
    N, G, x_stride, s_stride, r_stride, pi_stride, grad_stride, ds_stride, dpi_stride,
    chunks, SLOTS,
    FAMILY: tl.constexpr, PER_CELL: tl.constexpr, GROUPED: tl.constexpr,
    WANT_S: tl.constexpr, WANT_LIBRARY: tl.constexpr, WANT_THETA: tl.constexpr,
    WANT_PI: tl.constexpr, AGAIN: tl.constexpr, WARPS: tl.constexpr,
):  # fmt: skip
    """A chunk of the cells, or of one group's cells: likelihood and gradients."""
    program = tl.program_id(0).to(tl.int64)
    group = program // chunks
    chunk = program % chunks
    first = tl.zeros((), tl.int64)
    last = first + N
    if GROUPED:
        first += tl.load(segment_ptr + group)
        last = tl.load(segment_ptr + group + 1)
    length = tl.cdiv(last - first, chunks)
    first += chunk * length
    cells = tl.maximum(tl.minimum(length, last - first), 0)
    if AGAIN:  # nothing to do unless another upstream gradient came than was expected
        cells = tl.where(tl.load(redo_ptr) == 0, 0, cells)
    slope_ptr = scratch_ptr + program * G
    list_ptr += program * (5 * WARPS * SLOTS)
    gene_ptr = list_ptr + WARPS * SLOTS
    for i in range(0, cells):
        row = first + i
        if GROUPED:
            row = tl.load(order_ptr + row)
        x_row = x_ptr + row * x_stride
        s_row = s_ptr + row * s_stride
        r_row = r_ptr + (row if PER_CELL else group) * r_stride
        dpi_row = dpi_ptr + row * dpi_stride
        column_ptr = dr_ptr + (row if PER_CELL else program) * G
        grad = tl.load(grad_ptr + row * grad_stride).to(tl.float32)
        shift, log_sum = row_statistics(s_row, G, WARPS)
        # below infinity, which would be NaN past the last gene
        offset = sp.at_most(tl.load(l_ptr + row).to(tl.float32) - log_sum, 3e38)
        nll, slope, fours = sweep(
            x_row, s_row, r_row, pi_ptr + row * pi_stride, dpi_row, column_ptr, slope_ptr,
            list_ptr, shift, offset, grad, i == 0, G, SLOTS,
            FAMILY, PER_CELL, WANT_S, WANT_THETA, WANT_PI, WARPS,
        )  # fmt: skip
        nll, slope = total_of(nll), total_of(slope)
        tl.debug_barrier()  # the lists and the column of all threads before they are read
        small, large = part_counts(x_row, list_ptr, gene_ptr, fours, G, SLOTS, WARPS)
        tl.debug_barrier()
        of_small = small_counts(
            x_row, r_row, column_ptr, gene_ptr, small, grad, SLOTS, FAMILY, WANT_THETA, WARPS
        )
        nll += total_of(of_small)
        of_large, not_finite = large_counts(
            x_row, s_row, r_row, column_ptr, gene_ptr, large, shift, offset, grad, SLOTS,
            FAMILY, WANT_THETA, WARPS,
        )  # fmt: skip
        nll += total_of(of_large)
        slope += total_of(not_finite)
        tl.store(nll_ptr + row, saturate(nll))
        if WANT_LIBRARY:
            tl.store(dl_ptr + row, grad * slope)
        tl.debug_barrier()  # all is read that the gradient by s may lie in
        if WANT_S:
            through_softmax(
                s_row, ds_ptr + row * ds_stride, slope_ptr, shift, log_sum, slope, grad, G, WARPS
            )


@triton.jit
def compare_kernel(grad_ptr, stride, used_ptr, expected_ptr, redo_ptr, N, BLOCK: tl.constexpr):
    """A single program: whether another upstream gradient came than was used; which comes next."""
    lanes = tl.arange(0, BLOCK).to(tl.int64)
    used = tl.load(used_ptr)
    first = tl.load(grad_ptr).to(tl.float32)
    others = tl.zeros((BLOCK,), tl.int32)
    varied = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, N, BLOCK):
        n = start + lanes
        grad = tl.load(grad_ptr + n * stride, mask=n < N, other=0.0).to(tl.float32)
        others += ((grad != used) & (n < N)).to(tl.int32)
        varied += ((grad != first) & (n < N)).to(tl.int32)
    tl.store(redo_ptr, tl.max(others, axis=0))
    if tl.max(varied, axis=0) == 0:
        tl.store(expected_ptr, first)


# -- launchers ------------------------------------------------------------------------------------


def _rows(t: Tensor | None, like: Tensor) -> tuple[Tensor, int]:
    """A matrix with unit inner stride, and its row stride; a stand-in where there is none."""
    if t is None:
        return like, 0
    if t.stride(-1) != 1 and t.shape[-1] > 1:
        t = t.contiguous()
    return t, t.stride(0) if t.dim() == 2 else 0


def warps_of(cells: int, genes: int) -> int:
    """Warps of a program: with few cells each row wants many; long rows stay in cache then."""
    if genes > 16384:
        return 16
    return 4 if cells >= PROGRAMS and genes <= 4096 else 8


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


def _memory(
    x: Counts,
    p: Parameters,
    needs: tuple[bool, bool, bool, bool],
    out: tuple[Tensor | None, Tensor | None],
) -> Memory:
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


def _shares_memory(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def _dense(x: Counts, scale_logits: Tensor, d_scale: Tensor | None) -> Tensor:
    """The counts as a matrix; CSR ones in the memory of the gradient by s where it is free."""
    free = d_scale is not None and d_scale.dtype == torch.float32 and d_scale.is_contiguous()
    if x.dense is not None or d_scale is None or not free or _shares_memory(d_scale, scale_logits):
        return densify(x)
    return densify(x, out=d_scale)


def _launch(
    x: Counts, p: Parameters, m: Memory, grad: Tensor | None, redo: Tensor | None = None
) -> None:
    """Run the kernel into `m`, for the upstream gradient `grad`, one number or one of each cell."""
    scale_logits, log_library, log_theta, zi_logits, theta_index = p
    n, genes = x.shape
    if n == 0:
        return
    nll = m.nll
    warps = warps_of(n, genes)
    programs, slots = m.groups * m.chunks, 32 * ceil_div(genes, 128 * warps)
    order = segments = nll
    if theta_index is not None:
        ordered, order = torch.sort(theta_index, stable=True)
        segments = torch.searchsorted(ordered, torch.arange(m.groups + 1, device=nll.device))
    counts, x_stride = _rows(_dense(x, scale_logits, m.d_scale), nll)
    s, s_stride = _rows(scale_logits, nll)
    r, r_stride = _rows(log_theta, nll)
    pi, pi_stride = _rows(zi_logits, nll)
    ds, ds_stride = (nll, 0) if m.d_scale is None else (m.d_scale, m.d_scale.stride(0))
    dpi, dpi_stride = (nll, 0) if m.d_zi is None else (m.d_zi, m.d_zi.stride(0))
    scratch = nll if m.d_scale is None else nll.new_empty(programs, genes)
    lists = torch.empty(programs, 5 * warps * slots, dtype=torch.int32, device=nll.device)
    nll_kernel[(programs,)](
        counts, s, log_library.contiguous(), r, pi,
        nll if grad is None else grad, order, segments, nll if redo is None else redo,
        nll, ds, nll if m.d_library is None else m.d_library,
        nll if m.d_theta is None else m.d_theta, dpi, scratch, lists,
        n, genes, x_stride, s_stride, r_stride, pi_stride,
        0 if grad is None or grad.numel() == 1 else grad.stride(0), ds_stride, dpi_stride,
        m.chunks, slots,
        FAMILY=family_of(log_theta, zi_logits),
        PER_CELL=m.per_cell,
        GROUPED=m.grouped,
        WANT_S=m.d_scale is not None,
        WANT_LIBRARY=m.d_library is not None,
        WANT_THETA=m.d_theta is not None,
        WANT_PI=m.d_zi is not None,
        AGAIN=redo is not None,
        WARPS=warps,
        num_warps=warps,
        maxnreg=None if warps == 4 else 128,  # left free, ptxas spills with a dispersion per cell
        enable_fp_fusion=True,  # errors and instructions are those of fused code
    )  # fmt: skip


NOTHING = (False, False, False, False)


def nll_forward(x: Counts, p: Parameters) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood per cell (N,), and nothing (N, 0) that backward needs."""
    memory = _memory(x, p, NOTHING, (None, None))
    _launch(x, p, memory, None)
    return memory.nll, memory.nll.new_empty(x.shape[0], 0)


def nll_and_gradients(
    grad: Tensor,
    x: Counts,
    p: Parameters,
    needs: tuple[bool, bool, bool, bool],
    out: tuple[Tensor | None, Tensor | None] = (None, None),
) -> tuple[Tensor, Grads]:
    """Negative log-likelihood per cell and its gradients for `grad`, as in ``reference.py``."""
    memory = _memory(x, p, needs, out)
    _launch(x, p, memory, grad)
    return memory.nll, memory.grads()


def nll_backward(
    grad: Tensor,
    x: Counts,
    p: Parameters,
    stats: Tensor,
    needs: tuple[bool, bool, bool, bool],
) -> Grads:
    """Gradients by scale logits, log library, log theta and zi logits, where `needs` says so."""
    return nll_and_gradients(grad, x, p, needs)[1]


class Early(NamedTuple):
    """Gradients for the upstream gradient `used` in every cell.

    Nothing of it is read on the host. `expected` is what the next call uses.
    """

    memory: Memory
    used: Tensor
    expected: Tensor


_expected: dict[tuple[torch.device, int], Tensor] = {}  # what came last, by number of cells


def nll_with_gradients(
    x: Counts, p: Parameters, needs: tuple[bool, bool, bool, bool]
) -> tuple[Tensor, Early | None]:
    """Negative log-likelihood per cell, and gradients that `finish` corrects where it must.

    None for CSR counts: they would have to be kept as a matrix.
    """
    n, key = x.shape[0], (p.scale_logits.device, x.shape[0])
    if n == 0 or x.dense is None:
        return nll_forward(x, p)[0], None
    if key not in _expected:
        if len(_expected) >= 64:
            _expected.clear()
        _expected[key] = torch.ones(1, dtype=torch.float32, device=p.scale_logits.device)
    expected = _expected[key]
    used = expected.clone()
    memory = _memory(x, p, needs, (None, None))
    _launch(x, p, memory, used)
    return memory.nll, Early(memory, used, expected)


def finish(early: Early, grad: Tensor, x: Counts, p: Parameters) -> Grads:
    """The gradients for `grad`, computed again where it is not what they were made for.

    Whether it is, the device finds out: the host launches the same kernels in either case.
    """
    n = grad.shape[0]
    redo = torch.empty(1, dtype=torch.int32, device=grad.device)
    compare_kernel[(1,)](
        grad, grad.stride(0), early.used, early.expected, redo, n,
        BLOCK=min(1024, next_power_of_2(n)), enable_fp_fusion=True,
    )  # fmt: skip
    _launch(x, p, early.memory, grad, redo)
    return early.memory.grads()
