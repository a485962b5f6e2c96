"""The panels of a latent picture: one scatter plot for each category or marker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from .colours import FEW, category_codes, category_colours

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import PathCollection
    from matplotlib.figure import Figure, SubFigure


WIDTH, NARROWEST = 14.0, 6.0  # inches, of the figure
CATEGORY_WIDTH, MARKER_WIDTH = 4.66, 2.8  # of a panel
LEGEND_ROWS = 11
LONGEST_NAME = 26
NO_EXPRESSION = "#DDDDDD"


def latent_panels(
    coordinates: np.ndarray,
    axis_names: tuple[str, str],
    categories: Mapping[str, Any],
    markers: Mapping[str, Any],
    seed: int,
) -> Figure:
    """Return a figure with a row or more of category panels above those of markers."""
    from matplotlib.figure import Figure

    points = np.asarray(coordinates, dtype=np.float64)
    for kind, arrays in (("category", categories), ("marker", markers)):
        for name, values in arrays.items():
            given = len(values) if hasattr(values, "__len__") else 1
            if given != len(points):
                raise InputError(
                    f"{kind} {name!r} has {given:,} values for {len(points):,} cells; "
                    "give one for each cell"
                )
    groups = [group for group in (categories, markers) if group] or [categories]
    widths = [CATEGORY_WIDTH if group is categories else MARKER_WIDTH for group in groups]
    grids = [grid(len(group), int(WIDTH / w)) for group, w in zip(groups, widths, strict=True)]
    width = max(columns * w for (_, columns), w in zip(grids, widths, strict=True))
    width = max(width, NARROWEST)
    heights = [rows * min(4.0, 0.85 * width / columns) for rows, columns in grids]
    figure = Figure(figsize=(width, sum(heights) + 0.5), layout="constrained")
    parts = figure.subfigures(len(groups), 1, height_ratios=heights, squeeze=False).ravel()
    order = np.random.default_rng(seed).permutation(len(points))
    for part, (rows, columns), group in zip(parts, grids, groups, strict=True):
        axes = list(part.subplots(rows, columns, squeeze=False).ravel())
        for axis in axes[max(1, len(group)) :]:
            axis.set_axis_off()
        for axis, (name, values) in zip(axes, group.items(), strict=False):
            _style(axis, axis_names)
            axis.set_title(plain(name), fontsize=12)
            if group is categories:
                _category_panel(axis, points, values, order)
            else:
                _marker_panel(part, axis, points, name, values, order)
        if not group:
            _style(axes[0], axis_names)
            _scatter(axes[0], points, order, color=FEW[0])
    figure.suptitle(f"Latent space of {len(points):,} cells", fontsize=13)
    return figure


def grid(panels: int, most: int) -> tuple[int, int]:
    """Return rows and columns for `panels`: at most `most` in a row, and rows as even as can be."""
    rows = max(1, -(-panels // most))
    return rows, max(1, -(-panels // rows))


def plain(text: str) -> str:
    """Return `text` shortened, with escaped dollar signs, which would begin a formula."""
    shown = str(text)
    shown = shown if len(shown) <= LONGEST_NAME else shown[: LONGEST_NAME - 1] + "…"
    return shown.replace("$", r"\$")


def _style(axis: Axes, names: tuple[str, str]) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_xlabel(names[0], fontsize=8, color="0.35", loc="left")
    axis.set_ylabel(names[1], fontsize=8, color="0.35", loc="bottom")
    axis.spines[:].set_color("0.8")


def _scatter(axis: Axes, points: np.ndarray, chosen: np.ndarray, **colours: Any) -> PathCollection:
    """Draw the `chosen` points in that order, small where there are many points in all."""
    axis.update_datalim(points)
    return axis.scatter(
        points[chosen, 0],
        points[chosen, 1],
        s=float(np.clip(25_000 / len(points), 0.4, 20)),
        linewidths=0,
        alpha=0.85,
        rasterized=True,  # in vector files too: a path for each of a million cells is too large
        **colours,
    )


def _category_panel(axis: Axes, points: np.ndarray, values: Any, order: np.ndarray) -> None:
    from matplotlib.colors import to_rgba_array
    from matplotlib.lines import Line2D

    codes, names = category_codes(values)
    colours = category_colours(names)
    if colours is None:
        _scatter(axis, points, order, c=codes[order], cmap="viridis")
        axis.set_title(f"{axis.get_title()} ({len(names)} categories)", fontsize=12)
        return
    _scatter(axis, points, order, c=to_rgba_array(colours)[codes[order]])
    handles = [Line2D([], [], marker="o", linestyle="", markersize=6, color=c) for c in colours]
    axis.legend(
        handles,
        # A leading underscore would hide the entry; a zero-width space before it does not.
        [plain(name) if not name.startswith("_") else "\u200b" + plain(name) for name in names],
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        frameon=False,
        fontsize=9,
        handletextpad=0.2,
        columnspacing=0.8,
        ncols=-(-len(names) // LEGEND_ROWS),
    )


def _marker_panel(
    part: SubFigure,
    axis: Axes,
    points: np.ndarray,
    name: str,
    values: Any,
    order: np.ndarray,
) -> None:
    from matplotlib import colormaps
    from matplotlib.colors import LinearSegmentedColormap

    expression = np.asarray(values, dtype=np.float64).ravel()
    if not np.isfinite(expression).all() or expression.min(initial=0.0) < 0:
        raise InputError(
            f"marker {name!r} has negative or non-finite values; give counts or normalised "
            "expression, not logarithms or z-scores"
        )
    level = np.log1p(expression)
    none = order[level[order] == 0]
    some = order[level[order] > 0]
    some = some[np.argsort(level[some], kind="stable")]
    _scatter(axis, points, none, color=NO_EXPRESSION)
    # without the lightest colours, so that the lowest level shows on white
    colours = colormaps["magma_r"](np.linspace(0.18, 1.0, 256))
    # A few extreme cells must not push everything else to the light end.
    top = float(np.quantile(level[some], 0.995)) if len(some) else 1.0
    drawn = _scatter(
        axis,
        points,
        some,
        c=level[some],
        cmap=LinearSegmentedColormap.from_list("expression", colours),
        vmin=0.0,
        vmax=top,
    )
    above = bool(len(some)) and level[some].max() > top
    bar = part.colorbar(
        drawn, ax=axis, shrink=0.75, aspect=18, pad=0.02, extend="max" if above else "neither"
    )
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, length=2)
    bar.set_label("log(1 + expression)", fontsize=8)
