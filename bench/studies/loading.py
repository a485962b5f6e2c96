"""Cells per second to a minibatch that training can use, beside other loaders.

    python bench loading --out JSON [--peer-python PYTHON] [--annbatch-python PYTHON]

Simulated counts at several numbers of genes, as .h5ad and as the zarr that `fastvae convert`
writes, both in the page cache. Every loader runs in a process of its own, in turn, several times,
with shuffling on; a figure is the median over the rounds of the time per 128 cells, over whole
epochs after two that warm up. annbatch reads the same zarr, with its defaults and zarrs, and hands
out scipy matrices, which is counted as ready.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

from _kit.environment import describe
from _kit.results import write_json

GENES = {2_000: (60_000, 200), 8_000: (30_000, 640), 30_000: (12_000, 1_500)}
BATCHES = (128, 1024, 4096)
WARM, SECONDS = 2, 1.0
OURS = ("fastvae memory", "fastvae h5ad", "fastvae zarr")
SCVI = ("AnnDataLoader dense", "AnnDataLoader sparse")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--genes", type=int, nargs="*", default=sorted(GENES))
    parser.add_argument("--peer-python", help="interpreter that has scvi-tools")
    parser.add_argument("--annbatch-python", help="interpreter that has annbatch and zarrs")
    parser.add_argument("--loader", help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def write_data(folder: Path, genes: int) -> Path:
    import numpy as np
    import pandas as pd
    import scipy.sparse as sp
    from anndata import AnnData
    from typer.testing import CliRunner

    from fastvae.cli import app

    cells, stored = GENES[genes]
    rng = np.random.default_rng(0)
    lengths = rng.poisson(stored, cells)
    crow = np.concatenate([[0], np.cumsum(lengths)])
    col = rng.integers(0, genes, crow[-1], dtype=np.int32)
    values = 1 + rng.geometric(0.6, crow[-1]).astype(np.float32)
    counts = sp.csr_matrix((values, col, crow), shape=(cells, genes))
    counts.sum_duplicates()
    obs = pd.DataFrame({"batch": pd.Categorical(rng.choice(["a", "b"], cells))})
    obs.index = [f"cell{i}" for i in range(cells)]
    path = folder / f"{genes}.h5ad"
    AnnData(counts, obs=obs).write_h5ad(path)
    done = CliRunner().invoke(app, ["convert", str(path), "-o", str(path.with_suffix(".zarr"))])
    if done.exit_code:
        raise SystemExit(done.output)
    return path


def ours(name: str, data: Path) -> Callable[[int], Iterator[Any]]:
    from fastvae.data import Minibatches
    from fastvae.data.opening import open_data
    from fastvae.data.request import Source, Wanted

    kind = name.split()[1]
    source = Source("disk" if kind in ("h5ad", "zarr") else "host", "2GB")
    path = data.with_suffix(".zarr") if kind == "zarr" else data
    store, _ = open_data(path, Wanted(batch_key="batch"), source)

    def loader(size: int) -> Iterator[Any]:
        minibatches = Minibatches(store, batch_size=size, shuffle=True)
        for epoch in count():
            minibatches.set_epoch(epoch)
            yield from minibatches
            yield None

    return loader


def scvi_tools(name: str, data: Path) -> Callable[[int], Iterator[Any]]:
    import logging
    import warnings

    warnings.simplefilter("ignore")
    import anndata
    import scvi

    logging.disable(logging.CRITICAL)
    adata = anndata.read_h5ad(data)
    scvi.model.SCVI.setup_anndata(adata, batch_key="batch")
    manager = scvi.model.SCVI(adata).adata_manager
    sparse = name.endswith("sparse")
    return lambda size: again_and_again(
        scvi.dataloaders.AnnDataLoader(
            manager, shuffle=True, batch_size=size, load_sparse_tensor=sparse
        )
    )


def annbatch(name: str, data: Path) -> Callable[[int], Iterator[Any]]:
    import warnings

    warnings.simplefilter("ignore")
    import annbatch as library
    import anndata
    import zarr
    import zarrs  # noqa: F401

    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
    group = zarr.open_group(data.with_suffix(".zarr"), mode="r")
    matrix = anndata.io.sparse_dataset(group["X"])
    obs = anndata.io.read_elem(group["obs"])[["batch"]]

    def loader(size: int) -> Iterator[Any]:
        made = library.Loader(batch_size=size, shuffle=True, chunk_size=512, preload_nchunks=32)
        return again_and_again(made.add_adata(anndata.AnnData(X=matrix, obs=obs)))

    return loader


def again_and_again(loader: Iterable[Any]) -> Iterator[Any]:
    """Minibatches of one epoch after the other, None after each."""
    while True:
        yield from loader
        yield None


def n_cells(minibatch: Any) -> int:
    if isinstance(minibatch, dict):
        minibatch = minibatch["X"]
    return (minibatch.x if hasattr(minibatch, "x") else minibatch).shape[0]


def measure(args: argparse.Namespace) -> dict[str, float]:
    """Milliseconds per 128 cells, for each size of the minibatches."""
    name = args.loader
    if name != "annbatch":
        import torch

        torch.set_num_threads(args.threads)
    make = annbatch if name == "annbatch" else scvi_tools if name in SCVI else ours
    loaders = make(name, args.data)
    times = {}
    for size in BATCHES:
        stream = loaders(size)
        for _ in range(WARM):
            while next(stream) is not None:
                pass
        cells, started = 0, time.perf_counter()
        while time.perf_counter() - started < SECONDS:
            while (minibatch := next(stream)) is not None:
                cells += n_cells(minibatch)
        times[str(size)] = (time.perf_counter() - started) / cells * 128e3
    return times


def ratios(
    peer: str, rounds: dict[str, dict[str, list[dict[str, float]]]]
) -> dict[str, dict[str, dict[str, float]]]:
    """Median over the rounds of how many times faster than `peer` each loader is."""
    return {
        genes: {
            name: {
                str(size): median(
                    other[str(size)] / own[str(size)]
                    for own, other in zip(of, runs[peer], strict=True)
                )
                for size in BATCHES
            }
            for name, of in runs.items()
        }
        for genes, runs in rounds.items()
        if peer in runs
    }


def main() -> None:
    args = arguments()
    if args.loader:
        package = args.loader.split()[0].replace("AnnDataLoader", "scvi-tools")
        found = metadata.version(package)
        print(json.dumps({"times": measure(args), "version": f"{package} {found}"}))
        return
    pythons = dict.fromkeys(OURS, sys.executable)
    if args.peer_python:
        pythons.update(dict.fromkeys(SCVI, args.peer_python))
    if args.annbatch_python:
        pythons["annbatch"] = args.annbatch_python
    results: dict[str, Any] = {}
    rounds: dict[str, dict[str, list[dict[str, float]]]] = {}
    versions: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for genes in args.genes:
            data = write_data(Path(folder), genes)
            runs: dict[str, list[dict[str, float]]] = {name: [] for name in pythons}
            for _ in range(args.rounds):
                for name, python in pythons.items():
                    command = [python, __file__, f"--loader={name}", f"--data={data}"]
                    command.append(f"--threads={args.threads}")
                    done = subprocess.run(command, capture_output=True, text=True, check=False)
                    if done.returncode:
                        raise SystemExit(f"{name}: {done.stderr[-2000:]}")
                    answer = json.loads(done.stdout.splitlines()[-1])
                    runs[name].append(answer["times"])
                    versions[name] = answer["version"]
            rounds[str(genes)] = runs
            results[str(genes)] = {
                name: {str(size): median(run[str(size)] for run in of) for size in BATCHES}
                for name, of in runs.items()
            }
            for name, of in results[str(genes)].items():
                row = "  ".join(f"N={size}: {ms:7.3f}" for size, ms in of.items())
                print(f"G={genes:<6} {name:22} ms per 128 cells  {row}", flush=True)
    result = {
        "environment": describe(),
        "unit": "ms per 128 cells",
        "rounds": args.rounds,
        "threads": args.threads,
        "versions": versions,
        "data": {str(g): dict(zip(("cells", "stored"), GENES[g], strict=True)) for g in args.genes},
        "times": results,
        "times_faster_than_annbatch": ratios("annbatch", rounds),
        "times_faster_than_AnnDataLoader_dense": ratios("AnnDataLoader dense", rounds),
    }
    if args.out:
        write_json(args.out, result)


if __name__ == "__main__":
    main()
