"""What has to be the same for training to go on where a checkpoint was written."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from typing import Any

import numpy as np

from ..data.store import Store
from ..train import TrainSettings
from .setup import Setup


def fingerprint(
    setup: Setup, store: Store, settings: TrainSettings, seed: int, processes: int
) -> dict[str, Any]:
    """Describe the network, the data and the order of the cells, as plain values.

    The counts themselves are not read again: cells are told apart by how many genes they have,
    and by batch and label.
    """
    genes = hashlib.sha256("\n".join(map(str, store.gene_names)).encode())
    cells = hashlib.sha256()
    for array in (store.lengths(), store.batch_codes, store.label_codes):
        cells.update(np.asarray(array, dtype=np.int64).tobytes())
    options = asdict(setup.options)
    if not options["encode_covariates"]:  # older checkpoints do not say so
        del options["encode_covariates"]
    blocks = store.block_edges
    if blocks is None:
        order = "whole"
    else:
        order = f"by {len(blocks) - 1} blocks on disk, {store.pool_cells} cells at a time"
    return {
        "number of cells": store.n_cells,
        "number of genes": store.n_genes,
        "names of the genes (SHA-256)": genes.hexdigest()[:16],
        "the cells (SHA-256)": cells.hexdigest()[:16],
        "batch_categories": list(setup.batch_categories),
        "label_categories": list(setup.label_categories),
        **options,
        "seed": seed,
        "batch_size": settings.batch_size,
        "train_size": settings.train_size,
        "the order of the cells": order,
        "number of processes": processes,
    }
