"""ZINB, NB and Poisson negative log-likelihood from decoder logits, as one Triton kernel.

    log mu = (s - max_g s) + (l - log sum_g exp(s - max_g s))
    nll_n  = -sum_g log p(x_ng | mu_ng, theta_g, pi_ng)
    d nll_n / d s_ng = D_ng - softmax(s)_ng S_n,    D = d(-log p)/d log mu,    S_n = sum_g D_ng

A program takes some cells, one after the other, and goes through the genes of each: for the
statistics of its logits; for the sweep, which has no branch, computes all gradients but what the
gamma function adds to counts above 1, and lists these; through two lists of them, of the counts
that take a product and of those that take the saddle-point form; and for the gradient by s, where
S is known. D of one cell and the sum of the gradients by theta over the program's cells lie in
scratch memory that is small enough to stay in the second-level cache. All sums have one order.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import constants_gpu as constants
from .. import math_gpu as sp
from ..counts import Counts
from ..gather.gpu import densify
from ..launching import ceil_div, next_power_of_2
from ..parameters import Parameters
from .gpu_entry import (
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
from .gpu_memory import PROGRAMS, Memory, memory_of
from .reference import Grads

WARP = tl.constexpr(128)  # genes per warp and pass: four for each thread
LANES = tl.constexpr(32)
PASSES = 8  # of four genes each: those that a thread has bits for


@triton.jit
def load(pointer, g, inside):
    """Logits in float32, -inf past the last gene."""
    return tl.load(pointer + g, mask=inside, other=-float("inf")).to(tl.float32)


@triton.jit
def bounded_theta(r):
    """Log theta within -LOG_THETA_MAX and LOG_THETA_MAX of the reference."""
    return sp.at_most(sp.at_least(r.to(tl.float32), -60.0), 60.0)


@triton.jit
def load_theta(pointer, g, inside):
    """Log theta within its bounds, and theta."""
    r = bounded_theta(tl.load(pointer + g, mask=inside, other=0.0))
    return r, sp.exp_accurate(r)


@triton.jit
def log2_mean(s, shift, offset):
    """Binary logarithm of mu within its bound; `offset` is that of all logits less `shift`."""
    log2_mu = tl.fma(s - shift, constants.LOG2E, offset)
    if constants.INTERPRETED:  # 0 times -inf, in a branch not taken, is a warning there
        log2_mu = sp.at_least(log2_mu, -1e37)
    return sp.at_most(log2_mu, 60.0 * constants.LOG2E)  # LOG_MU_MAX


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
    x_row, s_row, r_row, pi_row, dpi_row, column_ptr, slope_ptr,
    nll, slope, shift, offset, grad, add, G,
    FAMILY: tl.constexpr, PER_CELL: tl.constexpr, WANT_S: tl.constexpr, WANT_THETA: tl.constexpr,
    WANT_PI: tl.constexpr, WARPS: tl.constexpr,
):  # fmt: skip
    """Some genes of one cell: sums of -log p and of D so far, and which counts are above 1.

    Writes D, the gradient by pi, and the column of gradients by r, or adds to that. Bits tell of
    each thread which of its genes have a count above 1, or a fractional one, and which of these
    take the saddle-point form: four for each pass, those of the last pass lowest.
    """
    above = tl.zeros((WARPS, LANES), tl.int32)
    far = tl.zeros((WARPS, LANES), tl.int32)
    bit = (1 << tl.arange(0, 4))[None, None, :]
    for start in range(0, G, WARPS * WARP):
        g = genes_of(start, WARPS)
        inside = g < G
        x = bounded_count(tl.load(x_row + g, mask=inside, other=0))
        large = is_large(x)
        fours = tl.reshape((x > 1.0) | large, (WARPS, LANES, 4))
        above = (above << 4) | tl.sum(tl.where(fours, bit, 0), axis=2)
        fours = tl.reshape(large, (WARPS, LANES, 4))
        far = (far << 4) | tl.sum(tl.where(fours, bit, 0), axis=2)
        log2_mu = log2_mean(tl.load(s_row + g, mask=inside).to(tl.float32), shift, offset)
        log2_theta, pi, smaller = log2_mu, log2_mu, log2_mu
        if FAMILY != "poisson":
            log2_theta = bounded_theta(tl.load(r_row + g, mask=inside)) * constants.LOG2E
            smaller = sp.at_most(log2_mu, log2_theta)
        if FAMILY == "zinb":
            pi = tl.load(pi_row + g, mask=inside).to(tl.float32)
        smaller = sp.exp2_approx(smaller)
        value, by_log_mu, by_r, by_pi = entry(
            x, large, log2_mu, log2_theta, smaller, pi, FAMILY
        )  # fmt: skip
        nll = tl.where(inside, nll + value, nll)
        slope = tl.where(inside, slope + by_log_mu, slope)
        if WANT_S:
            tl.store(slope_ptr + g, by_log_mu, mask=inside)
        if WANT_PI:
            tl.store(dpi_row + g, grad * by_pi, mask=inside)
        if WANT_THETA:
            if PER_CELL:
                by_r = tl.where(large, 0.0, grad * by_r)
            else:
                so_far = tl.load(column_ptr + g, mask=inside & add, other=0.0)
                by_r = tl.where(large, so_far, tl.fma(grad, by_r, so_far))
            tl.store(column_ptr + g, by_r, mask=inside)
    return nll, slope, above, far


@triton.jit
def list_counts(
    gene_ptr, above, far, small, large, first, G, SLOTS, WARPS: tl.constexpr
):  # fmt: skip
    """Write each warp's genes with counts above 1 behind its `small` and `large` ones, and count.

    Of a warp's 4 SLOTS places, genes with whole counts from 2 to 7 have those from the first one
    on, the others those from the last one back.
    """
    warp = tl.arange(0, WARPS)[:, None]
    last = first + G - 1 - (G - 1) % (WARPS * WARP)
    four = last + warp * WARP + tl.arange(0, LANES)[None, :] * 4
    number = sp.popcount(above)
    of_far = sp.popcount(far)
    both = number - of_far + (of_far << 16)  # both numbers in one
    before = tl.cumsum(both, axis=1) - both
    to_small = small + (before & 0xFFFF)
    to_large = 4 * SLOTS - 1 - large - (before >> 16)
    gene_ptr += warp * (4 * SLOTS)
    for _ in range(0, tl.max(tl.max(number, axis=1), axis=0)):
        rest = above & (above - 1)
        lowest = above ^ rest
        is_far = (far & lowest) != 0
        # the place of a single bit is the exponent of its value
        place = (lowest.to(tl.uint32).to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127
        g = four + (place & 3) - (place >> 2) * (WARPS * WARP)
        tl.store(gene_ptr + tl.where(is_far, to_large, to_small), g, mask=above != 0)
        to_large -= is_far.to(tl.int32)
        to_small += (is_far == 0).to(tl.int32)
        above = rest
    both = tl.sum(both, axis=1, keep_dims=True)
    return small + (both & 0xFFFF), large + (both >> 16)


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
        r, theta = x, x
        if FAMILY != "poisson":
            r, theta = load_theta(r_row, g, here)
        nll += tl.where(here, small_nll(x, r, theta, FAMILY), 0.0)
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
        log_mu = log2_mean(load(s_row, g, here), shift, offset) * constants.LN2
        r, theta = log_mu, log_mu
        if FAMILY != "poisson":
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
    """Gradient by the scale logits of one cell, from D and its sum; `log_sum` to the base 2."""
    for start in range(0, G, WARPS * WARP):
        g = genes_of(start, WARPS)
        inside = g < G
        log2_share = tl.fma(load(s_row, g, inside) - shift, constants.LOG2E, -log_sum)
        softmax = sp.exp2_approx(log2_share)
        by_log_mu = tl.load(slope_ptr + g, mask=inside, other=0.0)
        tl.store(ds_row + g, grad * (by_log_mu - softmax * slope), mask=inside)


@triton.jit
def nll_kernel(
    x_ptr, s_ptr, l_ptr, r_ptr, pi_ptr, grad_ptr, order_ptr, segment_ptr, redo_ptr,
    nll_ptr, ds_ptr, dl_ptr, dr_ptr, dpi_ptr, scratch_ptr, list_ptr,
    N, G, x_stride, s_stride, r_stride, pi_stride, grad_stride, ds_stride, dpi_stride,
    chunks, block, SLOTS,
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
    gene_ptr = list_ptr + program * (4 * WARPS * SLOTS)
    for i in range(0, cells.to(tl.int32)):
        row = first + i
        if GROUPED:
            row = tl.load(order_ptr + row)
        x_row = x_ptr + row * x_stride
        s_row = s_ptr + row * s_stride
        r_row = r_ptr + (row if PER_CELL else group) * r_stride
        pi_row = pi_ptr + row * pi_stride
        dpi_row = dpi_ptr + row * dpi_stride
        column_ptr = dr_ptr + (row if PER_CELL else program) * G
        grad = tl.load(grad_ptr + row * grad_stride).to(tl.float32)
        shift, log_sum = row_statistics(s_row, G, WARPS)
        # finite to the base 2 too: infinity less the infinite distance of a logit would be NaN
        library = sp.at_most(tl.load(l_ptr + row).to(tl.float32) - log_sum, 2e38)
        offset = library * constants.LOG2E
        nll = tl.zeros((WARPS, WARP), tl.float32)
        slope = tl.zeros((WARPS, WARP), tl.float32)
        small = tl.zeros((WARPS, 1), tl.int32)
        large = tl.zeros((WARPS, 1), tl.int32)
        for start in range(0, G, block):
            genes = tl.minimum(block, G - start)
            nll, slope, above, far = sweep(
                x_row + start, s_row + start, r_row + start, pi_row + start, dpi_row + start,
                column_ptr + start, slope_ptr + start,
                nll, slope, shift, offset, grad, i > 0, genes,
                FAMILY, PER_CELL, WANT_S, WANT_THETA, WANT_PI, WARPS,
            )  # fmt: skip
            small, large = list_counts(
                gene_ptr, above, far, small, large, start, genes, SLOTS, WARPS
            )
        tl.debug_barrier()  # the lists and the column of all threads before they are read
        of_small = small_counts(
            x_row, r_row, column_ptr, gene_ptr, small, grad, SLOTS, FAMILY, WANT_THETA, WARPS
        )
        of_large, not_finite = large_counts(
            x_row, s_row, r_row, column_ptr, gene_ptr, large, shift, offset, grad, SLOTS,
            FAMILY, WANT_THETA, WARPS,
        )  # fmt: skip
        # over warps once, as that takes a barrier
        nll = tl.sum(tl.sum(nll, axis=1) + tl.sum(of_small + of_large, axis=1), axis=0)
        slope = tl.sum(tl.sum(slope, axis=1) + tl.sum(not_finite, axis=1), axis=0)
        tl.store(nll_ptr + row, saturate(nll))
        if WANT_LIBRARY:
            tl.store(dl_ptr + row, grad * slope)
        tl.debug_barrier()  # all is read that the gradient by s may lie in
        if WANT_S:
            through_softmax(
                s_row, ds_ptr + row * ds_stride, slope_ptr, shift, log_sum * constants.LOG2E, slope,
                grad, G, WARPS,
            )  # fmt: skip


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


@functools.cache
def _generation(device: torch.device) -> int:
    """Major number of a GPU's compute capability."""
    return torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else 9


