"""Volcano plots of differential expression: size of the change against certainty."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from .labels import plain, text_width

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


UP, DOWN, UNCHANGED = "#D55E00", "#0072B2", "#BBBBBB"
MOST_PANELS = 60
PANELS_A_ROW = 4
PANEL = (4.2, 3.8)  # inches
LEAST_DOUBT = 1e-4
"""Smaller probabilities of no change are drawn at this: the draws are too few for them."""


def comparisons_of(result: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Return the rows of each comparison with its name, in the order of the table."""
    if "comparison" not in result:
        return [("group 1 vs group 2", result)]
    names = list(dict.fromkeys(result["comparison"]))
    return [(str(name), result[result["comparison"] == name]) for name in names]


def well_seen(part: pd.DataFrame, min_pct: float) -> np.ndarray:
    """Return which genes have counts in at least `min_pct` of the cells of either group (G,).

    All, where the table does not say (``all_stats=False``).
    """
    columns = ["non_zeros_proportion1", "non_zeros_proportion2"]
    if not set(columns) <= set(part.columns):
        return np.ones(len(part), dtype=bool)
    seen: np.ndarray = part[columns].to_numpy(dtype=np.float64).max(axis=1) >= min_pct
    return seen


def marked_genes(part: pd.DataFrame) -> np.ndarray | None:
    """Return which genes are marked at the false discovery rate (G,); None of "vanilla" mode."""
    found = [name for name in part.columns if str(name).startswith("is_de_fdr_")]
    return part[found[0]].to_numpy(dtype=bool) if found else None


def volcano_panels(result: pd.DataFrame, n_names: int, min_pct: float) -> Figure:
    """Return a figure with one panel for each comparison of `result`, the first sixty.

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
    parts = comparisons_of(result)
    shown = parts[:MOST_PANELS]
    rows = -(-len(shown) // PANELS_A_ROW)
    columns = -(-len(shown) // rows)
    size = (PANEL[0] * columns, PANEL[1] * rows + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axis in axes[len(shown) :]:
        axis.set_axis_off()
    for axis, (name, part) in zip(axes, shown, strict=False):
        _panel(axis, name, part, n_names, change, min_pct)
    if len(parts) > len(shown):
        text = f"The first {len(shown)} of {len(parts)} comparisons; the table has them all"
        figure.suptitle(text, fontsize=11)
    return figure


def _panel(
    axis: Axes, name: str, part: pd.DataFrame, n_names: int, change: bool, min_pct: float
) -> None:
    from matplotlib.colors import to_rgba_array

    x, y, marked = _coordinates(part, change)
    seen = well_seen(part, min_pct)
    colours = to_rgba_array(np.where(marked, np.where(x > 0, UP, DOWN), UNCHANGED))
    colours[:, 3] = np.where(seen, 0.85, 0.25)
    order = np.argsort(marked & seen, kind="stable")  # those that count are on top
    axis.scatter(
        x[order],
        y[order],
        c=colours[order],
        s=float(np.clip(20_000 / len(x), 3, 16)),
        linewidths=0,
        rasterized=len(x) > 2_000,
    )
    title = plain(name, int(0.9 * PANEL[0] / text_width("n", 10)))
    if change:
        delta = float(part["delta"].iloc[0]) if "delta" in part else 0.0
        for edge in {-delta, delta}:
            axis.axvline(edge, color="0.6", linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
        axis.set_xlabel("log2 fold change (median)")
        axis.set_ylabel("−log10 p(no change)")
        up, down = (int((marked & seen & side).sum()) for side in (x > 0, x <= 0))
        title += f"\n{up:,} up, {down:,} down"
    else:
        axis.set_xlabel("log2 ratio of mean frequencies")
        axis.set_ylabel("Bayes factor (absolute)")
    axis.set_title(title, fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    axis.margins(x=0.3, y=0.1)
    _label(axis, part, x, y, marked & seen, n_names)


def _coordinates(part: pd.DataFrame, change: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return size of the change, certainty, and which genes are coloured and may be named."""
    if change:
        doubt = np.maximum(part["proba_not_de"].to_numpy(dtype=np.float64), LEAST_DOUBT)
        marked = marked_genes(part)
        marked = np.zeros(len(part), dtype=bool) if marked is None else marked
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
    width, height = 0.25 * max(float(np.ptp(x)), 1e-9), 0.06 * max(float(np.ptp(y)), 1e-9)
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
                plain(str(part.index[number]), 18),
                (x[number], y[number]),
                xytext=(3 if x[number] > 0 else -3, 3),
                ha="left" if x[number] > 0 else "right",
                textcoords="offset points",
                fontsize=7.5,
                color="0.15",
            )
