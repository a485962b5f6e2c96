"""Volcano plots of differential expression: size of the change against certainty."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from .panels import grid, plain

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


UP, DOWN, UNCHANGED = "#D55E00", "#0072B2", "#BBBBBB"
MOST_PANELS = 12
PANEL = (4.2, 3.8)  # inches
LEAST_DOUBT = 1e-4
"""Smaller probabilities of no change are drawn at this: the draws are too few for them."""


def volcano_panels(result: pd.DataFrame, n_names: int) -> Figure:
    """Return a figure with one panel for each comparison of `result`, the first twelve.

    Raises
    ------
    InputError
        It is not what `Model.differential_expression` returned.
    """
    from matplotlib.figure import Figure

    change = {"lfc_median", "proba_not_de"} <= set(result.columns)
    if not change and not {"scale1", "scale2", "bayes_factor"} <= set(result.columns):
        raise InputError(
            "a volcano plot needs the columns lfc_median and proba_not_de, or scale1, scale2 and "
            "bayes_factor, as Model.differential_expression returns them; there are "
            f"{', '.join(map(str, result.columns))}"
        )
    if len(result) == 0:
        raise InputError("there is no gene to draw")
    if "comparison" in result:
        names = list(dict.fromkeys(result["comparison"]))
        parts = [(str(name), result[result["comparison"] == name]) for name in names]
    else:
        parts = [("group 1 vs group 2", result)]
    shown = parts[:MOST_PANELS]
    rows, columns = grid(len(shown), 4)
    size = (PANEL[0] * columns, PANEL[1] * rows + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axis in axes[len(shown) :]:
        axis.set_axis_off()
    for axis, (name, part) in zip(axes, shown, strict=False):
        _panel(axis, name, part, n_names, change)
    if len(parts) > len(shown):
        figure.suptitle(f"The first {len(shown)} of {len(parts)} comparisons", fontsize=11)
    return figure


def _panel(axis: Axes, name: str, part: pd.DataFrame, n_names: int, change: bool) -> None:
    x, y, marked = _coordinates(part, change)
    colours = np.where(marked, np.where(x > 0, UP, DOWN), UNCHANGED)
    order = np.argsort(marked, kind="stable")  # those marked on top
    axis.scatter(
        x[order],
        y[order],
        c=colours[order],
        s=float(np.clip(20_000 / len(x), 3, 16)),
        linewidths=0,
        alpha=0.8,
        rasterized=True,
    )
    if change:
        delta = float(part["delta"].iloc[0]) if "delta" in part else 0.0
        for edge in {-delta, delta}:
            axis.axvline(edge, color="0.6", linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
        axis.set_xlabel("log2 fold change (median)")
        axis.set_ylabel("−log10 p(no change)")
        axis.set_title(f"{plain(name)}: {int(marked.sum()):,} genes", fontsize=11)
    else:
        axis.set_xlabel("log2 ratio of mean frequencies")
        axis.set_ylabel("Bayes factor (absolute)")
        axis.set_title(plain(name), fontsize=11)
    axis.spines[["top", "right"]].set_visible(False)
    axis.margins(x=0.2, y=0.1)
    _label(axis, part, x, y, marked, n_names)


def _coordinates(part: pd.DataFrame, change: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return size of the change, certainty, and which genes are coloured and may be named."""
    if change:
        doubt = np.maximum(part["proba_not_de"].to_numpy(dtype=np.float64), LEAST_DOUBT)
        found = [name for name in part.columns if str(name).startswith("is_de_fdr_")]
        marked = part[found[0]].to_numpy(dtype=bool) if found else np.zeros(len(part), dtype=bool)
        return part["lfc_median"].to_numpy(dtype=np.float64), -np.log10(doubt), marked
    scales = [part[name].to_numpy(dtype=np.float64) for name in ("scale1", "scale2")]
    x = np.log2(np.maximum(scales[0], 1e-12) / np.maximum(scales[1], 1e-12))
    return (
        x,
        np.abs(part["bayes_factor"].to_numpy(dtype=np.float64)),
        np.ones(len(part), dtype=bool),
    )


def _label(
    axis: Axes, part: Any, x: np.ndarray, y: np.ndarray, marked: np.ndarray, n_names: int
) -> None:
    """Name the genes that stand out, half of them on either side, without overlaps."""
    weight = np.where(marked, (y + 0.05) * np.abs(x), -1.0)
    # About the size of a name, as a share of the panel.
    width, height = 0.2 * max(float(np.ptp(x)), 1e-9), 0.05 * max(float(np.ptp(y)), 1e-9)
    for side in (x > 0, x < 0):
        placed: list[int] = []
        for number in np.argsort(np.where(side, -weight, 1.0), kind="stable"):
            if len(placed) == (n_names + 1) // 2 or not side[number] or weight[number] < 0:
                break
            near = (abs(x[placed] - x[number]) < width) & (abs(y[placed] - y[number]) < height)
            if near.any():
                continue
            placed.append(int(number))
            axis.annotate(
                plain(str(part.index[number])),
                (x[number], y[number]),
                xytext=(3 if x[number] > 0 else -3, 3),
                ha="left" if x[number] > 0 else "right",
                textcoords="offset points",
                fontsize=7,
                color="0.15",
            )
