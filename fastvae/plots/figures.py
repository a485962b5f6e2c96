"""Pictures of a run: loss curves, the latent space, differential expression.

Figures are drawn without pyplot, so no window opens, no backend is switched and nothing is left
open in the caller's session.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias

import numpy as np

from .._files import atomic_path
from ..errors import (
    InputError,
    file_path,
    mapping,
    number_array,
    real_number,
    shown,
    text,
    whole_number,
)
from .projection import project

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


__all__ = [
    "dot_figure",
    "history_figure",
    "latent_figure",
    "plot_dots",
    "plot_history",
    "plot_latent",
    "plot_volcano",
    "volcano_figure",
]

TRAIN, VALIDATION = "#0072B2", "#D55E00"
QUANTITIES = {
    "elbo": "Negative ELBO",
    "reconstruction_loss": "Reconstruction loss",
    "kl_local": "KL divergence",
}
RASTER = ("png", "jpg", "jpeg", "tif", "tiff", "webp")
FORMATS = (*RASTER, "pdf", "svg", "eps", "ps")
LEAST_DPI, MOST_DPI = 10, 2400
"""Fewer dots per inch are not readable, and printers do not have more."""

History: TypeAlias = "pd.DataFrame | Mapping[str, Sequence[float]] | Sequence[Mapping[str, float]]"


def plot_history(history: History, path: str | os.PathLike[str], *, dpi: int = 150) -> None:
    """Draw the loss curves of a training run to a file.

    Parameters
    ----------
    history
        The table of history.csv: `Model.history`, its columns as ``{name: values}``, or its rows
        as a list of ``{name: value}``. Drawn over ``epoch`` are ``elbo``, ``reconstruction_loss``
        and ``kl_local`` (nats per cell), each with the prefix ``train_`` or ``validation_``.
    path
        Picture to write, replaced if it exists; the suffix gives the format (.png, .pdf, .svg).
    dpi
        Dots per inch of a raster picture.

    Raises
    ------
    InputError
        If there is no epoch or no loss in `history`, or the format is unknown.
    """
    save_figure(history_figure(history), path, dpi)


def history_figure(history: History) -> Figure:
    """Return the figure that `plot_history` writes."""
    return history_panels(history, tuple(QUANTITIES), (4.2, 3.8))


def history_panels(
    history: History, quantities: tuple[str, ...], panel: tuple[float, float]
) -> Figure:
    """Return a figure with the curves of some of `QUANTITIES`; a panel has so many inches."""
    from matplotlib.figure import Figure

    columns = _columns(history)
    epoch = columns["epoch"]
    figure = Figure(figsize=(panel[0] * len(quantities), panel[1]), layout="constrained")
    axes = figure.subplots(1, len(quantities), squeeze=False)[0]
    best = _best_epoch(columns)
    for axis, name in zip(axes, quantities, strict=True):
        _draw_curves(axis, columns, name)
        if best is not None:
            axis.axvline(epoch[best], color="0.35", linestyle=(0, (4, 3)), linewidth=1, zorder=1)
    if best is not None and quantities[0] == "elbo":
        _mark_best(axes[0], columns, best)
    if axes[0].lines:
        axes[0].legend(fontsize=9, loc="upper right", edgecolor="none", framealpha=0.9)
    return figure


def _draw_curves(axis: Axes, columns: dict[str, np.ndarray], name: str) -> None:
    epoch = columns["epoch"]
    curves = {
        label: columns[key]
        for label, key in (("training", f"train_{name}"), ("validation", f"validation_{name}"))
        if key in columns and np.isfinite(columns[key]).any()
    }
    for label, values in curves.items():
        axis.plot(
            epoch,
            values,
            color=TRAIN if label == "training" else VALIDATION,
            linewidth=1.6,
            marker="o" if len(epoch) <= 30 else None,
            markersize=3,
            label=label,
        )
    _style_history_axis(axis, QUANTITIES[name], list(curves.values()))


def _mark_best(axis: Axes, columns: dict[str, np.ndarray], best: int) -> None:
    kind = "validation" if "validation_elbo" in columns else "train"
    epoch, value = columns["epoch"][best], columns[f"{kind}_elbo"][best]
    name = "validation" if kind == "validation" else "training"
    axis.plot(
        epoch,
        value,
        marker="o",
        markersize=8,
        markerfacecolor="none",
        markeredgecolor="0.2",
        linestyle="none",
        label=f"best {name}: {value:,.1f} (epoch {epoch:.0f})",
    )


def plot_latent(
    latent: np.ndarray,
    path: str | os.PathLike[str],
    *,
    categories: Mapping[str, Any] | None = None,
    values: Mapping[str, Any] | None = None,
    markers: Mapping[str, Any] | None = None,
    highlights: Mapping[str, Any] | None = None,
    method: str = "auto",
    seed: int = 0,
    dpi: int = 150,
) -> np.ndarray:
    """Draw a latent space in two dimensions, one panel for each colouring, to a file.

    Parameters
    ----------
    latent : (N, L) array
        The latent representation.
    path
        Picture to write, replaced if it exists; the suffix gives the format (.png, .pdf, .svg).
    categories
        ``{title: (N,) labels}``: one panel each. Unknown and missing labels are grey and lie
        behind. Compact categories have their names on the cells too. More than 100 categories get
        graded colours and no legend.
    values
        ``{title: (N,) numbers}``: one panel each, such as total counts. Cells without a finite
        value are grey.
    markers
        ``{gene: (N,) expression >= 0}``: one panel each, coloured by log(1 + expression), the
        highest on top.
    highlights
        ``{title: (N,) labels}``: one small panel for each of the first 48 labels, its cells in
        colour and all others grey, such as one for each batch.
    method : {"auto", "umap", "pca"}
        ``"auto"`` is UMAP for 15 to 200,000 cells in more than two dimensions. Otherwise, and
        where neither of the packages scranpy and umap-learn is installed, it is PCA; a warning and
        the title of the picture say so.
    seed
        Of UMAP and of the order in which points are drawn.
    dpi
        Dots per inch of a raster picture.

    Returns
    -------
    numpy.ndarray
        The coordinates (N, 2), float64.

    Raises
    ------
    InputError
        If the arrays do not fit together, a value cannot be drawn, the method or the format is
        unknown, or UMAP is asked for and cannot be had.

    Warns
    -----
    UserWarning
        With ``"auto"``, if principal components are drawn in the place of UMAP.
    """
    found = project(latent, method=method, seed=seed)
    figure = latent_figure(
        found.coordinates,
        found.axis_names,
        categories=categories,
        values=values,
        markers=markers,
        highlights=highlights,
        title=latent_title(len(found.coordinates), found.note),
        seed=seed,
    )
    save_figure(figure, path, dpi)
    return found.coordinates


def latent_title(n_cells: int, note: str) -> str:
    """Return the heading of a latent picture; `note` says what the axes are."""
    return f"Latent space of {n_cells:,} cells ({note})"


def latent_figure(
    coordinates: np.ndarray,
    axis_names: tuple[str, str],
    *,
    categories: Mapping[str, Any] | None = None,
    values: Mapping[str, Any] | None = None,
    markers: Mapping[str, Any] | None = None,
    highlights: Mapping[str, Any] | None = None,
    title: str | None = None,
    seed: int = 0,
) -> Figure:
    """Return the figure that `plot_latent` writes, from coordinates (N, 2) and their names.

    `title` stands above the panels; by default it says how many cells there are.
    """
    from .panels import Colouring, latent_panels

    points = number_array("coordinates", coordinates, "an array (cells, 2) of numbers")
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise InputError(f"coordinates must be finite, (cells, 2), not {shown(coordinates)}")
    names = axis_names if isinstance(axis_names, (list, tuple)) else ()
    if len(names) != 2 or not all(isinstance(name, str) for name in names):
        raise InputError(f"axis_names must be two names, not {shown(axis_names)}")
    one_each = "a dictionary from titles to one value per cell"
    colouring = Colouring(
        mapping("categories", categories, one_each),
        mapping("values", values, one_each),
        mapping("markers", markers, one_each),
        mapping("highlights", highlights, one_each),
    )
    heading = f"Latent space of {len(points):,} cells" if title is None else text("title", title)
    return latent_panels(
        points, (names[0], names[1]), colouring, heading, whole_number("seed", seed, minimum=0)
    )


def plot_volcano(
    result: pd.DataFrame,
    path: str | os.PathLike[str],
    *,
    names: int = 8,
    min_pct: float = 0.1,
    dpi: int = 150,
) -> None:
    """Draw differential expression to a file, one panel for each of the first 60 comparisons.

    Parameters
    ----------
    result
        What `Model.differential_expression` returned. For mode "change", the median log-fold
        change is drawn against -log10 of the probability of no change (down to 1e-4), and the
        marked genes are coloured, orange above and blue below; for "vanilla", the ratio of the mean
        frequencies against the Bayes factor.
    path
        Picture to write, replaced if it exists; the suffix gives the format (.png, .pdf, .svg).
    names
        Genes to name in each panel, those that stand out most.
    min_pct
        Genes with counts in a smaller share of the cells of both groups are pale, and neither
        counted in the title nor named.
    dpi
        Dots per inch of a raster picture.

    Raises
    ------
    InputError
        If columns are missing, or the format is unknown.
    """
    save_figure(volcano_figure(result, names=names, min_pct=min_pct), path, dpi)


def volcano_figure(result: pd.DataFrame, *, names: int = 8, min_pct: float = 0.1) -> Figure:
    """Return the figure that `plot_volcano` writes."""
    from .volcano import volcano_panels

    number = whole_number("names", names, minimum=0)
    return volcano_panels(_data_frame(result), number, real_number("min_pct", min_pct, most=1.0))


def plot_dots(
    result: pd.DataFrame,
    path: str | os.PathLike[str],
    *,
    genes: int = 4,
    min_pct: float = 0.1,
    dpi: int = 150,
) -> None:
    """Draw the first genes of every comparison as a dot plot to a file.

    A row for each of the first 60 comparisons, a column for each gene, 72 at most. The area of a
    dot is the share of the cells of the first group that have counts of the gene. Its colour is,
    of groups against the rest, the mean of the log of their normalised counts, from the lowest of
    the gene to its highest; of pairs, the median log2 fold change.

    Parameters
    ----------
    result
        What `Model.differential_expression` returned, of "change" mode with ``all_stats``.
    path
        Picture to write, replaced if it exists; the suffix gives the format (.png, .pdf, .svg).
    genes
        Genes of each comparison: marked, higher in the first group, the most certain first. Of many
        comparisons fewer are drawn.
    min_pct
        Genes with counts in a smaller share of the cells of both groups are left out.
    dpi
        Dots per inch of a raster picture.

    Raises
    ------
    InputError
        If columns are missing, no gene is marked, or the format is unknown.
    """
    save_figure(dot_figure(result, genes=genes, min_pct=min_pct), path, dpi)


def dot_figure(result: pd.DataFrame, *, genes: int = 4, min_pct: float = 0.1) -> Figure:
    """Return the figure that `plot_dots` writes."""
    from .dots import dot_panel

    number = whole_number("genes", genes, minimum=1)
    return dot_panel(_data_frame(result), number, real_number("min_pct", min_pct, most=1.0))


def _data_frame(result: Any) -> Any:
    if not hasattr(result, "columns") or not hasattr(result, "iloc"):
        raise InputError(
            "result must be the data frame that Model.differential_expression returned, not "
            f"{shown(result)}"
        )
    return result


def _columns(history: History) -> dict[str, np.ndarray]:
    """Return the columns of any of the forms as arrays by name."""
    raw: dict[str, Any]
    if isinstance(history, Mapping):
        raw = dict(history)
    elif hasattr(history, "columns") and hasattr(history, "iloc"):  # a data frame
        raw = {str(name): history[name] for name in history.columns}
    else:
        rows: list[Any] = list(history) if isinstance(history, (list, tuple)) else [None]
        if not all(isinstance(row, Mapping) for row in rows):
            raise InputError(
                "history must be a data frame, the columns of history.csv as a dictionary, or its "
                f"rows as a list of dictionaries, not {shown(history)}"
            )
        raw = {name: [row.get(name, np.nan) for row in rows] for name in (rows[0] if rows else ())}
    columns = {
        name: np.atleast_1d(number_array(f"history[{name!r}]", values, "one number per epoch"))
        for name, values in raw.items()
    }
    lengths = {len(values) for values in columns.values()}
    if "epoch" not in columns or "train_elbo" not in columns:
        raise InputError(
            "the history needs the columns epoch and train_elbo, as history.csv has them; "
            f"it has {', '.join(map(str, columns)) or 'none'}"
        )
    if lengths != {len(columns["epoch"])}:
        raise InputError(
            f"the columns of the history have different lengths: {sorted(lengths)}; "
            "give one value per epoch in each"
        )
    if lengths == {0}:
        raise InputError("the history has no epochs; train first")
    return columns


def _best_epoch(columns: dict[str, np.ndarray]) -> int | None:
    """Return the position of the lowest validation, else training, negative ELBO."""
    for name in ("validation_elbo", "train_elbo"):
        values = columns.get(name)
        if values is not None and np.isfinite(values).any():
            return int(np.nanargmin(np.where(np.isfinite(values), values, np.nan)))
    return None


def _style_history_axis(axis: Axes, title: str, curves: list[np.ndarray]) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_title(title, fontsize=11)
    axis.set_ylabel("nats per cell")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="0.9", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    limits, cut = y_limits(curves)
    if limits is not None:
        axis.set_ylim(*limits)
    axis.set_xlabel("epoch (the first ones are out of the frame)" if cut else "epoch")


def y_limits(curves: list[np.ndarray]) -> tuple[tuple[float, float] | None, bool]:
    """Return limits that show the curves after their first tenth, and whether that hides any.

    The first epochs can lie orders of magnitude away and would flatten everything else.
    """
    finite = [values[np.isfinite(values)] for values in curves]
    finite = [values for values in finite if len(values)]
    if not finite:
        return None, False
    skipped = [values[-(-len(values) // 10) if len(values) >= 5 else 0 :] for values in finite]
    everything, settled = np.concatenate(finite), np.concatenate(skipped)
    low, high = settled.min(), settled.max()
    room = max(high - low, 1e-9 * max(abs(high), 1.0))
    # Early values that fit into as much room again are shown after all.
    bottom, top = max(everything.min(), low - room), min(everything.max(), high + room)
    cut = bool(everything.min() < bottom or everything.max() > top)
    margin = 0.05 * max(top - bottom, room)
    return (float(bottom - margin), float(top + margin)), cut


def check_picture(path: str | os.PathLike[str]) -> Path:
    """Return the path of a picture.

    Raises
    ------
    InputError
        It is a folder, or its suffix names no format of pictures.
    """
    path = file_path("path", path)
    if path.is_dir():
        raise InputError(f"path {path} is a folder; name the picture in it")
    kind = path.suffix[1:].lower()
    if kind not in FORMATS:
        raise InputError(
            f"path {path}: pictures of the kind .{kind} cannot be written; "
            "name it .png, .pdf or .svg"
        )
    return path


def save_figure(figure: Figure, path: str | os.PathLike[str], dpi: int) -> None:
    """Write a figure in one step; the suffix gives the format.

    Raises
    ------
    InputError
        The format is unknown, or the path cannot be written.
    """
    path = check_picture(path)
    dpi = whole_number("dpi", dpi, minimum=LEAST_DPI, maximum=MOST_DPI)
    if not path.parent.is_dir():
        raise InputError(f"the folder of path {path} does not exist; create it first")
    with atomic_path(path) as temporary:
        write_figure(figure, temporary, path.suffix[1:].lower(), dpi)


def write_figure(figure: Figure, target: Path | IO[bytes], kind: str, dpi: int) -> None:
    """Write a figure in a format of `FORMATS`; no window, no backend of the session."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        # Points that are pixels in a vector file are seen enlarged.
        figure.savefig(target, format=kind, dpi=dpi if kind in RASTER else max(dpi, 300))
