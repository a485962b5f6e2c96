"""Sampling with KL, and what is done with sparse counts."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from _kit import timing
from _kit.agreement import compare
from _kit.contenders import available_backends
from _kit.first_layer import (
    HIDDEN,
    LINEAR_RESULTS,
    TF32_LIMIT,
    dense_layer,
    densify_matmul,
    first_layer,
    with_gradients,
    with_tf32,
)
from _kit.problems import make_counts, to_csr
from _kit.results import Part, Row, short
from _kit.sampling import SAMPLE_RESULTS, kl_with_gradients, sampler, sampling_step, textbook_sample

from . import minibatches

LATENT = [(128, 10), (4096, 10), (1024, 30), (65536, 10)]
LINEAR = [(128, 2000), (4096, 2000), (1024, 8000), (4096, 8000), (1024, 30000), (4096, 30000)]
DENSITIES = [0.08, 0.02, 0.2]


def sampling_row(
    row: Row, n: int, latent: int, device: torch.device, backends: list[str], seconds: float
) -> None:
    """Sample, variance and KL with the gradients by both heads."""
    heads = [torch.randn(n, latent, device=device, requires_grad=True) for _ in range(2)]
    functions = {name: sampler(name) for name in [*backends, "textbook"]}
    double = [head.detach().double().requires_grad_() for head in heads]
    exact = kl_with_gradients(textbook_sample, *double)
    row["agreement"] = {
        name: compare(kl_with_gradients(function, *heads), exact, SAMPLE_RESULTS)
        for name, function in functions.items()
    }
    steps = {name: sampling_step(function, *heads) for name, function in functions.items()}
    timed(row, steps, device, seconds)


def timed(row: Row, functions: dict[str, Any], device: torch.device, seconds: float) -> None:
    """Time those that agree; name the fastest."""
    good = {k: f for k, f in functions.items() if row["agreement"][k]["agrees"]}
    row["times"] = timing.interleaved(good, device, seconds)
    row["fastest"] = min(row["times"], key=lambda k: row["times"][k]["median_ms"], default=None)
    bad = sorted(set(functions) - set(good))
    if bad:
        row.update(state="disagreement", error=f"beyond the tolerance: {', '.join(bad)}")


def linear_row(
    row: Row,
    n: int,
    genes: int,
    density: float,
    device: torch.device,
    backends: list[str],
    seconds: float,
) -> None:
    """The layer from CSR, alone and with the gradients by W and b."""
    counts = make_counts(n, genes, density, device)
    x = to_csr(counts)
    weight = (torch.randn(HIDDEN, genes, device=device) / genes**0.5).requires_grad_()
    bias = torch.randn(HIDDEN, device=device, requires_grad=True)
    upstream = torch.randn(n, HIDDEN, device=device)
    layers = {name: first_layer(name) for name in [*backends, "densify + matmul"]}
    steps: dict[str, Callable[..., Any]] = {
        name: partial(with_gradients, layer, upstream) for name, layer in layers.items()
    }
    if device.type == "cuda":
        name = "densify + matmul, tf32"
        layers[name], steps[name] = with_tf32(densify_matmul), with_tf32(steps["densify + matmul"])
    leaves = [t.detach().double().requires_grad_() for t in (weight, bias)]
    exact = with_gradients(dense_layer, upstream, counts.double(), *leaves)
    row["agreement"] = {}
    for name, step in steps.items():
        try:
            found = compare(step(x, weight, bias), exact, LINEAR_RESULTS)
        except Exception as error:
            found = {"agrees": False, "error": short(error)}
        if "tf32" in name and "errors" in found:
            found["agrees"] = all(e["norm"] <= TF32_LIMIT for e in found["errors"].values())
        row["agreement"][name] = found
    del exact, counts
    forward: Row = {"agreement": row["agreement"], "state": ""}
    with torch.no_grad():
        alone = {k: partial(layer, x, weight, bias) for k, layer in layers.items()}
        timed(forward, alone, device, seconds)
    row["forward"] = {k: forward[k] for k in ("times", "fastest")}
    both = {k: partial(step, x, weight, bias) for k, step in steps.items()}
    timed(row, both, device, seconds)


def run(part: Part, device: torch.device, tiny: bool) -> None:
    """Sizes by how much they tell."""
    backends = [name for name, reason in available_backends(device).items() if reason is None]
    seconds = 0.05 if tiny else 0.3
    for n, latent in [(16, 5)] if tiny else LATENT:
        part.row(
            f"sample_and_kl {n} x {latent}",
            lambda row, n=n, latent=latent: sampling_row(row, n, latent, device, backends, seconds),
            operation="sample_and_kl",
            cells=n,
            latent=latent,
        )
    linear = [(16, 60, 0.1)] if tiny else [(*size, d) for d in DENSITIES for size in LINEAR]
    first = linear[: len(LINEAR)]  # at the usual density

    def linear_rows(sizes: list[tuple[int, int, float]]) -> None:
        for n, genes, density in sizes:
            part.row(
                f"count_linear {n} x {genes} at {density:g}",
                lambda row, n=n, genes=genes, density=density: linear_row(
                    row, n, genes, density, device, backends, seconds
                ),
                operation="count_linear",
                cells=n,
                genes=genes,
                density=density,
            )

    linear_rows(first)
    grid = itertools.product(minibatches.DENSITIES, minibatches.CELLS, minibatches.GENES)
    for density, n, genes in [(0.1, 16, 60)] if tiny else grid:
        part.row(
            f"first_layer {n} x {genes} at {density:g}",
            lambda row, n=n, genes=genes, density=density: minibatches.first_layer_row(
                row, n, genes, density, device, seconds / 2
            ),
            operation="first_layer",
            cells=n,
            genes=genes,
            density=density,
        )
    for cells, batch in [(2000, 32)] if tiny else minibatches.DATA_SETS:
        part.row(
            f"gather {batch} of {cells}",
            lambda row, cells=cells, batch=batch: minibatches.gather_row(
                row, cells, batch, device, seconds, tiny
            ),
            operation="gather",
            cells=batch,
            data_set=cells,
        )
    linear_rows(linear[len(first) :])
