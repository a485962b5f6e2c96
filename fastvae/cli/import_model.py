"""``fastvae import``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .declared_options import with_declared_options
from .options import BatchKey, Device, LabelsKey, Overwrite, RunOutput
from .slot_options import SlotOptions
from .user_errors import user_errors


@with_declared_options("import")
def import_command(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="Folder of scvi-tools' SCVI.save, or a state dict file of scvi 0.5-0.6.8 "
            "(or the folder of its posterior). No code in it is run."
        ),
    ],
    data: Annotated[list[Path], typer.Argument(help="The cells it was trained on.")],
    *,
    output: RunOutput,
    batch_key: BatchKey = None,
    labels_key: LabelsKey = None,
    where: SlotOptions,
    dispersion: Annotated[
        str | None,
        typer.Option(help="Dispersion of a scvi 0.6 model, where its weights do not show it."),
    ] = None,
    reconstruction_loss: Annotated[
        str, typer.Option(help="Likelihood of a scvi 0.6 model: zinb, nb or poisson.")
    ] = "zinb",
    latent_distribution: Annotated[
        str, typer.Option(help="Latent distribution of a scvi 0.6 model: normal or ln.")
    ] = "normal",
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Write a model that scvi-tools or scvi 0.5-0.6.8 trained as a run of fastvae."""
    with user_errors():
        from ..integrations.convert import from_scvi_tools
        from ..integrations.legacy import from_legacy_checkpoint
        from ..train import resolve_device
        from .run_folder import list_files, run_folder, write_run

        to, reading = resolve_device(device), where.arguments()
        with run_folder(output, overwrite=overwrite) as folder:
            if checkpoint.is_dir() and list(checkpoint.glob("*model.pt")):
                model = from_scvi_tools(checkpoint, data, device=to, **reading)
            else:
                model = from_legacy_checkpoint(
                    checkpoint,
                    data,
                    batch_key=batch_key or None,
                    labels_key=labels_key or None,
                    **reading,
                    device=to,
                    dispersion=dispersion,
                    reconstruction_loss=reconstruction_loss,
                    latent_distribution=latent_distribution,
                )
            write_run(model, folder)
            typer.echo(repr(model))
            typer.echo("written:")
            for line in list_files(folder):
                typer.echo(line)
