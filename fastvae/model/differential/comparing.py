"""Comparisons from the cells to the table: draws, effects, statistics of counts."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..._torch import device_of, evaluating
from ...data.keys import Key
from ...data.stores.store import Store
from ...errors import InputError
from ...train.progress import tracked
from ...vae.vae import VAE
from ..posterior.importance import Reweighting, Weighting
from ..posterior.noise import minibatches_of_blocks
from ..posterior.population import Picked, Posterior
from ..selection import batch_codes
from .counts import GroupSums, sum_groups
from .effects import ChangeOptions, Pairs
from .groups import Comparisons
from .outliers import Sides, inlying_sides
from .table import columns_of, data_frame

if TYPE_CHECKING:
    import pandas as pd


COUNTING_BATCH = 4096
"""Cells per minibatch where only counts are added up."""

Told = tuple[list[int] | None, list[int] | None]
"""Codes of the batches that each of two groups is decoded as; None is the batch of each cell."""


@dataclass(frozen=True)
class Questions:
    """What is asked of every comparison; see `Model.differential_expression`.

    Attributes
    ----------
    mode
        "change" or "vanilla".
    change
        Options of mode "change".
    n_samples
        Draws per group.
    n_permuted
        Random pairs of draws; None pairs each draw with one.
    told
        Batches to decode the groups as.
    all_stats
        Describe the counts too.
    filter_outlier_cells
        Draw from no outlier.
    weighting
        Of the draws; None where all weigh the same.
    fdr_target, fdr_name
        Expected share of false genes among those marked, and the column of the marks.
    batch_size
        Cells per minibatch.
    progress
        Say on standard error which comparison it is.
    """

    mode: str
    change: ChangeOptions
    n_samples: int
    n_permuted: int | None
    told: Told
    all_stats: bool
    filter_outlier_cells: bool
    weighting: Weighting | None
    fdr_target: float
    fdr_name: str
    batch_size: int
    progress: bool

    @property
    def need_counts(self) -> bool:
        """Whether the counts are read, and not just the cells that are drawn."""
        return self.all_stats or (self.mode == "change" and self.change.pseudocounts is None)


def compare(
    module: VAE, store: Store, compared: Comparisons, questions: Questions, seed: int
) -> pd.DataFrame:
    """Return the table of all comparisons, one below the other."""
    device, size = device_of(module), questions.batch_size
    told, weighting = questions.told, questions.weighting
    sides = [(compared.cells(one.first), compared.cells(one.second)) for one in compared.listed]
    if questions.filter_outlier_cells:
        everyone = compared.all_cells()
        batches = minibatches_of_blocks(store, everyone, size, device)
        sides = inlying_sides(module, batches, everyone, sides, seed)
    picked = [
        _pick(
            both,
            told,
            store.batch_codes,
            questions.n_samples,
            module.n_latent,
            seed,
            evenly=weighting is not None,
        )
        for both in sides
    ]
    sums = _sums(module, store, compared) if questions.need_counts else None
    cells = np.unique(np.concatenate([part.cells for both in picked for part in both]))
    n_shared = None if told[0] is None or told[0] != told[1] else len(told[0])
    tables = []
    with evaluating(module, seed=0):
        posterior = Posterior(module, minibatches_of_blocks(store, cells, size, device), cells)
        titles = [one.title for one in compared.listed]
        steps = zip(compared.listed, sides, picked, strict=True)
        shown = tracked(steps, titles, "comparison", show=questions.progress)
        for comparison, both, (first, second) in shown:
            if weighting is not None:
                again = Reweighting(store, posterior, weighting, size)
                names = comparison.names
                first = again.draws(first, both[0], [seed, 3, 0], names[0])
                second = again.draws(second, both[1], [seed, 3, 1], names[1])
            pairs = Pairs.of(
                posterior.draws(first),
                posterior.draws(second),
                n_shared,
                questions.n_permuted,
                np.random.default_rng([seed, 2]),
            )
            tables.append(
                columns_of(
                    pairs, comparison, sums, questions.mode, questions.change, questions.all_stats
                )
            )
    return data_frame(
        tables,
        compared.listed,
        store.gene_names,
        questions.mode,
        questions.fdr_target,
        questions.fdr_name,
    )


def _pick(
    sides: Sides,
    told: Told,
    own_batch: np.ndarray,
    n_samples: int,
    n_latent: int,
    seed: int,
    *,
    evenly: bool = False,
) -> tuple[Picked, Picked]:
    """Draw cells and noise for both groups; other comparisons change nothing."""
    one, two = (
        Picked.of(
            cells,
            batches,
            own_batch,
            n_samples,
            n_latent,
            np.random.default_rng([seed, number]),
            evenly=evenly,
        )
        for number, (cells, batches) in enumerate(zip(sides, told, strict=True))
    )
    return one, two


def _sums(module: VAE, store: Store, compared: Comparisons) -> GroupSums:
    cells = compared.all_cells()
    batches = minibatches_of_blocks(store, cells, COUNTING_BATCH, device_of(module))
    return sum_groups(batches, compared.codes, compared.n_codes, store.n_genes)


def batches_told(
    batch_correction: bool,
    batchids: tuple[Any, Any],
    categories: Sequence[str],
    key: Key | None,
) -> Told:
    """Return the codes that two groups are decoded as, ascending.

    Parameters
    ----------
    batch_correction
        Decode as given batches; otherwise as the batch of each cell.
    batchids
        Names of the batches for either group; None is all.
    categories, key
        Batches of the model.

    Raises
    ------
    InputError
        Batches without `batch_correction`, unknown batches, or a model without batches.

    Warns
    -----
    UserWarning
        The groups share some of their batches, but not all.
    """
    if not batch_correction:
        if any(wanted is not None for wanted in batchids):
            raise InputError(
                "batchid1 and batchid2 say what to decode as instead of a cell's own batch; "
                "give batch_correction=True with them"
            )
        return None, None
    if key is None:
        raise InputError("batch_correction needs a model with batches; it has no batch_key")
    both = []
    for name, wanted in zip(("batchid1", "batchid2"), batchids, strict=True):
        codes = batch_codes(wanted, categories, key, name)
        known = {code for code in codes if code is not None}
        both.append(sorted({*range(len(categories))} if wanted is None else known))
    if both[0] != both[1] and set(both[0]) & set(both[1]):
        warnings.warn(
            "batchid1 and batchid2 differ but have batches in common; draws are compared "
            "across batches, so differences between batches are not corrected",
            UserWarning,
            stacklevel=4,
        )
    return both[0], both[1]
