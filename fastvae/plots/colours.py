"""Colours of categories that readers with and without red-green colour blindness can tell apart."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from .._words import is_no_category

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
# Eighty more by the same measure, one after the other: of all colours in steps of 17 that are
# neither pale nor grey, always the one farthest from those before it; the two colour-blind views
# count half.
MOST = [
    *MANY,
    "#330055", "#332200", "#000088", "#CC9900", "#004433", "#77EEFF", "#FFAA88", "#AA22CC",
    "#BB0066", "#FF0066", "#BB7788", "#440022", "#7777DD", "#6655AA", "#4400AA", "#00BBBB",
    "#00DDAA", "#77AAEE", "#FF7788", "#88FFCC", "#0000DD", "#00BB33", "#0066DD", "#006600",
    "#FFDD88", "#555577", "#778811", "#FFCCEE", "#EE77DD", "#551166", "#222244", "#993399",
    "#AAFF00", "#AA66AA", "#996644", "#00DD00", "#994433", "#664433", "#DDAAFF", "#99EE66",
    "#880088", "#7733FF", "#BB66FF", "#990055", "#227777", "#442233", "#88CCDD", "#BB9966",
    "#448866", "#FF66AA", "#332277", "#DD2288", "#553377", "#6699CC", "#334400", "#225544",
    "#552211", "#66EEAA", "#99CC88", "#8855BB", "#775566", "#BB00AA", "#003344", "#663399",
    "#BB7744", "#2233CC", "#CC44CC", "#5588FF", "#221199", "#001166", "#DDCC77", "#BBCCFF",
    "#DDBB00", "#CC77CC", "#88BB66", "#225566", "#1100BB", "#557799", "#99BBEE", "#44AA99",
]
# fmt: on
GREY = "#CCCCCC"


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
    palette = next((p for p in (FEW, MANY, MOST) if len(real) <= len(p)), None)
    if palette is None:
        return None
    colours = iter(palette)
    return [GREY if is_no_category(name) else next(colours) for name in names]


def _natural_key(name: str) -> tuple[bool, list[tuple[bool, int, str]]]:
    """Sort "batch_2" before "batch_10", and no category last."""
    parts = [part for part in re.split(r"(\d+)", name) if part]
    numbers = [(not p.isdecimal(), int(p) if p.isdecimal() else 0, p.lower()) for p in parts]
    return is_no_category(name), numbers
