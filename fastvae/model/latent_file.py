"""Files of latent positions: written beside obs and var without counts, and read again."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__
from .._files import atomic_path
from ..data.sources.hdf5 import opened, reporting_damage
from ..data.sources.slots import Slot
from ..data.sources.stored_file import read_outline
from ..data.storable import storable
from ..errors import InputError, shortened
from ..plots.projection import Projection, project, umap_projection
from .provenance import KEY as ORIGIN

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

LATENT = "latent.h5ad"
"""Name of the file in the folder of a run."""

KEY = "X_fastvae"
"""Where latent positions are in ``obsm``."""

UMAP_KEY = "X_umap"


def write_latent_file(
    path: Path, obsm: dict[str, np.ndarray], obs: Any, var: Any, about: dict[str, Any]
) -> None:
    """Write `obsm`, such as the latent space, beside `obs` and `var`; there is no ``X``.

    `about` says in ``uns["fastvae"]`` where it comes from: see `provenance`.

    Columns of obs and var that these files cannot hold are written as text. If they still cannot
    be written, the file has the latent space and the names without them.
    """
    from anndata import AnnData

    obs, var = storable(obs, "obs"), storable(var, "var")
    extra = {"obsm": obsm, "uns": {"fastvae_version": __version__, ORIGIN: about}}
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
            stacklevel=4,
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


@dataclass(frozen=True, eq=False)
class SavedLatent:
    """What a file of latent positions holds.

    Attributes
    ----------
    obs
        One row per cell.
    latent
        (N, L) float64.
    umap
        (N, 2) float64; None where there is none.
    """

    obs: pd.DataFrame
    latent: np.ndarray
    umap: np.ndarray | None

    def projection(self, method: str = "auto", seed: int = 0) -> Projection:
        """Return the UMAP that is in the file, unless something else is asked for."""
        if self.umap is not None and method in ("auto", "umap") and seed == 0:
            return umap_projection(self.umap)
        return project(self.latent, method=method, seed=seed)


def read_latent_file(path: Path, otherwise: str = "") -> SavedLatent:
    """Read a file that `write_latent_file` wrote.

    Parameters
    ----------
    path
        The file.
    otherwise
        What else the message says where it is missing.

    Raises
    ------
    InputError
        It is missing, damaged, or not what fastvae wrote.
    """
    if not path.is_file():
        raise InputError(
            f"{path} is missing; write it with fastvae embed {path.parent} DATA -o {path}"
            f"{otherwise}"
        )
    obs = read_outline(path, Slot()).obs
    found: dict[str, np.ndarray] = {}
    with opened(path) as file, reporting_damage(path):
        for name in (KEY, UMAP_KEY):
            stored = file["obsm"].get(name)
            if stored is None:
                continue
            if stored.ndim != 2 or len(stored) != len(obs) or stored.dtype.kind != "f":
                raise InputError(f'{path}: obsm["{name}"] does not fit its {len(obs):,} cells')
            found[name] = stored[:].astype(np.float64)
    if KEY not in found:
        raise InputError(f'{path} has no obsm["{KEY}"]; give the folder that fastvae train wrote')
    return SavedLatent(obs, found[KEY], found.get(UMAP_KEY))
