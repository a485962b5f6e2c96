"""Bringing the genes of data into the order of a model."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from ..errors import InputError
from ._names import a_few

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class MayLack:
    """Which of the genes wanted data may lack: these are then taken to have no counts.

    Attributes
    ----------
    genes
        Their names.
    least
        So many of the genes wanted must be there all the same.
    """

    genes: Collection[str] = field(default_factory=frozenset)
    least: int = 0

    def allows(self, missing: Sequence[str], n_wanted: int) -> bool:
        """Whether `missing` of `n_wanted` genes may be."""
        allowed = set(self.genes)
        return n_wanted - len(missing) >= self.least and all(name in allowed for name in missing)

    def too_few(self, missing: Sequence[str], n_wanted: int) -> bool:
        """Whether they may not because fewer than `least` are there."""
        return bool(self.genes) and n_wanted - len(missing) < self.least


STRICT = MayLack()
"""No gene may be missing."""


def select_genes(
    counts: sp.csr_matrix,
    genes: np.ndarray,
    wanted: Sequence[str],
    var: pd.DataFrame,
    may_lack: MayLack = STRICT,
) -> sp.csr_matrix:
    """Return the columns of `wanted`, in that order; those that may be lacking are empty.

    Raises
    ------
    InputError
        Genes are missing that must be there.
    """
    if len(genes) == len(wanted) and all(a == b for a, b in zip(genes, wanted, strict=True)):
        return counts
    position = {name: column for column, name in enumerate(genes)}
    missing = [name for name in wanted if name not in position]
    if not may_lack.allows(missing, len(wanted)):
        raise InputError(refusal("the data", genes, missing, wanted, var, may_lack))
    columns = np.array([position[name] for name in wanted if name in position], dtype=np.int64)
    selected = counts[:, columns]
    if missing:
        there = np.flatnonzero([name in position for name in wanted]).astype(selected.indices.dtype)
        arrays = (selected.data, there[selected.indices], selected.indptr)
        selected = sp.csr_matrix(arrays, shape=(counts.shape[0], len(wanted)))
    selected.sort_indices()
    return selected


def refusal(
    source: str,
    genes: Sequence[str] | np.ndarray,
    missing: Sequence[str],
    wanted: Sequence[str],
    var: pd.DataFrame,
    may_lack: MayLack = STRICT,
) -> str:
    """Say which genes are missing, and where their names may be found."""
    hint = _other_names(missing, var)
    if may_lack.too_few(missing, len(wanted)):
        text = (
            f"{len(wanted) - len(missing)} of the {len(wanted)} genes of the reference are in "
            f"{source}, and at least {may_lack.least} are needed: its genes begin with "
            f"{a_few(genes, 3)}, those of the reference with {a_few(wanted, 3)}"
        )
        return text + (hint or "; give both the same kind of gene names")
    more = [name for name in missing if name not in set(may_lack.genes)]
    text = f"{len(more)} of the model's {len(wanted)} genes are not in {source}: {a_few(more)}"
    return text + (
        hint or "; use the data it was trained on, or data aligned to the same annotation"
    )


def _other_names(missing: Sequence[str], var: pd.DataFrame) -> str:
    """Hint at a column of var that holds the names the model was trained with."""
    wanted = set(missing)
    for column in var.columns:
        if len(wanted.intersection(var[column].astype(str))) > len(wanted) / 2:
            return (
                f"; var[{column!r}] has them: set adata.var_names = adata.var[{column!r}] "
                "and try again"
            )
    return ""
