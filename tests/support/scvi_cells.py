"""Cells for the conversions from and to scvi-tools."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

SEED = 5
N_CELLS, N_GENES = 30, 16


def draw_counts() -> np.ndarray:
    """Counts of three donors and two types, at most 255."""
    rng = np.random.default_rng(0)
    kind = np.arange(N_CELLS) // 3 % 2
    mean = rng.gamma(1.0, 3.0, size=(2, N_GENES))[kind] * rng.lognormal(0, 0.4, (N_CELLS, 1))
    counts = rng.poisson(mean * np.where(np.arange(N_CELLS) % 3 == 1, 2.0, 1.0)[:, None])
    counts[:, 0] += 1
    return np.minimum(counts, 255).astype(np.float32)


def make_cells(counts: np.ndarray) -> anndata.AnnData:
    """Annotate them; the order of the donors is not that of their names, lanes are numbers."""
    counts = np.asarray(counts, dtype=np.float32)
    number = np.arange(len(counts))
    obs = pd.DataFrame(
        {
            "donor": pd.Categorical(np.array(["b", "a", "c"])[number % 3], ["c", "a", "b"]),
            "lane": 10 - number % 2,
            "cell_type": np.array(["T", "B"])[number // 3 % 2],
        },
        index=[f"cell{i}" for i in number],
    )
    var = pd.DataFrame(index=[f"G{i}" for i in range(counts.shape[1])])
    layers = {"counts": sp.csr_matrix(counts)}
    return anndata.AnnData(sp.csr_matrix(counts), obs, var, layers=layers)
