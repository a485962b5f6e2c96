"""``fastvae train``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from ..train.settings import CheckpointOptions, TrainSettings
from .declared_options import with_declared_options
from .options import (
    EXPERT,
    FILES,
    MODEL,
    BatchKey,
    BatchKeyOf,
    BatchPerFile,
    CategoricalCovariates,
    Color,
    ContinuousCovariates,
    Genes,
    LabelsKey,
    LearnedLibrary,
    MemoryLimit,
    NoPlots,
    NTopGenes,
    Overwrite,
    Quiet,
    Residence,
    Seed,
    SizeFactor,
    TensorBoard,
    TrainingDevice,
)
from .run_folder import CHECKPOINTS
from .slot_options import SlotOptions
from .user_errors import user_errors


@with_declared_options("train", checkpoint_dir=CHECKPOINTS)
def train(
    data: Annotated[
        list[Path],
        typer.Argument(help="An .h5ad, AnnData zarr, 10x .h5, or folder with a .mtx; or several."),
    ],
    *,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder to write the run to.",
            show_default="DATA's name + _fastvae",
            rich_help_panel=FILES,
        ),
    ] = None,
    batch_key: BatchKey = None,
    batch_key_of: BatchKeyOf = None,
    batch_per_file: BatchPerFile = None,
    genes: Genes = None,
    n_top_genes: NTopGenes = None,
    labels_key: LabelsKey = None,
    unlabeled_category: Annotated[
        str | None,
        typer.Option(
            metavar="LABEL",
            help="Learn the labels; this one stands for an unknown label.",
            show_default="labels are not learned",
            rich_help_panel=EXPERT,
        ),
    ] = None,
    linear_classifier: Annotated[
        bool,
        typer.Option(
            "--linear-classifier",
            help="Make the classifier of labels one linear layer.",
            rich_help_panel=EXPERT,
        ),
    ] = False,
    categorical_covariate_keys: CategoricalCovariates = None,
    continuous_covariate_keys: ContinuousCovariates = None,
    size_factor_key: SizeFactor = None,
    where: SlotOptions,
    settings: TrainSettings,
    seed: Seed = 0,
    device: TrainingDevice = "auto",
    residence: Residence = "auto",
    memory_limit: MemoryLimit = None,
    n_latent: Annotated[int, typer.Option(help="Latent dimensions.", rich_help_panel=MODEL)] = 10,
    n_hidden: Annotated[
        int, typer.Option(help="Width of hidden layers.", rich_help_panel=MODEL)
    ] = 128,
    n_layers: Annotated[int, typer.Option(help="Hidden layers.", rich_help_panel=MODEL)] = 1,
    dropout_rate: Annotated[
        float, typer.Option(help="Dropout of the encoder.", rich_help_panel=EXPERT)
    ] = 0.1,
    dispersion: Annotated[
        str,
        typer.Option(help="gene, gene-batch, gene-label or gene-cell.", rich_help_panel=EXPERT),
    ] = "gene",
    reconstruction_loss: Annotated[
        str, typer.Option(help="zinb, nb or poisson.", rich_help_panel=MODEL)
    ] = "zinb",
    latent_distribution: Annotated[
        str, typer.Option(help="normal or ln.", rich_help_panel=EXPERT)
    ] = "normal",
    learned_library: LearnedLibrary = False,
    encode_covariates: Annotated[
        bool,
        typer.Option(
            "--encode-covariates",
            help="Tell the encoder batch and covariates too.",
            rich_help_panel=EXPERT,
        ),
    ] = False,
    first_layer_covariates: Annotated[
        bool,
        typer.Option(
            "--first-layer-covariates",
            help="Tell batch and covariates to the first layers alone.",
            rich_help_panel=EXPERT,
        ),
    ] = False,
    color: Color = None,
    no_plots: NoPlots = False,
    tensorboard: TensorBoard = False,
    checkpoints: CheckpointOptions,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Train on DATA; write model, latent space and pictures. Switches are off by default."""
    with user_errors():
        from ..model.model import Model
        from ..train.processes import launched
        from .inputs import assignments, gene_list
        from .run_folder import (
            exit_if_interrupted,
            fit_and_write,
            print_run,
            run_folder,
            wanted_pictures,
        )

        output = output or Path(f"{data[0].resolve().stem}_fastvae")
        with (
            launched(device) as device,
            run_folder(output, overwrite=overwrite, resume=checkpoints.resume) as folder,
        ):
            model = Model(
                data,
                residence=residence,
                memory_limit=memory_limit,
                genes=gene_list(genes),
                n_top_genes=n_top_genes,
                batch_key_of=assignments(batch_key_of, "--batch-key-of"),
                batch_per_file=batch_per_file,
                batch_key=batch_key or None,
                labels_key=labels_key or None,
                unlabeled_category=unlabeled_category,
                linear_classifier=linear_classifier,
                categorical_covariate_keys=categorical_covariate_keys or None,
                continuous_covariate_keys=continuous_covariate_keys or None,
                size_factor_key=size_factor_key,
                **where.arguments(),
                n_latent=n_latent,
                n_hidden=n_hidden,
                n_layers=n_layers,
                dropout_rate=dropout_rate,
                dispersion=dispersion,
                reconstruction_loss=reconstruction_loss,
                latent_distribution=latent_distribution,
                use_observed_lib_size=not learned_library,
                encode_covariates=encode_covariates,
                deeply_inject_covariates=not first_layer_covariates,
            )
            latent = fit_and_write(
                model,
                folder,
                settings,
                checkpoints,
                pictures=wanted_pictures(model, color, plots=not no_plots, quiet=quiet),
                seed=seed,
                device=device,
                progress=not quiet,
                tensorboard=folder / "tensorboard" if tensorboard else None,
            )
            if latent is None:  # another process writes
                return
            print_run(model, folder)
            exit_if_interrupted(model)
            _say_next(folder, data, predicts=unlabeled_category is not None)


def _say_next(folder: Path, data: list[Path], *, predicts: bool) -> None:
    """Name the commands that usually follow."""
    cells = shlex.join(map(str, [folder, *data]))
    typer.echo("next:")
    typer.echo(f"  fastvae report {cells}")
    if len(data) == 1 and data[0].suffix == ".h5ad":
        typer.echo(f"  fastvae embed {cells} --write-into  (the latent space goes into that file)")
    else:
        typer.echo(f"  fastvae embed {cells} -o embedded.h5ad")
    if predicts:
        typer.echo(f"  fastvae predict {cells} -o labels.csv")
