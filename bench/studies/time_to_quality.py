"""How long until fastvae is as good as scvi-tools at the end of its training?

    python bench time_to_quality DATA --batch-key KEY --peer-python PYTHON --out JSON

scvi-tools trains with its default recipe for so many epochs (as many as it would choose, or
--epochs); its validation negative ELBO at the end is one mark, the lowest on the way another.
fastvae trains on the same cells with the same recipe, and once more at a higher learning rate, for
up to a quarter more epochs, since two runs that are alike end by chance a little above or below
each other; the figure is the training time until the first epoch whose validation reaches the mark,
of both. All validate after each epoch, and none is charged for that or for reading the data. The
three processes take turns of some seconds, each stopped while another trains, so that whatever else
the machine does falls on all of them; a number of epochs is charged as so many times the median
epoch of its run, and the JSON has every epoch's own time as well. The negative ELBO per cell is, in
all, the reconstruction loss plus the KL divergence with weight 1, at one draw of z.

Writes JSON, and the curves as PNG beside it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from _kit.environment import describe
from _kit.results import write_json

SPARE = 1.25
"""Epochs fastvae may take to the mark, as a multiple of those of scvi-tools."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--batch-key", default="batch")
    parser.add_argument("--epochs", type=int, help="default: scvi-tools' own choice")
    parser.add_argument(
        "--rate", type=float, default=3e-3, help="the higher learning rate; 0 for no such run"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--turn", type=float, default=20.0, help="seconds of a turn")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--peer-python", required=True, help="interpreter that has scvi-tools")
    parser.add_argument("--train-peer", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--train-own", type=float, help=argparse.SUPPRESS)
    return parser.parse_args()


def train_peer(args: argparse.Namespace) -> dict[str, Any]:
    """Run in the interpreter that has scvi-tools; the split comes as a file."""
    import logging
    import warnings

    warnings.simplefilter("ignore")
    import anndata
    import lightning
    import numpy as np
    import scvi
    import torch

    logging.disable(logging.CRITICAL)
    torch.set_num_threads(args.threads)
    split = np.load(args.train_peer)
    adata = anndata.read_h5ad(args.data)
    scvi.settings.seed = args.seed
    scvi.model.SCVI.setup_anndata(adata, batch_key=args.batch_key)
    model = scvi.model.SCVI(adata)

    class Clock(lightning.pytorch.callbacks.Callback):
        """Time spent in training epochs, without validation."""

        def __init__(self) -> None:
            self.spent, self.ends = 0.0, []
            self.began = 0.0

        def on_train_epoch_start(self, *_: Any) -> None:
            self.began = time.perf_counter()

        def on_validation_start(self, trainer: Any, *_: Any) -> None:
            if not trainer.sanity_checking:
                self.spent += time.perf_counter() - self.began
                self.ends.append(self.spent)

    clock = Clock()
    model.train(
        max_epochs=args.epochs,
        accelerator="cpu",
        check_val_every_n_epoch=1,
        enable_progress_bar=False,
        callbacks=[clock],
        datasplitter_kwargs={
            "external_indexing": [split["train"], split["validation"], np.zeros(0, dtype=int)]
        },
    )
    curve = model.history["elbo_validation"].to_numpy().ravel().tolist()
    assert len(curve) == len(clock.ends), (len(curve), len(clock.ends))
    return {"seconds": clock.ends, "validation_elbo": curve, "version": scvi.__version__}


def train_own(args: argparse.Namespace) -> dict[str, Any]:
    import torch

    import fastvae

    torch.set_num_threads(args.threads)
    model = fastvae.Model(args.data, batch_key=args.batch_key)
    model.fit(
        args.epochs, seed=args.seed, device="cpu", progress=False, learning_rate=args.train_own
    )
    history = model.history
    return {
        "seconds": list(itertools.accumulate(history["seconds"])),
        "validation_elbo": history["validation_elbo"],
        "version": fastvae.__version__,
    }


def in_turn(commands: dict[str, list[str]], turn: float, folder: Path) -> dict[str, str]:
    """Run commands so that one at a time runs, each for `turn` seconds; return what they print."""
    running: dict[str, subprocess.Popen[str]] = {}
    for i, (name, command) in enumerate(commands.items()):
        with (folder / f"{i}.out").open("w") as out:
            running[name] = subprocess.Popen(command, stdout=out, text=True)
        running[name].send_signal(signal.SIGSTOP)
    try:
        while running:
            for name, process in list(running.items()):
                process.send_signal(signal.SIGCONT)
                try:
                    if process.wait(turn):
                        raise SystemExit(f"{name} failed")
                    del running[name]
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGSTOP)
    finally:
        for process in running.values():
            process.kill()
    return {name: (folder / f"{i}.out").read_text() for i, name in enumerate(commands)}


