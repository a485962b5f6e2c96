"""Cells per second of whole training, beside scvi-tools at its defaults on the same file.

"door" is scvi-tools' ``model.train`` with fastvae's class, which trains with fastvae's own loop; it
runs where scvi-tools is, and needs fastvae there too.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from _kit.results import Part, Row

TRAINER = Path(__file__).with_name("trainers.py")
LIMIT = 100.0  # seconds for one process


def trained(row: Row, python: str, options: list[str], seconds: float) -> None:
    """Run the trainer and take over the line that it prints."""
    command = [python, str(TRAINER), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    if done.returncode:
        raise RuntimeError(" ".join(done.stderr.split())[-350:] or f"exit {done.returncode}")
    row.update(json.loads(done.stdout.splitlines()[-1]))


def run(part: Part, device: torch.device, quick: bool, peer_python: str) -> None:
    """fastvae first, then the profile, then the peer and its door; smaller batches first."""
    from fastvae.datasets import simulate

    cells, genes = (200, 40) if quick else (50_000, 2_000)
    epochs = 1 if quick else 2
    sizes = [32] if quick else [128, 4096]
    part.facts.update(
        cells=cells, genes=genes, density=0.08, batch_key=True, train_size=0.9, epochs=epochs,
        timed="median over the epochs after the first; each library with its own loader",
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "simulated.h5ad"
        simulate(cells, genes, density=0.08, seed=0).write_h5ad(data)
        fixed = [f"--data={data}", f"--device={device.type}", f"--cells={cells}"]
        beside = ("fastvae", "scvi-tools", "door")
        plan = [("fastvae", sizes[0]), ("profile", sizes[0])]
        plan += [(what, sizes[0]) for what in beside[1:]]
        plan += [(what, size) for size in sizes[1:] for what in beside]
        for what, size in plan:
            python = sys.executable if what in ("fastvae", "profile") else peer_python
            options = [what, *fixed, f"--batch-size={size}", f"--epochs={epochs}"]

            def fill(row: Row, python: str = python, options: list[str] = options) -> None:
                trained(row, python, options, max(1.0, min(LIMIT, part.left())))

            key = f"{what} {size}"
            part.row(key, fill, limit=LIMIT + 30, needs=5, library=what, batch_size=size)
