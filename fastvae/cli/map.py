"""``fastvae map``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..train.settings import CheckpointOptions, TrainSettings
from .declared_options import with_declared_options
from .options import (
    DATA,
    MODEL,
    BatchPerFile,
    Color,
    MemoryLimit,
    NewBatchKey,
    NoPlots,
    Overwrite,
    Quiet,
    Residence,
    RunOutput,
    Seed,
    TrainingDevice,
    WriteInto,
)
from .run_folder import CHECKPOINTS
from .slot_options import NewSlotOptions
from .user_errors import user_errors

if TYPE_CHECKING:
    from ..model.model import Model
    from .joint import Joint

_FREEZE: dict[str, bool | str] = {
    "all": True,
    "decoder": "decoder",
    "encoder": "encoder",
    "none": False,
}

Freeze = Annotated[
    str,
    typer.Option(
        help="What keeps the reference's weights: all (but the columns of new batches), "
        "decoder, encoder or none.",
        rich_help_panel=MODEL,
    ),
]
MinGenes = Annotated[
    float,
    typer.Option(help="Refuse a smaller share of the reference's genes.", rich_help_panel=DATA),
]
Labels = Annotated[
    list[str] | None,
    typer.Option(
        metavar="COLUMN",
        help="Column of the reference's cells with labels that the new cells get.",
        show_default="none",
        rich_help_panel=DATA,
    ),
]
MaxUncertainty = Annotated[
    float | None,
    typer.Option(
        help='With --labels: more uncertain cells get the label "Unknown"; 0.2 is usual.',
        show_default="all are labelled",
        rich_help_panel=DATA,
    ),
]
NNeighbors = Annotated[
    int,
    typer.Option(
        help="With --labels: cells of the reference that vote on a label.", rich_help_panel=DATA
    ),
]


# No warm-up: the latent space exists already.
@with_declared_options("map", checkpoint_dir=CHECKPOINTS, n_epochs_kl_warmup=None)
def map_command(
    run: Annotated[Path, typer.Argument(help="Reference: a folder that fastvae train wrote.")],
    query: Annotated[list[Path], typer.Argument(help="New cells; one file or several.")],
    *,
    output: RunOutput,
    batch_key: NewBatchKey = None,
    batch_per_file: BatchPerFile = None,
    labels: Labels = None,
    max_uncertainty: MaxUncertainty = None,
    n_neighbors: NNeighbors = 15,
    freeze: Freeze = "all",
    where: NewSlotOptions,
    min_genes: MinGenes = 0.1,
    settings: TrainSettings,
    seed: Seed = 0,
    device: TrainingDevice = "auto",
    residence: Residence = "auto",
    memory_limit: MemoryLimit = None,
    color: Color = None,
    no_plots: NoPlots = False,
    write_into: WriteInto = False,
    checkpoints: CheckpointOptions,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Map QUERY onto a trained model: new batches are added, its own weights stay."""
    with user_errors():
        from .embed import insertion
        from .joint import Joint
        from .run_folder import (
            exit_if_interrupted,
            fit_and_write,
            print_run,
            run_folder,
            wanted_pictures,
        )

        frozen = _frozen(freeze)
        joint = Joint.checked(run, output, labels, frozen, max_uncertainty, n_neighbors)
        place = insertion(query, overwrite=overwrite) if write_into else None
        with run_folder(output, overwrite=overwrite, resume=checkpoints.resume) as folder:
            model = _mapped(
                query,
                run,
                batch_key=batch_key or None,
                batch_per_file=batch_per_file,
                freeze=frozen,
                **where.arguments(),
                min_genes=min_genes,
                device=device,
                residence=residence,
                memory_limit=memory_limit,
            )
            pictures = wanted_pictures(model, color, plots=not no_plots, quiet=quiet)
            latent = fit_and_write(
                model,
                folder,
                settings,
                checkpoints,
                pictures=pictures,
                seed=seed,
                device=device,
                progress=not quiet,
            )
            said = joint.write(model, folder, pictures)
            if place is not None:
                place.write(latent)
                said.append(f"{query[0]}: the latent space was added, all else as it was")
            print_run(model, folder)
            for line in said:
                typer.echo(line)
            exit_if_interrupted(model)
            _say_next(folder, query, joint)


def _frozen(freeze: str) -> bool | str:
    from ..errors import InputError

    if freeze not in _FREEZE:
        raise InputError(f"--freeze must be {', '.join(_FREEZE)}, not {freeze!r}")
    return _FREEZE[freeze]


def _mapped(query: list[Path], run: Path, **options: Any) -> Model:
    """Return the model of the query before training, and say what was matched."""
    from ..model.mapping import origin_lines
    from ..model.model import Model

    model = Model.load_query(query, run, **options)
    setup = model._setup
    for line in origin_lines(model.origin, setup.may_lack, len(setup.gene_names)):
        typer.echo(line)
    return model


def _say_next(folder: Path, query: list[Path], joint: Joint) -> None:
    """Name the commands that usually follow."""
    mapped = shlex.join(map(str, [folder, *query]))
    typer.echo("next:")
    if joint.known is not None and joint.labels is None:
        again = shlex.join(map(str, [joint.run, *query]))
        target = shlex.quote(str(folder))
        typer.echo(
            f"  fastvae map {again} --labels COLUMN -o {target} --overwrite  "
            f"(for labels of {joint.run})"
        )
    typer.echo(f"  fastvae report {mapped}")
    typer.echo(f"  fastvae de {mapped} --groupby COLUMN -o markers.csv")
