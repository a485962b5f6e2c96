"""The parts of ``fastvae demo``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .neighbours import (
    chance_share,
    neighbours,
    principal_components,
    same_share,
    scaled,
    vote_accuracy,
)

if TYPE_CHECKING:
    from anndata import AnnData


MARKERS = ("CD3D", "MS4A1", "LYZ", "NKG7", "PPBP")
"""T cells, B cells, monocytes, natural killer cells, platelets."""

DEMO_FIT: dict[str, Any] = {
    "max_epochs": 100,
    "learning_rate": 2e-3,
    "n_epochs_kl_warmup": 20,
}
"""Few epochs, so they learn at twice the usual rate and warm the KL term up early."""

UNKNOWN = "unknown"
N_NEIGHBOURS = 15


def demo_data() -> AnnData:
    """Return the embedded blood cells."""
    from ..datasets import pbmc

    return pbmc()


def draw_latent(adata: AnnData, latent: np.ndarray, path: Path) -> None:
    """Draw the latent space, coloured by batch, by label where there is one, and by markers."""
    from ..plots.figures import plot_latent

    columns = [name for name in ("batch", "cell_type") if name in adata.obs]
    categories = {name: np.asarray(adata.obs[name].astype(str)) for name in columns}
    names = [gene for gene in MARKERS if gene in adata.var_names]
    expression = scaled(adata.X)
    markers = {
        gene: expression[:, adata.var_names.get_loc(gene)].toarray().ravel() for gene in names
    }
    plot_latent(latent, path, categories=categories, markers=markers)


def mixing_lines(adata: AnnData, latent: np.ndarray) -> list[str]:
    """Say how batches mix and labels keep together, before (principal components) and after."""
    batch = adata.obs["batch"].astype("category").cat.codes.to_numpy()
    spaces = {"before": principal_components(adata.X), "after": latent}
    nearest = {name: neighbours(space, N_NEIGHBOURS) for name, space in spaces.items()}
    shares = [f"{name} {same_share(found, batch):.2f}" for name, found in nearest.items()]
    lines = [
        f"of {N_NEIGHBOURS} nearest neighbours, share from the same batch: {', '.join(shares)}, "
        f"by chance {chance_share(batch):.2f}"
    ]
    if "cell_type" in adata.obs:
        label = adata.obs["cell_type"].astype(str).to_numpy()
        known = np.flatnonzero(label != UNKNOWN)
        codes = np.unique(label[known], return_inverse=True)[1]
        accuracy = [
            f"{name} {vote_accuracy(neighbours(space[known], N_NEIGHBOURS), codes):.2f}"
            for name, space in spaces.items()
        ]
        lines.append(f"cell type as most neighbours say, right in: {', '.join(accuracy)}")
    return lines
