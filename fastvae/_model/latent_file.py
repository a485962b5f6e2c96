"""The .h5ad file that carries a latent space."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__
from .._files import atomic_path
from ..data.storable import storable
from ..errors import shortened

if TYPE_CHECKING:
    from anndata import AnnData

KEY = "X_fastvae"


def write_latent_file(path: Path, latent: np.ndarray, obs: Any, var: Any) -> None:
    """Write `latent` as ``obsm["X_fastvae"]`` beside `obs` and `var`; there is no ``X``.

    Columns of obs and var that these files cannot hold are written as text; whatever is the
    matter with them, the latent space is written.
    """
    from anndata import AnnData

    obs, var = storable(obs, "obs"), storable(var, "var")
    extra = {"obsm": {KEY: latent}, "uns": {"fastvae_version": __version__}}
    reason = ""
    try:
        content = _h5ad(AnnData(obs=obs, var=var, **extra))
    except Exception as error:  # of AnnData, h5py and pandas
        reason = shortened(f"{type(error).__name__}: {error}")
        content = _h5ad(AnnData(obs=obs.iloc[:, :0], var=var.iloc[:, :0], **extra))
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    if reason:
        warnings.warn(
            f"{path} has the names of cells and genes, but no columns of obs and var, which "
            f"cannot be written ({reason})",
            UserWarning,
            stacklevel=3,
        )


def _h5ad(adata: AnnData) -> bytes:
    """Return the content of an .h5ad file, made in memory: HDF5 may crash on a full disk."""
    import h5py
    from anndata.io import write_elem

    with h5py.File("latent", "w", driver="core", backing_store=False) as file:
        write_elem(file, "/", adata)
        file.flush()
        content: bytes = file.id.get_file_image()
    return content
