"""Importance weights that bring draws from q(z | x) nearer to draws from the posterior p(z | x)."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..._covariates import NO_COVARIATES, CellCovariates
from ..._torch import csr_of
from ...data import Minibatches
from ...data.stores.store import Store
from ...errors import MOST_DRAWS, InputError, one_of, shown, true_or_false, whole_number
from ...vae.steps import (
    covariates_of,
    decoder_logits,
    likelihood_of,
    observed_log_library,
)
from . import marginal
from .encode import covariates_in, z_posterior
from .noise import minibatches_of_blocks
from .population import Picked, Posterior

if TYPE_CHECKING:
    from ...vae.vae import VAE


WEIGHTS = ("uniform", "importance")

FEWEST_DRAWS = 10
"""Fewer effective draws than this give a warning."""

VALUES_AT_ONCE = 1 << 18
"""Decoded values at a time: few enough to stay in the cache while every anchor uses them."""


@dataclass(frozen=True)
class Weighting:
    """How importance weights are estimated: ``importance_weighting_kwargs``.

    Attributes
    ----------
    max_cells
        Most cells that weights are computed from; of more, this many are picked at random.
    truncation
        Cut weights off at sqrt(M) times their mean (Ionides 2008).
    n_mc_samples
        Draws for the estimate of log p(x) of each of these cells.
    """

    max_cells: int = 1024
    truncation: bool = False
    n_mc_samples: int = 500

    @classmethod
    def checked(cls, weights: Any, given: Mapping[str, Any] | None) -> Weighting | None:
        """Return the options as the user gave them; None for uniform weights.

        Raises
        ------
        InputError
            Unknown weights, or an option that is unknown, out of range or without effect.
        """
        weights = "uniform" if weights is None else weights
        one_of("weights", weights, WEIGHTS)
        if given is not None and not isinstance(given, Mapping):
            raise InputError(
                f"importance_weighting_kwargs must be a dictionary, not {shown(given)}"
            )
        if weights == "uniform":
            if given:
                raise InputError(
                    "importance_weighting_kwargs are given and weights are uniform; give "
                    "weights='importance' with them"
                )
            return None
        options = dict(given or {})
        options.pop("n_mc_samples_per_pass", None)  # of scvi-tools; memory does not grow here
        known = cls.__dataclass_fields__
        for name in options:
            if name not in known:
                raise InputError(
                    f"importance_weighting_kwargs has {shown(name)}; there are {', '.join(known)}"
                )
        for name in ("max_cells", "n_mc_samples"):
            if name in options:
                options[name] = whole_number(name, options[name], minimum=1, maximum=MOST_DRAWS)
        if "truncation" in options:
            options["truncation"] = true_or_false("truncation", options["truncation"])
        return cls(**options)

    def pick(self, cells: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the rows of the anchors, ascending: at most `max_cells` of `cells`."""
        if len(cells) <= self.max_cells:
            return cells
        return np.sort(rng.choice(cells, self.max_cells, replace=False))

    def probabilities(self, log_weights: np.ndarray) -> np.ndarray:
        """Return weights that sum to 1, (M,) float64."""
        if self.truncation:
            n_draws, top = len(log_weights), log_weights.max()
            log_mean = top + math.log(np.exp(log_weights - top).mean())
            log_weights = np.minimum(log_weights, log_mean + 0.5 * math.log(n_draws))
        weights = np.exp(log_weights - log_weights.max())
        normalised: np.ndarray = weights / weights.sum()
        return normalised


