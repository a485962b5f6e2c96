"""What a trained `Model` can be asked."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from .._files import check_new_file
from ..data._memory import require_memory
from ..errors import InputError
from ..train.settings import real_number, whole_number
from . import inference
from .latent_file import write_latent_file
from .latents import EVALUATION_BATCH
from .posterior import PosteriorAnswers
from .select import batch_codes, cell_rows, gene_columns

if TYPE_CHECKING:
    import pandas as pd


class Answers(PosteriorAnswers):
    """The ``get_*`` methods of `Model`, which share these arguments.

    Parameters
    ----------
    data
        New data, of any kind that `Model` takes; None is the model's own. Genes are matched by
        name, others are left out; batches must be ones the model was trained with.
    cells
        Row numbers or a boolean mask, None for all; results are in this order.
    batch_size
        Cells per minibatch, rounded up to a multiple of 64. Nothing depends on it but memory,
        speed and the last digits.
    seed
        Of the random draws: the same question has the same answer. None draws from torch's
        generator.

    Raises
    ------
    InputError
        The model is not trained, has no data, or the data or an option does not fit.
    """

    def get_normalized_expression(
        self,
        data: Any = None,
        cells: Any = None,
        genes: Any = None,
        transform_batch: Any = None,
        n_samples: int = 1,
        library_size: float | Literal["latent"] = 1,
        return_mean: bool = True,
        batch_size: int = EVALUATION_BATCH,
        *,
        return_numpy: bool = False,
        seed: int | None = 0,
    ) -> pd.DataFrame | np.ndarray:
        """Return denoised expression: what the decoder makes of a draw of z.

        Parameters
        ----------
        data, cells, batch_size, seed
            See the class.
        genes
            Names of the genes wanted; all by default.
        transform_batch
            Decode as if every cell were of this batch; for several, average over them. None is
            each cell's own batch.
        n_samples
            Draws of z per cell. One is unbiased but varies with the seed as much as the posterior
            is wide; the average of S draws varies less by the square root of S, and 10 to 25 are
            usual for figures.
        library_size
            Frequencies (over all genes they sum to 1 in each cell) are multiplied by it;
            "latent" is the cell's own library size, which gives expected counts.
        return_mean
            Average over the draws.
        return_numpy
            Return an array instead of a data frame.

        Returns
        -------
        DataFrame or ndarray
            (N, genes) float32. With `n_samples` > 1 and ``return_mean=False`` an array
            (n_samples, N, genes).

        Raises
        ------
        InputError
            Also if the result would not fit into the memory that is free.
        """
        n_samples = whole_number("n_samples", n_samples, minimum=1)
        own_library = isinstance(library_size, str)
        if own_library and library_size != "latent":
            raise InputError(f"library_size must be a number or 'latent', not {library_size!r}")
        factor = None if own_library else real_number("library_size", library_size, above=0.0)
        codes = batch_codes(transform_batch, self._setup.batch_categories, self._setup.batch_key)
        columns = gene_columns(genes, self._setup.gene_names)
        store = self._store_for(data)
        rows = cell_rows(cells, store.n_cells)
        n_genes = store.n_genes if columns is None else len(columns)
        separate = n_samples > 1 and not return_mean
        shape = (n_samples, len(rows), n_genes) if separate else (len(rows), n_genes)
        require_memory(
            4 * int(np.prod(shape, dtype=np.int64)),
            f"normalized expression of {' x '.join(map(str, shape))} values",
            "ask for fewer genes (genes=) or for parts of the cells (cells=)",
        )
        result = np.empty(shape, dtype=np.float32)
        inference.expression(
            self.module,
            self._minibatches(store, rows, batch_size),
            result,
            n_samples=n_samples,
            genes=None if columns is None else torch.from_numpy(columns),
            batch_codes=codes,
            library_size=factor,
            seed=seed,
        )
        if separate or return_numpy:
            return result
        import pandas as pd

        names = store.gene_names if columns is None else store.gene_names[columns]
        return pd.DataFrame(result, index=store.cell_names[rows], columns=names, copy=False)

    def get_elbo(
        self,
        data: Any = None,
        cells: Any = None,
        batch_size: int = EVALUATION_BATCH,
        return_mean: bool = True,
        *,
        seed: int | None = 0,
    ) -> float | np.ndarray:
        """Return the evidence lower bound of a cell, higher is better, as scvi-tools does.

        ``log p(x | z, l) - KL(q(z) || p(z)) - KL(q(l) || p(l))`` at one draw of z and l; the last
        term is only there where the library is learned. The columns ``*_elbo`` of the history
        are its negative.

        Parameters
        ----------
        data, cells, batch_size, seed
            See the class.
        return_mean
            The mean over cells; otherwise one value per cell.

        Returns
        -------
        float or ndarray
            (N,) float64 with ``return_mean=False``.
        """
        losses, divergences = self._losses(data, cells, batch_size, seed)
        elbo = -(losses + divergences)
        return float(elbo.mean()) if return_mean else elbo

    def get_reconstruction_error(
        self,
        data: Any = None,
        cells: Any = None,
        batch_size: int = EVALUATION_BATCH,
        return_mean: bool = True,
        *,
        seed: int | None = 0,
    ) -> float | np.ndarray:
        """Return ``-log p(x | z, l)`` at one draw, lower is better.

        The sign is that of scvi-tools, which returns it in a dictionary of one entry.

        Parameters
        ----------
        data, cells, batch_size, return_mean, seed
            As in `get_elbo`.

        Returns
        -------
        float or ndarray
            (N,) float64 with ``return_mean=False``.
        """
        losses, _ = self._losses(data, cells, batch_size, seed)
        return float(losses.mean()) if return_mean else losses

    def get_marginal_ll(
        self,
        data: Any = None,
        cells: Any = None,
        n_mc_samples: int = 1000,
        batch_size: int = EVALUATION_BATCH,
        return_mean: bool = True,
        *,
        seed: int | None = 0,
    ) -> float | np.ndarray:
        """Return an estimate of log p(x), higher is better.

        ``log mean_s p(x | z_s, l_s) p(z_s, l_s) / q(z_s, l_s | x)`` over draws from q. It is below
        the truth on average, the less so the more draws, and never below the ELBO on average.

        Parameters
        ----------
        data, cells, batch_size, return_mean, seed
            As in `get_elbo`.
        n_mc_samples
            Draws per cell.

        Returns
        -------
        float or ndarray
            (N,) float64 with ``return_mean=False``.
        """
        n_samples = whole_number("n_mc_samples", n_mc_samples, minimum=1)
        store = self._store_for(data)
        rows = cell_rows(cells, store.n_cells)
        values = inference.marginal_log_likelihood(
            self.module,
            self._minibatches(store, rows, batch_size),
            len(rows),
            n_samples=n_samples,
            seed=seed,
        )
        return float(values.mean()) if return_mean else values

    def write_latent(
        self, path: str | os.PathLike[str], data: Any = None, overwrite: bool = False
    ) -> np.ndarray:
        """Write a light .h5ad: the latent space in ``obsm["X_fastvae"]``, obs and var, no counts.

        Parameters
        ----------
        path
            The file; it is written whole or not at all.
        data
            See the class.
        overwrite
            Replace a file that is there.

        Returns
        -------
        ndarray
            The latent space, (N, n_latent) float32.
        """
        target = check_new_file(path, overwrite=overwrite)
        if data is None:
            store, frames = self._own_store(), self._frames
        else:
            store, frames = self._setup.store_of(data)
        rows = cell_rows(None, store.n_cells)
        batches = self._minibatches(store, rows, EVALUATION_BATCH)
        latent = inference.latent(self.module, batches, len(rows), give_mean=True, seed=0)
        assert frames is not None
        write_latent_file(target, latent, frames.obs, frames.var)
        return latent

    def _losses(
        self, data: Any, cells: Any, batch_size: int, seed: int | None
    ) -> tuple[np.ndarray, np.ndarray]:
        store = self._store_for(data)
        rows = cell_rows(cells, store.n_cells)
        batches = self._minibatches(store, rows, batch_size)
        return inference.loss_of_cells(self.module, batches, len(rows), seed=seed)
