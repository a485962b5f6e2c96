"""Do batches mix and cell types stay apart, in numbers, beside scvi-tools?

    python bench integration_quality DATA --batch-key batch --labels-key cell_type --out JSON

Trains fastvae, and scvi-tools where it is importable or in the interpreter that --peer-python
names, on the same counts with the same number of epochs, seeds and (both libraries') default
settings. For each latent space, and for the principal components of the log-normalised counts:

- same-batch share: among the k nearest neighbours of a cell, the share from its own batch
  (lower is better mixed; chance is what random neighbours would give);
- label accuracy: the share of cells whose label most of their k neighbours have, leave-one-out.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from _kit.environment import describe
from _kit.results import write_json


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--batch-key", default="batch")
    parser.add_argument("--labels-key", default="cell_type")
    parser.add_argument("--unknown", nargs="*", default=["Unknown", "unknown"], help="no label")
    parser.add_argument("--epochs", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--k", type=int, nargs="*", default=[15, 30])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--peer-python", help="interpreter that has scvi-tools")
    parser.add_argument("--train", choices=["fastvae", "scvi-tools"], help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


def train_fastvae(args: argparse.Namespace) -> np.ndarray:
    import fastvae

    model = fastvae.Model(args.data, batch_key=args.batch_key)
    model.fit(args.epochs, seed=args.seed, progress=False)
    return model.get_latent_representation()


def train_scvi_tools(args: argparse.Namespace) -> np.ndarray:
    import anndata
    import scvi

    scvi.settings.seed = args.seed
    adata = anndata.read_h5ad(args.data)
    scvi.model.SCVI.setup_anndata(adata, batch_key=args.batch_key)
    model = scvi.model.SCVI(adata)
    model.train(max_epochs=args.epochs, accelerator="cpu", enable_progress_bar=False, logger=False)
    return np.asarray(model.get_latent_representation())


TRAIN = {"fastvae": train_fastvae, "scvi-tools": train_scvi_tools}


def worker(args: argparse.Namespace) -> None:
    import torch

    torch.set_num_threads(args.threads)
    started = time.perf_counter()
    latent = TRAIN[args.train](args)
    np.savez(args.out, latent=latent, seconds=time.perf_counter() - started)


def run_worker(args: argparse.Namespace, system: str, seed: int, python: str) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "latent.npz"
        command = [python, __file__, args.data, "--train", system, "--seed", seed, "--out", out]
        command += ["--batch-key", args.batch_key, "--epochs", args.epochs]
        command += ["--threads", args.threads]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{system} failed:\n{done.stderr[-3000:]}")
        with np.load(out) as found:
            return {"latent": found["latent"], "seconds": float(found["seconds"])}


def measure(space: np.ndarray, batch: np.ndarray, label: np.ndarray, k: int) -> dict[str, float]:
    from fastvae.report.neighbours import neighbours, same_share, vote_accuracy

    known = np.flatnonzero(label >= 0)
    return {
        "same_batch_share": same_share(neighbours(space, k), batch),
        "label_accuracy": vote_accuracy(neighbours(space[known], k), label[known]),
    }


def main() -> None:
    args = arguments()
    if args.train:
        worker(args)
        return
    import torch

    import fastvae
    from fastvae.data import read
    from fastvae.report.neighbours import chance_share, principal_components

    torch.set_num_threads(args.threads)
    adata = read(args.data)
    batch = np.unique(adata.obs[args.batch_key].astype(str), return_inverse=True)[1]
    names = adata.obs[args.labels_key].astype(str).to_numpy()
    label = np.unique(names, return_inverse=True)[1]
    label[np.isin(names, args.unknown)] = -1

    systems = {"fastvae": sys.executable}
    if args.peer_python:
        systems["scvi-tools"] = args.peer_python
    elif importlib.util.find_spec("scvi"):
        systems["scvi-tools"] = sys.executable
    spaces = {"principal components": [{"latent": principal_components(adata.X), "seconds": 0.0}]}
    for name, python in systems.items():
        spaces[name] = [run_worker(args, name, seed, python) for seed in range(args.seeds)]

    rows = []
    for name, runs in spaces.items():
        for seed, run in enumerate(runs):
            for k in args.k:
                found = measure(run["latent"], batch, label, k)
                rows.append(
                    {"system": name, "seed": seed, "k": k, **found, "seconds": run["seconds"]}
                )
    print(f"chance of the same batch: {chance_share(batch):.3f}")
    print(f"{'':<22}{'k':>4}  same batch        label accuracy    (mean, min to max of seeds)")
    for name in spaces:
        for k in args.k:
            mine = [row for row in rows if row["system"] == name and row["k"] == k]
            line = f"{name:<22}{k:>4}"
            for figure in ("same_batch_share", "label_accuracy"):
                values = [row[figure] for row in mine]
                line += f"  {np.mean(values):.3f} ({min(values):.3f}-{max(values):.3f})"
            print(line)
    if args.out:
        result = {
            "data": args.data.name,
            "cells": adata.n_obs,
            "genes": adata.n_vars,
            "epochs": args.epochs,
            "chance": chance_share(batch),
            "rows": rows,
            "fastvae": fastvae.__version__,
            "torch": importlib.metadata.version("torch"),
            "machine": platform.machine(),
            "threads": args.threads,
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.out, {"environment": describe(), **result})


if __name__ == "__main__":
    main()
