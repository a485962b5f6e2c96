"""The folder that ``fastvae train`` and ``fastvae map`` write for one trained model."""

from __future__ import annotations

import re
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from .. import __version__
from .._files import WriteError, check_writable_folder
from ..errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from ..model.model import Model
    from ..report.pictures import PictureOptions
    from ..train.settings import CheckpointOptions, TrainSettings
    from .run_log import RunLog


CHECKPOINTS, LOG = "checkpoints", "log.txt"
JOINT, JOINT_PICTURE, LABELS = "joint.h5ad", "joint.png", "labels.csv"
"""Of a query and its reference together."""

MANY_CELLS = 20_000
"""Their UMAP takes more than some seconds."""

_PARTIAL = re.compile(
    r"\.(model|config|history|loss|latent|report|joint|labels)-\w+\.(safetensors|json|csv|png|h5ad|html)"
    r"|\.\.(model\.safetensors|history\.csv)-\w+\.new"
)
_DERIVED = (
    "latent.h5ad",
    "latent.png",
    "loss.png",
    "report.html",
    JOINT,
    JOINT_PICTURE,
    LABELS,
)
"""Files that are made from the weights, and outdated once these change."""


@contextmanager
def run_folder(path: Path, *, overwrite: bool, resume: bool = False) -> Iterator[Path]:
    """Make the folder before any work is done; leave no empty one behind if the work fails.

    With several processes, the first does so and the others wait.

    With `resume` it may be the folder of an interrupted run, or not exist yet; otherwise the
    checkpoints of an earlier run are removed from it.

    Raises
    ------
    InputError
        It cannot be written, or is not empty and neither `overwrite` nor `resume` is set.
    """
    if resume and overwrite:
        raise InputError("--resume goes on and --overwrite starts again; leave one of them out")
    with _first_alone() as first:
        new = first and not path.exists()
        folder = _prepared(path, overwrite, resume) if first else path
    try:
        yield folder
    finally:
        if new:
            with suppress(OSError):
                if [path.name for path in folder.iterdir()] == [LOG]:
                    (folder / LOG).unlink()  # of a training that came to nothing
                folder.rmdir()  # refuses a folder with something in it


@contextmanager
def _first_alone() -> Iterator[bool]:
    """Yield whether this is the first process; the others wait for it at the end of the block."""
    import torch.distributed as dist

    several = dist.is_available() and dist.is_initialized()
    yield not several or dist.get_rank() == 0
    if several:
        dist.barrier()


def _prepared(path: Path, overwrite: bool, resume: bool) -> Path:
    if resume and path.is_dir() and any(path.iterdir()) and not (path / CHECKPOINTS).is_dir():
        raise InputError(
            f"{path} has no {CHECKPOINTS} to resume from: give the folder of a run that was cut "
            "short (one that ended by itself keeps them only with --checkpoint-every), or leave "
            "out --resume"
        )
    folder = check_writable_folder(path, overwrite=overwrite or resume)
    if resume:
        for leftover in folder.iterdir():
            if _PARTIAL.fullmatch(leftover.name):
                leftover.unlink()
    elif (folder / CHECKPOINTS).is_dir():
        from ..train.checkpoints import CheckpointFiles

        CheckpointFiles(folder / CHECKPOINTS).clear()
    return folder


def resume_command() -> str:
    """Return the command line that resumes the running command."""
    words = [word for word in sys.argv[1:] if word not in ("--overwrite", "--resume")]
    if words[:1] not in (["train"], ["map"]):
        return "the same command with --resume"
    return shlex.join(["fastvae", *words, "--resume"])


def wanted_pictures(
    model: Model, color: list[str] | None, *, plots: bool, quiet: bool
) -> PictureOptions:
    """Return what the pictures of a run are to show.

    Raises
    ------
    InputError
        A colour is neither a column nor a gene; before training, not after.
    """
    from ..report.pictures import PictureOptions, colours_of

    wanted = PictureOptions(color or (), plots=plots, quiet=quiet)
    if wanted.color:
        assert model._frames is not None
        colours_of(model._frames.obs, model, wanted)
    return wanted


def this_command() -> str:
    """Return the command that is running, as it was typed."""
    return shlex.join(["fastvae", *sys.argv[1:]])


def fit_and_write(
    model: Model,
    folder: Path,
    settings: TrainSettings,
    checkpoints: CheckpointOptions | None = None,
    *,
    pictures: PictureOptions | None = None,
    **others: Any,
) -> Any:
    """Train and write the run, also an interrupted one; return the latent space.

    Checkpoints, if any, go into the folder of the run. `pictures` says what they show; `others` are
    the other arguments of `Model.fit`.

    With several processes, only the first writes. A complete run removes its checkpoints, unless
    they were written after a number of epochs (`checkpoint_every`).
    """
    from ..train.processes import leads
    from .run_log import RunLog

    resume = checkpoints is not None and checkpoints.resume
    log = RunLog(folder / LOG if leads() else None, go_on=resume)
    if checkpoints is not None:
        others |= checkpoints.as_dict() | {"checkpoint_dir": folder / CHECKPOINTS}
    with log.recording():
        log.write(f"fastvae {__version__}: {this_command()}")
        _fit(model, folder, settings, log, pictures, others)
        log.write(repr(model).splitlines()[-1].strip())
        if not leads():
            return None
        if model.training["ending"] == "interrupted":
            _say_interrupted(model, checkpoints)
        return _write_all(model, folder, pictures, others.get("checkpoint_every") is not None)


