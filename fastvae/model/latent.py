"""Latent positions and library sizes: `Model.get_latent_representation`, `Model.write_latent`."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__
from .._files import atomic_path, check_new_file
from ..data.storable import storable
from ..errors import (
    MOST_DRAWS,
    file_path,
    seed_number,
    shortened,
    true_or_false,
    whole_number,
)
from ..plots.projection import umap_of
from .base import EVALUATION_BATCH, State
from .new_data import READING, Reading
from .posterior import encode
from .scvi_names import with_scvi_names
from .selection import cell_rows

if TYPE_CHECKING:
    from anndata import AnnData
    from typing_extensions import Unpack

KEY = "X_fastvae"
"""Where latent positions are in ``obsm``."""

UMAP_KEY = "X_umap"


class LatentAnswers(State):
    """Latent positions and library sizes of cells."""

    @with_scvi_names(READING)
    def get_latent_representation(
        self,
        data: Any = None,
        cells: Any = None,
        give_mean: bool = True,
        batch_size: int = EVALUATION_BATCH,
        *,
        mc_samples: int = 5000,
        return_dist: bool = False,
        seed: int | None = 0,
        **reading: Unpack[Reading],
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Return where each cell lies in latent space.

        Parameters
        ----------
        data, cells, batch_size, seed, **reading
            As in the notes of `Model`. Unknown batches do not matter here, unless the encoder is
            told the batch (``encode_covariates``).
        give_mean
            The mean of the posterior q(z | x); otherwise one draw of it.
        mc_samples
            For ``latent_distribution="ln"``, where the mean has no closed form, it is that of so
            many draws.
        return_dist
            Return mean and variance of the normal q(z | x) instead: how sure the model is of the
            position. For "ln" they are those before the softmax.

        Returns
        -------
        ndarray or tuple of ndarray
            (N, n_latent) float32, or two of them.
        """
        n_draws = whole_number("mc_samples", mc_samples, minimum=1, maximum=MOST_DRAWS)
        give_mean = true_or_false("give_mean", give_mean)
        seed = seed_number(seed)
        store, _ = self._opened_to_encode(data, reading)
        rows = cell_rows(cells, store)
        batches = self._minibatches(store, rows, batch_size)
        if true_or_false("return_dist", return_dist):
            return encode.latent_moments(self.module, batches, len(rows))
        return encode.latent(
            self.module, batches, len(rows), give_mean=give_mean, seed=seed, n_draws=n_draws
        )

    @with_scvi_names(READING)
    def get_latent_library_size(
        self,
        data: Any = None,
        cells: Any = None,
        give_mean: bool = True,
        batch_size: int = EVALUATION_BATCH,
        *,
        seed: int | None = 0,
        **reading: Unpack[Reading],
    ) -> np.ndarray:
        """Return the library size of each cell.

        Parameters
        ----------
        data, cells, batch_size, seed, **reading
            As in the notes of `Model`.
        give_mean
            The mean of its posterior; otherwise one draw. With the observed library size either
            is the total count of the cell.

        Returns
        -------
        ndarray
            (N, 1) float32, not logarithms.
        """
        give_mean = true_or_false("give_mean", give_mean)
        seed = seed_number(seed)
        store = self._store_for(data, reading)
        rows = cell_rows(cells, store)
        batches = self._minibatches(store, rows, batch_size)
        return encode.library(self.module, batches, len(rows), give_mean=give_mean, seed=seed)

    @with_scvi_names(READING)
    def write_latent(
        self,
        path: str | os.PathLike[str],
        data: Any = None,
        overwrite: bool = False,
        *,
        umap: bool = False,
        **reading: Unpack[Reading],
    ) -> np.ndarray:
        """Write a light .h5ad: the latent space in ``obsm["X_fastvae"]``, obs and var, no counts.

        Parameters
        ----------
        path
            The file; it is written whole or not at all.
        data, **reading
            As in `get_latent_representation`.
        overwrite
            Replace a file that is there.
        umap
            Also write its UMAP, (N, 2) float32, to ``obsm["X_umap"]``, where scanpy looks for it;
            `fastvae.plots.plot_latent` says when there is none.

        Returns
        -------
        ndarray
            The latent space, (N, n_latent) float32.
        """
        overwrite = true_or_false("overwrite", overwrite)
        umap = true_or_false("umap", umap)
        target = check_new_file(file_path("path", path), overwrite=overwrite)
        store, frames = self._opened_to_encode(data, reading)
        rows = cell_rows(None, store)
        batches = self._minibatches(store, rows, EVALUATION_BATCH)
        latent = encode.latent(self.module, batches, len(rows), give_mean=True, seed=0)
        obsm = {KEY: latent}
        if umap and (found := umap_of(latent)) is not None:
            obsm[UMAP_KEY] = found.astype(np.float32)
        write_latent_file(target, obsm, frames.obs, frames.var)
        return latent


def write_latent_file(path: Path, obsm: dict[str, np.ndarray], obs: Any, var: Any) -> None:
    """Write `obsm`, such as the latent space, beside `obs` and `var`; there is no ``X``.

    Columns of obs and var that these files cannot hold are written as text. If they still cannot
    be written, the file has the latent space and the names without them.
    """
    from anndata import AnnData

    obs, var = storable(obs, "obs"), storable(var, "var")
    extra = {"obsm": obsm, "uns": {"fastvae_version": __version__}}
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
