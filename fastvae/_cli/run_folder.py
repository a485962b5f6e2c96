"""The folder that ``fastvae train`` leaves: everything about one trained model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from .._files import check_writable_folder

if TYPE_CHECKING:
    import numpy as np

    from ..model import Model


@contextmanager
def run_folder(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Make the folder before any work is done; leave no empty one behind if the work fails."""
    new = not path.exists()
    folder = check_writable_folder(path, overwrite=overwrite)
    try:
        yield folder
    finally:
        if new:
            with suppress(OSError):
                folder.rmdir()  # refuses a folder with something in it


def write_run(model: Model, folder: Path) -> np.ndarray:
    """Write the model, its loss curve and the latent space; return the latent space (N, L)."""
    # The picture comes last: whatever goes wrong with it, the training is not lost.
    model.save(folder, overwrite=True)
    latent = model.write_latent(folder / "latent.h5ad", overwrite=True)
    if model.history["epoch"]:
        from ..plots import plot_history

        plot_history(model.history, folder / "loss.png")
    return latent


def list_files(folder: Path) -> list[str]:
    """Return a line for each file of the run that is there."""
    meaning = {
        "model.safetensors": "weights",
        "config.json": "options, genes, batches, training summary",
        "history.csv": "losses of every epoch",
        "loss.png": "loss curve",
        "latent.h5ad": 'latent space in obsm["X_fastvae"], obs and var',
        "latent.png": "latent space in two dimensions",
    }
    there = [name for name in meaning if (folder / name).is_file()]
    width = max(len(str(folder / name)) for name in there)
    return [f"  {folder / name!s:<{width}}  {meaning[name]}" for name in there]
