"""Training steps with and without ``compile=True``, in turns on one thread of a CPU.

python bench compiled_layers --out bench/results/compiled_layers.json
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from _kit.environment import describe
from _kit.results import write_json

from fastvae import VAE
from fastvae.data import CountStore, Minibatches, read
from fastvae.datasets import simulate
from fastvae.train.compiled import compiled_layers
from fastvae.train.step import apply_gradients, compute_gradients

CELLS, GENES, DENSITY = 1280, 2000, 0.1
STEPS = 10  # of one kind before it is the other's turn


def trainer(n_layers: int, batch: object) -> tuple[VAE, object]:
    torch.manual_seed(0)
    module = VAE(GENES, n_batch=2, n_layers=n_layers, use_observed_lib_size=True).train()
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3, eps=0.01, fused=True)
    sums, weight = torch.zeros(2, dtype=torch.float64), torch.ones(())

    def step() -> None:
        compute_gradients(module, optimizer, batch, weight, sums)
        apply_gradients(module, optimizer, None)

    return module, step


def measure(n_layers: int, size: int, turns: int) -> dict[str, float]:
    """Median milliseconds per step of each kind, and the median ratio of neighbouring turns."""
    data = simulate(CELLS, GENES, n_batches=2, density=DENSITY, seed=0)
    store = CountStore.from_anndata(read(data), batch_key="batch")
    batch = next(iter(Minibatches(store, batch_size=size)))
    plain, compiled = trainer(n_layers, batch), trainer(n_layers, batch)
    times: dict[str, list[float]] = {"plain": [], "compiled": []}
    with compiled_layers(compiled[0], True, torch.device("cpu")):
        began = time.perf_counter()
        compiled[1]()
        first = time.perf_counter() - began
        for turn in range(turns + 2):
            for name, (_, step) in (("plain", plain), ("compiled", compiled)):
                began = time.perf_counter()
                for _ in range(STEPS):
                    step()
                if turn > 1:
                    times[name].append((time.perf_counter() - began) / STEPS * 1e3)
    ratios = np.array(times["plain"]) / np.array(times["compiled"])
    return {
        "n_layers": n_layers,
        "cells": size,
        "genes": GENES,
        "density": DENSITY,
        "plain_ms": float(np.median(times["plain"])),
        "compiled_ms": float(np.median(times["compiled"])),
        "speedup": float(np.median(ratios)),
        "speedup_quartiles": np.quantile(ratios, [0.25, 0.75]).tolist(),
        "turns": turns,
        "first_step_s": first,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--turns", type=int, default=30)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measure(n_layers, 128, arguments.turns) for n_layers in (1, 2)]
    for row in rows:
        print(row)
    if arguments.out:
        write_json(arguments.out, {"environment": describe(), "rows": rows})


if __name__ == "__main__":
    main()
