"""How well a model explains cells: ELBO, reconstruction error, marginal likelihood."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import MOST_DRAWS, seed_number, true_or_false, whole_number
from .base import EVALUATION_BATCH, State
from .new_data import READING, Reading
from .posterior import marginal
from .scvi_names import with_scvi_names
from .selection import cell_rows

if TYPE_CHECKING:
    from typing_extensions import Unpack


class QualityAnswers(State):
    """Bounds and estimates of the likelihood of cells."""

    @with_scvi_names(READING)
    def get_elbo(
        self,
        data: Any = None,
        cells: Any = None,
        batch_size: int = EVALUATION_BATCH,
        return_mean: bool = True,
        *,
        seed: int | None = 0,
        **reading: Unpack[Reading],
    ) -> float | np.ndarray:
        """Return the evidence lower bound of a cell, higher is better, as scvi-tools does.

        ``log p(x | z, l) - KL(q(z) || p(z)) - KL(q(l) || p(l))`` at one draw of z and l; the last
        term is only there where the library is learned. The columns ``*_elbo`` of the history
        are its negative.

        Parameters
        ----------
        data, cells, batch_size, seed, **reading
            As in the notes of `Model`.
        return_mean
            The mean over cells; otherwise one value per cell.

        Returns
        -------
        float or ndarray
            (N,) float64 with ``return_mean=False``.
        """
        return_mean = true_or_false("return_mean", return_mean)
        losses, divergences = self._losses(data, cells, batch_size, seed, reading)
        elbo = -(losses + divergences)
        return float(elbo.mean()) if return_mean else elbo

    @with_scvi_names(READING)
    def get_reconstruction_error(
        self,
        data: Any = None,
        cells: Any = None,
        batch_size: int = EVALUATION_BATCH,
        return_mean: bool = True,
        *,
        seed: int | None = 0,
        **reading: Unpack[Reading],
    ) -> float | np.ndarray:
        """Return ``-log p(x | z, l)`` at one draw, lower is better.

        The sign is that of scvi-tools, which returns it in a dictionary of one entry.

        Parameters
        ----------
        data, cells, batch_size, return_mean, seed, **reading
            As in `get_elbo`.

        Returns
        -------
        float or ndarray
            (N,) float64 with ``return_mean=False``.
        """
        return_mean = true_or_false("return_mean", return_mean)
        losses, _ = self._losses(data, cells, batch_size, seed, reading)
        return float(losses.mean()) if return_mean else losses

    @with_scvi_names(READING)
    def get_marginal_ll(
        self,
        data: Any = None,
        cells: Any = None,
        n_mc_samples: int = 1000,
        batch_size: int = EVALUATION_BATCH,
        return_mean: bool = True,
        *,
        seed: int | None = 0,
        **reading: Unpack[Reading],
    ) -> float | np.ndarray:
        """Return an estimate of log p(x), higher is better.

        ``log mean_s p(x | z_s, l_s) p(z_s, l_s) / q(z_s, l_s | x)`` over draws from q. On
        average it lies below the truth, closer with more draws, and not below the ELBO.

        Parameters
        ----------
        data, cells, batch_size, return_mean, seed, **reading
            As in `get_elbo`.
        n_mc_samples
            Draws per cell.

        Returns
        -------
        float or ndarray
            (N,) float64 with ``return_mean=False``.
        """
        n_samples = whole_number("n_mc_samples", n_mc_samples, minimum=1, maximum=MOST_DRAWS)
        return_mean = true_or_false("return_mean", return_mean)
        seed = seed_number(seed)
        store = self._store_for(data, reading)
        rows = cell_rows(cells, store)
        values = marginal.marginal_log_likelihood(
            self.module,
            self._minibatches(store, rows, batch_size),
            len(rows),
            n_samples=n_samples,
            seed=seed,
        )
        return float(values.mean()) if return_mean else values

    def _losses(
        self, data: Any, cells: Any, batch_size: int, seed: int | None, reading: Reading
    ) -> tuple[np.ndarray, np.ndarray]:
        seed = seed_number(seed)
        store = self._store_for(data, reading)
        rows = cell_rows(cells, store)
        batches = self._minibatches(store, rows, batch_size)
        return marginal.loss_of_cells(self.module, batches, len(rows), seed=seed)
