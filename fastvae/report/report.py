"""`write_report`: all about one run on one page."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__
from .._files import atomic_path, check_new_file
from .._words import a_few, is_no_category
from ..data.categories import factorise
from ..data.keys import checked_key, in_words, key_column
from ..errors import InputError, file_path, listed, text, true_or_false, whole_number
from ..model.latent_file import SavedLatent
from ..plots.figures import QUANTITIES, history_panels
from ..plots.panels import Colouring, latent_panels
from . import page
from .markers import marker_genes
from .mixing import Score, mixing_scores
from .neighbours import principal_components
from .observed import counts_of, scaled_expression
from .pictures import Colours, PictureOptions, colours_of
from .predictive import library_figure, predictive_check, variance_figure, zeros_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..model.model import Model
    from ..plots.projection import Projection


SCORED_CELLS = 10_000
DRAWN_CELLS = 2_000
MOST_MARKERS = 9
PACKAGES = ("torch", "numpy", "scipy", "anndata", "h5py", "matplotlib", "scranpy", "umap-learn")
HEADINGS = {
    "training": "Training",
    "latent": "Latent space",
    "mixing": "Batches and labels, before and after",
    "fit": "Fit to the counts",
    "settings": "Settings",
    "versions": "Versions and command",
}


def write_report(
    model: Model,
    path: str | os.PathLike[str],
    *,
    labels_key: str | Sequence[str] | None = None,
    color: Sequence[str] = (),
    title: str | None = None,
    command: str | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Write a page about a trained model and its data: one .html file that needs nothing else.

    It shows the training curves, the UMAP by batch, label and marker genes, how well batches mix
    and labels keep together before and after, counts drawn from the model beside those measured,
    all settings, and versions.

    Parameters
    ----------
    model
        Trained, with data.
    path
        The .html file; it is written whole or not at all.
    labels_key
        Column of obs with the label of each cell; by default the model's.
    color
        More columns of obs and genes to colour the UMAP by. Without genes, markers are chosen: for
        each label the gene whose mean is highest above that of every other label.
    title
        Heading; by default the name of the file.
    command
        How the page was made, to stand at its end.
    seed
        Of the cells that are chosen where there are many, and of the counts drawn.
    overwrite
        Replace a file that is there.

    Raises
    ------
    InputError
        The model is not trained or has no data, a column or gene is not there, or the file is.
    """
    target = check_report(path, overwrite=true_or_false("overwrite", overwrite))
    seed = whole_number("seed", seed, minimum=0)
    colors = [text("color", name) for name in listed("color", color, "names of columns and genes")]
    model._check_trained()
    frames = model._frames
    if frames is None:
        model._own_store()  # says what to do
    assert frames is not None
    latent = SavedLatent(frames.obs, np.asarray(model.get_latent_representation()), None)
    about = Subject(model, latent, checked_key(labels_key, "labels_key"), colors, seed, True)
    write_page(about, target, target.stem if title is None else text("title", title), command)


def check_report(path: str | os.PathLike[str], *, overwrite: bool) -> Path:
    """Return the path of a page, before any work is done.

    Raises
    ------
    InputError
        It is there already, cannot be written, or is not named .html.
    """
    target = file_path("path", path)
    if target.suffix not in (".html", ".htm"):
        raise InputError(f"path {target}: the report is a page of HTML; name it .html")
    return check_new_file(target, overwrite=overwrite)


