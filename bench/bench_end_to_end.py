"""From a file to the latent space: reading, setting up, training some epochs, embedding all cells.

    pytest bench/bench_end_to_end.py [--quick] [--bench-out=DIR]

Both libraries at their defaults on the same cells; their shuffles and noise differ, so that what
has to agree is the training ELBO per cell of the last epoch, within 3 %, and the latent space's
shape. cpu_training.py and time_to_quality.py measure larger data in processes of their own.
"""

from __future__ import annotations

import math
import tempfile
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from _kit.contest import Case, Contest, Step
from _kit.turns import Turns

import fastvae
from fastvae import functional as fn

PROVIDERS = ("fastvae", "fastvae torch", "fastvae within scvi-tools", "scvi-tools")
LIMIT = 0.03
CELLS, GENES, EPOCHS = 5_000, 2_000, 5
QUICK_CELLS, QUICK_GENES, QUICK_EPOCHS = 800, 200, 3
FOLDER = tempfile.TemporaryDirectory()
Answer = tuple[float, tuple[int, ...]]  # training ELBO per cell, shape of the latent space


@cache
def data(cells: int, genes: int) -> Path:
    path = Path(FOLDER.name) / f"{cells}x{genes}.h5ad"
    made = fastvae.datasets.simulate(cells, genes, density=0.08, n_batches=2, seed=0)
    made.write_h5ad(path)
    return path


def our_run(path: Path, epochs: int, backend: str) -> Answer:
    with fn.use_backend(backend):
        model = fastvae.Model(path, batch_key="batch").fit(epochs, seed=0, progress=False)
        latent = model.get_latent_representation()
    return float(model.history["train_elbo"].iloc[-1]), np.shape(latent)


def their_run(path: Path, epochs: int, ours: bool) -> Answer:
    import logging

    import anndata
    import scvi
    import torch
    from scvi.model import SCVI

    if ours:
        from fastvae.integrations.scvi_tools import SCVI
    logging.disable(logging.CRITICAL)
    try:
        scvi.settings.seed = 0
        adata = anndata.read_h5ad(path)
        SCVI.setup_anndata(adata, batch_key="batch")
        model = SCVI(adata)
        accelerator = "gpu" if torch.cuda.is_available() else "cpu"
        model.train(max_epochs=epochs, accelerator=accelerator, enable_progress_bar=False)
        latent = model.get_latent_representation()
    finally:
        logging.disable(logging.NOTSET)
    return float(model.history["elbo_train"].to_numpy().ravel()[-1]), latent.shape


def contest(cells: int, genes: int, epochs: int) -> Contest:
    path = data(cells, genes)
    want = our_run(path, epochs, "torch")

    def make(name: str) -> Step:
        if "scvi-tools" not in name:
            backend = name.removeprefix("fastvae").strip() or "auto"
            return partial(our_run, path, epochs, backend)
        import scvi  # noqa: F401

        return partial(their_run, path, epochs, name.startswith("fastvae"))

    def check(name: str, step: Step) -> dict[str, Any]:
        elbo, shape = step()
        off = abs(elbo - want[0]) / abs(want[0])
        agrees = math.isfinite(off) and off <= LIMIT and shape == want[1]
        return {"errors": {"training ELBO, relative": off}, "agrees": agrees}

    return Contest({name: partial(make, name) for name in PROVIDERS}, check)


def cases(quick: bool) -> list[Case]:
    size = (QUICK_CELLS, QUICK_GENES) if quick else (CELLS, GENES)
    epochs = QUICK_EPOCHS if quick else EPOCHS
    labels: dict[str, Any] = {"operation": "file to latent space", "kind": f"{epochs} epochs"}
    labels |= {"cells": size[0], "genes": size[1]}
    prepare = partial(contest, *size, epochs)
    return [Case(labels, PROVIDERS, prepare, 0.0, runs=1, warm_up=0, rounds=3 if quick else 7)]


def test_end_to_end(benchmark: Any, turns: Turns, case: Case, provider: str) -> None:
    turns.show(benchmark, case, provider, __name__)
