"""Differential expression between groups of cells: `Model.differential_expression`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from ..errors import (
    MOST_DRAWS,
    InputError,
    real_number,
    seed_number,
    shown,
    true_or_false,
    whole_number,
)
from .base import State
from .differential.comparing import Questions, batches_told, compare
from .differential.effects import ChangeFn, ChangeOptions, DomainFn
from .differential.groups import comparisons
from .differential.outliers import check_outlier_filter
from .new_data import READING, Reading
from .posterior.importance import Weighting
from .scvi_names import with_scvi_names

if TYPE_CHECKING:
    import pandas as pd
    from typing_extensions import Unpack


class DifferentialAnswers(State):
    """Comparisons of groups of cells."""

    @with_scvi_names(READING)
    def differential_expression(
        self,
        data: Any = None,
        groupby: str | Sequence[str] | pd.Series | np.ndarray | None = None,
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
        within: str | Sequence[str] | pd.Series | np.ndarray | None = None,
        progress: bool = False,
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
            As in the notes of `Model`.
        groupby
            The group of each cell: a column of obs; several columns, of which each combination
            that occurs is a group, such as "B | treated"; an array in the order of the cells; or
            a Series, whose index names the cells.
        group1, group2
            Groups to test: each of `group1` (one or several; all by default, but for those named
            "unknown", "unassigned", "nan" and the like) against `group2`, or against all other
            cells, also those without a group.
        idx1, idx2
            Instead of groups, cells: row numbers, names, a boolean mask, or a condition on the
            columns of obs such as ``"cell_type == 'B' and batch == 'b1'"``; without `idx2`
            against all other cells.
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
            The largest set of most probable genes is marked whose expected share of false ones
            is at most this.
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
            latent space (Mahalanobis distances by the minimum covariance determinant). The
            statistics of counts keep these cells. Needs scikit-learn.
        within
            Compare the groups in each part of the cells by itself, such as treated and untreated
            cells within each cell type; one or more columns of obs, an array or a Series, as
            `groupby`. Cells whose part is missing or named "unknown" take part in nothing.
        progress
            Say on standard error which comparison it is.

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
            raw_normalized_mean2``; and, for groups by name, ``comparison, group1, group2``, with
            `within` also ``within``.

        Raises
        ------
        InputError
            Unknown columns, groups, cells or batches, cells in both groups, groups with too few
            cells, or an option out of range.

        Warns
        -----
        UserWarning
            Groups or parts are left out, for too few cells or since they are named "unknown".

        Notes
        -----
        The columns ``lfc_*`` describe changes with a thousandth of the pseudocount; the test uses
        the whole of it, as in scvi-tools.

        Unlike scvi-tools 1.4: the default mode is "change", since it is two-sided and has a false
        discovery rate. Every draw has a z of its own; scvi-tools draws all cells of a group at
        least once and picks from these with replacement, which costs a decoded matrix of all
        cells and gives some draws several times. Cells named in both groups are refused, not
        counted for the second. A cell without counts has normalised counts of 0, not NaN. The
        pseudocount is chosen by the mean counts of whole groups, outliers included.

        Memory does not grow with the number of cells, and with the number of genes only by the
        result and three sums for each group: only cells that are drawn are encoded, and genes are
        decoded in parts. The counts are read once if `all_stats` or `pseudocounts` need them. A
        comparison has the same result alone and among others.
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
        use_permutation = true_or_false("use_permutation", use_permutation)
        filter_outlier_cells = true_or_false("filter_outlier_cells", filter_outlier_cells)
        if filter_outlier_cells:
            check_outlier_filter()
        seed = seed_number(seed)
        setup = self._setup
        questions = Questions(
            mode=mode,
            change=options,
            n_samples=n_samples,
            n_permuted=n_permuted if use_permutation else None,
            told=batches_told(
                true_or_false("batch_correction", batch_correction),
                (batchid1, batchid2),
                setup.batch_categories,
                setup.batch_key,
            ),
            all_stats=true_or_false("all_stats", all_stats),
            filter_outlier_cells=filter_outlier_cells,
            weighting=Weighting.checked(weights, importance_weighting_kwargs),
            fdr_target=target,
            fdr_name=f"is_de_fdr_{fdr_target}",
            batch_size=batch_size,
            progress=true_or_false("progress", progress),
        )
        store, frames = self._opened(data, reading)
        groups, cells = (group1, group2), (idx1, idx2)
        compared = comparisons(groupby, groups, cells, within, frames.obs, fewest)
        self._check_trained()
        if seed is None:
            seed = int(torch.randint(2**62, ()))
        return compare(self.module, store, compared, questions, seed)
