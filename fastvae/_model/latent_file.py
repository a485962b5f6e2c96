"""The .h5ad file that carries a latent space."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from .._files import atomic_path, of_the_system
from ..data.storable import storable
from ..errors import shortened

KEY = "X_fastvae"


def write_latent_file(path: Path, latent: np.ndarray, obs: Any, var: Any) -> None:
    """Write `latent` as ``obsm["X_fastvae"]`` beside `obs` and `var`; there is no ``X``.

    Columns of obs and var that these files cannot hold are written as text; whatever is the
    matter with them, the latent space is written.
    """
    from anndata import AnnData

    obs, var = storable(obs, "obs"), storable(var, "var")
    extra = {"obsm": {KEY: latent}, "uns": {"fastvae_version": __version__}}
    with atomic_path(path) as temporary:
        try:
            AnnData(obs=obs, var=var, **extra).write_h5ad(temporary)
            reason = ""
        except Exception as error:  # of AnnData, h5py and pandas
            if of_the_system(error):
                raise
            reason = shortened(f"{type(error).__name__}: {error}")
        if reason:
            AnnData(obs=obs.iloc[:, :0], var=var.iloc[:, :0], **extra).write_h5ad(temporary)
    if not reason:
        return
    warnings.warn(
        f"{path} has the names of cells and genes, but no columns of obs and var, which cannot "
        f"be written ({reason})",
        UserWarning,
        stacklevel=3,
    )
