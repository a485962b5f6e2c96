"""``fastvae embed``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .declared_options import with_declared_options
from .options import FILES, CellsOfModel, Device, Overwrite, TrainedRun, WriteInto
from .slot_options import NewSlotOptions
from .user_errors import user_errors

if TYPE_CHECKING:
    from ..data.insertion import Insertion


@with_declared_options("embed")
def embed(
    run: TrainedRun,
    data: CellsOfModel,
    *,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="The .h5ad file to write.",
            show_default="none, with --write-into",
            rich_help_panel=FILES,
        ),
    ] = None,
    write_into: WriteInto = False,
    where: NewSlotOptions,
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Put the cells of DATA into the latent space of a trained model."""
    with user_errors():
        import numpy as np

        from .._files import check_new_file
        from ..errors import InputError
        from ..model.latent_file import KEY
        from ..model.model import Model

        if output is None and not write_into:
            raise InputError("name the file to write (--output FILE), or give --write-into")
        if output is not None and output.resolve() in [path.resolve() for path in data]:
            raise InputError(
                f"{output} is the file of the cells, whose counts would be lost; choose another "
                "name, or give --write-into"
            )
        if output is not None:
            check_new_file(output, overwrite=overwrite)
        place = insertion(data, overwrite=overwrite) if write_into else None
        model = Model.load(run, device=device)
        if output is not None:
            latent = model.write_latent(output, data, overwrite=overwrite, **where.arguments())
            typer.echo(f'{output}: {latent.shape[0]:,} cells, obsm["{KEY}"] {latent.shape}')
        else:
            latent = np.asarray(model.get_latent_representation(data, **where.arguments()))
        if place is not None:
            place.write(latent)
            typer.echo(f'{data[0]}: obsm["{KEY}"] {latent.shape} added, all else as it was')


def insertion(data: list[Path], *, overwrite: bool) -> Insertion:
    """Return the place of the latent space in the file of the cells.

    Raises
    ------
    InputError
        There are several files, or this one cannot be changed.
    """
    from ..data.insertion import Insertion
    from ..errors import InputError
    from ..model.latent_file import KEY

    if len(data) > 1:
        raise InputError(
            f"--write-into changes the file of the cells, and {len(data)} are given; repeat the "
            "command for each"
        )
    return Insertion.checked(data[0], KEY, overwrite=overwrite)
