"""Latent positions and library sizes: `Model.get_latent_representation`, `Model.write_latent`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from .._files import check_new_file
from ..data.insertion import Insertion
from ..errors import (
    MOST_DRAWS,
    file_path,
    seed_number,
    text,
    true_or_false,
    whole_number,
)
from ..plots.projection import umap_of
from .base import EVALUATION_BATCH, State
from .latent_file import KEY, UMAP_KEY, write_latent_file
from .new_data import READING, Reading
from .posterior import encode
from .scvi_names import with_scvi_names
from .selection import cell_rows

if TYPE_CHECKING:
    from typing_extensions import Unpack


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
        latent = self._latent_means(store)
        obsm = {KEY: latent}
        if umap and (found := umap_of(latent)) is not None:
            obsm[UMAP_KEY] = found.astype(np.float32)
        write_latent_file(target, obsm, frames.obs, frames.var, self._provenance())
        return latent

    @with_scvi_names(READING)
    def write_latent_into(
        self,
        path: str | os.PathLike[str],
        overwrite: bool = False,
        *,
        key: str = KEY,
        **reading: Unpack[Reading],
    ) -> np.ndarray:
        """Add the latent space of its cells to an .h5ad file: ``obsm[key]``; all else is kept.

        The array is written to a copy beside the file, which is read back and then takes the file's
        place in one step: the disk must have room for both, and an interruption leaves the file as
        it was. A program that has the file open goes on reading the old one.

        Parameters
        ----------
        path
            The file, and the cells.
        overwrite
            Replace an array of this name.
        key
            The name in ``obsm``.
        **reading
            As in `get_latent_representation`.

        Returns
        -------
        ndarray
            The latent space, (N, n_latent) float32.

        Raises
        ------
        InputError
            Also if the file has such an array and `overwrite` is false, or another program changes
            it meanwhile.
        """
        overwrite = true_or_false("overwrite", overwrite)
        place = Insertion.checked(
            file_path("path", path), text("key", key, "a name"), overwrite=overwrite
        )
        store, _ = self._opened_to_encode(path, reading)
        latent = self._latent_means(store)
        place.write(latent)
        return latent
