"""Sparse minibatches: both forms of the first layer, and rows gathered from a large data set."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from _kit import timing
from _kit.agreement import compare
from _kit.first_layer import HIDDEN, TF32_LIMIT, with_tf32
from _kit.problems import make_counts, to_csr
from _kit.results import Row
from fastvae.kernels.backend import Backend
from fastvae.kernels.backends.reference import REFERENCE
from fastvae.kernels.counts import ASIDE, CompactCounts, Counts, CsrBuffers, DenseBuffers
from fastvae.kernels.gather.reference import largest_minibatch
from fastvae.kernels.linear.reference import linear_forward
from torch import Tensor
from torch.nn import functional as F

CELLS = [1024, 4096, 128]  # what tells most comes first
GENES = [8000, 2000, 30000]
DENSITIES = [0.05, 0.1, 0.02, 0.2]

DATA_SETS = [(10**6, 4096), (10**7, 4096), (10**6, 128)]  # cells, of which so many at once
ATLAS_GENES, STORED = 8000, 640  # per cell, from a half to one and a half times
STRIP = 2**26  # entries simulated at once


def forms(device: torch.device) -> dict[str, Callable[..., Tensor]]:
    """The first layer from nonzeros and from a dense matrix; torch's own where there is no GPU."""
    if device.type == "cuda":
        from fastvae.kernels.linear import gpu

        dense = gpu.linear_from_dense
        tf32 = with_tf32(dense)
        return {"nonzeros": gpu.linear_from_nonzeros, "dense": dense, "dense, tf32": tf32}

    def densified(x: Counts, weight: Tensor, bias: Tensor, log1p: bool) -> Tensor:
        return F.linear(x.to_dense(weight.dtype).log1p_(), weight, bias)

    return {"nonzeros": linear_forward, "dense": densified}


def reckoned(n: int, genes: int, nnz: int) -> dict[str, str]:
    """The form that the package would take, by what the dense product may round."""
    try:
        from fastvae.kernels.linear.cost import nonzeros_pay
    except ImportError:
        return {}
    pays = {name: nonzeros_pay(n, genes, HIDDEN, nnz, tf32="tf32" in name) for name in DENSE_FORMS}
    return {name: "nonzeros" if pay else name for name, pay in pays.items()}


DENSE_FORMS = ("dense", "dense, tf32")


def first_layer_row(
    row: Row, n: int, genes: int, density: float, device: torch.device, seconds: float
) -> None:
    """Forward from CSR in both forms: what the constants of `nonzeros_pay` are to be set from."""
    counts = make_counts(n, genes, density, device)
    csr = to_csr(counts)
    x = Counts((n, genes), None, csr.crow_indices(), csr.col_indices(), csr.values())
    weight = torch.randn(HIDDEN, genes, device=device) / genes**0.5
    bias = torch.randn(HIDDEN, device=device)
    exact = [F.linear(counts.double().log1p_(), weight.double(), bias.double())]
    del counts
    row.update(nnz=csr.values().numel(), hidden=HIDDEN, agreement={})
    layers = {k: partial(form, x, weight, bias, True) for k, form in forms(device).items()}
    for name, layer in layers.items():
        found = compare([layer()], exact, ["out"])
        if "tf32" in name:
            found["agrees"] = found["errors"]["out"]["norm"] <= TF32_LIMIT
        row["agreement"][name] = found
    good = {k: f for k, f in layers.items() if row["agreement"][k]["agrees"]}
    if len(good) < len(layers):
        row.update(state="disagreement", error=f"wrong: {', '.join(sorted(set(layers) - {*good}))}")
    times = row["times"] = timing.interleaved(good, device, seconds)
    row["reckoned"], row["time_over_best"] = reckoned(n, genes, row["nnz"]), {}
    for dense, taken in row["reckoned"].items():
        if {"nonzeros", dense} <= set(times):
            best = min(times["nonzeros"]["median_ms"], times[dense]["median_ms"])
            row["time_over_best"][dense] = times[taken]["median_ms"] / best