@dataclass(frozen=True, eq=False)
class Subject:
    """What a page is about.

    Attributes
    ----------
    model, latent
        The model, and where its cells lie.
    labels_key
        Column or columns of obs with labels; None takes the model's.
    color
        Columns and genes asked for.
    seed
        Of cells and draws.
    has_counts
        Whether the model has the counts of these cells.
    """

    model: Model
    latent: SavedLatent
    labels_key: str | tuple[str, ...] | None
    color: Sequence[str]
    seed: int
    has_counts: bool

    def codes(self, which: str) -> tuple[np.ndarray | None, list[str], str]:
        """Return codes (N,), -1 where unknown, names, and the source of batches or labels."""
        setup = self.model._setup
        key, option = setup.batch_key, "batch_key"
        if which == "label":
            key, option = self.labels_key or setup.labels_key, "labels_key"
        if key is None:
            return None, [], ""
        codes, names = factorise(key_column(self.latent.obs, key, option), in_words(key))
        unknown = np.array([is_no_category(name) for name in names] or [False])
        codes = np.where((codes >= 0) & unknown[np.maximum(codes, 0)], -1, codes)
        return codes, list(names), in_words(key)

    def some_cells(self, most: int) -> np.ndarray:
        """Return the rows of at most so many cells, ascending, chosen at random."""
        n_cells = len(self.latent.latent)
        if n_cells <= most:
            return np.arange(n_cells)
        rng = np.random.default_rng([self.seed, most])
        return np.sort(rng.choice(n_cells, most, replace=False))


def write_page(about: Subject, target: Path, title: str, command: str | None) -> None:
    """Write the page; see `write_report`."""
    projection = about.latent.projection()
    batch, label = about.codes("batch")[0], about.codes("label")[0]
    cells = about.some_cells(SCORED_CELLS)
    counts = counts_of(about.model, cells) if about.has_counts else None
    scores = _scores(about, cells, counts, batch, label)
    sections = {
        "training": _training(about.model),
        "latent": _latent(about, projection, cells, counts, label),
        "mixing": _mixing(about, scores, len(cells)),
        "fit": _fit(about),
        "settings": _settings(about.model),
        "versions": _versions(about.model, command),
    }
    made = {name: page.section(name, HEADINGS[name], content) for name, content in sections.items()}
    html = page.page(title, _introduction(about, scores), made, HEADINGS)
    with atomic_path(target) as temporary:
        temporary.write_text(html, encoding="utf-8")


def _introduction(about: Subject, scores: list[Score]) -> str:
    setup, training = about.model._setup, about.model.training
    lines = [f"{len(about.latent.latent):,} cells, {len(setup.gene_names):,} genes."]
    if setup.batch_key is not None:
        few = a_few(setup.batch_categories, 12)
        lines.append(
            f"{len(setup.batch_categories)} batches in {in_words(setup.batch_key)}: {few}."
        )
    _, names, words = about.codes("label")
    if names:
        lines.append(f"{len(names)} labels in {words}: {a_few(names, 12)}.")
    if training:
        line = about.model._training_line()
        lines.append(f"{line[0].upper()}{line[1:]} (nats per cell).")
    return page.text(*lines, *(_in_words(score) for score in scores))


def _in_words(score: Score) -> str:
    before = "" if np.isnan(score.before) else f"from {score.before:.2f} "
    least = "" if np.isnan(score.chance) else f" ({score.chance_is} {score.chance:.2f})"
    return f"{score.name}: {before}to {score.after:.2f}{least}."


def _training(model: Model) -> str:
    history = model.history
    if len(history) == 0:
        return page.text("There is no history: the weights were not trained here.")
    pictures = [
        page.picture(history_panels(history, (name,), (4.4, 3.7)), f"{title} by epoch")
        for name, title in QUANTITIES.items()
    ]
    done = model.training
    rows = [("Epochs", f"{len(history):,} ({done.get('ending', 'unknown ending')})")]
    if done.get("best_epoch") is not None:
        rows.append(("Epoch whose weights were kept", f"{done['best_epoch']:,}"))
    for name, words in (("train_elbo", "training"), ("validation_elbo", "validation")):
        if done.get(name) is not None:
            rows.append((f"Negative ELBO, {words} cells", f"{done[name]:,.2f} nats per cell"))
    if done.get("seconds") is not None:
        rows.append(("Time", f"{done['seconds']:,.1f} s"))
    good = (
        "Good: curves that have become flat, and a validation curve that does not rise again. "
        "One that still falls at the end asks for more epochs; one that rises for early stopping."
    )
    return page.pictures(*pictures) + page.text(good) + page.table((), rows)


