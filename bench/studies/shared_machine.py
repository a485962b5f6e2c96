"""Training speed beside other busy processes, as a share of what is fair.

    python bench shared_machine --out JSON [--rounds 3 --busy 2]

A round takes about three minutes on two processors. It trains with nothing else running and with
busy processes beside it, in turn, in each way in: `Model.fit`; the same where torch was imported
before fastvae, so that OpenMP was set up without it; the command line; and the class for
scvi-tools, where that is installed. With k busy processes a training of T threads on T processors
can have T / (T + k) of them: that part of the quiet speed is its fair share, and the figure is the
median of measured speed over fair speed.

What else runs on the machine spoils the quiet speed: the machine has to be idle.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import importlib.util
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from _kit.environment import describe
from _kit.results import write_json

BUSY = "while True: pass"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=12_000)
    parser.add_argument("--genes", type=int, default=2_000)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--busy", type=int, default=2, help="processes that run beside")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--train", choices=list(TRAIN), help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def in_python(args: argparse.Namespace) -> float:
    """`Model.fit`, in a program that imports fastvae first."""
    import fastvae

    model = fastvae.Model(args.data, batch_key="batch")
    model.fit(args.epochs, seed=0, progress=False)
    return overall(model.history["cells_per_second"].tolist())


def torch_first(args: argparse.Namespace) -> float:
    """`Model.fit`, in a program that had OpenMP running before."""
    import torch

    torch.ones(1000, 1000) @ torch.ones(1000, 1000)
    return in_python(args)


def on_the_command_line(args: argparse.Namespace) -> float:
    """`fastvae train`."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "fastvae", "train", str(args.data), "--batch-key", "batch"]
        more = ["--max-epochs", str(args.epochs), "--no-plots", "-o", str(run)]
        done = subprocess.run([*command, *more], check=True, capture_output=True, text=True)
        sys.stderr.write(done.stderr)
        with (run / "history.csv").open() as file:
            return overall([float(row["cells_per_second"]) for row in csv.DictReader(file)])


def through_scvi_tools(args: argparse.Namespace) -> float:
    """`SCVI.train` of the class that stands in for theirs."""
    import warnings

    warnings.simplefilter("ignore")
    import anndata

    from fastvae.integrations.scvi_tools import SCVI

    adata = anndata.read_h5ad(args.data)
    SCVI.setup_anndata(adata, batch_key="batch")
    model = SCVI(adata)
    model.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False)
    begin = time.perf_counter()
    model.train(max_epochs=args.epochs, accelerator="cpu", enable_progress_bar=False)
    return args.epochs * 0.9 * adata.n_obs / (time.perf_counter() - begin)


TRAIN = {
    "Model.fit": in_python,
    "Model.fit, torch imported first": torch_first,
    "fastvae train": on_the_command_line,
    "SCVI.train of the scvi-tools door": through_scvi_tools,
}


def overall(speeds: list[float]) -> float:
    """Return cells per second over all epochs of the same length."""
    return len(speeds) / sum(1 / speed for speed in speeds)


@contextlib.contextmanager
def busy_processes(number: int) -> Iterator[None]:
    """Keep so many processors busy meanwhile."""
    running = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(number)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def measure(name: str, args: argparse.Namespace, data: Path) -> float:
    """Train in a process of its own; cells per second."""
    options = [f"--train={name}", f"--data={data}", f"--epochs={args.epochs}"]
    free = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "MKL_"))}
    done = subprocess.run(
        [sys.executable, __file__, *options], capture_output=True, text=True, check=True, env=free
    )
    for line in done.stderr.splitlines():
        if "threads" in line:  # where training went on with fewer
            print(f"    {name}: {line}", flush=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    args = arguments()
    if args.train:
        logging.basicConfig()
        logging.getLogger("fastvae").setLevel(logging.INFO)
        print(json.dumps(TRAIN[args.train](args)))
        return
    from fastvae.datasets import simulate

    processors = len(os.sched_getaffinity(0))
    fair = processors / (processors + args.busy)
    ways = [name for name in TRAIN if "scvi" not in name or importlib.util.find_spec("scvi")]
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "simulated.h5ad"
        simulate(args.cells, args.genes, seed=0).write_h5ad(data)
        for _ in range(args.rounds):
            for name in ways:
                quiet = measure(name, args, data)
                with busy_processes(args.busy):
                    beside = measure(name, args, data)
                row = {"quiet": quiet, "beside": beside, "of_fair": beside / (fair * quiet)}
                rows[name].append(row)
                print(
                    f"{name:36}", {key: round(value, 2) for key, value in row.items()}, flush=True
                )
    result = {
        "cells": args.cells,
        "genes": args.genes,
        "processors": processors,
        "busy": args.busy,
        "fair_share": fair,
        "of_fair": {name: median(row["of_fair"] for row in of) for name, of in rows.items()},
        "every_run": rows,
    }
    print(json.dumps(result["of_fair"], indent=1))
    if args.out:
        write_json(args.out, {"environment": describe(), **result})


if __name__ == "__main__":
    main()
