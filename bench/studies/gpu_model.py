"""What a training step should take on an H100, from the compiled code: a model, not a measurement.

python bench gpu_model                 prints the table; no GPU is needed
python bench gpu_model --nodes 30      with another number of graph nodes a step
python bench gpu_model --parts         also prints what each part of a step takes
python bench gpu_model --out FILE      also writes the figures as JSON

Each part of a step takes as long as its instructions or its bytes, whichever is more, and each
node of the captured graph costs a fixed time besides. Instructions of the likelihood come from the
disassembly for sm_90, weighed by how often real counts take its loops (tests/support/
count_shares.json); what lies between its loops is not counted. Matrix products are counted in
operations. Caches, the latency of a single program and anything that only a GPU can tell are left
out.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # read on import of triton

import sass
import sass_variants
import torch
from _kit.environment import describe
from _kit.results import write_json

ROOT = Path(__file__).resolve().parents[2]
SHARES = json.loads((ROOT / "tests" / "support" / "count_shares.json").read_text())["rows"]

# H100 SXM5, from its data sheet; the shares of the peaks are assumptions
MULTIPROCESSORS, SCHEDULERS, CLOCK = 132, 4, 1.755e9
ISSUE = 0.75  # of the cycles that issue an instruction
BANDWIDTH = 3.35e12 * 0.9
PRODUCTS = {"tf32": 494.7e12 * 0.5, "bf16": 989.4e12 * 0.5}
NODE = 1.57e-6  # seconds of a small node of a graph
NODES = {"tf32": 43, "bf16": 53}  # of a step of up to 1,024 cells: tests/train/test_static.py
HIDDEN = 128
HEADS = 2
ADAM = 28  # bytes for each parameter: weight, gradient, two moments read; three of them written

SIZES = [(128, 2000), (4096, 2000), (16384, 2000), (4096, 30000)]


@dataclasses.dataclass
class Work:
    """One part of a step: instructions of a thread, bytes of memory, operations of products."""

    name: str
    instructions: float = 0.0
    bytes: float = 0.0
    operations: float = 0.0

    def seconds(self, precision: str) -> float:
        issue = MULTIPROCESSORS * SCHEDULERS * CLOCK * ISSUE * 32
        return max(
            self.instructions / issue,
            self.bytes / BANDWIDTH,
            self.operations / PRODUCTS[precision],
        )


def likelihood(n: int, genes: int, logits: torch.dtype) -> sass.Report:
    """The disassembly of the kernel that this size takes."""
    found: list[sass_variants.Launch] = []
    launch = sass_variants._likelihood("ZINB", n=n, genes=genes, logits=logits)
    with sass_variants._recording(found, "model", core=False):
        launch()
    return sass.measure(found[0], 90)


def share_of(genes: int) -> dict[str, Any]:
    """Real counts of about this many genes."""
    return min(SHARES, key=lambda row: abs(row["genes"] - genes))


def step(n: int, genes: int, precision: str, report: sass.Report) -> list[Work]:
    """What a step of the stock ZINB model does to matrices of cells x genes; the rest are nodes."""
    entries, wide = n * genes, 4
    half = 2 if precision == "bf16" else 4
    share = share_of(genes)
    unit = 2.0 * entries * HIDDEN
    weights = genes * HIDDEN
    programs = min(n, 1024)
    per_entry = sass.on_real_data(report, share)
    rounded = HEADS * weights * (wide + half) if precision == "bf16" else 0
    return [
        # x and log(1 + x), with the sum of each row
        Work("gather", bytes=entries * (3 * (1 - share["zero"]) + 2 * wide)),
        Work("first layer", bytes=entries * wide + weights * wide, operations=unit),
        Work("its gradient", bytes=entries * wide + weights * wide, operations=unit),
        Work("heads", bytes=HEADS * (entries * half + weights * wide), operations=HEADS * unit),
        Work(
            "likelihood",
            instructions=entries * per_entry,
            bytes=entries * (wide + 2 * HEADS * half) + 2 * programs * genes * wide,
        ),
        Work(
            "heads' gradients",
            bytes=HEADS * (2 * entries * half + 2 * weights * wide),
            operations=2 * HEADS * unit,
        ),
        Work("bias gradients", bytes=HEADS * entries * half),
        Work("weights rounded to bfloat16", bytes=rounded),
        Work("optimiser", bytes=ADAM * (1 + HEADS) * weights),
    ]


def rows(nodes: dict[str, int]) -> list[dict[str, Any]]:
    """The model for every size and precision, with so many graph nodes a step."""
    found = []
    for n, genes in SIZES:
        for precision, logits in (("tf32", torch.float32), ("bf16", torch.bfloat16)):
            report = likelihood(n, genes, logits)
            parts = {w.name: w.seconds(precision) for w in step(n, genes, precision, report)}
            parts["graph nodes"] = nodes[precision] * NODE
            total = sum(parts.values())
            work = next(w for w in step(n, genes, precision, report) if w.name == "likelihood")
            found.append(
                {
                    "cells": n,
                    "genes": genes,
                    "precision": precision,
                    "instructions per entry": work.instructions / (n * genes),
                    "likelihood us": 1e6 * parts["likelihood"],
                    "its bytes alone us": 1e6 * work.bytes / BANDWIDTH,
                    "step us": 1e6 * total,
                    "million cells per second": n / total / 1e6,
                    "parts us": {name: 1e6 * seconds for name, seconds in parts.items()},
                }
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, help="graph nodes a step instead of those counted")
    parser.add_argument("--parts", action="store_true", help="print the parts of each step")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    if reason := sass.missing():
        raise SystemExit(f"nothing to compile with: {reason}; pip install triton")
    nodes = dict.fromkeys(NODES, options.nodes) if options.nodes else NODES
    found = rows(nodes)
    said = ", ".join(f"{number} ({precision})" for precision, number in nodes.items())
    print(f"A model of an H100, not a measurement; graph nodes a step: {said}.\n")
    columns = [name for name in found[0] if name != "parts us"]
    print("| " + " | ".join(columns) + " |")
    print("|---" * len(columns) + "|")
    for row in found:
        cells = [f"{row[c]:.3g}" if isinstance(row[c], float) else str(row[c]) for c in columns]
        print("| " + " | ".join(cells) + " |")
        if options.parts:
            parts = (f"{name} {us:.1f}" for name, us in row["parts us"].items())
            print(f"    {', '.join(parts)} us")
    if options.out:
        write_json(
            options.out,
            {
                "environment": describe(),
                "note": "a model from compiled code, not a measurement",
                "nodes": nodes,
                "rows": found,
            },
        )


if __name__ == "__main__":
    main()
