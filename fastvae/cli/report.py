"""``fastvae report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .declared_options import with_declared_options
from .options import (
    Color,
    Device,
    LabelsKey,
    MemoryLimit,
    Overwrite,
    Residence,
    TrainedRun,
)
from .slot_options import NewSlotOptions
from .user_errors import user_errors


@with_declared_options("report")
def report(
    run: TrainedRun,
    data: Annotated[
        list[Path] | None,
        typer.Argument(help="The cells it was trained on; without them, half of the page."),
    ] = None,
    *,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="The .html to write.", show_default="report.html in RUN"
        ),
    ] = None,
    labels_key: LabelsKey = None,
    color: Color = None,
    seed: Annotated[int, typer.Option(help="Of the cells and counts that are drawn.")] = 0,
    device: Device = "auto",
    residence: Residence = "auto",
    memory_limit: MemoryLimit = None,
    where: NewSlotOptions,
    overwrite: Overwrite = False,
) -> None:
    """Write one page about a run: curves, UMAP, mixing scores, fit to the counts, settings."""
    with user_errors():
        typer.echo(
            run_report(
                run,
                data or [],
                output or run / "report.html",
                labels_key=labels_key or None,
                color=color or [],
                seed=seed,
                overwrite=overwrite,
                device=device,
                reading={
                    "residence": residence,
                    "memory_limit": memory_limit,
                    **where.arguments(),
                },
            )
        )


def run_report(
    run: Path,
    data: list[Path],
    output: Path,
    *,
    labels_key: list[str] | None,
    color: list[str],
    seed: int,
    overwrite: bool,
    device: str,
    reading: dict[str, Any],
) -> str:
    """Write the page, and return what to tell the user.

    Raises
    ------
    InputError
        The page is there already; a column, a gene or a file is not.
    """
    from ..data.keys import checked_key
    from ..model.model import Model
    from ..report.pictures import latent_of, read_latent
    from ..report.report import Subject, check_report, write_page
    from .run_folder import this_command

    target = check_report(output, overwrite=overwrite)
    model = Model.load(run, data, device=device, **reading) if data else Model.load(run)
    model._check_trained()
    latent = latent_of(model, run) if data else read_latent(run)
    key = checked_key(labels_key, "labels_key")
    subject = Subject(model, latent, key, color, seed, bool(data))
    write_page(subject, target, f"fastvae run {run.resolve().name}", this_command())
    missing = "" if data else " (without the counts; name the data too for the whole page)"
    return f"{target}: {len(latent.latent):,} cells{missing}"
