"""Minibatches that training can use, in turn beside other loaders.

    pytest bench/bench_loader.py [--quick] [--bench-out=DIR]

One epoch, shuffled, of simulated counts as .h5ad and as the zarr that anndata writes, both in the
page cache. In an epoch everybody has to hand out each gene's total count exactly. loading.py
measures each loader in a process of its own, at more sizes, on the zarr of `fastvae convert`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _kit.contest import Case, Contest, Step
from _kit.turns import Turns
from studies import loading

PROVIDERS = (*loading.OURS, *loading.SCVI, "annbatch")
BATCHES = (128, 1024)
CELLS, GENES = 20_000, 2_000
QUICK_CELLS, QUICK_GENES = 1_000, 200
FOLDER = tempfile.TemporaryDirectory()
NEEDS = {"AnnDataLoader dense": "scvi", "AnnDataLoader sparse": "scvi", "annbatch": "annbatch"}


@cache
def data(cells: int, genes: int) -> Path:
    """The file; its zarr lies beside it."""
    from fastvae.datasets import simulate

    path = Path(FOLDER.name) / f"{cells}x{genes}.h5ad"
    adata = simulate(cells, genes, density=0.1, n_batches=2, seed=0)
    adata.write_h5ad(path)
    adata.write_zarr(path.with_suffix(".zarr"))
    return path


@cache
def totals(path: Path) -> np.ndarray:
    import anndata

    return np.asarray(anndata.read_h5ad(path).X.sum(axis=0)).ravel()


def counts_of(minibatch: Any) -> Any:
    if isinstance(minibatch, dict):
        minibatch = minibatch["X"]
    return minibatch.x if hasattr(minibatch, "x") else minibatch


def sum_of_genes(x: Any) -> np.ndarray:
    if isinstance(x, torch.Tensor):
        dense = x if x.layout == torch.strided else x.to_dense()
        return dense.double().sum(dim=0).numpy()
    return np.asarray(x.sum(axis=0), dtype=np.float64).ravel()


def epoch(stream: Iterator[Any]) -> Iterator[Any]:
    """Up to the None that follows the last minibatch."""
    while (minibatch := next(stream)) is not None:
        yield counts_of(minibatch)


def contest(path: Path, size: int) -> Contest:
    streams: dict[str, Iterator[Any]] = {}

    def make(name: str) -> Step:
        need = NEEDS.get(name)
        if need and find_spec(need) is None:
            raise ImportError(f"no module named {need!r}")
        build = loading.annbatch if name == "annbatch" else None
        build = build or (loading.scvi_tools if name in loading.SCVI else loading.ours)
        streams[name] = build(name, path)(size)
        return lambda: sum(x.shape[0] for x in epoch(streams[name]))

    def check(name: str, step: Step) -> dict[str, Any]:
        found = sum(sum_of_genes(x) for x in epoch(streams[name]))
        off = float(np.abs(found - totals(path)).max())
        return {"errors": {"sum of each gene's counts": off}, "agrees": off == 0.0}

    return Contest({name: partial(make, name) for name in PROVIDERS}, check)


def cases(quick: bool) -> list[Case]:
    cells, genes = (QUICK_CELLS, QUICK_GENES) if quick else (CELLS, GENES)
    found = []
    for size in BATCHES[:1] if quick else BATCHES:
        labels: dict[str, Any] = {"operation": "loading an epoch", "kind": f"minibatches of {size}"}
        labels |= {"cells": cells, "genes": genes}

        def prepare(size: int = size) -> Contest:
            return contest(data(cells, genes), size)

        found.append(Case(labels, PROVIDERS, prepare, 0.5 if quick else 10.0, runs=1, warm_up=1))
    return found


def test_loader(benchmark: Any, turns: Turns, case: Case, provider: str) -> None:
    turns.show(benchmark, case, provider, __name__)