class Anchors:
    """The cells that weights are computed from: counts, posterior and log p(x) of each.

    Parameters
    ----------
    module
        In evaluation mode, gradients off.
    batches
        Minibatches over them; they are read twice.
    n_cells, n_mc_samples, seed
        Number of cells, and draws and seed of the estimate of log p(x).
    """

    def __init__(
        self, module: VAE, batches: Minibatches, n_cells: int, n_mc_samples: int, seed: int
    ) -> None:
        self.module = module
        self.counts: list[tuple[Tensor, Tensor]] = []
        moments, libraries = [], []
        for batch in batches:
            covariates = covariates_in(module, batch)
            moments.append(z_posterior(module, batch.x, covariates))
            libraries.append(observed_log_library(module, batch.x, covariates))
            x = batch.x
            edges = x.crow_indices().tolist()
            for start, stop in itertools.pairwise(edges):
                self.counts.append((x.col_indices()[start:stop], x.values()[start:stop]))
        self.log_library = torch.cat(libraries)
        self.mean = torch.cat([mean for mean, _ in moments]).double()
        self.variance = torch.cat([variance for _, variance in moments]).double()
        log_p = marginal.marginal_log_likelihood(
            module, batches, n_cells, n_samples=n_mc_samples, seed=seed
        )
        self.log_p = torch.from_numpy(log_p).to(self.mean.device)

    def log_weights(
        self,
        u: Tensor,
        batch_codes: Tensor,
        labels: Tensor,
        more: CellCovariates = NO_COVARIATES,
    ) -> np.ndarray:
        r"""Return the logarithm of the weight of each draw, up to a constant, (M,) float64.

        With anchors a and draws z from the q of any of the cells,

        .. math::
            w(z) = \frac{\sum_a p(z)\, p(x_a \mid z) / p(x_a)}{\sum_a q(z \mid x_a)} ,

        the mixture of the cells' posteriors over the mixture of their approximations (Boyeau et
        al. 2023). The likelihood has the library size that is observed in the anchor, or its size
        factor, and decodes z with the batch and the covariates of the draw.

        Parameters
        ----------
        u
            Draws before any softmax, (M, L).
        batch_codes, labels
            What each draw is decoded as, (M,).
        more
            The other covariates of the cell of each draw.
        """
        module = self.module
        step = max(1, VALUES_AT_ONCE // module._n_input)
        found = []
        for start in range(0, len(u), step):
            rows = slice(start, start + step)
            z = module.z_encoder.z_transformation(u[rows])
            given = batch_codes[rows], labels[rows], more.rows(rows)
            covariates = covariates_of(module, z, *given)
            parts = decoder_logits(module, z, covariates)
            log_p_x = torch.empty((len(z), len(self.counts)), dtype=torch.float64, device=z.device)
            for number, (genes, values) in enumerate(self.counts):
                x = _repeated(genes, values, len(z), module._n_input)
                log_library = self.log_library[number].expand(len(z), 1)
                log_p_x[:, number] = -likelihood_of(module, x, parts, log_library, covariates)
            wide = u[rows].double().unsqueeze(1)
            log_p_z = -0.5 * (wide**2 + math.log(2 * math.pi)).sum(dim=-1)
            squares = (wide - self.mean) ** 2 / self.variance
            log_q = -0.5 * (squares + torch.log(2 * math.pi * self.variance)).sum(dim=-1)
            above = torch.logsumexp(log_p_z + log_p_x - self.log_p, dim=1)
            found.append(above - torch.logsumexp(log_q, dim=1))
        return torch.cat(found).cpu().numpy()


def _repeated(genes: Tensor, values: Tensor, n_rows: int, n_genes: int) -> Tensor:
    """Return a CSR matrix (n_rows, G) with the counts of one cell in each row."""
    crow = torch.arange(n_rows + 1, dtype=genes.dtype, device=genes.device) * len(genes)
    shape = (n_rows, n_genes)
    return csr_of(crow, genes.repeat(n_rows), values.repeat(n_rows), shape)


@dataclass(frozen=True, eq=False)
class Reweighting:
    """Draws chosen again by their importance weights.

    The network is in evaluation mode, without gradients.

    Attributes
    ----------
    store
        The counts of the cells that are drawn from.
    posterior
        Of all these cells.
    weighting
        How weights are estimated.
    batch_size
        Cells per minibatch.
    """

    store: Store
    posterior: Posterior
    weighting: Weighting
    batch_size: int

    def draws(self, picked: Picked, cells: np.ndarray, seed: list[int], what: str) -> Picked:
        """Choose as many draws with replacement; the weights are their probabilities.

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
        device = self.posterior.mean.device
        anchors = Anchors(
            self.posterior.module,
            minibatches_of_blocks(self.store, rows, self.batch_size, device),
            len(rows),
            self.weighting.n_mc_samples,
            int(rng.integers(2**62)),
        )
        log_weights = anchors.log_weights(
            self.posterior.positions(picked),
            torch.from_numpy(picked.batch_codes).to(device),
            torch.from_numpy(self.store.label_codes[picked.cells].astype(np.int64)).to(device),
            self.posterior.covariates(picked),
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
                    stacklevel=5,
                )
            chosen.append(part[rng.choice(len(part), size=len(part), p=weights)])
        return picked.take(np.concatenate(chosen))
