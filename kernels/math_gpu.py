"""Elementary functions for the Triton kernels, in float32, without libdevice.

Each states its instructions and its largest error; README.md has the table. The ``*_approx``
primitives are one special-function instruction on the GPU and their numpy equal in the
interpreter, which has no inline assembly.
"""

from __future__ import annotations

import triton
import triton.language as tl

from . import constants_gpu as constants


@triton.jit
def at_most(x, bound):
    """The smaller of the two; NaN stays: 1 instruction."""
    return tl.minimum(x, bound, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def at_least(x, bound):
    """The larger of the two; NaN stays: 1 instruction."""
    return tl.maximum(x, bound, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def exp2_approx(x):
    """2^x, flushing subnormal results to 0."""
    if constants.INTERPRETED:
        return tl.exp2(x)
    return tl.inline_asm_elementwise(
        "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def exp2_minus_abs(x):
    """2^-|x|; the sign costs no instruction here."""
    if constants.INTERPRETED:
        return exp2_approx(-tl.abs(x))
    return tl.inline_asm_elementwise(
        "{.reg .f32 t; abs.f32 t, $1; neg.f32 t, t; ex2.approx.ftz.f32 $0, t;}",
        "=f,f",
        [x],
        dtype=tl.float32,
        is_pure=True,
        pack=1,
    )


@triton.jit
def log2_approx(x):
    """log2 x for 1/2 < x < 2 within 2^-22.6."""
    if constants.INTERPRETED:
        return tl.log2(x)
    return tl.inline_asm_elementwise(
        "lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def rcp_approx(x):
    """1/x."""
    if constants.INTERPRETED:
        return 1.0 / x
    return tl.inline_asm_elementwise(
        "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def exp(x):
    """e^x with relative error 2e-7 + |x| 6e-8: 2 instructions."""
    return exp2_approx(x * constants.LOG2E)


@triton.jit
def exp_minus(x):
    """e^-x like `exp`; a minus sign in front of its argument would be one more instruction."""
    return exp2_approx(x * -constants.LOG2E)


@triton.jit
def exp_accurate(x):
    """e^x with relative error 2e-7 + |x| 3e-9, for finite x/ln 2: 4 instructions."""
    t = x * constants.LOG2E
    if constants.INTERPRETED:  # triton 3.6 rounds twice there, which leaves no rest
        rest = (x.to(tl.float64) - t.to(tl.float64) * 0.6931471824645996).to(tl.float32)
    else:
        rest = tl.fma(t, -constants.LN2, x)  # what the product was rounded by, and the constants
    y = exp2_approx(t)
    return tl.fma(y, rest, y)


@triton.jit
def atanh_tail(y):
    """(2 atanh(s) - 2 s)/s^3 for y = s^2 <= 1/9."""
    p = tl.fma(y, 0.268514980228, 0.282366198053)
    p = tl.fma(y, p, 0.400075606449)
    return tl.fma(y, p, 0.666666403367)


@triton.jit
def atanh2(s):
    """2 atanh(s) = log((1 + s)/(1 - s)) for |s| <= 1/3: 7 instructions."""
    y = s * s
    p = atanh_tail(y)
    return tl.fma(s * y, p, 2.0 * s)


@triton.jit
def log1p_unit(e):
    """log(1 + e) for 0 <= e <= 1 with relative error 1.4e-7: 9 instructions."""
    p = tl.fma(e, 0.00536481723, -0.0300657656)
    p = tl.fma(e, p, 0.079204495)
    p = tl.fma(e, p, -0.137537991)
    p = tl.fma(e, p, 0.191536536)
    p = tl.fma(e, p, -0.248571634)
    p = tl.fma(e, p, 0.333213226)
    p = tl.fma(e, p, -0.49999648)
    return tl.fma(e * e, p, e)


@triton.jit
def log1p_less_share(e):
    """(log(1 + e) - e/(1 + e))/e^2 for 0 <= e <= 1 with relative error 9e-7: 8 instructions."""
    p = tl.fma(e, 0.0286728665, -0.157946199)
    p = tl.fma(e, p, 0.39967227)
    p = tl.fma(e, p, -0.63951093)
    p = tl.fma(e, p, 0.768369377)
    p = tl.fma(e, p, -0.788400888)
    p = tl.fma(e, p, 0.74891746)
    p = tl.fma(e, p, -0.666626453)
    return tl.fma(e, p, 0.499999732)


@triton.jit
def log(x):
    """log x for normal x > 0; anything finite elsewhere, also for NaN: about 18 instructions."""
    bits = x.to(tl.int32, bitcast=True)
    k = (bits - 0x3F3504F3) >> 23
    m = (bits - (k << 23)).to(tl.float32, bitcast=True)  # in [sqrt(1/2), sqrt(2))
    kf = k.to(tl.float32)
    rest = tl.fma(kf, constants.LN2_LOW, atanh2((m - 1.0) * rcp_approx(m + 1.0)))
    return tl.fma(kf, constants.LN2_HIGH, rest)


@triton.jit
def log_short(x):
    """Like `log`, with absolute error 1.2e-7 + |log x| 1e-7: 7 instructions."""
    bits = x.to(tl.int32, bitcast=True)
    k = (bits - 0x3F3504F3) & -0x00800000
    m = (bits - k).to(tl.float32, bitcast=True)
    return tl.fma(k.to(tl.float32), 1.1920928955078125e-07, log2_approx(m)) * constants.LN2


@triton.jit
def log1pmx_near(t):
    """log(1 + t) - t for |t| <= 1/2, without cancellation: 11 instructions."""
    s = t * rcp_approx(2.0 + t)
    y = s * s
    p = atanh_tail(y)
    return s * (y * p - t)


@triton.jit
def stirling_error(z, log_z):
    """lgamma(z + 1) - [(z + 1/2) log z - z + log(2 pi)/2] for z > 0, given log z."""
    far = z >= 4.0
    w = tl.where(far, z, z + 4.0)
    q = rcp_approx(w)
    y = q * q
    series = q * tl.fma(y, tl.fma(y, 0.0007936507937, -0.002777777778), 0.08333333333)
    near = tl.where(far, 1.0, z)
    log_shift = log(near + 4.0) - tl.where(far, 0.0, log_z)
    product = (near + 1.0) * (near + 2.0) * (near + 3.0) * rcp_approx(near + 4.0)
    q = rcp_approx(near + 4.0)
    shifted = (near + 0.5) * log_shift - 4.0 - log(product * q * q)
    return tl.where(far, series, series + shifted)


@triton.jit
def z_digamma_minus_log(z, log_z):
    """z (digamma(z) - log z) for z > 0, given log z."""
    far = z >= 4.0
    w = tl.where(far, z, z + 4.0)
    q = rcp_approx(w)
    y = q * q
    w_phi = tl.fma(q, tl.fma(y, tl.fma(y, -0.003968253968, 0.008333333333), -0.08333333333), -0.5)
    near = tl.where(far, 1.0, z)
    log_shift = log(near + 4.0) - tl.where(far, 0.0, log_z)
    shifted = near * (w_phi * q + log_shift) - 1.0
    shifted -= near * (rcp_approx(near + 1.0) + rcp_approx(near + 2.0) + rcp_approx(near + 3.0))
    return tl.where(far, w_phi, shifted)


@triton.jit
def log1p(x):
    """log(1 + x) for x >= 0; NaN for NaN and x < -1, which no count is: about 25 instructions."""
    y = tl.where(x <= 1.0, log1p_unit(tl.minimum(x, 1.0)), log(1.0 + tl.maximum(x, 1.0)))
    y = tl.where(x < float("inf"), y, x)
    return tl.where(x < -1.0, float("nan"), y)


@triton.jit
def times_where_above(product, factor, x, bound):
    """product * factor where x > bound, else product; predicated, which saves a select."""
    if constants.INTERPRETED:
        return tl.where(x > bound, product * factor, product)
    bounds = tl.full(x.shape, bound, tl.float32)
    return tl.inline_asm_elementwise(
        "{.reg .pred p; setp.gt.f32 p, $3, $4; mov.f32 $0, $1; @p mul.f32 $0, $1, $2;}",
        "=&f,f,f,f,f",
        [product, factor, x, bounds],
        dtype=tl.float32,
        is_pure=True,
        pack=1,
    )


@triton.jit
def plus_where_above(total, term, x, bound):
    """total + term where x > bound, else total; predicated, which saves a select."""
    if constants.INTERPRETED:
        return tl.where(x > bound, total + term, total)
    bounds = tl.full(x.shape, bound, tl.float32)
    return tl.inline_asm_elementwise(
        "{.reg .pred p; setp.gt.f32 p, $3, $4; mov.f32 $0, $1; @p add.f32 $0, $1, $2;}",
        "=&f,f,f,f,f",
        [total, term, x, bounds],
        dtype=tl.float32,
        is_pure=True,
        pack=1,
    )


@triton.jit
def popcount(bits):
    """Number of ones among 32 bits, as int32: 1 instruction."""
    if constants.INTERPRETED:
        bits = bits - ((bits >> 1) & 0x55555555)
        bits = (bits & 0x33333333) + ((bits >> 2) & 0x33333333)
        bits = (bits + (bits >> 4)) & 0x0F0F0F0F
        return (bits + (bits >> 8) + (bits >> 16) + (bits >> 24)) & 63
    return tl.inline_asm_elementwise(
        "popc.b32 $0, $1;", "=r,r", [bits], dtype=tl.int32, is_pure=True, pack=1
    )


@triton.jit
def cos_approx(x):
    """cos x for |x| <= pi within 2^-20."""
    if constants.INTERPRETED:
        return tl.cos(x)
    return tl.inline_asm_elementwise(
        "cos.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
    )
