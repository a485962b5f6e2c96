"""The ``fastvae`` command.

Nothing heavy is imported before a command runs, so that ``--help`` is quick.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import __version__
from .de import de
from .declared_options import with_declared_options
from .embed import embed
from .expression import expression
from .import_model import import_command
from .map import map_command
from .options import (
    BatchKey,
    BatchKeyOf,
    BatchPerFile,
    Genes,
    MemoryLimit,
    Overwrite,
    Quiet,
    TrainingDevice,
)
from .plot import plot
from .predict import predict
from .report import report
from .slot_options import SlotOptions
from .train import train
from .user_errors import know_options, user_errors

app = typer.Typer(
    name="fastvae",
    help="Train the scVI variational autoencoder on single-cell counts, fast.",
    epilog="Start with:  fastvae demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line."""
    app(prog_name="fastvae")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fastvae {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


app.command(epilog="Example:  fastvae train atlas.h5ad --batch-key donor -o run --early-stopping")(
    train
)


app.command(epilog="Example:  fastvae embed run new_cells.h5ad -o new_latent.h5ad")(embed)
app.command(epilog="Example:  fastvae predict run new_cells.h5ad -o labels.csv")(predict)
app.command(epilog="Example:  fastvae de run atlas.h5ad --groupby cell_type -o markers.csv")(de)
app.command(
    epilog="Example:  fastvae expression run atlas.h5ad --library-size 1e4 -o denoised.h5ad"
)(expression)
app.command(epilog="Example:  fastvae plot run atlas.h5ad --color cell_type --color CD3D")(plot)
app.command(epilog="Example:  fastvae report run atlas.h5ad --labels-key cell_type")(report)
app.command("map", epilog="Example:  fastvae map run query.h5ad --batch-key donor -o mapped")(
    map_command
)
app.command(
    "import",
    epilog="Example:  fastvae import scvi_model atlas.h5ad -o run    "
    "fastvae import vae.pkl atlas.h5ad --batch-key batch_indices -o run",
)(import_command)


@app.command(epilog="Example:  fastvae convert a.h5ad b.h5ad -o atlas.zarr")
@with_declared_options("convert")
def convert(
    data: Annotated[list[Path], typer.Argument(help="What fastvae train takes; one or several.")],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="The .zarr folder to write.")],
    where: SlotOptions,
    genes: Genes = None,
    batch_key: BatchKey = None,
    batch_key_of: BatchKeyOf = None,
    batch_per_file: BatchPerFile = None,
    memory_limit: MemoryLimit = None,
    seed: Annotated[int, typer.Option(help="Seed of the order of the cells.")] = 0,
    keep_order: Annotated[
        bool, typer.Option("--keep-order", help="Do not shuffle the cells.")
    ] = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Write DATA as one shuffled AnnData zarr that streams fast; run it again to resume."""
    with user_errors():
        from ..data.file_names import FileBatches, key_of_files
        from ..data.request import Wanted
        from ..data.sources.slots import Slot
        from .convert import run_convert
        from .inputs import assignments, gene_list

        wanted = Wanted(
            slot=Slot(**where.arguments()),
            gene_names=gene_list(genes),
            batch_key=key_of_files(data, batch_key or None, batch_per_file),
            batch_key_of=assignments(batch_key_of, "--batch-key-of"),
            file_batches=FileBatches(strict=True) if batch_per_file is not None else None,
        )
        text = run_convert(
            data,
            output,
            wanted,
            memory_limit=memory_limit,
            seed=seed,
            shuffle=not keep_order,
            overwrite=overwrite,
            quiet=quiet,
        )
        typer.echo(text)


@app.command(epilog="Examples:  fastvae info atlas.h5ad    fastvae info run    fastvae info a/ b/")
@with_declared_options("info")
def info(
    paths: Annotated[
        list[Path],
        typer.Argument(help="Data, or a folder that fastvae train wrote; several are joined."),
    ],
    *,
    where: SlotOptions,
) -> None:
    """Describe a data set or a trained model, or several data sets together."""
    with user_errors():
        from ..data.sources.slots import Slot
        from .info import describe, describe_joint

        slot = Slot(**where.arguments())
        for path in paths:
            typer.echo(describe(path, slot))
            if len(paths) > 1:
                typer.echo()
        if len(paths) > 1:
            typer.echo(describe_joint(paths, slot))


@app.command(epilog="Example:  fastvae demo -o run_demo")
def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder to write the run to.")
    ] = Path("fastvae_demo"),
    device: TrainingDevice = "auto",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Train on the blood cells that come with fastvae, and draw the latent space."""
    with user_errors():
        from ..model.model import Model
        from ..report import write_report
        from ..report.pictures import PictureOptions
        from ..train.settings import TrainSettings
        from .demo import DEMO_FIT, MARKERS, demo_data, mixing_lines
        from .run_folder import (
            exit_if_interrupted,
            fit_and_write,
            print_run,
            run_folder,
            this_command,
        )

        with run_folder(output, overwrite=overwrite) as folder:
            adata = demo_data()
            model = Model(adata, batch_key="batch")
            typer.echo(f"{adata.n_obs:,} blood cells, {adata.n_vars:,} genes, 3 batches")
            latent = fit_and_write(
                model,
                folder,
                TrainSettings(**DEMO_FIT),
                seed=0,
                device=device,
                progress=not quiet,
                pictures=PictureOptions(("cell_type", *MARKERS)),
            )
            write_report(
                model,
                folder / "report.html",
                labels_key="cell_type",
                color=MARKERS,
                title="fastvae demo: blood cells of three data sets",
                command=this_command(),
                overwrite=True,
            )
            print_run(model, folder)
            exit_if_interrupted(model)
            for line in mixing_lines(adata, latent):
                typer.echo(line)
            typer.echo("next, with data of your own:")
            typer.echo("  fastvae info data.h5ad")
            typer.echo("  fastvae train data.h5ad --batch-key COLUMN -o run")


know_options(app)  # all commands are registered
