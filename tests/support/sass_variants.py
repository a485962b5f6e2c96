"""Every kernel variant the launchers choose, recorded from the launchers themselves.

The launchers run on CPU tensors with the launch replaced by a note of its arguments, so that tile
sizes, warps and argument types are always those of the package.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

N, G, LATENT, HIDDEN = 128, 2000, 10, 128
MANY_CELLS = 4096


@dataclasses.dataclass
class Launch:
    """One kernel launch: what triton needs to compile it, and what it stands for."""

    case: str
    kernel: str
    function: Any
    signature: dict[str, str]
    constants: dict[tuple[int, ...], Any]
    attributes: dict[tuple[int, ...], list[list[Any]]]
    options: dict[str, Any]
    entries: int
    looped: bool
    core: bool
    bits: dict[str, int]  # of the likelihood kernel's loops: what one entry reads; 0 in lists


Case = tuple[str, Callable[[], Any], bool]


def _argument(value: Any) -> tuple[str, Any, bool]:
    """Triton's type of a launch argument, the constant it is compiled in as, divisible by 16."""
    from triton._utils import canonicalize_dtype

    if isinstance(value, Tensor):
        return f"*{canonicalize_dtype(str(value.dtype))}", None, value.data_ptr() % 16 == 0
    if isinstance(value, float):
        return "fp32", None, False
    if value == 1:
        return "constexpr", 1, False
    return "i32" if abs(value) < 2**31 else "i64", None, value % 16 == 0


def _loops(signature: dict[str, str], values: dict[str, Any]) -> dict[str, int]:
    """The loops of the likelihood kernel in their order, and how many bits an entry reads there."""

    def width(name: str) -> int:
        return int("".join(filter(str.isdigit, signature[name])))  # of *fp32

    s, x = width("s_ptr"), width("x_ptr")
    r = width("r_ptr") if values["FAMILY"] != "poisson" else 0
    pi = width("pi_ptr") if values["FAMILY"] == "zinb" else 0
    column = 32 if values["WANT_THETA"] and not values["PER_CELL"] else 0
    found = {"maximum": s, "sum": s, "sweep": x + s + r + pi + column}
    found |= {"listing": 0, "small counts": 0, "large counts": 0}
    return found | ({"softmax": s + 32} if values["WANT_S"] else {})


