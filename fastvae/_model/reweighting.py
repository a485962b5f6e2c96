"""Draws chosen again by their importance weights."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch

from ..data.store import Store
from .differential_draws import Picked, Posterior
from .importance import Anchors, Weighting
from .state import State

FEWEST_DRAWS = 10
"""Answers that rest on effectively fewer draws than this are warned of."""


@dataclass(frozen=True, eq=False)
class Reweighting:
    """Chooses draws again; in evaluation mode, gradients off.

    Attributes
    ----------
    posterior
        Of all cells that are drawn from.
    """

    model: State
    store: Store
    posterior: Posterior
    weighting: Weighting
    batch_size: int

    def draws(self, picked: Picked, cells: np.ndarray, seed: list[int], what: str) -> Picked:
        """Choose as many draws, with replacement, with probabilities by their weights.

        Parameters
        ----------
        picked
            Draws from `cells`; those decoded as each batch are weighted among themselves.
        cells
            (N,) all rows of the population.
        what
            What warnings call the population.

        Warns
        -----
        UserWarning
            A few draws have nearly all the weight.
        """
        rng = np.random.default_rng(seed)
        rows = self.weighting.pick(cells, rng)
        anchors = Anchors(
            self.posterior.module,
            self.model._minibatches(self.store, rows, self.batch_size),
            len(rows),
            self.weighting.n_mc_samples,
            int(rng.integers(2**62)),
        )
        device = self.posterior.mean.device
        log_weights = anchors.log_weights(
            self.posterior.positions(picked),
            torch.from_numpy(picked.batch_codes).to(device),
            torch.from_numpy(self.store.label_codes[picked.cells].astype(np.int64)).to(device),
        )
        chosen = []
        for part in np.split(np.arange(len(log_weights)), picked.n_parts):
            weights = self.weighting.probabilities(log_weights[part])
            effective = 1 / (weights**2).sum()
            if effective < min(FEWEST_DRAWS, len(part) / 2):
                warnings.warn(
                    f"the importance weights of {what} leave {effective:.1f} effective draws of "
                    f"{len(part):,}; take more (n_samples_overall), "
                    "importance_weighting_kwargs={'truncation': True}, or weights='uniform'",
                    UserWarning,
                    stacklevel=3,
                )
            chosen.append(part[rng.choice(len(part), size=len(part), p=weights)])
        return picked.take(np.concatenate(chosen))
