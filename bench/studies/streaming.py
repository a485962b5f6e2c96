"""Training from disk beside training from memory: speed by number of cells, and peak memory.

    python bench streaming --out JSON [--cells 10000 100000 1000000] [--memory-limit 500MB]

Cells are simulated sorted by type, the worst order for shuffling in blocks, with about 200
nonzero counts of 2,000 genes each. Training steps of one network on minibatches from memory, from
.h5ad and from the zarr of `fastvae convert` take turns in one process, so that whatever else the
machine does falls on all of them. Peak memory is that of a process of its own, above what it has
after its imports, over one whole epoch of the largest file with validation.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from _kit.environment import describe
from _kit.results import write_json

GENES, TYPES, COUNTS = 2_000, 8, 260
STRIP = 25_000


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--cells", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--memory-limit", default="500MB")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data", type=Path, help="folder for the files; those there are used")
    parser.add_argument("--peak", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def write_sorted(path: Path, cells: int) -> None:
    """Write cells as .h5ad, a strip at a time."""
    import h5py
    import pandas as pd
    import scipy.sparse as sp
    from anndata import AnnData

    rng = np.random.default_rng(0)
    profile = rng.gamma(0.5, 1.0, GENES) * np.exp(rng.normal(0, 1, (TYPES, GENES)))
    ends = np.cumsum(profile / profile.sum(1, keepdims=True), axis=1)
    ends[:, -1] = 1.0
    line = (ends + np.arange(TYPES)[:, None]).ravel()
    types = np.sort(rng.integers(0, TYPES, cells))
    obs = pd.DataFrame({"batch": pd.Categorical(rng.choice(["a", "b"], cells))})
    obs.index = [f"cell{i}" for i in range(cells)]
    AnnData(sp.csr_matrix((cells, GENES), dtype=np.float32), obs=obs).write_h5ad(path)
    with h5py.File(path, "r+") as file:
        x = file["X"]
        for name in ("data", "indices", "indptr"):
            del x[name]
        shape = {"shape": (0,), "maxshape": (None,), "chunks": (1 << 17,)}
        data, indices = (
            x.create_dataset(n, dtype=t, **shape) for n, t in (("data", "f4"), ("indices", "i4"))
        )
        crow = [0]
        for start in range(0, cells, STRIP):
            kind = types[start : start + STRIP]
            lengths = np.maximum(20, rng.lognormal(np.log(COUNTS), 0.4, len(kind))).astype(int)
            rows = np.repeat(kind, lengths)
            gene = np.searchsorted(line, rows + rng.random(len(rows))) - rows * GENES
            ptr = np.concatenate([[0], np.cumsum(lengths)])
            ones = np.ones(len(gene), dtype=np.float32)
            strip = sp.csr_matrix((ones, gene.clip(0, GENES - 1), ptr), shape=(len(kind), GENES))
            strip.sum_duplicates()
            at = crow[-1]
            for array, values in ((data, strip.data), (indices, strip.indices)):
                array.resize((at + strip.nnz,))
                array[at:] = values
            crow += (at + strip.indptr[1:].astype(np.int64)).tolist()
        x["indptr"] = np.array(crow, dtype=np.int64)


def write_both(path: Path, cells: int) -> None:
    """Write cells as .h5ad and, converted, as .zarr beside it, unless they are there."""
    from typer.testing import CliRunner

    from fastvae.cli import app

    if not path.exists():
        partial = path.with_suffix(".partial")
        write_sorted(partial, cells)
        partial.rename(path)
    target = path.with_suffix(".zarr")
    if not target.exists():
        done = CliRunner().invoke(app, ["convert", str(path), "-o", str(target), "-q"])
        if done.exit_code:
            raise SystemExit(done.output)


def endless(store: Any) -> Iterator[Any]:
    from fastvae.data import Minibatches

    epoch = 0
    while True:
        yield from Minibatches(store, batch_size=128, shuffle=True, seed=epoch)
        epoch += 1


def speeds(args: argparse.Namespace, folder: Path) -> dict[str, dict[str, float]]:
    """Median milliseconds per step, and median speed relative to the smallest in memory."""
    import torch

    from fastvae import Model
    from fastvae.data.opening import open_data
    from fastvae.data.request import Source, Wanted
    from fastvae.train.step import apply_gradients, compute_gradients

    torch.set_num_threads(args.threads)
    stores = {}
    for cells in args.cells:
        for name, residence in (("h5ad", "host"), ("h5ad", "disk"), ("zarr", "disk")):
            key = f"{'memory' if residence == 'host' else name} {cells}"
            source = Source(residence, args.memory_limit if residence == "disk" else None)
            path = folder / f"{cells}.{name}"
            stores[key] = open_data(path, Wanted(batch_key="batch"), source)[0]
    smallest = folder / f"{min(args.cells)}.h5ad"
    network = Model(smallest, batch_key="batch").module.train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
    weight, sums = torch.ones(()), torch.zeros(2, dtype=torch.float64)
    streams = {name: endless(store) for name, store in stores.items()}
    times: dict[str, list[float]] = {name: [] for name in stores}
    for number in range(args.rounds + 1):
        for name, stream in streams.items():
            started = time.perf_counter()
            for _ in range(args.steps):
                compute_gradients(network, optimizer, next(stream), weight, sums)
                apply_gradients(network, optimizer, None)
            if number:  # the first round warms up
                times[name].append((time.perf_counter() - started) / args.steps * 1e3)
    base = times[f"memory {min(args.cells)}"]
    return {
        name: {
            "ms_per_step": median(of),
            "speed": median(b / t for b, t in zip(base, of, strict=True)),
        }
        for name, of in times.items()
    }


def resident(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith(key))


def peak(args: argparse.Namespace) -> dict[str, float]:
    """Train one epoch; megabytes above the process after its imports."""
    import anndata  # noqa: F401
    import torch

    import fastvae
    import fastvae.model

    torch.set_num_threads(args.threads)
    before = resident("VmRSS")
    limit = args.memory_limit
    model = fastvae.Model(args.peak, batch_key="batch", residence="disk", memory_limit=limit)
    model.fit(1, seed=0, progress=False)
    return {
        "peak_mb": resident("VmHWM") - before,
        "cells_per_second": model.history["cells_per_second"].iloc[0],
    }


def main() -> None:
    args = arguments()
    if args.peak:
        print(json.dumps(peak(args)))
        return
    result: dict[str, Any] = {"genes": GENES, "threads": args.threads, "limit": args.memory_limit}
    with tempfile.TemporaryDirectory() as name:
        folder = args.data or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        for cells in args.cells:
            write_both(folder / f"{cells}.h5ad", cells)
        result["steps"] = speeds(args, folder)
        largest = folder / f"{max(args.cells)}.h5ad"
        command = [sys.executable, __file__, f"--peak={largest}", f"--threads={args.threads}"]
        command.append(f"--memory-limit={args.memory_limit}")
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        result["peak"] = {"cells": max(args.cells), **json.loads(run.stdout.splitlines()[-1])}
    print(json.dumps(result, indent=1))
    if args.out:
        write_json(args.out, {"environment": describe(), **result})


if __name__ == "__main__":
    main()
