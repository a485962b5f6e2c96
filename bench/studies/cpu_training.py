"""Training speed on this machine's CPU beside scvi-tools, both at their defaults.

    python bench cpu_training --peer-python PYTHON --out JSON [--cells 12000 --genes 2000]

Simulated counts at the asked density. Each library trains in its own process on the same file
(fastvae from CSR; scvi-tools from CSR through its own loader) for a few epochs, in turn, several
times; the figure is the median of cells per second over epochs after the first.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from _kit.environment import describe
from _kit.results import write_json


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=12_000)
    parser.add_argument("--genes", type=int, default=2_000)
    parser.add_argument("--density", type=float, default=0.08)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--peer-python", help="interpreter that has scvi-tools")
    parser.add_argument("--train", choices=["fastvae", "scvi-tools"], help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def train_fastvae(args: argparse.Namespace) -> dict[str, object]:
    import torch

    import fastvae

    torch.set_num_threads(args.threads)
    model = fastvae.Model(args.data, batch_key="batch")
    model.fit(args.epochs + 1, seed=0, progress=False)
    speeds = model.history["cells_per_second"].tolist()[1:]
    return {"cells_per_second": median(speeds), "version": fastvae.__version__}


def train_scvi_tools(args: argparse.Namespace) -> dict[str, object]:
    import logging
    import warnings

    warnings.simplefilter("ignore")
    import anndata
    import lightning
    import scvi
    import torch

    logging.disable(logging.CRITICAL)
    torch.set_num_threads(args.threads)
    adata = anndata.read_h5ad(args.data)
    scvi.settings.seed = 0
    scvi.model.SCVI.setup_anndata(adata, batch_key="batch")
    model = scvi.model.SCVI(adata)
    ends: list[float] = []

    class Clock(lightning.pytorch.callbacks.Callback):
        def on_train_epoch_end(self, *_: object) -> None:
            ends.append(time.perf_counter())

    model.train(
        max_epochs=args.epochs + 1,
        accelerator="cpu",
        enable_progress_bar=False,
        callbacks=[Clock()],
    )
    cells = int(0.9 * adata.n_obs)
    speeds = [cells / (b - a) for a, b in itertools.pairwise(ends)]
    return {"cells_per_second": median(speeds), "version": scvi.__version__}


TRAIN = {"fastvae": train_fastvae, "scvi-tools": train_scvi_tools}


def main() -> None:
    args = arguments()
    if args.train:
        print(json.dumps(TRAIN[args.train](args)))
        return
    from fastvae.datasets import simulate

    runs: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "simulated.h5ad"
        simulate(args.cells, args.genes, density=args.density, seed=0).write_h5ad(data)
        for _ in range(args.rounds):
            for name, python in [("fastvae", sys.executable), ("scvi-tools", args.peer_python)]:
                if python is None:
                    continue
                options = [f"--train={name}", f"--data={data}", f"--epochs={args.epochs}"]
                command = [python, __file__, *options, f"--threads={args.threads}"]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                runs.setdefault(name, []).append(json.loads(done.stdout.splitlines()[-1]))
                print(name, runs[name][-1], flush=True)
    speed = {name: median(run["cells_per_second"] for run in of) for name, of in runs.items()}
    result = {
        "cells": args.cells,
        "genes": args.genes,
        "density": args.density,
        "threads": args.threads,
        "machine": platform.machine(),
        "versions": {name: of[0]["version"] for name, of in runs.items()},
        "cells_per_second": speed,
        "every_run": runs,
    }
    if "scvi-tools" in speed:
        result["ratio"] = speed["fastvae"] / speed["scvi-tools"]
    print(json.dumps(result, indent=1))
    if args.out:
        write_json(args.out, {"environment": describe(), **result})


if __name__ == "__main__":
    main()
