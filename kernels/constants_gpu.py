"""Constants of mathematics in the Triton kernels, and whether these run in Triton's interpreter.

Kernels read them as attributes of this module. A constant of a kernel's own module, read by its
name alone, is compared with its value at compilation at every launch, about half a microsecond of
the host each. Values that may be chosen stand in the kernels themselves: Triton's cache on
disk goes by the text of a kernel and not by the attributes that it reads.
"""

from __future__ import annotations

import os

import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
LN2_HIGH = tl.constexpr(0.693145751953125)
LN2_LOW = tl.constexpr(1.428606765330187e-06)
