"""Is shuffling in blocks from disk as good for training as a full shuffle in memory?

    python bench shuffle_quality --out JSON [--cells 100000] [--epochs 4] [--seeds 5]

The cells lie on disk sorted by type, the worst order for shuffling in blocks. For each seed three
models with the same first weights and the same validation cells train: from memory in a full
shuffle, from memory in another full shuffle, and from the file in bounded memory. The figure is how
much higher the validation negative ELBO per cell is from the file after the last epoch than from
memory; the noise it is to be seen against is how much the two shuffles in memory differ. In the
JSON: every seed's, their means with standard errors, and the time beside that from memory.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any
from unittest import mock

from _kit.environment import describe
from _kit.results import write_json
from streaming import GENES, write_sorted

ANOTHER = 1_000
"""What is added to the seed for another order of the same cells."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=5, help="at least 2")
    parser.add_argument("--memory-limit", default="500MB")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


@contextmanager
def ordered(by: int) -> Iterator[None]:
    """Let training draw the order of the cells from the seed plus `by`, and all else as before."""
    from fastvae.model import fit_plan

    plain = fit_plan.Minibatches

    def reordered(*args: Any, seed: int = 0, **options: Any) -> Any:
        return plain(*args, seed=seed + by, **options)

    with mock.patch.object(fit_plan, "Minibatches", reordered):
        yield


def train(
    path: Path, residence: str, limit: str | None, epochs: int, seed: int, reorder: int = 0
) -> dict[str, Any]:
    """Train, and say where the validation ended and how fast it went."""
    import fastvae

    options = {} if limit is None else {"memory_limit": limit}
    model = fastvae.Model(path, batch_key="batch", residence=residence, **options)
    with ordered(reorder):
        model.fit(epochs, seed=seed, device="cpu", progress=False)
    speeds = model.history["cells_per_second"].tolist()
    return {
        "elbo": float(model.history["validation_elbo"].iloc[-1]),
        "cells_per_second": sorted(speeds)[len(speeds) // 2],
        "pool_cells": model._store.pool_cells if residence == "disk" else None,
    }


def compare(values: list[float], others: list[float]) -> dict[str, Any]:
    """Return the differences, their mean, its standard error, and their root mean square."""
    differences = [a - b for a, b in zip(values, others, strict=True)]
    return {
        "each": differences,
        "mean": mean(differences),
        "standard_error": stdev(differences) / len(differences) ** 0.5,
        "root_mean_square": mean(d * d for d in differences) ** 0.5,
    }


def main() -> None:
    args = arguments()
    import torch

    torch.set_num_threads(args.threads)
    runs: dict[str, list[dict[str, Any]]] = {"memory": [], "reordered": [], "disk": []}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sorted.h5ad"
        write_sorted(path, args.cells)
        for seed in range(args.seeds):
            runs["memory"].append(train(path, "host", None, args.epochs, seed))
            runs["disk"].append(train(path, "disk", args.memory_limit, args.epochs, seed))
            runs["reordered"].append(train(path, "host", None, args.epochs, seed, ANOTHER))
            print(seed, {name: of[-1]["elbo"] for name, of in runs.items()}, flush=True)
    elbo = {name: [run["elbo"] for run in of] for name, of in runs.items()}
    result = {
        "environment": describe(),
        "cells": args.cells,
        "genes": GENES,
        "epochs": args.epochs,
        "memory_limit": args.memory_limit,
        "pool_cells": runs["disk"][0]["pool_cells"],
        "elbo": elbo,
        "disk_minus_memory": compare(elbo["disk"], elbo["memory"]),
        "reordered_minus_memory": compare(elbo["reordered"], elbo["memory"]),
        "speed_disk_over_memory": median(
            disk["cells_per_second"] / memory["cells_per_second"]
            for memory, disk in zip(runs["memory"], runs["disk"], strict=True)
        ),
    }
    print(json.dumps(result, indent=1))
    if args.out:
        write_json(args.out, result)


if __name__ == "__main__":
    main()