def epoch_seconds(curve: dict[str, Any]) -> float:
    """Return the time of the median epoch."""
    return median(b - a for a, b in itertools.pairwise([0.0, *curve["seconds"]]))


def reached(curve: dict[str, Any], mark: float) -> int | None:
    """Return the first epoch, from 1, whose validation was at `mark` or below, or None."""
    epochs = enumerate(curve["validation_elbo"], start=1)
    return next((epoch for epoch, value in epochs if value <= mark), None)


def summary(curves: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Say when each run first was at scvi-tools' last and at its lowest validation.

    Where scvi-tools overfits it has been at its last value long before its end, so the times are
    compared to its own first arrival, not to the whole of its training.
    """
    peer = curves["scvi-tools"]
    values = peer["validation_elbo"]
    found: dict[str, Any] = {
        "marks": {"last": values[-1], "lowest": min(values)},
        "seconds_of_scvi_tools": epoch_seconds(peer) * len(values),
        "times_faster_per_epoch": {
            name: epoch_seconds(peer) / epoch_seconds(curve) for name, curve in curves.items()
        },
        "reached": {},
    }
    for kind, mark in found["marks"].items():
        epochs = {name: reached(curve, mark) for name, curve in curves.items()}
        seconds = {n: e and e * epoch_seconds(curves[n]) for n, e in epochs.items()}
        theirs = seconds["scvi-tools"]
        found["reached"][kind] = {
            name: {
                "epochs": epochs[name],
                "seconds": seconds[name],
                "times_sooner": seconds[name] and theirs / seconds[name],
            }
            for name in curves
        }
    return found


def plot(curves: dict[str, dict[str, Any]], mark: float, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, curve in curves.items():
        seconds = [epoch_seconds(curve) * (i + 1) for i in range(len(curve["seconds"]))]
        axes.plot(seconds, curve["validation_elbo"], label=name)
    axes.axhline(mark, color="0.6", linewidth=1, linestyle="--", label="scvi-tools' last")
    best = min(min(curve["validation_elbo"]) for curve in curves.values())
    first = max(curve["validation_elbo"][len(curve["seconds"]) // 20] for curve in curves.values())
    axes.set(
        xscale="log",
        ylim=(best - 0.05 * (first - best), first),
        xlabel="seconds of training",
        ylabel="negative ELBO per validation cell",
    )
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    args = arguments()
    if args.train_peer is not None or args.train_own is not None:
        print(json.dumps(train_own(args) if args.train_peer is None else train_peer(args)))
        return
    import anndata
    import numpy as np

    from fastvae.train import default_max_epochs, split_cells

    n_cells, n_genes = anndata.read_h5ad(args.data, backed="r").shape
    default = default_max_epochs(n_cells)
    epochs = args.epochs or default
    train, validation = split_cells(n_cells, 0.9, args.seed)
    curves: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        split = Path(folder) / "split.npz"
        np.savez(split, train=train, validation=validation)
        runs = {
            "scvi-tools": (args.peer_python, f"--train-peer={split}"),
            "fastvae": (sys.executable, "--train-own=0.001"),
        }
        if args.rate:
            higher = f"fastvae, learning rate {args.rate:g}"
            runs[higher] = (sys.executable, f"--train-own={args.rate}")
        commands = {}
        for name, (python, option) in runs.items():
            command = [python, __file__, str(args.data), f"--batch-key={args.batch_key}"]
            own = python == sys.executable
            command += [f"--epochs={math.ceil(SPARE * epochs) if own else epochs}"]
            command += [f"--threads={args.threads}", f"--seed={args.seed}"]
            commands[name] = [*command, f"--peer-python={args.peer_python}", option]
        for name, text in in_turn(commands, args.turn, Path(folder)).items():
            curves[name] = json.loads(text.splitlines()[-1])
            last = curves[name]["seconds"][-1], curves[name]["validation_elbo"][-1]
            print(f"{name}: {last[0]:.1f} s, last validation {last[1]:.2f}", flush=True)
    result = {
        "data": args.data.name,
        "cells": n_cells,
        "genes": n_genes,
        "epochs": epochs,
        "epochs_by_default": default,
        "threads": args.threads,
        "machine": platform.machine(),
        **summary(curves),
        "curves": curves,
    }
    print(json.dumps({k: v for k, v in result.items() if k != "curves"}, indent=1))
    if args.out:
        write_json(args.out, {"environment": describe(), **result})
        plot(curves, result["marks"]["last"], args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
