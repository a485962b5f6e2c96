"""An atlas on the device: gathered minibatches and whole epochs of 10 and 100 million cells.

The counts are simulated where they stay, in compact form, so that nothing is read or carried.
"""

from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np
import torch
from _kit import timing
from _kit.results import Part, Row

from fastvae import VAE
from fastvae.data import Minibatches
from fastvae.data.stores.device import DeviceStore
from fastvae.functional.gather import CellColumns, CompactCounts, DenseBuffers, gather_into
from fastvae.train import TrainSettings, new_history, train_vae

from . import graphs
from .minibatches import STRIP, simulated

CELLS = (10**7, 10**8)
GENES, STORED = 2000, 160  # counts per cell, from a half to one and a half times
BATCHES = (128, 4096)
TRAINED = 4096  # cells of a minibatch in the epochs
TINY_CELLS, TINY_GENES, TINY_STORED, TINY_BATCHES = (60,), 16, 6, (4, 8)
SETS_OF_ROWS = 16  # gathered in turn
SECONDS_PER_CELL = 1.2e-6  # the making and two epochs, reckoned and not measured


def needed_bytes(cells: int, stored: int) -> float:
    """3 bytes for each count, 64 for each cell, and what makes them in strips."""
    return 3.0 * cells * stored + 64.0 * cells + 60.0 * STRIP


def store_of(source: CompactCounts, device: torch.device) -> DeviceStore:
    """The store that training reads: two batches, no names."""
    cells, genes = source.shape
    codes = torch.arange(cells, device=device) % 2
    lengths = source.crow.diff().int().cpu().numpy()
    none = np.broadcast_to(np.int64(0), (cells,))  # of labels, in no memory
    mean = np.full(2, np.log(2.0 * lengths.mean()), np.float32)
    var = np.full(2, 0.1, np.float32)
    moments = (torch.from_numpy(array).to(device) for array in (mean, var))
    return DeviceStore(
        gene_names=np.array([f"gene_{number}" for number in range(genes)], dtype=object),
        batch_codes=codes.cpu().numpy(),
        batch_categories=("a", "b"),
        label_codes=none,
        label_categories=(),
        log_library_mean=mean,
        log_library_var=var,
        source=source,
        cell_lengths=lengths,
        columns=CellColumns(codes, torch.zeros_like(codes), *moments),
    )


def gathered(source: CompactCounts, batch: int, device: torch.device, seconds: float) -> Row:
    """Cells per second and bytes per second of dense minibatches of random cells."""
    cells, genes = source.shape
    rows = itertools.cycle(torch.randint(cells, (SETS_OF_ROWS, batch), device=device).unbind())
    into = DenseBuffers.empty(batch, genes, device)
    times: dict[str, Any] = timing.interleaved(
        {"gather": lambda: gather_into(source, next(rows), into)}, device, seconds
    )
    found = times["gather"]
    stored = source.genes.numel() / cells
    found["cells_per_second"] = 1e3 * batch / found["median_ms"]
    found["gb_per_s"] = batch * (3 * stored + 4 * genes) / found["median_ms"] / 1e6
    return dict(found)


def epochs(store: DeviceStore, batch: int, number: int, device: torch.device, replays: int) -> Row:
    """Whole epochs as `Model.fit` runs them, and `replays` of the captured step alone."""
    torch.manual_seed(0)
    module = VAE(store.n_genes, n_batch=2, use_observed_lib_size=True, check_counts=False)
    batches = Minibatches(store, batch_size=batch, shuffle=True, device=device)
    history = new_history()
    with graphs.made_steps() as made:
        train_vae(
            module.to(device), batches, None, TrainSettings(max_epochs=number, batch_size=batch),
            history, seed=0, n_train=store.n_cells, progress=False,
        )  # fmt: skip
    found: Row = {key: history[key] for key in ("seconds", "cells_per_second", "train_elbo")}
    steps = made[-1]
    if isinstance(steps, str):
        return {**found, "not_captured": steps}
    found["replay"] = graphs.replay_milliseconds(steps.training[batch], store.n_cells, replays)
    alone = store.n_cells / batch * found["replay"]["median_ms"] / 1e3
    return {**found, "epoch_overhead_seconds": [s - alone for s in found["seconds"]]}


def fill_row(row: Row, part: Part, cells: int, device: torch.device, tiny: bool) -> None:
    genes, stored = (TINY_GENES, TINY_STORED) if tiny else (GENES, STORED)
    if device.type == "cuda":
        timing.release()
        free, needed = torch.cuda.mem_get_info(device)[0], needed_bytes(cells, stored)
        if free < needed:
            text = f"needs {needed / 1e9:.0f} GB of the device, {free / 1e9:.0f} GB are free"
            row.update(state="left out", error=text)
            return
    started = time.monotonic()
    source = simulated(cells, genes, stored, device)
    timing.synchronize(device)
    row["made_in_seconds"] = round(time.monotonic() - started, 2)
    row["data_set_bytes"] = sum(t.nbytes for t in source[1:])
    row["nnz"] = source.genes.numel()
    row["gather"] = {
        str(batch): gathered(source, batch, device, 0.02 if tiny else 1.0)
        for batch in (TINY_BATCHES if tiny else BATCHES)
    }
    part.save("running")
    batch = TINY_BATCHES[-1] if tiny else TRAINED
    row["batch_size"] = batch
    number, replays = 2 if cells < 10**8 else 1, graphs.TINY_REPLAYS if tiny else graphs.REPLAYS
    row["epochs"] = epochs(store_of(source, device), batch, number, device, replays)


def run(part: Part, device: torch.device, tiny: bool) -> None:
    """The smaller data set first."""
    for cells in TINY_CELLS if tiny else CELLS:
        part.row(
            f"{cells:,} cells",
            lambda row, cells=cells: fill_row(row, part, cells, device, tiny),
            limit=150,
            needs=min(40.0, SECONDS_PER_CELL * cells),
            cells=cells,
            genes=TINY_GENES if tiny else GENES,
        )