def _latent(
    about: Subject,
    projection: Projection,
    cells: np.ndarray,
    counts: Any,
    label: np.ndarray | None,
) -> str:
    wanted = PictureOptions(about.color)
    colours = colours_of(about.latent.obs, about.model, wanted)
    if about.labels_key is not None:
        name = about.labels_key
        name = name if isinstance(name, str) else " | ".join(name)
        column = key_column(about.latent.obs, about.labels_key, "labels_key")
        colours.categories.setdefault(name, column)
    genes, chosen = colours.genes, False
    if not genes and counts is not None and label is not None:
        names = about.codes("label")[1]
        genes = marker_genes(counts, label[cells], names, about.model.gene_names, MOST_MARKERS)
        chosen = True
    markers = scaled_expression(about.model, genes) if about.has_counts else {}
    parts = [page.text(f"The axes are {projection.note}. {_how_to_read(projection)}")]
    parts.append(page.pictures(*_category_pictures(projection, colours)))
    small = _highlight_pictures(projection, colours)
    if small:
        parts.append(page.subsection("Each batch by itself", page.pictures(*small)))
    values = [
        _panel_picture(projection, f"coloured by {name}", values={name: column})
        for name, column in colours.values.items()
    ]
    shown = [
        _panel_picture(projection, f"coloured by the expression of {gene}", markers={gene: level})
        for gene, level in markers.items()
    ]
    if values or shown:
        how = "log(1 + counts of the gene, scaled to 10,000 in each cell)."
        how += (
            " For each label the gene whose mean is highest above that of every other label."
            if chosen
            else ""
        )
        parts.append(
            page.subsection("Genes and numbers", page.text(how), page.pictures(*values, *shown))
        )
    elif not about.has_counts:
        parts.append(page.text(_NO_COUNTS.format("Marker genes")))
    return "".join(parts)


_NO_COUNTS = "{} need the counts: name the data too (fastvae report RUN DATA)."


def _how_to_read(projection: Projection) -> str:
    if projection.note != "UMAP":
        return "Distances are those of the latent space, as far as two dimensions show them."
    return (
        "Cells that lie together are alike; distances between groups, their sizes and their places "
        "mean little."
    )


def _panel_picture(projection: Projection, words: str, **shown: Any) -> str:
    return page.picture(panel_figure(projection, **shown), f"Latent space {words}")


def panel_figure(projection: Projection, **shown: Any) -> Figure:
    """Return one panel of the latent space, without a heading."""
    kinds = ("categories", "values", "markers", "highlights")
    colouring = Colouring(**{kind: shown.get(kind, {}) for kind in kinds})
    return latent_panels(projection.coordinates, projection.axis_names, colouring, "", 0)


def _category_pictures(projection: Projection, colours: Colours) -> list[str]:
    return [
        _panel_picture(projection, f"coloured by {name}", categories={name: column})
        for name, column in colours.categories.items()
    ] or [_panel_picture(projection, "")]


def _highlight_pictures(projection: Projection, colours: Colours) -> list[str]:
    from ..plots.colours import category_codes
    from ..plots.panels import highlight_panels, panels_figure

    made = []
    for name, column in colours.highlights.items():
        panels = highlight_panels(name, category_codes(column))
        for panel in panels:
            figure = panels_figure(projection.coordinates, projection.axis_names, [[panel]], "", 0)
            made.append(page.picture(figure, f"Cells of {panel.title} among all others"))
    return made


def _scores(
    about: Subject,
    cells: np.ndarray,
    counts: Any,
    batch: np.ndarray | None,
    label: np.ndarray | None,
) -> list[Score]:
    before = None if counts is None else principal_components(counts)
    return mixing_scores(
        {"before": before, "after": about.latent.latent[cells]},
        None if batch is None else batch[cells],
        None if label is None else label[cells],
    )


