"""``fastvae plot``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .declared_options import with_declared_options
from .options import (
    Color,
    Device,
    MemoryLimit,
    Overwrite,
    Residence,
    TrainedRun,
)
from .slot_options import NewSlotOptions
from .user_errors import user_errors

if TYPE_CHECKING:
    from ..report.pictures import PictureOptions


@with_declared_options("plot")
def plot(
    run: TrainedRun,
    data: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Cells to draw, needed for genes.", show_default="the latent.h5ad of RUN"
        ),
    ] = None,
    *,
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
    where: NewSlotOptions,
    overwrite: Overwrite = False,
) -> None:
    """Draw the latent space of a run, coloured by columns of obs and by genes."""
    with user_errors():
        from ..report.pictures import PICTURE, PictureOptions

        text = run_plot(
            run,
            data or [],
            output or run / PICTURE,
            PictureOptions(color or (), highlight or (), method=method, seed=seed, dpi=dpi),
            overwrite=overwrite,
            device=device,
            reading={
                "residence": residence,
                "memory_limit": memory_limit,
                **where.arguments(),
            },
        )
        typer.echo(text)


def run_plot(
    run: Path,
    data: list[Path],
    output: Path,
    wanted: PictureOptions,
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
    from .._files import check_new_file
    from ..errors import InputError
    from ..model.model import Model
    from ..plots.figures import check_picture
    from ..report.observed import scaled_expression
    from ..report.pictures import colours_of, draw_latent, latent_of, read_latent

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
        colours = colours_of(model._frames.obs, model, wanted)
        markers = scaled_expression(model, colours.genes)
        saved = latent_of(model, run)
    projection = saved.projection(wanted.method, wanted.seed)
    draw_latent(output, projection, colours, markers, wanted)
    return f"{output}: {len(saved.latent):,} cells ({projection.note})"
