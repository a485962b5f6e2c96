"""``fastvae expression``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from .declared_options import with_declared_options
from .options import CellsOfModel, Device, MemoryLimit, Overwrite, Quiet, Residence, TrainedRun
from .slot_options import NewSlotOptions
from .user_errors import user_errors


@with_declared_options("expression")
def expression(
    run: TrainedRun,
    data: CellsOfModel,
    *,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="What to write: an .h5ad, .zarr or .mtx."),
    ],
    genes: Annotated[
        Path | None,
        typer.Option(
            help="Text file with the genes to write, one per line.", show_default="all genes"
        ),
    ] = None,
    transform_batch: Annotated[
        list[str] | None,
        typer.Option(
            metavar="BATCH",
            help="Decode all cells as this batch; several times for the average over several.",
            show_default="each cell's own",
        ),
    ] = None,
    library_size: Annotated[
        str,
        typer.Option(
            help="What frequencies are multiplied by, such as 1e4; latent is each cell's own "
            "library size."
        ),
    ] = "1",
    n_samples: Annotated[int, typer.Option(help="Draws of z per cell that are averaged.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    device: Device = "auto",
    residence: Residence = "auto",
    memory_limit: MemoryLimit = None,
    where: NewSlotOptions,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Write the denoised expression of DATA, some cells at a time."""
    with user_errors():
        from ..data.dense_output import check_dense_output
        from ..model.model import Model
        from .inputs import gene_list

        check_dense_output(output, overwrite=overwrite)
        wanted = gene_list(genes, fewest=1)
        model = Model.load(
            run,
            data,
            device=device,
            residence=residence,
            memory_limit=memory_limit,
            **where.arguments(),
        )
        n_cells, n_genes = model.write_normalized_expression(
            output,
            genes=wanted,
            transform_batch=transform_batch or None,
            n_samples=n_samples,
            library_size=_library_size(library_size),
            overwrite=overwrite,
            progress=not quiet,
            seed=seed,
        )
        typer.echo(f"{output}: denoised expression of {n_cells:,} cells x {n_genes:,} genes")


def _library_size(text: str) -> float | Literal["latent"]:
    from ..errors import InputError

    if text == "latent":
        return "latent"
    try:
        return float(text)
    except ValueError:
        raise InputError(f"--library-size must be a number or latent, not {text!r}") from None
