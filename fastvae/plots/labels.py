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
    """Write the names of compact categories on their cells, no name on another.

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
    taken: list[tuple[float, float, float]] = []
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
        x, y = cells[distance.argmin()]  # on a cell, also where the category is a ring
        if radius < width / 2:
            y += radius + height  # above the cells, which it would hide
        room = np.array([side * unit / 2 - width / 2, side * unit / 2 - height])
        x, y = np.clip((x, y), middle - room, middle + room)
        if any(abs(x - u) < (width + w) / 2 and abs(y - v) < height for u, v, w in taken):
            continue
        taken.append((float(x), float(y), width))
        axis.text(
            x,
            y,
            text,
            fontsize=LABEL_SIZE,
            ha="center",
            va="center",
            color="0.1",
            path_effects=[withStroke(linewidth=2.2, foreground="white", alpha=0.85)],
        )