def _mixing(about: Subject, scores: list[Score], n_cells: int) -> str:
    if not scores:
        return page.text(
            "There is one batch and no label: nothing to score. Labels are named with labels_key "
            "(--labels-key)."
        )

    def number(value: float) -> str:
        return "-" if np.isnan(value) else f"{value:.3f}"

    rows = [
        (one.name, number(one.before), number(one.after), number(one.chance), one.good)
        for one in scores
    ]
    total = len(about.latent.latent)
    which = f"{n_cells:,} of {total:,} cells, chosen at random" if n_cells < total else "all cells"
    how = (
        "Before: the first 30 principal components of log(1 + counts scaled to 10,000 in each "
        f"cell). After: the latent space. Of {which}; neighbours are the nearest by Euclidean "
        "distance, exactly."
    )
    missing = [] if about.has_counts else [_NO_COUNTS.format("Scores before")]
    if about.codes("label")[0] is None:
        missing.append("No labels are known; name their column with labels_key (--labels-key).")
    headings = ("Measure (shares from 0 to 1)", "Before", "After", "Without information", "Good is")
    return page.table(headings, rows, (1, 2, 3)) + page.text(how, *missing)


def _fit(about: Subject) -> str:
    if not about.has_counts:
        return page.text(_NO_COUNTS.format("Draws from the model"))
    cells = about.some_cells(DRAWN_CELLS)
    check = predictive_check(about.model, cells, about.seed)
    how = (
        f"For {len(cells):,} cells, a latent position is drawn from the posterior of each, and "
        "counts from the likelihood there (posterior predictive). A model that fits draws counts "
        "like those measured."
    )
    pictures = (
        (library_figure(check), "Library sizes", "Counts of a cell. Good: both outlines agree."),
        (zeros_figure(check), "Zeros of each gene", "A point is a gene. Good: points on the line."),
        (
            variance_figure(check),
            "Variance against mean of each gene",
            "A point is a gene. Good: both clouds lie on each other, above the line.",
        ),
    )
    headings = ("Measure", "Measured", "Drawn", "Good is")
    return (
        page.text(how)
        + page.pictures(*(page.picture(*each) for each in pictures))
        + page.table(headings, check.rows(), (1, 2))
    )


def _settings(model: Model) -> str:
    setup = model._setup
    rows = [("genes", f"{len(setup.gene_names):,}: {a_few(setup.gene_names, 8)}")]
    rows.append(("batch_key", "none" if setup.batch_key is None else in_words(setup.batch_key)))
    rows.append(("labels_key", "none" if setup.labels_key is None else in_words(setup.labels_key)))
    rows += setup.covariate_rows()
    rows.append(("counts from", str(setup.slot)))
    rows += [(name, str(value)) for name, value in vars(setup.options).items()]
    rows += [(name, str(value)) for name, value in model.origin.items()]
    parts = [page.subsection("Model", page.table((), rows))]
    done = dict(model.training)
    settings = done.pop("settings", None)
    if settings:
        chosen = [(name, _value(value)) for name, value in settings.items()]
        parts.append(page.subsection("Training", page.table((), chosen)))
    if done:
        rest = [(name, _value(value)) for name, value in done.items() if name != COMMAND]
        parts.append(page.subsection("Summary of the training", page.table((), rest)))
    return "".join(parts)


COMMAND = "command"
"""Where the command line keeps itself in the summary of the training."""


def _value(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def _versions(model: Model, command: str | None) -> str:
    rows = [("fastvae", __version__), ("Python", platform.python_version())]
    for name in PACKAGES:
        try:
            rows.append((name, version(name)))
        except PackageNotFoundError:
            continue
    rows.append(("system", f"{platform.system()} {platform.machine()}"))
    rows.append(("page written", datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")))
    parts = [page.table((), rows)]
    trained = model.training.get(COMMAND)
    if trained:
        parts.append(page.subsection("The model was trained with", page.code(str(trained))))
    if command:
        parts.append(page.subsection("This page was written with", page.code(command)))
    return "".join(parts)
