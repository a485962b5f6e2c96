"""The ``fastvae`` command.

Nothing heavy is imported before a command runs, so that ``--help`` is quick.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from . import __version__
from ._cli import reference_commands
from ._cli.de_command import de
from ._cli.options import (
    BatchKey,
    BatchKeyOf,
    BatchSize,
    CheckpointEvery,
    CheckpointMinutes,
    Compile,
    CudaGraph,
    Device,
    EarlyStopping,
    Genes,
    Genome,
    KeepCheckpoints,
    LabelsKey,
    Layer,
    LearnedLibrary,
    LearningRate,
    MaxGradNorm,
    MemoryLimit,
    NTopGenes,
    Overwrite,
    Precision,
    Quiet,
    ReduceLrOnPlateau,
    Residence,
    Resume,
    SyncBatchNorm,
    TensorBoard,
    UseRaw,
    WeightDecay,
)
from ._cli.user_errors import user_errors

app = typer.Typer(
    name="fastvae",
    help="Train the scVI variational autoencoder on single-cell counts, fast.",
    epilog="Start with:  fastvae demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line."""
    # Read when torch loads its OpenMP: threads that spin for long while they wait make training
    # several times slower as soon as another process wants the same cores.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
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


@app.command(epilog="Example:  fastvae train atlas.h5ad --batch-key donor -o run --early-stopping")
def train(
    data: Annotated[
        list[Path],
        typer.Argument(help="An .h5ad, AnnData zarr, 10x .h5 or 10x folder (mtx); or several."),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder to write the run to.  [default: DATA's name + _fastvae]"
        ),
    ] = None,
    batch_key: BatchKey = None,
    batch_key_of: BatchKeyOf = None,
    genes: Genes = None,
    n_top_genes: NTopGenes = None,
    labels_key: LabelsKey = None,
    layer: Layer = None,
    use_raw: UseRaw = False,
    genome: Genome = None,
    max_epochs: Annotated[
        int | None, typer.Option(help="Passes over the cells.  [default: by the number of cells]")
    ] = None,
    batch_size: BatchSize = 128,
    train_size: Annotated[
        float, typer.Option(help="Share of the cells to train on; the rest validates.")
    ] = 0.9,
    early_stopping: EarlyStopping = False,
    seed: Annotated[int, typer.Option(help="The same seed gives the same run.")] = 0,
    device: Device = "auto",
    residence: Residence = "auto",
    memory_limit: MemoryLimit = None,
    n_latent: Annotated[int, typer.Option(help="Latent dimensions.")] = 10,
    n_hidden: Annotated[int, typer.Option(help="Width of the hidden layers.")] = 128,
    n_layers: Annotated[int, typer.Option(help="Hidden layers.")] = 1,
    dropout_rate: Annotated[float, typer.Option(help="Dropout of the encoder.")] = 0.1,
    dispersion: Annotated[
        str, typer.Option(help="gene, gene-batch, gene-label or gene-cell.")
    ] = "gene",
    reconstruction_loss: Annotated[str, typer.Option(help="zinb, nb or poisson.")] = "zinb",
    latent_distribution: Annotated[str, typer.Option(help="normal or ln.")] = "normal",
    learned_library: LearnedLibrary = False,
    learning_rate: LearningRate = None,
    weight_decay: WeightDecay = 1e-6,
    max_grad_norm: MaxGradNorm = None,
    reduce_lr_on_plateau: ReduceLrOnPlateau = False,
    precision: Precision = "tf32",
    n_epochs_kl_warmup: Annotated[
        int, typer.Option(help="Epochs over which the KL weight grows from 0 to 1.")
    ] = 400,
    cuda_graph: CudaGraph = True,
    sync_batch_norm: SyncBatchNorm = False,
    compile: Compile = False,
    tensorboard: TensorBoard = False,
    checkpoint_every: CheckpointEvery = None,
    checkpoint_minutes: CheckpointMinutes = 10.0,
    keep_checkpoints: KeepCheckpoints = 2,
    resume: Resume = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Train on DATA and write model, history, loss curve and latent space to a folder."""
    with user_errors():
        from ._cli.inputs import assignments, gene_list
        from ._cli.run_folder import CHECKPOINTS, fit_and_write, print_run, run_folder
        from .model import Model
        from .train.group import launched

        output = output or Path(f"{data[0].resolve().stem}_fastvae")
        with (
            launched(device) as device,
            run_folder(output, overwrite=overwrite, resume=resume) as folder,
        ):
            model = Model(
                data,
                residence=residence,
                memory_limit=memory_limit,
                genes=gene_list(genes),
                n_top_genes=n_top_genes,
                batch_key_of=assignments(batch_key_of, "--batch-key-of"),
                batch_key=batch_key,
                labels_key=labels_key,
                layer=layer,
                use_raw=use_raw,
                genome=genome,
                n_latent=n_latent,
                n_hidden=n_hidden,
                n_layers=n_layers,
                dropout_rate=dropout_rate,
                dispersion=dispersion,
                reconstruction_loss=reconstruction_loss,
                latent_distribution=latent_distribution,
                use_observed_lib_size=not learned_library,
            )
            latent = fit_and_write(
                model,
                folder,
                max_epochs=max_epochs,
                batch_size=batch_size,
                train_size=train_size,
                early_stopping=early_stopping,
                seed=seed,
                device=device,
                progress=not quiet,
                learning_rate=learning_rate,
                n_epochs_kl_warmup=n_epochs_kl_warmup,
                weight_decay=weight_decay,
                max_grad_norm=max_grad_norm,
                reduce_lr_on_plateau=reduce_lr_on_plateau,
                precision=precision,
                tensorboard=folder / "tensorboard" if tensorboard else None,
                checkpoint_dir=folder / CHECKPOINTS,
                checkpoint_every=checkpoint_every,
                checkpoint_minutes=checkpoint_minutes,
                keep_checkpoints=keep_checkpoints,
                resume=resume,
                cuda_graph=cuda_graph,
                sync_batch_norm=sync_batch_norm,
                compile=compile,
            )
            if latent is None:  # another process writes
                return
            print_run(model, folder)
            typer.echo("next:")
            typer.echo(f"  fastvae info {folder}")
            typer.echo(f"  fastvae embed {folder} {' '.join(map(str, data))} -o embedded.h5ad")


@app.command(epilog="Example:  fastvae embed run new_cells.h5ad -o new_latent.h5ad")
def embed(
    run: Annotated[Path, typer.Argument(help="Folder that fastvae train wrote.")],
    data: Annotated[
        list[Path], typer.Argument(help="Cells with the genes the model was trained on.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .h5ad file to write.")],
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Put the cells of DATA into the latent space of a trained model."""
    with user_errors():
        from ._model.latent_file import KEY
        from .model import Model

        model = Model.load(run, device=device)
        latent = model.write_latent(output, data, overwrite=overwrite)
        typer.echo(f'{output}: {latent.shape[0]:,} cells, obsm["{KEY}"] {latent.shape}')


app.command(epilog="Example:  fastvae de run atlas.h5ad --groupby cell_type -o markers.csv")(de)
reference_commands.register(app, user_errors)


@app.command(epilog="Example:  fastvae convert a.h5ad b.h5ad -o atlas.zarr")
def convert(
    data: Annotated[list[Path], typer.Argument(help="What fastvae train takes; one or several.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .zarr folder to write.")],
    layer: Layer = None,
    use_raw: UseRaw = False,
    genome: Genome = None,
    genes: Genes = None,
    memory_limit: MemoryLimit = None,
    seed: Annotated[int, typer.Option(help="Of the order of the cells.")] = 0,
    keep_order: Annotated[
        bool, typer.Option("--keep-order", help="Do not shuffle the cells.")
    ] = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Write DATA as one shuffled AnnData zarr that streams fast; run it again to resume."""
    with user_errors():
        from ._cli.convert_command import run_convert
        from ._cli.inputs import gene_list
        from .data.joint import Wanted

        wanted = Wanted(layer=layer, use_raw=use_raw, genome=genome, gene_names=gene_list(genes))
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


@app.command(epilog="Examples:  fastvae info atlas.h5ad    fastvae info run")
def info(
    path: Annotated[Path, typer.Argument(help="Data, or a folder that fastvae train wrote.")],
) -> None:
    """Say what is in a data set or a trained model."""
    with user_errors():
        from ._cli.report import describe

        typer.echo(describe(path))


@app.command(epilog="Example:  fastvae demo -o run_demo")
def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder to write the run to.")
    ] = Path("fastvae_demo"),
    device: Device = "auto",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Train on the blood cells that come with fastvae, and draw what was learned."""
    with user_errors():
        from ._cli.demo import DEMO_FIT, demo_data, draw_latent, mixing_lines
        from ._cli.run_folder import fit_and_write, print_run, run_folder
        from .model import Model

        with run_folder(output, overwrite=overwrite) as folder:
            adata = demo_data()
            model = Model(adata, batch_key="batch")
            typer.echo(f"{adata.n_obs:,} blood cells, {adata.n_vars:,} genes, 3 batches")
            latent = fit_and_write(model, folder, device=device, progress=not quiet, **DEMO_FIT)
            draw_latent(adata, latent, folder / "latent.png")
            print_run(model, folder)
            for line in mixing_lines(adata, latent):
                typer.echo(line)
            typer.echo("next, with data of your own:")
            typer.echo("  fastvae info data.h5ad")
            typer.echo("  fastvae train data.h5ad --batch-key COLUMN -o run")
