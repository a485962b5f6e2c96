"""The .h5ad file that carries a latent space."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from .._files import atomic_path
from ..data.obs import storable

KEY = "X_fastvae"


def write_latent_file(path: Path, latent: np.ndarray, obs: Any, var: Any) -> None:
    """Write `latent` as ``obsm["X_fastvae"]`` beside `obs` and `var`; there is no ``X``."""
    from anndata import AnnData

    obs, var = storable(obs), storable(var)
    adata = AnnData(obs=obs, var=var, obsm={KEY: latent}, uns={"fastvae_version": __version__})
    with atomic_path(path) as temporary:
        adata.write_h5ad(temporary)
