"""Cells with covariates: a site, a chip in numbers, a share, and size factors."""

from __future__ import annotations

from typing import Any

import anndata
import numpy as np
import pandas as pd
from small_models import small_data

COVARIATES: dict[str, Any] = {
    "categorical_covariate_keys": ["site", "chip"],
    "continuous_covariate_keys": ["mito"],
}
SIZED = {**COVARIATES, "size_factor_key": "factor"}


def covariate_cells(n_cells: int = 120, seed: int = 0) -> anndata.AnnData:
    """Simulated counts; the order of the sites is not that of their names, chips are numbers."""
    adata: anndata.AnnData = small_data(n_cells, seed=seed)
    rng, number = np.random.default_rng(seed), np.arange(n_cells)
    sites = np.array(["x", "y", "z"])[number % 3]
    adata.obs["site"] = pd.Categorical(sites, ["z", "x", "y"])
    adata.obs["chip"] = (number // 7 % 2).astype(float)
    adata.obs["mito"] = rng.normal(size=n_cells)
    adata.obs["factor"] = rng.uniform(0.5, 2.0, size=n_cells)
    return adata