def _fit(
    model: Model,
    folder: Path,
    settings: TrainSettings,
    log: RunLog,
    pictures: PictureOptions | None,
    others: dict[str, Any],
) -> None:
    """Train; where the loss stops being finite, write the last good weights first."""
    from ..report.report import COMMAND
    from ..train import NonFiniteError
    from ..train.processes import leads

    try:
        model.fit(**settings.as_dict(), callbacks=[log], **others)
        model.training[COMMAND] = this_command()
    except NonFiniteError:
        if model.is_trained and leads():
            write_run(model, folder, pictures)
            typer.echo(f"the last good weights are in {folder}", err=True)
        raise


def _say_interrupted(model: Model, checkpoints: CheckpointOptions | None) -> None:
    if checkpoints is not None:
        typer.echo(f"a checkpoint is written; go on with:\n  {resume_command()}", err=True)
    if not model.is_trained:
        typer.echo("interrupted before the first step; there is no model to write", err=True)
        exit_if_interrupted(model)
    typer.echo(
        f"interrupted after {model.training['epochs']} whole epochs; saving what was learned",
        err=True,
    )


def _write_all(
    model: Model, folder: Path, pictures: PictureOptions | None, keeps_checkpoints: bool
) -> np.ndarray:
    """Write the run, and remove checkpoints that are no longer needed."""
    from ..train.checkpoints import CheckpointFiles

    try:
        latent = write_run(model, folder, pictures)
    except WriteError as error:
        if not CheckpointFiles(folder / CHECKPOINTS).numbers():
            raise
        raise WriteError(
            f"{error}. The training itself is kept in {folder / CHECKPOINTS}; with room, only "
            f"this is written again by:  {resume_command()}"
        ) from error
    if model.training["ending"] != "interrupted" and not keeps_checkpoints:
        CheckpointFiles(folder / CHECKPOINTS).clear()
        with suppress(OSError):
            (folder / CHECKPOINTS).rmdir()
    return latent


def exit_if_interrupted(model: Model) -> None:
    """End with the status that shells give a program which a signal ended: 130 or 143.

    The signal may have come to another process of the run; then it counts as Ctrl-C.
    """
    if model.training["ending"] == "interrupted":
        raise typer.Exit(128 + (model._signal or signal.SIGINT))


def write_run(model: Model, folder: Path, pictures: PictureOptions | None = None) -> np.ndarray:
    """Write the model, its latent space and pictures; return the latent space (N, L)."""
    from ..report.pictures import PictureOptions, draw_run

    pictures = pictures or PictureOptions()
    model.save(folder, overwrite=True)
    for name in _DERIVED:
        (folder / name).unlink(missing_ok=True)  # of the model that was there before
    try:
        if pictures.plots and not pictures.quiet and model._own_store().n_cells > MANY_CELLS:
            typer.echo("computing the latent space and its UMAP", err=True)
        # Pictures come last: whatever goes wrong with them, the rest is there.
        latent = model.write_latent(folder / "latent.h5ad", overwrite=True, umap=pictures.plots)
        if pictures.plots:
            if len(model.history):
                from ..plots.figures import plot_history

                plot_history(model.history, folder / "loss.png")
            draw_run(model, folder, pictures)
    except WriteError as error:
        raise WriteError(
            f"{error}. The model is saved in {folder}, and fastvae embed {folder} writes its "
            "latent space anew"
        ) from error
    return latent


def print_run(model: Model, folder: Path) -> None:
    """Say how it went and what is in the folder."""
    typer.echo(repr(model).splitlines()[-1].strip())
    typer.echo("written:")
    for line in list_files(folder):
        typer.echo(line)


def list_files(folder: Path) -> list[str]:
    """Return a line for each file of the run that is there."""
    meaning = {
        "model.safetensors": "weights",
        "config.json": "options, genes, batches, training summary",
        "history.csv": "losses of every epoch",
        "README.md": "model card: data, network, training, versions, licence",
        LOG: "what was done, with times",
        "loss.png": "loss curve",
        "latent.h5ad": 'latent space in obsm["X_fastvae"], its UMAP in obsm["X_umap"], obs and var',
        "report.html": "all about the run on one page",
        "latent.png": "the UMAP, by batch and by what else was asked for",
        JOINT: 'query and reference: obs["origin"], latent space, UMAP, labels',
        JOINT_PICTURE: "the UMAP of both",
        LABELS: "transferred label and uncertainty of each cell",
        "tensorboard": "the curves, for tensorboard --logdir",
        CHECKPOINTS: "to go on from with --resume",
    }
    there = [name for name in meaning if (folder / name).exists()]
    width = max(len(str(folder / name)) for name in there)
    return [f"  {folder / name!s:<{width}}  {meaning[name]}" for name in there]
