"""Pictures of a run: loss curves, the latent space, differential expression.

Figures are drawn without pyplot, so no window opens, no backend is switched and nothing is left
open in the caller's session.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from .._files import atomic_path
from ..errors import InputError, file_path, mapping, number_array, shown, whole_number
from .projection import project

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


__all__ = [
    "history_figure",
    "latent_figure",
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
    _save(history_figure(history), path, dpi)


def history_figure(history: History) -> Figure:
    """Return the figure that `plot_history` writes."""
    from matplotlib.figure import Figure

    columns = _columns(history)
    epoch = columns["epoch"]
    figure = Figure(figsize=(12.6, 3.8), layout="constrained")
    axes = figure.subplots(1, len(QUANTITIES))
    best = _best_epoch(columns)
    for axis, (name, title) in zip(axes, QUANTITIES.items(), strict=True):
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
        _style_history_axis(axis, title, list(curves.values()))
        if best is not None:
            axis.axvline(epoch[best], color="0.35", linestyle=(0, (4, 3)), linewidth=1, zorder=1)
    if best is not None:
        name = "validation" if "validation_elbo" in columns else "training"
        value = columns[f"{'validation' if name == 'validation' else 'train'}_elbo"][best]
        axes[0].plot(
            epoch[best],
            value,
            marker="o",
            markersize=8,
            markerfacecolor="none",
            markeredgecolor="0.2",
            linestyle="none",
            label=f"best {name}: {value:,.1f} (epoch {epoch[best]:.0f})",
        )
    if axes[0].lines:
        axes[0].legend(fontsize=9, loc="upper right", edgecolor="none", framealpha=0.9)
    return figure


def plot_latent(
    latent: np.ndarray,
    path: str | os.PathLike[str],
    *,
    categories: Mapping[str, Any] | None = None,
    markers: Mapping[str, Any] | None = None,
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
        ``{title: (N,) labels}``: one panel each. Unknown and missing labels are grey. More than
        20 categories get graded colours and no legend.
    markers
        ``{gene: (N,) expression >= 0}``: one panel each, coloured by log(1 + expression), the
        highest on top.
    method : {"auto", "umap", "pca"}
        ``"auto"`` is UMAP if the package umap-learn is installed and there are 15 to 200,000
        cells and more than two dimensions, else PCA. The axes name the method.
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
        unknown, or UMAP is asked for and not installed.
    """
    coordinates, axis_names = project(latent, method=method, seed=seed)
    figure = latent_figure(
        coordinates, axis_names, categories=categories, markers=markers, seed=seed
    )
    _save(figure, path, dpi)
    return coordinates


def latent_figure(
    coordinates: np.ndarray,
    axis_names: tuple[str, str],
    *,
    categories: Mapping[str, Any] | None = None,
    markers: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Figure:
    """Return the figure that `plot_latent` writes, from coordinates (N, 2) and their names."""
    from .panels import latent_panels

    points = number_array("coordinates", coordinates, "an array (cells, 2) of numbers")
    if points.ndim != 2 or points.shape[1] != 2:
        raise InputError(f"coordinates have shape {points.shape}; expected (cells, 2)")
    names = axis_names if isinstance(axis_names, (list, tuple)) else ()
    if len(names) != 2 or not all(isinstance(name, str) for name in names):
        raise InputError(f"axis_names must be two names, not {shown(axis_names)}")
    one_each = "a dictionary from titles to one value per cell"
    return latent_panels(
        points,
        (names[0], names[1]),
        mapping("categories", categories, one_each),
        mapping("markers", markers, one_each),
        whole_number("seed", seed, minimum=0),
    )


def plot_volcano(
    result: pd.DataFrame, path: str | os.PathLike[str], *, names: int = 8, dpi: int = 150
) -> None:
    """Draw differential expression to a file, one panel for each of the first 12 comparisons.

    Parameters
    ----------
    result
        What `Model.differential_expression` returned. For mode "change", the median log-fold
        change is drawn against -log10 of the probability of no change (down to 1e-4), and the
        marked genes are coloured; for "vanilla", the ratio of the mean frequencies against the
        Bayes factor.
    path
        Picture to write, replaced if it exists; the suffix gives the format (.png, .pdf, .svg).
    names
        Genes to name in each panel, those that stand out most.
    dpi
        Dots per inch of a raster picture.

    Raises
    ------
    InputError
        If columns are missing, or the format is unknown.
    """
    _save(volcano_figure(result, names=names), path, dpi)


def volcano_figure(result: pd.DataFrame, *, names: int = 8) -> Figure:
    """Return the figure that `plot_volcano` writes."""
    from .volcano import volcano_panels

    if not hasattr(result, "columns") or not hasattr(result, "iloc"):
        raise InputError(
            "result must be the data frame that Model.differential_expression returned, not "
            f"{shown(result)}"
        )
    return volcano_panels(result, whole_number("names", names, minimum=0))


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


def _save(figure: Figure, path: str | os.PathLike[str], dpi: int) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    path = file_path("path", path)
    dpi = whole_number("dpi", dpi, minimum=LEAST_DPI, maximum=MOST_DPI)
    if path.is_dir():
        raise InputError(f"path {path} is a folder; name the picture in it")
    canvas = FigureCanvasAgg(figure)
    kind = path.suffix[1:].lower() or "png"
    if kind not in canvas.get_supported_filetypes():
        raise InputError(
            f"path {path}: pictures of the kind .{kind} cannot be written; "
            "name it .png, .pdf or .svg"
        )
    if not path.parent.is_dir():
        raise InputError(f"the folder of path {path} does not exist; create it first")
    with atomic_path(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure.savefig(temporary, format=kind, dpi=dpi)
