"""Draws of expression frequencies from groups of cells, never all genes at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..._covariates import CellCovariates
from ...data import Minibatches
from .decode import ScaleDraws
from .encode import covariates_in, z_posterior

if TYPE_CHECKING:
    from ...vae.vae import VAE


@dataclass(frozen=True, eq=False)
class Picked:
    """Cells drawn with replacement, and the noise of each draw.

    Attributes
    ----------
    cells
        (S,) rows of the store; a row may occur several times.
    noise
        (S, L) float32 standard normal.
    batch_codes
        (S,) what to decode each draw as.
    n_parts
        Number of equal parts: draws that are decoded as the same batch are next to each other.
    """

    cells: np.ndarray
    noise: np.ndarray
    batch_codes: np.ndarray
    n_parts: int = 1

    @classmethod
    def of(
        cls,
        cells: np.ndarray,
        codes: Sequence[int] | None,
        own_batch: np.ndarray,
        n_samples: int,
        n_latent: int,
        rng: np.random.Generator,
        *,
        evenly: bool = False,
    ) -> Picked:
        """Draw `n_samples` from `cells`, in equal parts decoded as each of `codes`.

        ``codes=None`` decodes each draw as its cell's own batch. With codes the number is rounded
        down to a multiple of theirs, and draws of one code are together. With `evenly` each cell
        is drawn equally often, give or take once; otherwise cells are drawn with replacement.
        """
        groups = 1 if codes is None else len(codes)
        each = max(n_samples // groups, 1)
        if evenly:
            turns = np.resize(rng.permutation(len(cells)), each)
            rows = cells[np.tile(turns, groups)]
        else:
            rows = cells[rng.integers(len(cells), size=each * groups)]
        noise = rng.standard_normal((each * groups, n_latent), dtype=np.float32)
        told = own_batch[rows] if codes is None else np.repeat(np.asarray(codes), each)
        return cls(rows, noise, told.astype(np.int64), groups)

    def take(self, draws: np.ndarray) -> Picked:
        """Return the draws with these numbers, as many of each part as there were."""
        return Picked(self.cells[draws], self.noise[draws], self.batch_codes[draws], self.n_parts)


class Posterior:
    """Mean and variance of q(z | x) of some cells, encoded once, and their covariates.

    Parameters
    ----------
    module
        In evaluation mode, gradients off.
    batches
        Minibatches over `cells`.
    cells
        (M,) ascending rows.
    """

    def __init__(self, module: VAE, batches: Minibatches, cells: np.ndarray) -> None:
        means, variances, covariates = [], [], []
        for batch in batches:
            covariates.append(batch.covariates)
            q_m, q_v = z_posterior(module, batch.x, covariates_in(module, batch))
            means.append(q_m)
            variances.append(q_v)
        self.module, self.cells = module, cells
        self.mean, self.variance = torch.cat(means), torch.cat(variances)
        self._covariates = CellCovariates.joined(covariates)

    def covariates(self, picked: Picked) -> CellCovariates:
        """Return the covariates of the picked cells beside the batch."""
        return self._covariates.rows(self._rows(picked))

    def _rows(self, picked: Picked) -> Tensor:
        return torch.from_numpy(np.searchsorted(self.cells, picked.cells)).to(self.mean.device)

    def positions(self, picked: Picked) -> Tensor:
        """Draw the normal below z, before any softmax, for the picked cells: (S, L)."""
        rows = self._rows(picked)
        noise = torch.from_numpy(picked.noise).to(self.mean)
        return self.mean[rows] + torch.sqrt(self.variance[rows]) * noise

    def draws(self, picked: Picked) -> ScaleDraws:
        """Draw z for the picked cells."""
        z = self.module.z_encoder.z_transformation(self.positions(picked))
        codes = torch.from_numpy(picked.batch_codes).to(z.device)
        return ScaleDraws(self.module, z, codes, self.covariates(picked))
