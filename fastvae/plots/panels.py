"""The panels of a latent picture: one scatter plot for each column, gene or highlighted category.

Sizes are in inches and places are computed here: every panel of a row is a square of the same size,
with room for its legend or colour bar at its right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .._words import is_no_category
from ..errors import InputError, number_array
from .colours import FEW, GREY, category_codes, category_colours
from .labels import place_labels, plain, text_width

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import PathCollection
    from matplotlib.figure import Figure


WIDTH = 14.0
"""Of the whole picture, at most."""
CATEGORY_SIDE, MANY_SIDE, MARKER_SIDE, HIGHLIGHT_SIDE = 3.7, 5.4, 2.4, 2.0
MANY_CATEGORIES = 20
MOST_HIGHLIGHTED = 48
MARGIN, GAP, TITLE_HEIGHT, AXIS_NAME, HEADING = 0.25, 0.35, 0.3, 0.35, 0.4
LEGEND_LINE = 0.2
BAR_WIDTH = 0.65
LEGEND_SIZE = 9
NO_EXPRESSION = "#DDDDDD"
VECTOR_POINTS = 20_000
"""More points than these are drawn as pixels in vector files too, which would not open else."""


@dataclass(frozen=True, eq=False)
class Panel:
    """One scatter plot: its title, what it shows, and its size in inches."""

    kind: str
    title: str
    values: Any
    side: float
    beside: float = 0.0
    """Room for the legend or the colour bar."""
    category: int = -1
    """The one that is highlighted."""


@dataclass(frozen=True, eq=False)
class Colouring:
    """What the cells of a picture are coloured by; each is ``{title: one value per cell}``."""

    categories: Mapping[str, Any]
    values: Mapping[str, Any]
    markers: Mapping[str, Any]
    highlights: Mapping[str, Any]

    def check(self, n_cells: int) -> None:
        """Refuse values that are not one for each cell."""
        kinds = (
            ("category", self.categories),
            ("value", self.values),
            ("marker", self.markers),
            ("highlight", self.highlights),
        )
        for kind, arrays in kinds:
            for name, values in arrays.items():
                given = len(values) if hasattr(values, "__len__") else 1
                if given != n_cells:
                    raise InputError(
                        f"{kind} {name!r} has {given:,} values for {n_cells:,} cells; "
                        "give one for each cell"
                    )


def latent_panels(
    points: np.ndarray,
    axis_names: tuple[str, str],
    colouring: Colouring,
    title: str,
    seed: int,
) -> Figure:
    """Return a figure with rows of category panels, highlighted categories, values and markers."""
    colouring.check(len(points))
    rows = [row for group in _groups(colouring) for row in _rows(group)]
    return panels_figure(points, axis_names, rows, title, seed)


def panels_figure(
    points: np.ndarray,
    axis_names: tuple[str, str],
    rows: list[list[Panel]],
    title: str,
    seed: int,
) -> Figure:
    """Return a figure with these rows of panels; no heading where `title` is empty."""
    from matplotlib.figure import Figure

    width = max(sum(p.side + p.beside + GAP for p in row) - GAP for row in rows) + 2 * MARGIN
    width = max(width, text_width(title, 13) + 2 * MARGIN)
    heights = [row[0].side + TITLE_HEIGHT + (0.1 if _small(row[0]) else AXIS_NAME) for row in rows]
    heading = HEADING if title else 0.0
    height = sum(heights) + heading + MARGIN
    figure = Figure(figsize=(width, height))
    if title:
        above = 1 - 0.12 / height
        figure.suptitle(title, fontsize=13, x=MARGIN / width, ha="left", y=above, va="top")

    order = np.random.default_rng(seed).permutation(len(points))
    top = height - heading
    for row, row_height in zip(rows, heights, strict=True):
        left = MARGIN
        for panel in row:
            bottom = top - TITLE_HEIGHT - panel.side
            place = (left / width, bottom / height, panel.side / width, panel.side / height)
            axis = figure.add_axes(place)
            _style(axis, axis_names, panel)
            _DRAW[panel.kind](axis, points, panel, order)
            left += panel.side + panel.beside + GAP
        top -= row_height
    return figure


def _groups(colouring: Colouring) -> list[list[Panel]]:
    """Panels in the order in which they are drawn; those of one group share rows."""
    coded = {name: category_codes(values) for name, values in colouring.categories.items()}
    categories = [_category_panel(name, found) for name, found in coded.items()]
    groups = [[p for p in categories if p.side == CATEGORY_SIDE]]
    groups += [[p] for p in categories if p.side > CATEGORY_SIDE]
    for name, values in colouring.highlights.items():
        groups.append(highlight_panels(name, category_codes(values)))
    scales = (("value", colouring.values), ("marker", colouring.markers))
    groups.append(
        [
            Panel(kind, name, values, MARKER_SIDE, BAR_WIDTH)
            for kind, arrays in scales
            for name, values in arrays.items()
        ]
    )
    return [group for group in groups if group] or [[Panel("plain", "", None, CATEGORY_SIDE)]]


def _category_panel(name: str, found: tuple[np.ndarray, list[str]]) -> Panel:
    names = found[1]
    if category_colours(names) is None:
        return Panel("graded", f"{name} ({len(names)} categories)", found, CATEGORY_SIDE)
    side = MANY_SIDE if len(names) > MANY_CATEGORIES else CATEGORY_SIDE
    columns = -(-len(names) // legend_rows(side))
    longest = max((text_width(plain(one), LEGEND_SIZE) for one in names), default=0.0)
    return Panel("category", name, found, side, 0.15 + columns * (longest + 0.3))


def highlight_panels(name: str, found: tuple[np.ndarray, list[str]]) -> list[Panel]:
    """Return a panel for each of the first categories; `found` is of `category_codes`."""
    shown = found[1][:MOST_HIGHLIGHTED]
    titles = [f"{one} ({int((found[0] == code).sum()):,})" for code, one in enumerate(shown)]
    if len(shown) < len(found[1]):
        titles[-1] += f"; {len(found[1]) - len(shown)} more of {name}"
    return [
        Panel("highlight", title, found, HIGHLIGHT_SIDE, category=code)
        for code, title in enumerate(titles)
    ]


def legend_rows(side: float) -> int:
    """Return how many lines of a legend fit beside a panel."""
    return int(side / LEGEND_LINE)


def _rows(panels: list[Panel]) -> list[list[Panel]]:
    """Panels in rows that are not wider than the picture may be, about equally many in each."""
    rows = _filled(panels, len(panels))
    return _filled(panels, -(-len(panels) // len(rows)))


def _filled(panels: list[Panel], most: int) -> list[list[Panel]]:
    """Panels in rows, each as full as its width and `most` panels allow."""
    rows: list[list[Panel]] = [[]]
    used = 0.0
    for panel in panels:
        needed = panel.side + panel.beside + GAP
        full = used + needed - GAP > WIDTH - 2 * MARGIN or len(rows[-1]) == most
        if rows[-1] and full:
            rows.append([])
            used = 0.0
        rows[-1].append(panel)
        used += needed
    return rows


def _small(panel: Panel) -> bool:
    return panel.side <= HIGHLIGHT_SIDE


def _style(axis: Axes, names: tuple[str, str], panel: Panel) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_aspect("equal", adjustable="datalim")
    small = _small(panel)
    if not small:
        axis.set_xlabel(names[0], fontsize=8, color="0.35", loc="left", labelpad=3)
        axis.set_ylabel(names[1], fontsize=8, color="0.35", loc="bottom", labelpad=3)
    axis.spines[:].set_color("0.8")
    size = 9 if small else 11
    most = int((panel.side + panel.beside) / text_width("n", size))
    axis.set_title(plain(panel.title, most), fontsize=size, loc="left", pad=4)


def _scatter(axis: Axes, points: np.ndarray, chosen: np.ndarray, **colours: Any) -> PathCollection:
    """Draw the `chosen` points in that order, small where there are many points in all."""
    axis.update_datalim(points)
    width = axis.get_position().width * axis.get_figure().get_figwidth()  # type: ignore[union-attr]
    size = float(np.clip(2_000 * width**2 / len(points), 0.4, 18))
    return axis.scatter(
        points[chosen, 0],
        points[chosen, 1],
        **{
            "s": size,
            "linewidths": 0,
            "alpha": 0.85,
            "rasterized": len(points) > VECTOR_POINTS,
            **colours,
        },
    )


def _draw_plain(axis: Axes, points: np.ndarray, panel: Panel, order: np.ndarray) -> None:
    _scatter(axis, points, order, color=FEW[0])


def _draw_graded(axis: Axes, points: np.ndarray, panel: Panel, order: np.ndarray) -> None:
    codes, _ = panel.values
    _scatter(axis, points, order, c=codes[order], cmap="viridis")


def _draw_categories(axis: Axes, points: np.ndarray, panel: Panel, order: np.ndarray) -> None:
    from matplotlib.colors import to_rgba_array
    from matplotlib.lines import Line2D

    codes, names = panel.values
    colours = category_colours(names)
    assert colours is not None
    unlabelled = np.array([is_no_category(name) for name in names])[codes[order]]
    order = np.concatenate([order[unlabelled], order[~unlabelled]])  # what has a label is on top
    _scatter(axis, points, order, c=to_rgba_array(colours)[codes[order]])
    handles = [Line2D([], [], marker="o", linestyle="", markersize=6, color=c) for c in colours]
    axis.legend(
        handles,
        [plain(name) for name in names],
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
        borderaxespad=0.0,
        borderpad=0.2,
        frameon=False,
        fontsize=LEGEND_SIZE,
        handletextpad=0.1,
        columnspacing=0.6,
        labelspacing=0.3,
        ncols=-(-len(names) // legend_rows(panel.side)),
    )
    place_labels(axis, points, codes, names, panel.side)


def _draw_highlight(axis: Axes, points: np.ndarray, panel: Panel, order: np.ndarray) -> None:
    codes, names = panel.values
    own = codes[order] == panel.category
    _scatter(axis, points, order[~own], color="#DDDDDD", alpha=1.0)
    # Of the larger palettes some colours are too near to grey.
    colours = category_colours(names) if len(names) <= len(FEW) else None
    colour = FEW[0] if colours is None else colours[panel.category]
    colour = FEW[-1] if colour == GREY else colour
    drawn = _scatter(axis, points, order[own], color=colour, alpha=1.0)
    drawn.set_sizes(1.6 * drawn.get_sizes())  # few among many


def _draw_marker(axis: Axes, points: np.ndarray, panel: Panel, order: np.ndarray) -> None:
    from matplotlib import colormaps
    from matplotlib.colors import LinearSegmentedColormap

    expression = np.asarray(panel.values, dtype=np.float64).ravel()
    if not np.isfinite(expression).all() or expression.min(initial=0.0) < 0:
        raise InputError(
            f"marker {panel.title!r} has negative or non-finite values; give counts or normalised "
            "expression, not logarithms or z-scores"
        )
    level = np.log1p(expression)
    none, some = order[level[order] == 0], order[level[order] > 0]
    some = some[np.argsort(level[some], kind="stable")]
    _scatter(axis, points, none, color=NO_EXPRESSION)
    # without the lightest colours, so that the lowest level shows on white
    colours = colormaps["magma_r"](np.linspace(0.18, 1.0, 256))
    # A few extreme cells must not push everything else to the light end.
    top = float(np.quantile(level[some], 0.995)) if len(some) else 1.0
    scale = LinearSegmentedColormap.from_list("expression", colours)
    drawn = _scatter(axis, points, some, c=level[some], cmap=scale, vmin=0.0, vmax=top)
    above = bool(len(some)) and level[some].max() > top
    _colour_bar(axis, drawn, panel, "log(1 + expression)", "max" if above else "neither")


def _draw_values(axis: Axes, points: np.ndarray, panel: Panel, order: np.ndarray) -> None:
    values = number_array(f"value {panel.title!r}", panel.values, "numbers")
    known = np.isfinite(values)
    _scatter(axis, points, order[~known[order]], color=NO_EXPRESSION)
    some = order[known[order]]
    low, high = np.quantile(values[known], [0.005, 0.995]) if known.any() else (0.0, 1.0)
    drawn = _scatter(axis, points, some, c=values[some], cmap="viridis", vmin=low, vmax=high)
    beyond = {
        (False, False): "neither",
        (True, False): "min",
        (False, True): "max",
        (True, True): "both",
    }
    ends = (bool((values[known] < low).any()), bool((values[known] > high).any()))
    _colour_bar(axis, drawn, panel, "", beyond[ends])


def _colour_bar(axis: Axes, drawn: PathCollection, panel: Panel, label: str, extend: str) -> None:
    figure = axis.get_figure()
    assert figure is not None
    place = axis.get_position()
    inch = place.width / panel.side
    bar_axis = figure.add_axes(
        (place.x1 + 0.08 * inch, place.y0 + 0.12 * place.height, 0.1 * inch, 0.76 * place.height)
    )
    bar = figure.colorbar(drawn, cax=bar_axis, extend=extend)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, length=2, pad=2)
    bar.set_label(label, fontsize=8, labelpad=2)


_DRAW = {
    "plain": _draw_plain,
    "graded": _draw_graded,
    "category": _draw_categories,
    "highlight": _draw_highlight,
    "marker": _draw_marker,
    "value": _draw_values,
}
