"""The small files that the pages of the documentation call ``atlas.h5ad``, ``query.h5ad``, ..."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from count_data import write_mtx_folder
from scvi_cells import draw_counts, make_cells

from fastvae import VAE
from fastvae.datasets import simulate

DATA = Path(__file__).resolve().parents[1] / "fixtures"
N_GENES = 300
N_GENES_OF_MANY = 4_100
"""Of the files that are trained on together: enough to choose the 4,000 most variable ones."""

MARKERS = ("CD3D", "MS4A1", "LYZ", "NKG7", "PPBP")


def cells(
    n_cells: int,
    seed: int = 0,
    donors: tuple[str, ...] = ("donor_1", "donor_2"),
    n_genes: int = N_GENES,
) -> Any:
    """Simulated counts of four cell types; ``obs`` has donor and cell_type."""
    adata = simulate(n_cells, n_genes, n_batches=len(donors), n_types=4, density=0.3, seed=seed)
    if n_genes > N_GENES:  # deeper, so that the variance of the genes can be fitted
        adata.X.data = adata.X.data * 7 + np.random.default_rng(seed).poisson(4, adata.X.nnz)
    adata.obs["donor"] = np.array(donors)[adata.obs["batch"].cat.codes]
    adata.obs["cell_type"] = np.array(["B", "T", "NK", "monocyte"])[
        adata.obs["cell_type"].cat.codes
    ]
    del adata.obs["batch"]
    adata.obs_names = [f"cell{i}_{seed}" for i in range(n_cells)]
    adata.var_names = [*MARKERS, *(f"GENE{i}" for i in range(len(MARKERS), n_genes))]
    for key in ("type_scale", "batch_effect"):
        del adata.varm[key]
    adata.uns.clear()
    return adata


def write_files(folder: Path) -> None:
    """Write everything that a page may name."""
    cells(160, donors=("donor_1", "donor_2", "donor_3")).write_h5ad(folder / "atlas.h5ad")
    cells(40, seed=1).write_h5ad(folder / "new.h5ad")
    many = N_GENES_OF_MANY
    cells(60, 2, n_genes=many).write_h5ad(folder / "a.h5ad")
    cells(60, 3, donors=("donor_3", "donor_4"), n_genes=many).write_h5ad(folder / "b.h5ad")
    (folder / "atlases").mkdir()
    for seed, name in enumerate(("c", "d"), start=4):
        cells(50, seed, n_genes=many).write_h5ad(folder / "atlases" / f"{name}.h5ad")
    for seed, name in enumerate("AB", start=7):
        write_mtx_folder(folder / name / "filtered_feature_bc_matrix", cells(40, seed).X.toarray())
    query = cells(60, seed=6, donors=("donor_8", "donor_9"))
    query[:, ::-1][:, : N_GENES - 20].copy().write_h5ad(folder / "query.h5ad")
    # what scvi-tools 1.4.2 saved, and the cells of that model
    shutil.copytree(DATA / "scvi_tools" / "batches", folder / "scvi_model")
    make_cells(draw_counts()).write_h5ad(folder / "cells.h5ad")
    torch.manual_seed(0)
    torch.save(VAE(N_GENES, n_batch=3).state_dict(), folder / "vae.pkl")
