"""Which columns of ``obs`` are likely to name batches, and which labels: by name and values."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import pandas as pd

MOST_CATEGORIES = 200
"""A column with more values than this is not suggested."""

_BATCHES = """
assay batch batches channel chemistry dataset datasets donor donors experiment individual lane
library mouse patient patients plate platform protocol replicate run sample samples site study
subject tech
technology
"""
_LABELS = """
annotation annotations celltype celltypes cluster clusters label labels leiden louvain lineage
subclass
"""
_MEASUREMENTS = "count counts fraction log log1p mean n num pct percent score size sum total"
_BATCH_WORDS, _LABEL_WORDS, _NUMBER_WORDS = (
    frozenset(words.split()) for words in (_BATCHES, _LABELS, _MEASUREMENTS)
)
"""Words in the names of columns; ``n_counts_sample`` is a measurement, and names no batch."""


class LikelyColumns(NamedTuple):
    """Columns of ``obs``, those that come first in it first."""

    batches: list[str]
    labels: list[str]


def likely_columns(obs: pd.DataFrame) -> LikelyColumns:
    """Return the columns whose names and number of values are those of batches and of labels."""
    found = LikelyColumns([], [])
    for name in obs.columns:
        words = words_of(str(name))
        if words & _NUMBER_WORDS or not few_categories(obs[name]):
            continue
        if words & _LABEL_WORDS or {"cell", "type"} <= words or {"cell", "types"} <= words:
            found.labels.append(str(name))
        elif words & _BATCH_WORDS or {"orig", "ident"} <= words:
            found.batches.append(str(name))
    return found


def words_of(name: str) -> set[str]:
    """Return the words of a name: of ``cell_type``, ``Cell.Type`` and ``cellType`` the same two."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return {re.sub(r"\d+$", "", word) for word in re.findall(r"[^\W_]+", apart.lower())}


def few_categories(column: pd.Series) -> bool:
    """Whether a column has few enough values, and none missing, to name batches or labels."""
    try:
        values = column.dropna().unique()
    except TypeError:  # lists and other values that are no names
        return False
    if len(values) < 2 or column.isna().any():
        return False
    if str(column.dtype).lower().startswith("float") and not all(
        float(value).is_integer() for value in values
    ):
        return False
    return len(values) <= min(MOST_CATEGORIES, max(2, len(column) // 10))


def missing_batch_key(obs: pd.DataFrame) -> str | None:
    """Return a hint for a model without a batch key, where a column looks like one."""
    batches = likely_columns(obs).batches
    if not batches:
        return None
    name = batches[0]
    verb = "does" if len(batches) == 2 else "do"
    others = f" (so {verb} {', '.join(batches[1:4])})" if len(batches) > 1 else ""
    return (
        f"no batch_key= was given, so nothing is corrected for; obs[{name!r}] with "
        f"{obs[name].nunique()} values looks like batches{others}. batch_key={name!r} corrects "
        "for it"
    )
