"""Dot plots of differential expression: the first genes of every comparison, in all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError
from .labels import plain, text_width
from .volcano import comparisons_of, marked_genes, well_seen

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


NEEDED = ("non_zeros_proportion1", "raw_normalized_mean1", "lfc_median")
MOST_ROWS, MOST_GENES = 60, 72
CELL = 0.24
"""Inches from one dot to the next."""
LARGEST = 140.0
"""Area of the dot of a gene that all cells of a group have, in square points."""


def first_genes(part: pd.DataFrame, number: int, min_pct: float, *, up: bool = True) -> list[str]:
    """Return the genes that rise (or fall) most among those that are marked and well seen.

    In the order of the table: the most certain first; equally certain ones by the size of the
    change.
    """
    change = part["lfc_median"].to_numpy(dtype=np.float64) * (1 if up else -1)
    marked = marked_genes(part)
    kept = (change > 0) & well_seen(part, min_pct)
    kept &= True if marked is None else marked
    certain = part["proba_de"].to_numpy(dtype=np.float64) if "proba_de" in part else change
    order = np.lexsort((-change, -np.round(certain, 3)))
    return [str(part.index[row]) for row in order if kept[row]][:number]


def dot_panel(result: pd.DataFrame, n_genes: int, min_pct: float) -> Figure:
    """Return a figure with a row for each comparison and a column for each of their first genes.

    Raises
    ------
    InputError
        The table lacks a column that is drawn, or no gene is marked.
    """
    from matplotlib.figure import Figure

    missing = [name for name in NEEDED if name not in result]
    if missing:
        raise InputError(
            f"a dot plot needs the column {missing[0]}, as Model.differential_expression returns "
            "it in mode='change' with all_stats=True"
        )
    parts = comparisons_of(result)[:MOST_ROWS]
    n_genes = max(1, min(n_genes, MOST_GENES // len(parts)))
    first = [first_genes(part, n_genes, min_pct) for _, part in parts]
    genes = list(dict.fromkeys(gene for part in first for gene in part))
    if not genes:
        raise InputError(
            "no genes are marked as higher in the first group with counts in "
            f"min_pct={min_pct:g} of the cells; there is nothing to draw"
        )
    against_rest = all(name.endswith(" vs Rest") for name, _ in parts)
    share, level = _values(parts, genes, against_rest)
    labels = [
        plain(name.removesuffix(" vs Rest") if against_rest else name, 44) for name, _ in parts
    ]
    left = max(text_width(label, 9) for label in labels) + 0.25
    below = max(text_width(plain(gene, 20), 8.5) for gene in genes) + 0.2
    width, height = CELL * (len(genes) + 1), CELL * (len(parts) + 1)
    size = (left + width + 1.6, max(0.45 + height + below, 2.3))
    figure = Figure(figsize=size)
    bottom = size[1] - 0.4 - height
    place = (left / size[0], bottom / size[1], width / size[0], height / size[1])
    axis = figure.add_axes(place)
    rows, columns = np.indices(share.shape)
    top = float(np.abs(level).max()) or 1.0
    drawn = axis.scatter(
        columns.ravel(),
        rows.ravel(),
        s=LARGEST * share.ravel(),
        c=level.ravel(),
        cmap="Reds" if against_rest else "RdBu_r",
        vmin=0.0 if against_rest else -top,
        vmax=1.0 if against_rest else top,
        edgecolors="0.45",
        linewidths=0.4,
    )
    axis.set_xticks(
        range(len(genes)), [plain(gene, 20) for gene in genes], rotation=90, fontsize=8.5
    )
    axis.set_yticks(range(len(parts)), labels, fontsize=9)
    axis.set_xlim(-1, len(genes))
    axis.set_ylim(len(parts), -1)
    axis.tick_params(length=2)
    axis.spines[:].set_color("0.7")
    kind = "group" if against_rest else "comparison"
    number = "gene" if n_genes == 1 else f"{n_genes} genes"
    axis.set_title(f"The first {number} of each {kind}", fontsize=10, loc="left")
    _keys(figure, drawn, (left + width + 0.25, size[1] - 0.4), size, against_rest)
    return figure


def _values(
    parts: list[tuple[str, pd.DataFrame]], genes: list[str], against_rest: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return share of cells with the gene, and the colour's level, (comparisons, genes)."""
    share, level = np.zeros((len(parts), len(genes))), np.zeros((len(parts), len(genes)))
    for row, (_, part) in enumerate(parts):
        # Names may stand twice; the more certain gene comes first.
        first = part[~part.index.duplicated()].loc[genes]
        share[row] = first["non_zeros_proportion1"]
        mean = np.log1p(first["raw_normalized_mean1"].to_numpy(dtype=np.float64))
        level[row] = mean if against_rest else first["lfc_median"]
    if against_rest:
        low, high = level.min(axis=0), level.max(axis=0)
        level = (level - low) / np.maximum(high - low, 1e-12)
    return share, level


def _keys(
    figure: Figure,
    drawn: object,
    corner: tuple[float, float],
    size: tuple[float, float],
    rest: bool,
) -> None:
    """Draw what sizes and colours mean, below each other from `corner` (inches) down."""
    from matplotlib.lines import Line2D

    x, y = corner
    handles = [
        Line2D(
            [],
            [],
            marker="o",
            linestyle="",
            color="0.6",
            markersize=float(np.sqrt(LARGEST * share)),
            label=f"{share:.0%}",
        )
        for share in (0.25, 0.5, 1.0)
    ]
    figure.legend(
        handles=handles,
        title="cells with it",
        loc="upper left",
        bbox_to_anchor=(x / size[0], y / size[1]),
        borderaxespad=0.0,
        frameon=False,
        fontsize=8,
        title_fontsize=8,
        labelspacing=0.5,
        alignment="left",
    )
    bar_axis = figure.add_axes((x / size[0], (y - 1.35) / size[1], 0.9 / size[0], 0.1 / size[1]))
    bar = figure.colorbar(drawn, cax=bar_axis, orientation="horizontal")  # type: ignore[arg-type]
    bar.ax.tick_params(labelsize=7, length=2)
    bar.set_label("mean, 0 to 1\nin each gene" if rest else "log2 fold change", fontsize=8)
