"""Text in pictures: shortened, measured, and placed on the cells that it names."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

import numpy as np

from .._words import is_no_category

if TYPE_CHECKING:
    from matplotlib.axes import Axes


LONGEST_NAME = 30
LONGEST_LABEL = 20
LABEL_SIZE = 7.5
"""Points."""
LABELLED = (6, 60)
"""Fewer categories are told apart by colour; more do not fit."""
FEW = 0.03
"""A name beside its cells may lie on so many others, as a share of the cells."""
COMPACT = 0.4
"""Categories whose cells lie farther apart than this share of the picture get no label."""


def shortened_name(text: object, most: int = LONGEST_NAME) -> str:
    """Return `text` on one line, with its middle left out where it is longer than `most`."""
    line = " ".join(str(text).split()) or str(text)
    if len(line) <= most:
        return line
    tail = (most - 1) // 2
    return f"{line[: most - 1 - tail]}…{line[len(line) - tail :]}"


def plain(text: object, most: int = LONGEST_NAME) -> str:
    """Return `text` shortened, with escaped dollar signs, which would begin a formula."""
    shown = shortened_name(text, most).replace("$", r"\$")
    # A leading underscore would hide a legend's entry; a zero-width space before it does not.
    return f"\u200b{shown}" if shown.startswith("_") else shown


def text_width(text: str, size: float) -> float:
    """Return about how wide a line of text is, in inches; `size` is in points."""
    ems = sum(1.0 if unicodedata.east_asian_width(sign) in "WF" else 0.6 for sign in text)
    return ems * size / 72


def place_labels(
    axis: Axes, points: np.ndarray, codes: np.ndarray, names: list[str], side: float
) -> None:
    """Write the names of compact categories on their cells or beside them, no name on another.

    A name that does not fit beside its cells without lying on others is written on its own.

    Parameters
    ----------
    axis
        A square of `side` inches.
    points, codes, names
        Coordinates (N, 2), the category of each cell, and what it is called.
    """
    from matplotlib.patheffects import withStroke

    if not LABELLED[0] <= len(names) <= LABELLED[1]:
        return
    lowest, highest = points.min(axis=0), points.max(axis=0)
    extent = max(float((highest - lowest).max()), 1e-12)
    unit = 1.1 * extent / side  # of the coordinates in an inch: the axes have margins
    middle = (lowest + highest) / 2
    height = 1.25 * LABEL_SIZE / 72 * unit
    taken: list[tuple[np.ndarray, np.ndarray]] = []
    for code in np.argsort(-np.bincount(codes, minlength=len(names)), kind="stable"):
        cells = points[codes == code]
        if is_no_category(names[code]) or len(cells) == 0:
            continue
        distance = np.linalg.norm(cells - np.median(cells, axis=0), axis=1)
        radius = float(np.quantile(distance, 0.75))
        if radius > COMPACT / 2 * extent:
            continue
        text = plain(names[code], LONGEST_LABEL)
        width = text_width(text, LABEL_SIZE) * unit
        size = np.array([width, height])
        room = side * unit / 2 - size * (0.5, 1)
        centre = cells[distance.argmin()]  # a cell, also where the category is a ring
        steps = [0.0]
        if radius < width / 2:  # on the cells it would hide them
            steps = [radius + height, -radius - height, 0.0]
        others = points[codes != code]
        for step in steps:
            place = np.clip(centre + np.array([0, step]), middle - room, middle + room)
            on_a_name = any((abs(place - at) < (size + of) / 2).all() for at, of in taken)
            if on_a_name or (step and _number_below(place, size, others) > FEW * len(cells)):
                continue
            break
        else:
            continue
        taken.append((place, size))
        axis.text(
            float(place[0]),
            float(place[1]),
            text,
            fontsize=LABEL_SIZE,
            ha="center",
            va="center",
            color="0.1",
            path_effects=[withStroke(linewidth=2.2, foreground="white", alpha=0.85)],
        )


def _number_below(place: np.ndarray, size: np.ndarray, cells: np.ndarray) -> int:
    """Return how many of `cells` a text of this size lies on."""
    return int((abs(cells - place) < size / 2).all(axis=1).sum())
