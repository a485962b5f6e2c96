"""One comparison from the draws to its rows of the table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .counts import GroupSums
from .effects import ChangeOptions, Pairs, change, vanilla
from .groups import Comparison
from .rules import discoveries

if TYPE_CHECKING:
    import pandas as pd


def columns_of(
    pairs: Pairs,
    comparison: Comparison,
    sums: GroupSums | None,
    mode: str,
    options: ChangeOptions,
    all_stats: bool,
) -> dict[str, np.ndarray]:
    """Return the columns of one comparison, genes in the order of the model."""
    if mode == "vanilla":
        found = vanilla(pairs)
    else:
        means = (
            None if sums is None else (sums.mean(comparison.first), sums.mean(comparison.second))
        )
        found = change(pairs, means, options)
    if all_stats:
        assert sums is not None
        found |= sums.statistics(comparison.first, comparison.second)
    return found


def data_frame(
    tables: list[dict[str, np.ndarray]],
    comparisons: tuple[Comparison, ...],
    gene_names: np.ndarray,
    mode: str,
    target: float,
    marks: str,
) -> pd.DataFrame:
    """Return one data frame: each comparison sorted, with its marks and names.

    Parameters
    ----------
    tables
        The columns of each comparison.
    comparisons
        What was compared.
    gene_names
        (G,) in the order of the columns.
    mode
        "change" or "vanilla".
    target
        Expected share of false genes among those marked.
    marks
        Name of the column that marks genes.
    """
    import pandas as pd

    key = "proba_de" if mode == "change" else "bayes_factor"
    frames = []
    for columns, comparison in zip(tables, comparisons, strict=True):
        order = np.argsort(-columns[key], kind="stable")
        if mode == "change":
            columns[marks] = discoveries(columns["proba_de"], target)
        frame = pd.DataFrame(columns, index=pd.Index(gene_names.astype(str))).iloc[order]
        if comparison.group1 is not None:
            frame["comparison"] = comparison.title
            frame["group1"], frame["group2"] = comparison.group1, comparison.group2
        if comparison.within is not None:
            frame["within"] = comparison.within
        frames.append(frame)
    return pd.concat(frames, axis=0)
