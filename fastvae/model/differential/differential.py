"""Differential expression between groups of cells."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from ..._torch import evaluating
from ...data.stores.store import Store
from ...errors import (
    MOST_DRAWS,
    InputError,
    real_number,
    seed_number,
    shown,
    true_or_false,
    whole_number,
)
from ..base import State
from ..new_data import Reading
from ..posterior.importance import Reweighting, Weighting
from ..posterior.population import Posterior
from ..selection import batch_codes
from .counts import GroupSums, sum_groups
from .effects import ChangeFn, ChangeOptions, DomainFn, Pairs
from .groups import Comparisons, by_groups, by_rows, check_outlier_filter, inlying_sides, pick
from .table import columns_of, data_frame

if TYPE_CHECKING:
    import pandas as pd
    from typing_extensions import Unpack


COUNTING_BATCH = 4096
"""Cells per minibatch where only counts are added up."""


class Differential(State):
    """The part of `Model` that compares groups of cells."""

    def differential_expression(
        self,
        data: Any = None,
        groupby: str | Sequence[str] | None = None,
        group1: Any = None,
        group2: Any = None,
        idx1: Any = None,
        idx2: Any = None,
        mode: Literal["change", "vanilla"] = "change",
        delta: float | None = 0.25,
        batch_size: int = 512,
        all_stats: bool = True,
        batch_correction: bool = False,
        batchid1: Any = None,
        batchid2: Any = None,
        fdr_target: float = 0.05,
        *,
        n_samples_overall: int = 5000,
        use_permutation: bool = False,
        m_permutation: int = 10_000,
        pseudocounts: float | None = None,
        threshold_counts: float = 0.01,
        test_mode: Literal["two", "three"] = "three",
        cred_interval_lvls: Sequence[float] | None = None,
        change_fn: ChangeFn | None = None,
        m1_domain_fn: DomainFn | None = None,
        min_cells: int = 2,
        weights: Literal["uniform", "importance"] = "uniform",
        filter_outlier_cells: bool = False,
        importance_weighting_kwargs: Mapping[str, Any] | None = None,
        seed: int | None = 0,
        **reading: Unpack[Reading],
    ) -> pd.DataFrame:
        r"""Test every gene for differential expression between groups of cells.

        From either group, cells and their latent positions z ~ q(z | x) are drawn
        `n_samples_overall` times and decoded to expression frequencies h (over all genes they sum
        to 1); the draws are compared in pairs. Mode "vanilla" (Lopez et al. 2018) gives

        .. math:: p(h_1 > h_2 \mid x),

        mode "change" (Boyeau et al. 2019) the probability that the log-fold change
        :math:`r = \log_2(h_1 + \epsilon) - \log_2(h_2 + \epsilon)` lies beyond `delta`,

        .. math:: p_{de} = \max\{p(r \ge \delta \mid x),\; p(r < -\delta \mid x)\}.

        Arguments and columns are those of ``scvi.model.SCVI.differential_expression`` in
        scvi-tools 1.4, and so are the definitions, apart from what the notes say.

        Parameters
        ----------
        data, batch_size, seed, **reading
            See `Answers`.
        groupby
            Column of obs that names the groups; of several columns, each combination that occurs
            is a group, such as "B | treated".
        group1, group2
            Groups to test: each of `group1` (one or several; all by default) against `group2`, or
            against all other cells, also those without a group.
        idx1, idx2
            Instead of groups, cells: row numbers, a boolean mask, or a condition on the columns
            of obs such as ``"cell_type == 'B' and batch == 'b1'"``; without `idx2` against all
            other cells.
        mode
            See above. "vanilla" is one-sided and has no false discovery rate.
        delta
            Log2-fold change below which a gene counts as unchanged. None chooses it from the
            distribution of the genes' mean effects.
        all_stats
            Add mean counts, share of cells with a count, and mean counts at a total of 1e4.
        batch_correction
            Decode every draw as given batches instead of its cell's own; draws are compared
            within a batch.
        batchid1, batchid2
            Batches to decode the two groups as, with `batch_correction`; all by default. Different
            batches for the two are compared across batches.
        fdr_target
            Genes are marked down to the least probable one with which the expected share of
            false ones among those marked is still at most this.
        n_samples_overall
            Draws per group, shared among the batches decoded as.
        use_permutation, m_permutation
            Compare `m_permutation` random pairs of the draws instead of one pair per draw.
        pseudocounts
            :math:`\epsilon`. None takes, of the genes whose mean count is below
            `threshold_counts` in a group, the 0.9 quantile of the highest frequency drawn,
            divided by the number of genes; at least 1e-10.
        threshold_counts
            See `pseudocounts`.
        test_mode
            "three": up and down are separate hypotheses, as above. "two": their probabilities
            are added.
        cred_interval_lvls
            For each of these, such as 0.95, the narrowest interval with that share of r.
        change_fn, m1_domain_fn
            Another effect ``f(scale1, scale2, pseudocounts) -> (pairs, genes)`` and another rule
            ``f(effects) -> (is_up, is_down)``. They are given some of the genes at a time, so
            they must treat every gene by itself.
        min_cells
            Fewest cells in a group.
        weights, importance_weighting_kwargs
            "importance" chooses the draws of each group again by the weights that
            `get_normalized_expression` describes, within each batch decoded as. It takes minutes
            where "uniform" takes seconds.
        filter_outlier_cells
            Do not draw from the tenth of a group's cells that lies farthest from its middle in
            latent space (Mahalanobis distances by the minimum covariance determinant); they stay
            in what is said of counts. Needs scikit-learn.

        Returns
        -------
        DataFrame
            Genes by name, sorted within each comparison by ``proba_de`` ("change") or
            ``bayes_factor`` ("vanilla"), the highest first; comparisons one below the other.
            "change": ``proba_de, proba_not_de, bayes_factor`` (natural logarithm of the odds),
            ``scale1, scale2`` (mean frequencies), ``pseudocounts, delta, lfc_mean, lfc_median,
            lfc_std, lfc_min, lfc_max``, intervals, ``is_de_fdr_{fdr_target}``. "vanilla":
            ``proba_m1, proba_m2, bayes_factor, scale1, scale2``. Then ``raw_mean1, raw_mean2,
            non_zeros_proportion1, non_zeros_proportion2, raw_normalized_mean1,
            raw_normalized_mean2``; and, for groups by name, ``comparison, group1, group2``.

        Raises
        ------
        InputError
            Unknown columns, groups, cells or batches, cells in both groups, groups with too few
            cells, or an option out of range.

        Notes
        -----
        Described (``lfc_*``) are changes with a thousandth of the pseudocount, tested those with
        the whole of it, as in scvi-tools.

        Unlike scvi-tools 1.4: the default mode is "change", since it is two-sided and has a false
        discovery rate. Every draw has a z of its own; scvi-tools draws all cells of a group at
        least once and picks from these with replacement, which costs a decoded matrix of all
        cells and gives some draws several times. Cells named in both groups are refused, not
        counted for the second. A cell without counts has normalised counts of 0, not NaN. The
        pseudocount is chosen by the mean counts of whole groups, outliers included.

        Memory does not grow with the number of cells or, but for the result and three sums for
        each group, with that of genes: only cells that are drawn are encoded, and genes are
        decoded in parts. The counts are gone over once if `all_stats` or `pseudocounts` need it.
        A comparison has the same result whatever others are asked for with it.
        """
        options = ChangeOptions.checked(
            delta=delta,
            pseudocounts=pseudocounts,
            threshold_counts=threshold_counts,
            test_mode=test_mode,
            cred_interval_lvls=cred_interval_lvls,
            change_fn=change_fn,
            m1_domain_fn=m1_domain_fn,
        )
        draws: dict[str, int] = {"minimum": 1, "maximum": MOST_DRAWS}
        n_samples = whole_number("n_samples_overall", n_samples_overall, **draws)
        n_permuted = whole_number("m_permutation", m_permutation, **draws)
        fewest = whole_number("min_cells", min_cells, minimum=1)
        target = real_number("fdr_target", fdr_target)
        if target >= 1:
            raise InputError(f"fdr_target is a share of false discoveries below 1, not {target:g}")
        if not isinstance(mode, str) or mode not in ("change", "vanilla"):
            raise InputError(f"mode must be 'change' or 'vanilla', not {shown(mode)}")
        all_stats = true_or_false("all_stats", all_stats)
        use_permutation = true_or_false("use_permutation", use_permutation)
        filter_outlier_cells = true_or_false("filter_outlier_cells", filter_outlier_cells)
        batch_correction = true_or_false("batch_correction", batch_correction)
        seed = seed_number(seed)
        weighting = Weighting.checked(weights, importance_weighting_kwargs)
        if filter_outlier_cells:
            check_outlier_filter()
        codes1, codes2 = self._batches_told(batch_correction, batchid1, batchid2)
        store, frames = self._opened(data, reading)
        obs = frames.obs
        if idx1 is not None:
            if group1 is not None or group2 is not None:
                raise InputError("give groups (group1, group2) or cells (idx1, idx2), not both")
            compared = by_rows(idx1, idx2, obs, fewest)
        elif idx2 is not None:
            raise InputError("idx2 is given without idx1; give idx1, or both")
        else:
            compared = by_groups(groupby, group1, group2, obs, fewest)

        if seed is None:
            seed = int(torch.randint(2**62, ()))
        told, n_latent = (codes1, codes2), self._setup.options.n_latent
        sides = [(compared.cells(one.first), compared.cells(one.second)) for one in compared.listed]
        if filter_outlier_cells:
            batches = self._minibatches(store, compared.all_cells(), batch_size)
            sides = inlying_sides(self.module, batches, compared.all_cells(), sides, seed)
        evenly = weighting is not None
        picked = [
            pick(both, told, store.batch_codes, n_samples, n_latent, seed, evenly=evenly)
            for both in sides
        ]
        sums = None
        if all_stats or (mode == "change" and options.pseudocounts is None):
            sums = self._sum_groups(store, compared)
        cells = np.unique(np.concatenate([part.cells for both in picked for part in both]))
        shared = None if codes1 is None or codes1 != codes2 else len(codes1)
        tables = []
        with evaluating(self.module, seed=0):
            posterior = Posterior(self.module, self._minibatches(store, cells, batch_size), cells)
            for comparison, both, (first, second) in zip(
                compared.listed, sides, picked, strict=True
            ):
                if weighting is not None:
                    again = Reweighting(store, posterior, weighting, batch_size)
                    names = comparison.names
                    first = again.draws(first, both[0], [seed, 3, 0], names[0])
                    second = again.draws(second, both[1], [seed, 3, 1], names[1])
                pairs = Pairs.of(
                    posterior.draws(first),
                    posterior.draws(second),
                    shared,
                    n_permuted if use_permutation else None,
                    np.random.default_rng([seed, 2]),
                )
                tables.append(columns_of(pairs, comparison, sums, mode, options, all_stats))
        return data_frame(tables, compared.listed, store.gene_names, mode, target, fdr_target)

    def _batches_told(
        self, batch_correction: bool, batchid1: Any, batchid2: Any
    ) -> tuple[list[int] | None, list[int] | None]:
        """Codes that the two groups are decoded as, ascending; None is each cell's own."""
        if not batch_correction:
            if batchid1 is not None or batchid2 is not None:
                raise InputError(
                    "batchid1 and batchid2 say what to decode as instead of a cell's own batch; "
                    "give batch_correction=True with them"
                )
            return None, None
        if self._setup.batch_key is None:
            raise InputError("batch_correction needs a model with batches; it has no batch_key")
        both = []
        for name, wanted in (("batchid1", batchid1), ("batchid2", batchid2)):
            everything = range(len(self._setup.batch_categories))
            codes = batch_codes(wanted, self._setup.batch_categories, self._setup.batch_key, name)
            both.append(
                sorted({*everything} if wanted is None else {c for c in codes if c is not None})
            )
        if both[0] != both[1] and set(both[0]) & set(both[1]):
            warnings.warn(
                "batchid1 and batchid2 differ but have batches in common; draws are compared "
                "across batches, so differences between batches are not corrected",
                UserWarning,
                stacklevel=3,
            )
        return both[0], both[1]

    def _sum_groups(self, store: Store, compared: Comparisons) -> GroupSums:
        batches = self._minibatches(store, compared.all_cells(), COUNTING_BATCH)
        return sum_groups(batches, compared.codes, compared.n_codes, store.n_genes)
