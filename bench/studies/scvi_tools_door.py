"""Training speed of ``fastvae.integrations.scvi_tools.SCVI`` beside ``scvi.model.SCVI``.

    python bench scvi_tools_door --out JSON [--shapes 12000x2000 6000x8000]

Run in an environment that has scvi-tools. Each trains in its own process on the same file, with
the same seed and the same ``model.train`` call at scvi-tools' defaults, in turn, several times.
The figure is the median, over runs, of cells per second in the median epoch after the first.
Nothing is written where their losses differ by a thousandth: then they have not done the same.
Both train with Lightning (the clock is a callback); fastvae's own loop is in gpu_suite.py.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from _kit.environment import describe, device_facts
from _kit.results import write_json

CONTENDERS = ("theirs", "ours")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("--shapes", nargs="+", default=["12000x2000", "6000x8000"])
    parser.add_argument("--density", type=float, default=0.08)
    parser.add_argument("--likelihood", default="zinb")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=3, help="timed ones; one more comes first")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument("--train", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def train(args: argparse.Namespace) -> dict[str, Any]:
    """Train one contender in this process."""
    import logging
    import warnings

    warnings.simplefilter("ignore")
    import anndata
    import lightning.pytorch as pl
    import scvi
    import torch

    logging.disable(logging.CRITICAL)
    torch.set_num_threads(args.threads)
    model_class = scvi.model.SCVI
    if args.train == "ours":
        from fastvae.integrations.scvi_tools import SCVI as model_class

    class Clock(pl.Callback):
        ends: list[float] = []  # noqa: RUF012

        def on_train_epoch_end(self, *_: object) -> None:
            if args.accelerator != "cpu":
                torch.cuda.synchronize()
            self.ends.append(time.perf_counter())

    adata = anndata.read_h5ad(args.data)
    scvi.settings.seed = 0
    model_class.setup_anndata(adata, batch_key="batch")
    model = model_class(adata, gene_likelihood=args.likelihood)
    clock = Clock()
    chosen = {"loop": "lightning"} if args.train == "ours" else {}
    model.train(
        max_epochs=args.epochs + 1,
        accelerator=args.accelerator,
        batch_size=args.batch_size,
        enable_progress_bar=False,
        callbacks=[clock],
        **chosen,
    )
    seconds = [b - a for a, b in itertools.pairwise(clock.ends)]
    return {
        "cells_per_second": len(model.train_indices) / median(seconds),
        "train_loss": model.history["train_loss"].to_numpy(float).ravel().tolist(),
        "seconds": seconds,
    }


def measure(args: argparse.Namespace, shape: str, data: Path) -> dict[str, Any]:
    """Take turns on one data set."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS}
    options = [f"--data={data}", f"--out={args.out}", f"--likelihood={args.likelihood}"]
    options += [f"--epochs={args.epochs}", f"--threads={args.threads}"]
    options += [f"--batch-size={args.batch_size}", f"--accelerator={args.accelerator}"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    for _ in range(args.rounds):
        for name in CONTENDERS:
            command = [sys.executable, __file__, f"--train={name}", *options]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
            if done.returncode:
                sys.exit(f"{name} at {shape} failed with status {done.returncode}")
            runs[name].append(json.loads(done.stdout.splitlines()[-1]))
            print(shape, name, f"{runs[name][-1]['cells_per_second']:.0f} cells/s", flush=True)
    theirs, ours = (runs[name][0]["train_loss"] for name in CONTENDERS)
    apart = max(abs(a - b) / abs(a) for a, b in zip(theirs, ours, strict=True))
    if not apart < 1e-3:
        sys.exit(f"{shape}: the two do not train alike: losses {theirs} and {ours}")
    speed = {name: median(run["cells_per_second"] for run in of) for name, of in runs.items()}
    ratios = [
        ours["cells_per_second"] / theirs["cells_per_second"]
        for theirs, ours in zip(*runs.values(), strict=True)
    ]
    return {
        "shape": shape,
        "cells_per_second": speed,
        "ratio": speed["ours"] / speed["theirs"],
        "ratio_of_each_turn": ratios,
        "losses_apart": apart,
        "every_run": runs,
    }


def main() -> None:
    args = arguments()
    if args.train:
        print(json.dumps(train(args)))
        return
    if args.out.exists() and not args.overwrite:
        sys.exit(f"{args.out} exists; pass --overwrite to replace it")
    from fastvae.datasets import simulate

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for shape in args.shapes:
            cells, genes = map(int, shape.split("x"))
            data = Path(folder) / f"{shape}.h5ad"
            simulate(cells, genes, density=args.density, seed=0).write_h5ad(data)
            rows.append(measure(args, shape, data))
    result = {
        "environment": {**describe(), **device_facts()},
        "settings": {
            name: getattr(args, name)
            for name in ("density", "likelihood", "batch_size", "epochs", "rounds", "threads")
        },
        "rows": rows,
    }
    write_json(args.out, result)
    for row in rows:
        print(row["shape"], row["cells_per_second"], f"{row['ratio']:.2f} times")


if __name__ == "__main__":
    main()
