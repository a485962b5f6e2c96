"""``fastvae map`` and ``fastvae import``: models that begin with the weights of another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..train.settings import CheckpointOptions, TrainSettings
from .declared_options import with_declared_options
from .options import (
    DATA,
    FILES,
    MODEL,
    BatchKey,
    BatchPerFile,
    Color,
    Device,
    LabelsKey,
    MemoryLimit,
    NewBatchKey,
    NoPlots,
    Overwrite,
    Quiet,
    Residence,
    Seed,
)
from .run_folder import CHECKPOINTS
from .slot_options import NewSlotOptions, SlotOptions
from .user_errors import user_errors

_FREEZE: dict[str, bool | str] = {
    "all": True,
    "decoder": "decoder",
    "encoder": "encoder",
    "none": False,
}

Output = Annotated[
    Path,
    typer.Option("--output", "-o", help="Folder to write the run to.", rich_help_panel=FILES),
]


def register(app: typer.Typer) -> None:
    """Add both commands to `app`."""

    @app.command("map", epilog="Example:  fastvae map run query.h5ad --batch-key donor -o mapped")
    # No warm-up: the latent space exists already.
    @with_declared_options("map", checkpoint_dir=CHECKPOINTS, n_epochs_kl_warmup=None)
    def map_command(
        run: Annotated[Path, typer.Argument(help="Reference: a folder that fastvae train wrote.")],
        query: Annotated[list[Path], typer.Argument(help="New cells; one file or several.")],
        *,
        output: Output,
        batch_key: NewBatchKey = None,
        batch_per_file: BatchPerFile = None,
        freeze: Annotated[
            str,
            typer.Option(
                help="What keeps the reference's weights: all (but the columns of new batches), "
                "decoder, encoder or none.",
                rich_help_panel=MODEL,
            ),
        ] = "all",
        where: NewSlotOptions,
        min_genes: Annotated[
            float,
            typer.Option(
                help="Refuse a smaller share of the reference's genes.", rich_help_panel=DATA
            ),
        ] = 0.1,
        settings: TrainSettings,
        seed: Seed = 0,
        device: Device = "auto",
        residence: Residence = "auto",
        memory_limit: MemoryLimit = None,
        color: Color = None,
        no_plots: NoPlots = False,
        checkpoints: CheckpointOptions,
        overwrite: Overwrite = False,
        quiet: Quiet = False,
    ) -> None:
        """Map QUERY onto a trained model: new batches are added, its own weights stay."""
        with user_errors():
            from ..errors import InputError
            from ..model.mapping import origin_lines
            from ..model.model import Model
            from .run_folder import (
                exit_if_interrupted,
                fit_and_write,
                print_run,
                run_folder,
                wanted_pictures,
            )

            if freeze not in _FREEZE:
                raise InputError(f"--freeze must be {', '.join(_FREEZE)}, not {freeze!r}")
            if output.resolve() == run.resolve():
                raise InputError(f"{output} is the reference itself; choose another folder")
            with run_folder(output, overwrite=overwrite, resume=checkpoints.resume) as folder:
                model = Model.load_query(
                    query,
                    run,
                    batch_key=batch_key or None,
                    batch_per_file=batch_per_file,
                    freeze=_FREEZE[freeze],
                    **where.arguments(),
                    min_genes=min_genes,
                    device=device,
                    residence=residence,
                    memory_limit=memory_limit,
                )
                setup = model._setup
                for line in origin_lines(model.origin, setup.may_lack, len(setup.gene_names)):
                    typer.echo(line)
                fit_and_write(
                    model,
                    folder,
                    settings,
                    checkpoints,
                    pictures=wanted_pictures(model, color, plots=not no_plots, quiet=quiet),
                    seed=seed,
                    device=device,
                    progress=not quiet,
                )
                print_run(model, folder)
                exit_if_interrupted(model)

    @app.command(
        "import",
        epilog="Example:  fastvae import scvi_model atlas.h5ad -o run    "
        "fastvae import vae.pkl atlas.h5ad --batch-key batch_indices -o run",
    )
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
        output: Output,
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
