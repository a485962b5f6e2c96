"""Pictures of a run's latent space, and what their cells are coloured by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .._words import those_there
from ..errors import InputError
from ..model.latent_file import LATENT, SavedLatent, read_latent_file

if TYPE_CHECKING:
    import pandas as pd

    from ..data.keys import Key
    from ..model.model import Model
    from ..plots.projection import Projection


PICTURE = "latent.png"
MOST_CATEGORIES = 1000
"""A text column with more values than this is one of names, not of groups."""


@dataclass(frozen=True)
class PictureOptions:
    """What a latent picture is to show beside the model's own batches and labels.

    Attributes
    ----------
    color
        Columns of obs, and genes.
    highlight
        Columns of obs; a small panel for each of their categories.
    plots
        Whether any picture is drawn.
    quiet
        Whether nothing is said meanwhile.
    method, seed, dpi
        As `fastvae.plots.plot_latent` takes them.
    """

    color: Sequence[str] = ()
    highlight: Sequence[str] = ()
    plots: bool = True
    quiet: bool = False
    method: str = "auto"
    seed: int = 0
    dpi: int = 150


@dataclass(eq=False)
class Colours:
    """Values of the cells, sorted by how they are drawn."""

    categories: dict[str, Any] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    genes: list[str] = field(default_factory=list)
    highlights: dict[str, Any] = field(default_factory=dict)


def colours_of(obs: pd.DataFrame, model: Model, wanted: PictureOptions) -> Colours:
    """Return what the picture is coloured by: the model's batches and labels, and what is asked.

    Raises
    ------
    InputError
        What is asked for is neither a column nor a gene.
    """
    from ..data.keys import columns_of, key_column

    found = Colours()
    setup = model._setup
    for key, option in ((setup.batch_key, "batch_key"), (setup.labels_key, "labels_key")):
        if key is None or not set(columns_of(key)) <= {str(name) for name in obs.columns}:
            continue
        name = key if isinstance(key, str) else " | ".join(key)
        found.categories[name] = key_column(obs, key, option)
        if option == "batch_key" and len(setup.batch_categories) > 1:
            found.highlights[name] = found.categories[name]
    columns = [str(name) for name in obs.columns]
    for name in wanted.highlight:
        if name not in columns:
            raise InputError(
                f"highlight={name!r} is not a column of obs; {those_there(columns, name)}"
            )
        found.highlights[name] = key_column(obs, name, "highlight")
    for name in dict.fromkeys(wanted.color):
        if name in columns:
            _sort_in(found, name, key_column(obs, name, "color"))
        elif name in set(model.gene_names):
            found.genes.append(name)
        else:
            raise InputError(
                f"color={name!r} is neither a column of obs nor a gene of the model "
                f"({len(model.gene_names):,} genes); of columns {those_there(columns, name)}"
            )
    return found


def _sort_in(found: Colours, name: str, column: pd.Series) -> None:
    """Take a column as categories or as numbers."""
    import pandas as pd

    numbers = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
    if numbers and (pd.api.types.is_float_dtype(column) or column.nunique() > MOST_CATEGORIES):
        found.values[name] = column.to_numpy(dtype=np.float64, na_value=np.nan)
        return
    if column.nunique() > MOST_CATEGORIES:
        raise InputError(
            f"color={name!r}: the column has {column.nunique():,} different values; colour by a "
            "column of groups or of numbers"
        )
    found.categories[name] = column


def draw_latent(
    path: Path,
    projection: Projection,
    colours: Colours,
    markers: dict[str, Any],
    wanted: PictureOptions,
) -> None:
    """Write the picture."""
    from ..plots.figures import latent_figure, latent_title, save_figure

    figure = latent_figure(
        projection.coordinates,
        projection.axis_names,
        categories=colours.categories,
        values=colours.values,
        markers=markers,
        highlights=colours.highlights,
        title=latent_title(len(projection.coordinates), projection.note),
        seed=wanted.seed,
    )
    save_figure(figure, path, wanted.dpi)


def read_latent(folder: Path) -> SavedLatent:
    """Read the latent.h5ad of a run.

    Raises
    ------
    InputError
        It is missing, damaged, or not what fastvae wrote.
    """
    return read_latent_file(folder / LATENT, f", or name the data too: fastvae plot {folder} DATA")


def latent_of(model: Model, folder: Path) -> SavedLatent:
    """Return where the model's own cells lie: as the run has it, if its cells are the same.

    Columns of obs are those of the model's data.
    """
    assert model._frames is not None
    obs = model._frames.obs
    if (folder / LATENT).is_file():
        known = read_latent(folder)
        if known.obs.index.equals(obs.index):
            return SavedLatent(obs, known.latent, known.umap)
    return SavedLatent(obs, np.asarray(model.get_latent_representation()), None)


def draw_run(model: Model, folder: Path, wanted: PictureOptions) -> None:
    """Draw the latent space that was just written to the folder of a run.

    `model` has the data of the run, from which genes are taken.
    """
    from ..report.observed import scaled_expression

    saved = read_latent(folder)
    colours = colours_of(saved.obs, model, wanted)
    markers = scaled_expression(model, colours.genes)
    draw_latent(
        folder / PICTURE, saved.projection(wanted.method, wanted.seed), colours, markers, wanted
    )


def draw_joint(
    joint: Path, picture: Path, wanted: PictureOptions, batch_key: Key | None = None
) -> None:
    """Draw a file that `Model.write_joint_latent` wrote: reference and query in one picture.

    Panels show the origin of the cells, their batches, transferred labels and the uncertainty of
    these, and each of the two origins by itself.
    """
    from ..data.keys import columns_of, key_column
    from ..model.joint_latent import LABEL, UNCERTAINTY
    from ..model.reference_cells import ORIGIN

    saved = read_latent_file(joint)
    obs = saved.obs
    colours = Colours(categories={ORIGIN: obs[ORIGIN]}, highlights={ORIGIN: obs[ORIGIN]})
    if batch_key is not None and set(columns_of(batch_key)) <= set(obs.columns):
        name = batch_key if isinstance(batch_key, str) else " | ".join(batch_key)
        colours.categories[name] = key_column(obs, batch_key, "batch_key")
    if LABEL in obs:
        colours.categories["transferred label"] = obs[LABEL]
        colours.values["uncertainty of the transfer"] = obs[UNCERTAINTY].to_numpy(dtype=np.float64)
    projection = saved.projection(wanted.method, wanted.seed)
    draw_latent(picture, projection, colours, {}, wanted)
