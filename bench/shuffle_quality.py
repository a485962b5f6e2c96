"""Is shuffling in blocks from disk as good for training as a full shuffle in memory?

    python bench/shuffle_quality.py --out JSON [--cells 100000] [--epochs 4] [--seeds 5]

The cells lie on disk sorted by type, the worst order for shuffling in blocks. For each seed two
models with the same first weights and the same validation cells train, one from memory in a full
shuffle and one from the file in bounded memory; the figure is how much higher the validation
negative ELBO per cell is from the file after the last epoch. In the JSON: every seed's, their mean
with its standard error, and how much the seeds differ among themselves from memory.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from _gpu.environment import describe
from _gpu.results import write_json
from streaming import GENES, write_sorted


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--memory-limit", default="500MB")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def train(path: Path, residence: str, limit: str | None, epochs: int, seed: int) -> dict[str, Any]:
    """Train, and say where the validation ended and how fast it went."""
    import fastvae

    options = {} if limit is None else {"memory_limit": limit}
    model = fastvae.Model(path, batch_key="batch", residence=residence, **options)
    model.fit(epochs, seed=seed, device="cpu", progress=False)
    speeds = model.history["cells_per_second"]
    return {
        "elbo": float(model.history["validation_elbo"][-1]),
        "cells_per_second": sorted(speeds)[len(speeds) // 2],
        "pool_cells": model._store.pool_cells if residence == "disk" else None,
    }


def main() -> None:
    args = arguments()
    import torch

    torch.set_num_threads(args.threads)
    runs: dict[str, list[dict[str, Any]]] = {"memory": [], "disk": []}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sorted.h5ad"
        write_sorted(path, args.cells)
        for seed in range(args.seeds):
            runs["memory"].append(train(path, "host", None, args.epochs, seed))
            runs["disk"].append(train(path, "disk", args.memory_limit, args.epochs, seed))
            print(seed, runs["memory"][-1], runs["disk"][-1], flush=True)
    pairs = list(zip(runs["memory"], runs["disk"], strict=True))
    differences = [disk["elbo"] - memory["elbo"] for memory, disk in pairs]
    several = args.seeds > 1
    result = {
        "environment": describe(),
        "cells": args.cells,
        "genes": GENES,
        "epochs": args.epochs,
        "memory_limit": args.memory_limit,
        "pool_cells": runs["disk"][0]["pool_cells"],
        "elbo_disk_minus_memory": differences,
        "mean": mean(differences),
        "standard_error": stdev(differences) / args.seeds**0.5 if several else None,
        "elbo_from_memory": [memory["elbo"] for memory, _ in pairs],
        "seeds_differ_by": stdev(memory["elbo"] for memory, _ in pairs) if several else None,
        "speed_disk_over_memory": [
            disk["cells_per_second"] / memory["cells_per_second"] for memory, disk in pairs
        ],
    }
    print(json.dumps(result, indent=1))
    if args.out:
        write_json(args.out, result)


if __name__ == "__main__":
    main()
