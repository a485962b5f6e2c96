"""Where the time of a training step goes on one thread of a CPU, and what bounds it.

python bench cpu_step_parts --out bench/results/cpu_step_parts.json

CPU time of the thread, in turns: the whole step, and its parts at the same sizes. Beside them the
rates that this processor reached on the same thread: products whose matrices stay in its caches,
and a copy of memory that does not.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _kit import problems
from _kit.environment import describe
from _kit.results import write_json
from fastvae.kernels.likelihood.cpu import nll_in_place
from fastvae.kernels.parameters import Parameters

from fastvae import VAE
from fastvae.functional.derivatives import ordered_counts
from fastvae.functional.dispatch import select
from fastvae.train.step import written_gradients

CELLS, HIDDEN, DENSITY = 128, 128, 0.08
GENES = (2000, 8000, 20_000)
PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16}
CACHED = 1000  # genes of products that stay in the caches
COPIED = 2**26  # bytes of a copy that does not
Timed = dict[str, Callable[[], Any]]


def in_turns(parts: Timed, turns: int) -> dict[str, dict[str, float]]:
    """Milliseconds of CPU time of each part: the best turn and the median."""
    times: dict[str, list[float]] = {name: [] for name in parts}
    for turn in range(turns + 2):
        for name, call in parts.items():
            began = time.thread_time()
            call()
            if turn > 1:
                times[name].append((time.thread_time() - began) * 1e3)
    return {name: {"best": min(t), "median": float(np.median(t))} for name, t in times.items()}


def whole_steps(genes: int, counts: torch.Tensor) -> Timed:
    """The step of `Model.fit` in each precision."""
    steps = {}
    batch = (torch.arange(CELLS) % 2)[:, None]
    for name, dtype in PRECISIONS.items():
        torch.manual_seed(0)
        module = VAE(genes, 2, use_observed_lib_size=True).train()
        gradients = written_gradients(module, None if dtype == torch.float32 else dtype)
        assert gradients is not None
        adam = torch.optim.Adam(module.parameters(), eps=0.01, weight_decay=1e-6, fused=True)
        given = counts, None, None, batch, None, torch.ones(())

        def step(gradients: Any = gradients, adam: Any = adam, given: Any = given) -> None:
            gradients(*given)
            adam.step()

        steps[f"step {name}"] = step
        if dtype == torch.float32:
            step()
            steps["adam"] = adam.step
    return steps


def products(genes: int, dtype: torch.dtype) -> Callable[[], None]:
    """The six products of two heads."""
    multiply = select(torch.empty(0)).products
    x, weight = torch.randn(CELLS, HIDDEN), torch.randn(genes, HIDDEN)
    bias, logits = torch.randn(genes), torch.randn(CELLS, genes).to(dtype)
    x_, weight_, bias_ = (multiply.factor(t, dtype) for t in (x, weight, bias))
    by_x, by_weight, by_bias = (torch.empty_like(t) for t in (x, weight, bias))

    def call() -> None:
        for head in range(2):
            multiply.layer(x_, weight_, bias_, logits)
            multiply.weight_gradient(logits, x_, by_weight, by_bias, False)
            multiply.input_gradient(logits, weight_, by_x, head > 0)

    return call


def parts_of(genes: int) -> Timed:
    """All that is timed at one number of genes."""
    backend = select(torch.empty(0))
    counts = problems.to_csr(problems.make_counts(CELLS, genes, DENSITY, torch.device("cpu")))
    x = ordered_counts(counts)
    weight, bias = torch.randn(HIDDEN, genes) / genes**0.5, torch.zeros(HIDDEN)
    grad, by_weight = torch.randn(CELLS, HIDDEN), torch.empty(HIDDEN, genes)
    parts = whole_steps(genes, counts)
    upstream, library = torch.full((CELLS,), 1 / CELLS), torch.full((CELLS, 1), 7.0)
    for name, dtype in PRECISIONS.items():
        parts[f"products {name}"] = products(genes, dtype)
        given = [torch.randn(CELLS, genes).to(dtype) for _ in range(2)]
        logits = [torch.empty_like(t) for t in given]
        parameters = Parameters(logits[0], library, torch.zeros(genes), logits[1], None)

        def likelihood(p: Parameters = parameters) -> None:
            nll_in_place(upstream, x, p, (True, False, True, True))

        parts[f"likelihood {name}"] = likelihood

    def first_layer() -> None:
        backend.linear_forward(x, weight, bias, False)
        backend.linear_weight_grad(grad, x, False, by_weight)

    return {**parts, "first layer": first_layer}


def rates(turns: int) -> dict[str, float]:
    """GFLOP/s of products in the caches, and GB/s of a copy, both ways counted."""
    source, target = (torch.ones(COPIED // 4) for _ in range(2))
    timed: Timed = {name: products(CACHED, dtype) for name, dtype in PRECISIONS.items()}
    found = in_turns({**timed, "copy": lambda: target.copy_(source)}, turns)
    work = 6 * 2 * CELLS * CACHED * HIDDEN / 1e6
    best = {f"products {name}, GFLOP/s": work / found[name]["best"] for name in PRECISIONS}
    return {**best, "copy, GB/s": 2 * COPIED / 1e6 / found["copy"]["best"]}


def needs(genes: int) -> dict[str, float]:
    """What a step cannot do without: operations of products, and bytes of parameters.

    Weights of the heads are read forward and backward, those of the first layer forward; gradients
    are written and read; Adam reads and writes its two moments and the weights.
    """
    heads, first = 2 * genes * HIDDEN * 4, genes * HIDDEN * 4
    return {
        "products, GFLOP": 6 * 2 * CELLS * genes * HIDDEN / 1e9,
        "parameters, MB": (heads + first) / 1e6,
        "traffic of parameters, MB": (2 * heads + first + 8 * (heads + first)) / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--turns", type=int, default=40)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = {"rates": rates(arguments.turns), "rows": []}
    for genes in GENES:
        torch.manual_seed(0)
        row = {"cells": CELLS, "genes": genes, "density": DENSITY, "needs": needs(genes)}
        row["cpu_ms"] = in_turns(parts_of(genes), arguments.turns)
        found["rows"].append(row)
        print(genes, {k: round(v["best"], 2) for k, v in row["cpu_ms"].items()})
    print(found["rates"])
    if arguments.out:
        write_json(arguments.out, {"environment": describe(), **found})


if __name__ == "__main__":
    main()