def _registers(warps: int, genes: int, counts: Tensor) -> int | None:
    """Registers of a thread at most; None where ptxas finds the number that spills nothing."""
    narrow = genes % 4 == 0 and counts.element_size() <= 4  # other words take more registers
    if warps == 4:
        return 64 if narrow and _generation(counts.device) < 10 else None
    return 128 if narrow or warps == 16 else 224


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
    lists = torch.empty(programs, 4 * warps * slots, dtype=torch.int32, device=nll.device)
    nll_kernel[(programs,)](
        counts, s, log_library.contiguous(), r, pi,
        nll if grad is None else grad, order, segments, nll if redo is None else redo,
        nll, ds, nll if m.d_library is None else m.d_library,
        nll if m.d_theta is None else m.d_theta, dpi, scratch, lists,
        n, genes, x_stride, s_stride, r_stride, pi_stride,
        0 if grad is None or grad.numel() == 1 else grad.stride(0), ds_stride, dpi_stride,
        m.chunks, PASSES * 128 * warps, slots,
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
        maxnreg=_registers(warps, genes, counts),
        enable_fp_fusion=True,  # errors and instructions are those of fused code
    )  # fmt: skip


NOTHING = (False, False, False, False)


def nll_forward(x: Counts, p: Parameters) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood per cell (N,), and nothing (N, 0) that backward needs."""
    memory = memory_of(x, p, NOTHING, (None, None))
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
    memory = memory_of(x, p, needs, out)
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
    memory = memory_of(x, p, needs, (None, None))
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
