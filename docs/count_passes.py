"""Count how often a training step goes over a matrix of cells by genes: ``images/passes.json``.

    python docs/count_passes.py [--write]

A step is forward and backward of a ZINB model with two batches at its defaults, on dense counts.
Every torch operation that reads or writes a matrix of that size counts, with the number of such
matrices among its arguments and results; views and allocations do not. fastvae's layers are left to
torch, as on a GPU. Its likelihood kernel hides from torch: what it loads and stores per entry is
read off its machine code (``bench/results/sass_triton_3.9.json``). scvi-tools is counted where it
is installed; without it its count stays what it was.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

HERE = Path(__file__).resolve().parent
COUNTED = HERE / "images" / "passes.json"
KERNELS = HERE.parent / "bench" / "results" / "sass_triton_3.9.json"
N_CELLS, N_GENES = 32, 2003  # no weight and no other matrix of the model has as many entries
NO_WORK = {"empty", "empty_like", "empty_strided", "new_empty", "detach"}

Row = dict[str, Any]


class Passes(TorchDispatchMode):
    """Notes the operations on matrices of cells by genes."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[Row] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation and look at its arguments and results."""
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if func.is_view or name in NO_WORK:
            return out
        reads, writes = (sum(map(_is_matrix, tree_leaves(t))) for t in ((args, kwargs), out))
        if reads or writes:
            product = "mm" in name or "linear" in name
            part = "matrix products" if product else "between them"
            self.rows.append({"name": name, "part": part, "reads": reads, "writes": writes})
        return out


def _is_matrix(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.numel() == N_CELLS * N_GENES


def counted(step: Callable[[], None]) -> list[Row]:
    """Return the operations of a step; what only its first run does is left out."""
    step()
    with Passes() as passes:
        step()
    return passes.rows


def _counts() -> torch.Tensor:
    return torch.poisson(torch.full((N_CELLS, N_GENES), 0.1))


def fastvae_rows() -> list[Row]:
    """Count a step of `fastvae.VAE` with the fused likelihood."""
    from fastvae.kernels.linear import dense

    from fastvae import VAE, functional

    vae = VAE(N_GENES, n_batch=2, use_observed_lib_size=True, check_counts=False)
    x, batch = _counts(), torch.arange(N_CELLS)[:, None] % 2

    def step() -> None:
        vae.zero_grad()
        reconstruction, kl, _ = vae(x, None, None, batch)
        (reconstruction + kl).mean().backward()

    with functional.use_backend("cpu"), mock.patch.object(dense, "WORTH", math.inf):
        return counted(step) + kernel_rows()


def kernel_rows() -> list[Row]:
    """Return what the Triton likelihood kernel loads and stores, as an operation.

    The figures are those of its sweep. Two loops before it read the logits of the scale; the one
    after it reads these and their gradient, and writes that.
    """
    rows = []
    for report in json.loads(KERNELS.read_text())["reports"]:
        if report["case"] == "ZINB" and report["target"] == 90 and report["core"]:
            kernel = report["kernel"]
            # one 128-bit access by a thread with four entries: each entry once
            reads, writes = (int(report[what].get("128", 0)) for what in ("loads", "stores"))
            if kernel == "likelihood.nll_kernel":
                rows.append(
                    {
                        "name": kernel,
                        "part": "between them",
                        "reads": reads + 4,
                        "writes": writes + 1,
                    }
                )
    return rows


def scvi_tools_rows() -> list[Row]:
    """Count a step of ``scvi.module.VAE``."""
    from scvi.module import VAE

    vae = VAE(N_GENES, n_batch=2)
    batch = {
        "X": _counts(),
        "batch": torch.arange(N_CELLS)[:, None] % 2,
        "labels": torch.zeros(N_CELLS, 1, dtype=torch.int64),
    }

    def step() -> None:
        vae.zero_grad()
        vae(batch)[2].loss.backward()

    return counted(step)


def summary(rows: list[Row]) -> dict[str, Any]:
    """Add up: operations, reads and writes, also by part."""
    parts: dict[str, dict[str, int]] = {}
    for row in rows:
        part = parts.setdefault(row["part"], {"operations": 0, "reads": 0, "writes": 0})
        part["operations"] += 1
        part["reads"] += row["reads"]
        part["writes"] += row["writes"]
    total = {key: sum(part[key] for part in parts.values()) for key in parts["between them"]}
    return {**total, "parts": parts}


def main() -> None:
    """Count, and print or write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="replace images/passes.json")
    args = parser.parse_args()
    found = json.loads(COUNTED.read_text()) if COUNTED.exists() else {}
    found["fastvae"] = summary(fastvae_rows())
    try:
        import scvi
    except ImportError:
        pass
    else:
        found["scvi-tools"] = {"version": scvi.__version__, **summary(scvi_tools_rows())}
    text = json.dumps(found, indent=1) + "\n"
    print(text)
    if args.write:
        COUNTED.write_text(text)


if __name__ == "__main__":
    main()
