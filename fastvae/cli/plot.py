"""``fastvae plot``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .inputs import assignments
from .options import (
    AllowLinks,
    BatchKeyOf,
    Color,
    Device,
    Genome,
    MemoryLimit,
    NewAllowFractional,
    NewGeneNames,
    NewLayer,
    NewUseRaw,
    Overwrite,
    Residence,
)
from .user_errors import user_errors

if TYPE_CHECKING:
    from ..report.pictures import Wanted


def plot(
    run: Annotated[Path, typer.Argument(help="Folder that fastvae train wrote.")],
    data: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Cells to draw, needed for genes.", show_default="the latent.h5ad of RUN"
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Picture to write: .png, .pdf or .svg.",
            show_default="latent.png in RUN",
        ),
    ] = None,
    color: Color = None,
    highlight: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN",
            help="Column of obs; a small panel for each of its categories.",
            show_default="the batches",
        ),
    ] = None,
    method: Annotated[str, typer.Option(help="auto, umap or pca.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of UMAP and of the order of the points.")] = 0,
    dpi: Annotated[int, typer.Option(help="Dots per inch of a .png.")] = 150,
    device: Device = "auto",
    residence: Residence = "auto",
    memory_limit: MemoryLimit = None,
    layer: NewLayer = None,
    use_raw: NewUseRaw = False,
    genome: Genome = None,
    allow_fractional: NewAllowFractional = None,
    allow_links: AllowLinks = False,
    gene_names: NewGeneNames = None,
    batch_key_of: BatchKeyOf = None,
    overwrite: Overwrite = False,
) -> None:
    """Draw the latent space of a run, coloured by columns of obs and by genes."""
    with user_errors():
        from ..report.pictures import PICTURE, Wanted

        text = run_plot(
            run,
            data or [],
            output or run / PICTURE,
            Wanted(color or (), highlight or (), method=method, seed=seed, dpi=dpi),
            overwrite=overwrite,
            device=device,
            reading={
                "residence": residence,
                "memory_limit": memory_limit,
                "layer": layer,
                "use_raw": use_raw,
                "genome": genome,
                "allow_fractional": allow_fractional,
                "allow_links": allow_links,
                "gene_names": gene_names,
                "batch_key_of": assignments(batch_key_of, "--batch-key-of"),
            },
        )
        typer.echo(text)


def run_plot(
    run: Path,
    data: list[Path],
    output: Path,
    wanted: Wanted,
    *,
    overwrite: bool,
    device: str,
    reading: dict[str, Any],
) -> str:
    """Draw the cells of `data`, or those of the run, and return what to tell the user.

    Raises
    ------
    InputError
        The picture is there already; a column, a gene or a file is not.
    """
    import numpy as np

    from .._files import check_new_file
    from ..errors import InputError
    from ..model.model import Model
    from ..plots.figures import check_picture
    from ..report.observed import scaled_expression
    from ..report.pictures import LATENT, SavedLatent, colours_of, draw_latent, read_latent

    check_picture(output)
    check_new_file(output, overwrite=overwrite)
    if not data:
        model = Model.load(run, device=device)
        saved = read_latent(run)
        colours = colours_of(saved.obs, model, wanted)
        if colours.genes:
            raise InputError(
                f"color={colours.genes[0]!r} is a gene, and the run keeps no counts; name the data "
                f"too: fastvae plot {run} DATA"
            )
        markers: dict[str, Any] = {}
    else:
        model = Model.load(run, data, device=device, **reading)
        assert model._frames is not None
        obs = model._frames.obs
        colours = colours_of(obs, model, wanted)
        markers = scaled_expression(model, colours.genes)
        known = read_latent(run) if (run / LATENT).is_file() else None
        if known is not None and known.obs.index.equals(obs.index):
            saved = known  # the cells of the run: their UMAP is there
        else:
            saved = SavedLatent(obs, np.asarray(model.get_latent_representation()), None)
    projection = saved.projection(wanted)
    draw_latent(output, projection, colours, markers, wanted)
    return f"{output}: {len(saved.latent):,} cells ({projection.note})"
