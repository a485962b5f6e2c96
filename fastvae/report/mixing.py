"""How well batches mix and labels keep together, before and after: numbers with their meaning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .._words import is_no_category
from ..errors import InputError, number_array, shown
from ..plots.colours import category_codes
from .neighbours import chance_share, neighbours, same_share, vote_accuracy

if TYPE_CHECKING:
    import pandas as pd

N_NEIGHBOURS = 15


@dataclass(frozen=True)
class Score:
    """One measure of the latent space.

    Attributes
    ----------
    name
        What is measured.
    before, after
        In principal components of the counts, and in the latent space; NaN where unknown.
    chance
        What it is without any information, or NaN.
    good
        What a good value is.
    chance_is
        Where `chance` comes from.
    """

    name: str
    before: float
    after: float
    chance: float
    good: str
    chance_is: str = "by chance"


def mixing_table(before: Any, after: Any, batch: Any, labels: Any = None) -> pd.DataFrame:
    """Measure how well batches mix and labels keep together in two spaces.

    Neighbours are the 15 nearest by Euclidean distance, found exactly: meant for up to some ten
    thousand cells, so pass a random part of more. The report of a run has the same measures.

    Parameters
    ----------
    before, after : (N, L) array
        Coordinates of the cells, such as principal components and the latent space; each may have
        its own number of dimensions.
    batch : (N,) array or Series
        The batch of each cell, in the order of the coordinates.
    labels : (N,) array or Series, optional
        The label of each cell. Missing ones, and "unknown" or the like, are left out.

    Returns
    -------
    DataFrame
        One row per measure: ``before``, ``after``, ``chance`` (the value without any information)
        as float64, and ``good`` in words. All are shares from 0 to 1: of neighbours of the same
        batch; with labels also of cells whose neighbours vote for their label, and of neighbours
        of the same batch among those of the same label. A measure that the cells do not allow,
        such as of a single batch, has no row.

    Raises
    ------
    InputError
        Coordinates are not a finite matrix, or the arguments are not of the same cells.
    """
    import pandas as pd

    spaces = {"before": _coordinates("before", before), "after": _coordinates("after", after)}
    n_cells = len(spaces["after"])
    if len(spaces["before"]) != n_cells:
        raise InputError(
            f"before has {len(spaces['before'])} cells and after has {n_cells}; give the same cells"
        )
    batches = _codes_of("batch", batch, n_cells)[0]
    known = None if labels is None else _known_codes(labels, n_cells)
    scores = mixing_scores(spaces, batches, known)
    return pd.DataFrame(
        {
            "before": [score.before for score in scores],
            "after": [score.after for score in scores],
            "chance": [score.chance for score in scores],
            "good": [score.good for score in scores],
        },
        index=pd.Index([score.name for score in scores], name="measure"),
    )


def _coordinates(name: str, value: Any) -> np.ndarray:
    points = number_array(name, value, "an array (cells, dimensions) of numbers")
    if points.ndim != 2 or points.size == 0 or not np.isfinite(points).all():
        raise InputError(
            f"{name} must be a finite array (cells, dimensions), not empty, not {shown(value)}"
        )
    return points


def _codes_of(name: str, values: Any, n_cells: int) -> tuple[np.ndarray, list[str]]:
    column = np.asarray(values, dtype=object)
    if column.shape != (n_cells,):
        raise InputError(
            f"{name} must have one value for each of {n_cells} cells, not {shown(values)}"
        )
    return category_codes(column)


def _known_codes(labels: Any, n_cells: int) -> np.ndarray:
    """Return the codes of labels, -1 where a cell has none."""
    codes, names = _codes_of("labels", labels, n_cells)
    known = np.array([not is_no_category(name) for name in names])
    return np.where(known[codes], codes, -1)


def mixing_scores(
    spaces: Mapping[str, np.ndarray | None], batch: np.ndarray | None, label: np.ndarray | None
) -> list[Score]:
    """Return the scores of some cells.

    Parameters
    ----------
    spaces
        ``"before"`` and ``"after"``: coordinates (N, L), None where there are none.
    batch, label
        Codes (N,); a label of -1 is unknown. None where cells have neither.
    """
    n_cells = len(next(space for space in spaces.values() if space is not None))
    k = min(N_NEIGHBOURS, n_cells - 1)
    scores = []
    if batch is not None and len(np.unique(batch)) > 1 and k > 0:
        shares = {
            name: _in_space(space, lambda space: same_share(neighbours(space, k), batch))
            for name, space in spaces.items()
        }
        scores.append(
            Score(
                f"Share of the {k} nearest neighbours that are of the same batch",
                shares["before"],
                shares["after"],
                chance_share(batch),
                "near chance; above it where batches differ in their cell types",
            )
        )
    known = np.zeros(0, dtype=np.int64) if label is None else np.flatnonzero(label >= 0)
    if label is not None and len(known) > N_NEIGHBOURS and len(np.unique(label[known])) > 1:
        codes = np.unique(label[known], return_inverse=True)[1]
        right = {
            name: _in_space(
                space, lambda space: vote_accuracy(neighbours(space[known], N_NEIGHBOURS), codes)
            )
            for name, space in spaces.items()
        }
        largest = float(np.bincount(codes).max() / len(codes))
        scores.append(
            Score(
                f"Cells whose label is that of most of their {N_NEIGHBOURS} nearest neighbours",
                right["before"],
                right["after"],
                largest,
                "near 1, and not lower than before",
                "the commonest label for all",
            )
        )
        if batch is not None and len(np.unique(batch)) > 1:
            within = {
                name: _in_space(space, lambda space: _within(space, batch, label))
                for name, space in spaces.items()
            }
            scores.append(
                Score(
                    "Share from the same batch among neighbours of the same label",
                    within["before"],
                    within["after"],
                    _chance_within(batch, label),
                    "near chance, whatever cell types the batches have",
                )
            )
    return scores


def _in_space(space: np.ndarray | None, measure: Any) -> float:
    return float("nan") if space is None else float(measure(space))


def _groups_of(batch: np.ndarray, label: np.ndarray) -> list[np.ndarray]:
    """Return the cells of each label that is in several batches and has enough cells."""
    rows = [np.flatnonzero(label == code) for code in np.unique(label[label >= 0])]
    return [
        cells for cells in rows if len(cells) > N_NEIGHBOURS and len(np.unique(batch[cells])) > 1
    ]


def _within(space: np.ndarray, batch: np.ndarray, label: np.ndarray) -> float:
    parts = [
        (len(cells), same_share(neighbours(space[cells], N_NEIGHBOURS), batch[cells]))
        for cells in _groups_of(batch, label)
    ]
    return _mean(parts)


def _chance_within(batch: np.ndarray, label: np.ndarray) -> float:
    parts = [
        (len(cells), chance_share(np.unique(batch[cells], return_inverse=True)[1]))
        for cells in _groups_of(batch, label)
    ]
    return _mean(parts)


def _mean(parts: list[tuple[int, float]]) -> float:
    total = sum(size for size, _ in parts)
    return sum(size * value for size, value in parts) / total if total else float("nan")


def score_lines(scores: list[Score]) -> list[str]:
    """Return a line for each score, for a terminal."""
    lines = []
    for score in scores:
        values = [
            f"{name} {value:.2f}"
            for name, value in (("before", score.before), ("after", score.after))
            if value == value
        ]
        chance = f", {score.chance_is} {score.chance:.2f}" if score.chance == score.chance else ""
        lines.append(f"{score.name}: {', '.join(values)}{chance} (good: {score.good})")
    return lines