def _note(
    case: str, function: Any, values: dict[str, Any], options: dict[str, Any], core: bool
) -> Launch:
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(function.params):
        value = values[parameter.name]
        if parameter.is_constexpr:
            kind, constant, divisible = "constexpr", value, False
        else:
            kind, constant, divisible = _argument(value)
        signature[parameter.name] = kind
        if kind == "constexpr":
            constants[(i,)] = constant
        if divisible:
            attributes[(i,)] = [["tt.divisibility", 16]]
    tile = math.prod(v for k, v in values.items() if k in ("BLOCK", "ROWS"))
    if function.fn.__name__ == "nll_kernel":
        tile = 128 * values["WARPS"]
    *_, family, module = function.fn.__module__.split(".")
    module = family if module == "gpu" else module.removeprefix("gpu_")
    return Launch(
        case=case,
        kernel=f"{module}.{function.fn.__name__}",
        function=function,
        signature=signature,
        constants=constants,
        attributes=attributes,
        options=options,
        entries=max(1, tile // (32 * options["num_warps"])),
        looped=" in range(" in function.src,
        core=core,
        bits=_loops(signature, values) if function.fn.__name__ == "nll_kernel" else {},
    )


@contextlib.contextmanager
def _recording(found: list[Launch], case: str, core: bool) -> Iterator[None]:
    from triton.runtime.jit import JITFunction

    run = JITFunction.run

    def record(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        values = dict(zip(self.arg_names, args, strict=False)) | kwargs
        options = {"num_warps": 4} | {k: v for k, v in kwargs.items() if k not in self.arg_names}
        found.append(_note(case, self, values, options, core))

    JITFunction.run = record
    try:
        yield
    finally:
        JITFunction.run = run


def _likelihood(
    family: str,
    layout: str = "gene",
    logits: torch.dtype = torch.float32,
    counts: torch.dtype = torch.float32,
    n: int = N,
    genes: int = G,
    value: bool = False,
) -> Callable[[], Any]:
    from fastvae.kernels.backends.triton import BACKEND as fused
    from fastvae.kernels.counts import Counts
    from fastvae.kernels.parameters import Parameters

    def launch() -> None:
        x = Counts((n, genes), torch.empty(n, genes, dtype=counts))
        s = torch.empty(n, genes, dtype=logits)
        rows = {"gene": (genes,), "grouped": (2, genes), "per cell": (n, genes)}[layout]
        # per-gene parameters are the model's own, per-cell ones come from the decoder
        r_dtype = logits if layout == "per cell" else torch.float32
        r = None if family == "Poisson" else torch.empty(rows, dtype=r_dtype)
        pi = torch.empty(n, genes, dtype=logits) if family == "ZINB" else None
        index = torch.zeros(n, dtype=torch.int64) if layout == "grouped" else None
        p = Parameters(s, torch.empty(n, 1), r, pi, index)
        if value:
            fused.nll_forward(x, p)
        else:
            needs = (True, True, r is not None, pi is not None)
            fused.nll_and_gradients(torch.empty(n), x, p, needs)

    return launch


def _likelihood_again() -> None:
    """Both launches of a step under autograd: the second one computes where it has to."""
    from fastvae.kernels.backends.triton import BACKEND as fused
    from fastvae.kernels.counts import Counts
    from fastvae.kernels.parameters import Parameters

    x, s = Counts((N, G), torch.empty(N, G)), torch.empty(N, G)
    p = Parameters(s, torch.empty(N, 1), torch.empty(G), s)
    assert fused.nll_with_gradients is not None
    assert fused.finish is not None
    _, early = fused.nll_with_gradients(x, p, (True,) * 4)
    fused.finish(early, torch.empty(N), x, p)


def _log_prob(family: str) -> Callable[[], Any]:
    from fastvae.kernels.backends.triton import BACKEND as fused
    from fastvae.kernels.counts import Counts

    def launch() -> None:
        x, mu = Counts((N, G), torch.empty(N, G)), torch.empty(N, G)
        theta = None if family == "Poisson" else torch.empty(G).expand(N, G)
        pi = torch.empty(N, G) if family == "ZINB" else None
        fused.log_prob_forward(x, mu, theta, pi, 1e-8)
        fused.log_prob_backward(mu, x, mu, theta, pi, 1e-8, theta is not None)

    return launch


def _latent(softmax: bool) -> Callable[[], Any]:
    from fastvae.kernels.backends.triton import BACKEND as fused

    def launch() -> None:
        q = torch.empty(N, LATENT)
        *_, kl, seed = fused.sample_and_kl_forward(q, q, q, q, 1e-4, softmax)
        fused.sample_and_kl_backward(q, q, kl, q, q, q, q, seed, 1e-4, softmax)

    return launch


def _sparse(log1p: bool) -> Callable[[], Any]:
    from fastvae.kernels.counts import Counts
    from fastvae.kernels.gather.gpu import densify
    from fastvae.kernels.linear import gpu as linear

    def launch() -> None:
        crow, col = torch.zeros(N + 1, dtype=torch.int64), torch.zeros(64, dtype=torch.int64)
        x = Counts((N, G), None, crow, col, torch.empty(64))
        densify(x, log1p)
        if not log1p:
            linear.row_sums(x)
        linear.linear_from_nonzeros(x, torch.empty(HIDDEN, G), torch.empty(HIDDEN), log1p)

    return launch


def _gather(compact: bool, n: int = N, genes: int = G) -> Callable[[], Any]:
    from fastvae.kernels.backends.triton import BACKEND as fused
    from fastvae.kernels.counts import (
        CellColumns,
        CompactCounts,
        Counts,
        CsrBuffers,
        DenseBuffers,
    )

    def launch() -> None:
        crow, cells = torch.zeros(MANY_CELLS + 1, dtype=torch.int64), (MANY_CELLS, genes)
        source: Any = Counts(cells, None, crow, torch.zeros(64, dtype=torch.int32), torch.empty(64))
        if compact:
            bits = torch.empty(64, dtype=torch.uint16), torch.empty(64, dtype=torch.uint8)
            source = CompactCounts(cells, crow, *bits, crow, torch.empty(64, dtype=torch.int32))
        rows = torch.zeros(n, dtype=torch.int64)
        dense, sparse = DenseBuffers.empty(n, genes, "cpu"), CsrBuffers.empty(n, 64, "cpu")
        fused.gather_dense(source, rows, out=dense.x, totals=dense.totals, logs=dense.logs())
        fused.gather_csr(source, rows, sparse, logs=sparse.logs())
        codes, prior = torch.zeros(MANY_CELLS, dtype=torch.int64), torch.zeros(2)
        columns = CellColumns(codes, codes, prior, prior)
        fused.gather_columns(columns, rows, CellColumns.empty(n, "cpu"))

    return launch


def cases() -> list[Case]:
    """Name, launcher, and whether the case stands in the table of every target's tests."""
    found: list[Case] = []
    for family in ("ZINB", "NB", "Poisson"):
        found.append((family, _likelihood(family), True))
        found.append((f"{family}, value", _likelihood(family, value=True), family == "ZINB"))
    found.append((f"ZINB, {MANY_CELLS} cells", _likelihood("ZINB", n=MANY_CELLS), True))
    for family in ("ZINB", "NB"):
        for layout in ("grouped", "per cell"):
            found.append((f"{family}, {layout}", _likelihood(family, layout), False))
    for dtype in (torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")
        found.append((f"ZINB, {name} logits", _likelihood("ZINB", logits=dtype), False))
    for dtype in (torch.int32, torch.uint8, torch.int64):
        name = str(dtype).removeprefix("torch.")
        found.append((f"ZINB, {name} counts", _likelihood("ZINB", counts=dtype), False))
    found.append(("ZINB, again", _likelihood_again, False))
    found.append((f"ZINB, {G + 1} genes", _likelihood("ZINB", genes=G + 1), False))
    for family in ("ZINB", "NB", "Poisson"):
        found.append((f"{family} log_prob", _log_prob(family), family == "ZINB"))
    found.append(("latent, normal", _latent(False), True))
    found.append(("latent, ln", _latent(True), False))
    found.append(("sparse, counts", _sparse(False), False))
    found.append(("sparse, log1p", _sparse(True), True))
    found.append(("rows, compact", _gather(True), True))
    found.append(("rows, plain CSR", _gather(False), False))
    found.append(("rows, compact, 30000 genes", _gather(True, genes=30000), False))
    return found


def launches(*, core_only: bool = False) -> list[Launch]:
    """Every distinct launch of the cases."""
    found: list[Launch] = []
    for name, launch, core in cases():
        if core or not core_only:
            with _recording(found, name, core):
                launch()
    return found