def simulated(cells: int, genes: int, stored: int, device: torch.device) -> CompactCounts:
    """A data set made where it stays: evenly spread genes, counts 1 to 3, one in 500 above 254."""
    lengths = torch.randint(stored // 2, stored + stored // 2 + 1, (cells,), device=device)
    crow = torch.zeros(cells + 1, dtype=torch.int64, device=device)
    torch.cumsum(lengths, 0, out=crow[1:])
    nnz = int(crow[-1])
    col = torch.empty(nnz, dtype=torch.uint16, device=device)
    counts = torch.empty(nnz, dtype=torch.uint8, device=device)
    aside = torch.zeros(cells, dtype=torch.int64, device=device)
    step = max(1, STRIP // (2 * stored))
    for start in range(0, cells, step):
        here = slice(start, min(start + step, cells))
        begin, end = int(crow[here.start]), int(crow[here.stop])
        row = torch.repeat_interleave(lengths[here], output_size=end - begin)
        place = torch.arange(begin, end, device=device) - crow[here][row]
        gene = place * genes // lengths[here][row]
        col.view(torch.int16)[begin:end] = gene.to(torch.int16)
        x = torch.randint(1, 4, (end - begin,), dtype=torch.uint8, device=device)
        x[torch.rand(end - begin, device=device) < 0.002] = ASIDE
        counts[begin:end] = x
        aside[here] = torch.bincount(row[x == ASIDE], minlength=here.stop - here.start)
    aside_crow = torch.zeros_like(crow)
    torch.cumsum(aside, 0, out=aside_crow[1:])
    large = torch.randint(ASIDE, 5000, (int(aside_crow[-1]),), dtype=torch.int32, device=device)
    return CompactCounts((cells, genes), crow, col, counts, aside_crow, large)


def plain(source: CompactCounts) -> Counts:
    """The same data set as CSR of 8 bytes per nonzero."""
    col = source.genes.view(torch.int16).int().bitwise_and_(0xFFFF)
    values = source.counts.float()
    values[source.counts == ASIDE] = source.aside.float()
    return Counts(source.shape, None, source.crow, col, values)


def gather_row(
    row: Row, cells: int, batch: int, device: torch.device, seconds: float, tiny: bool
) -> None:
    """Minibatches of random cells, dense and CSR, from compact and from plain counts."""
    genes, stored = (60, 20) if tiny else (ATLAS_GENES, STORED)
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        needed = 3 * cells * stored + 40 * STRIP
        if free < needed:
            row.update(state="left out", error=f"needs {needed:.2g} bytes, {free:.2g} are free")
            return
    source = simulated(cells, genes, stored, device)
    rows = torch.randperm(cells, device=device)[:batch]
    nnz = int((source.crow[rows + 1] - source.crow[rows]).sum())
    sources: dict[str, tuple[Any, int]] = {"compact": (source, 3)}
    if cells * stored < 2**30:
        sources["plain"] = (plain(source), 8)
    buffers = CsrBuffers.empty(batch, largest_minibatch(source.crow, batch), device)
    memory = DenseBuffers.empty(batch, genes, device)
    logs, (out, totals) = memory.logs(), memory
    kernels = backend(device)
    want, sums = REFERENCE.gather_dense(source, rows)
    functions: dict[str, Callable[[], Any]] = {}
    moved, row["agreement"] = {}, {}
    for name, (data, width) in sources.items():
        dense = partial(kernels.gather_dense, data, rows, out=out, totals=totals, logs=logs)
        csr = partial(kernels.gather_csr, data, rows, buffers)
        functions[f"{name} to dense"], functions[f"{name} to CSR"] = dense, csr
        moved[f"{name} to dense"] = width * nnz + 8 * batch * genes  # x and log(1 + x)
        moved[f"{name} to CSR"] = (width + 8) * nnz
        dense()
        close = torch.equal(out, want) and torch.equal(totals, sums)
        close = close and torch.allclose(logs.log1p, want.log1p(), rtol=1e-6, atol=0)
        row["agreement"][f"{name} to dense"] = close
        csr()
        same = torch.equal(buffers.totals, sums) and int(buffers.needed) == nnz
        kept = REFERENCE.gather_csr(data, rows, CsrBuffers.empty(batch, nnz, device))
        for got, exact in ((buffers.col, kept.col), (buffers.values, kept.values)):
            same = same and exact is not None and torch.equal(got[:nnz], exact)
        row["agreement"][f"{name} to CSR"] = same
    bad = sorted(k for k, agrees in row["agreement"].items() if not agrees)
    if bad:
        row.update(state="disagreement", error=f"not what torch gathers: {', '.join(bad)}")
    good = {k: f for k, f in functions.items() if k not in bad}
    row["times"] = timing.interleaved(good, device, seconds)
    for name, entry in row["times"].items():
        entry["gb_per_s"] = moved[name] / entry["median_ms"] / 1e6
    row.update(nnz=nnz, bytes=moved, data_set_bytes=sum(t.nbytes for t in source[1:]))


def backend(device: torch.device) -> Backend:
    if device.type != "cuda":
        return REFERENCE
    from fastvae.kernels.backends.triton import BACKEND as fused

    return fused
