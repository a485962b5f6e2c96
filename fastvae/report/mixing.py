"""How well batches mix and labels keep together, before and after: numbers with their meaning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .neighbours import chance_share, neighbours, same_share, vote_accuracy

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
