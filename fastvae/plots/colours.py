"""Colours of categories that readers with and without red-green colour blindness can tell apart."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np

# Okabe and Ito's set, its black softened.
FEW = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#3A3A3A"]
# Found by search: the smallest Oklab distance between any two, as seen with normal vision,
# protanopia and deuteranopia, is as large as the search could make it.
# fmt: off
MANY = [
    "#2288BB", "#DDDD33", "#772200", "#DD5500", "#5522EE", "#00CCFF", "#224488", "#88AA88",
    "#771155", "#AA88FF", "#11FF99", "#BB2200", "#009955", "#77CC55", "#9955FF", "#446644",
    "#7711BB", "#DD99CC", "#886688", "#EE33BB",
]
# fmt: on
GREY = "#CCCCCC"
NO_CATEGORY = frozenset({"", "na", "nan", "none", "unknown", "unassigned"})


def category_codes(values: Iterable[Any]) -> tuple[np.ndarray, list[str]]:
    """Return codes (N,) and names; names in natural order, those of no category last.

    A missing value (None, NaN) is "unknown".
    """
    items = ["unknown" if value is None or value != value else str(value) for value in values]
    found, codes = np.unique(np.array(items, dtype=object).astype(str), return_inverse=True)
    names = [str(name) for name in found]
    order = sorted(range(len(names)), key=lambda code: _natural_key(names[code]))
    place = np.empty(len(names), dtype=np.int64)
    place[order] = np.arange(len(names))
    return place[codes], [names[code] for code in order]


def category_colours(names: list[str]) -> list[str] | None:
    """Return a colour for each name, grey for those of no category; None if they are too many."""
    real = [name for name in names if not is_no_category(name)]
    if len(real) > len(MANY):
        return None
    colours = iter(FEW if len(real) <= len(FEW) else MANY)
    return [GREY if is_no_category(name) else next(colours) for name in names]


def is_no_category(name: str) -> bool:
    """Whether `name` says that a cell has no label."""
    return name.strip().lower() in NO_CATEGORY


def _natural_key(name: str) -> tuple[bool, list[tuple[bool, int, str]]]:
    """Sort "batch_2" before "batch_10", and no category last."""
    parts = [part for part in re.split(r"(\d+)", name) if part]
    numbers = [(not p.isdecimal(), int(p) if p.isdecimal() else 0, p.lower()) for p in parts]
    return is_no_category(name), numbers
