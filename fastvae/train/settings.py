"""The options of training: each is declared here, and nowhere else."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

from .._options import check_options, documented, option
from ..errors import InputError, shown

BASE_BATCH_SIZE = 128
BASE_LEARNING_RATE = 1e-3
"""scvi's; larger minibatches scale the rate from here."""

MOST_EPOCHS = 1_000_000
"""More epochs than any training needs."""

PRECISIONS = ("float32", "tf32", "bf16")

FILES, EXPERT = "Files", "Expert"
"""Parts of a command's help; the other options are under Training."""

TRAIN = ("train",)
"""Of options that ``fastvae train`` has and ``fastvae map`` does not."""


@documented()
@dataclass(frozen=True)
class TrainSettings:
    """Everything that decides a training run, apart from the data and the seed.

    Parameters
    ----------
    {TrainSettings}

    Raises
    ------
    InputError
        Any value outside its range.
    """

    max_epochs: int | None = option(
        None,
        "Passes over the cells.",
        doc="Passes over the training cells; None takes "
        "``min(round(20000 / n_cells * 400), 400)``.",
        unset="by the number of cells",
        minimum=1,
        maximum=MOST_EPOCHS,
    )
    batch_size: int | Literal["auto"] = option(
        128,
        "Cells per minibatch.",
        doc="Cells per minibatch, at least 2; a last one of a single cell joins the one before it. "
        '"auto" is 128 on a CPU, and on a GPU the largest power of two up to 4096 that leaves 64 '
        "steps per epoch.",
        metavar="N|auto",
        minimum=1,
    )
    train_size: float = option(
        0.9,
        "Share of the cells to train on; the rest validates.",
        doc="Share of the cells to train on, in (0, 1]; the others are for validation.",
        panel=EXPERT,
        above=0.0,
    )
    early_stopping: bool = option(
        False,
        "Stop when validation is no longer better.",
        doc="Stop when the validation ELBO has not improved by more than "
        "`early_stopping_min_delta` for `early_stopping_patience` epochs, and go back to the "
        "weights of the best epoch.",
    )
    early_stopping_patience: int = option(
        45,
        "Epochs without a better validation ELBO that end the training, with early stopping.",
        commands=(),
        minimum=1,
    )
    early_stopping_min_delta: float = option(
        0.0, "How much better the validation ELBO must be to count as better.", commands=()
    )
    learning_rate: float | Literal["auto"] | None = option(
        None,
        "Of Adam; auto follows the batch size.",
        doc='Of Adam. The rate "auto" is ``1e-3 * sqrt(batch_size / 128)``; None is the same where '
        '`batch_size` is "auto", and scvi\'s 1e-3 otherwise.',
        metavar="RATE|auto",
        unset="1e-3; auto if the batch size is",
        above=0.0,
    )
    eps: float = option(0.01, "Of Adam: added to its denominator.", commands=(), above=0.0)
    weight_decay: float = option(1e-6, "Of Adam.", panel=EXPERT)
    n_epochs_kl_warmup: int | None = option(
        400,
        "Epochs over which the KL weight grows from 0 to 1.",
        doc="Epochs over which the KL weight grows from 0 to 1; with fewer epochs than that it "
        "ends below 1, as in scvi-tools. None: it is 1 throughout.",
        commands=TRAIN,
        minimum=0,
        panel=EXPERT,
    )
    n_steps_kl_warmup: int | None = option(
        None,
        "Minibatches over which the KL weight grows, in the place of epochs.",
        commands=(),
        minimum=0,
    )
    max_grad_norm: float | None = option(
        None,
        "Clip the norm of the gradient to this.",
        doc="Clip the norm of the whole gradient to this; None does not clip.",
        commands=TRAIN,
        unset="not clipped",
        above=0.0,
        panel=EXPERT,
    )
    reduce_lr_on_plateau: bool = option(
        False,
        "Lower the rate when validation stands still.",
        doc="Multiply the rate by `lr_factor`, down to `lr_min`, whenever the validation ELBO "
        "(without validation, the training ELBO) has had no new best for more than `lr_patience` "
        "epochs.",
        commands=TRAIN,
        panel=EXPERT,
    )
    lr_factor: float = option(
        0.6,
        "What the rate is multiplied by where it is lowered.",
        commands=(),
        above=0.0,
        below=1.0,
    )
    lr_patience: int = option(
        30, "Epochs without a new best after which the rate is lowered.", commands=(), minimum=0
    )
    lr_min: float = option(0.0, "The rate is not lowered below this.", commands=())
    classification_ratio: float = option(
        50.0,
        "Weight of the classifier's loss, with some labels known.",
        doc="With `unlabeled_category`, the weight of the classifier's cross-entropy beside the "
        "loss of a cell.",
        commands=TRAIN,
        panel=EXPERT,
    )
    precision: str = option(
        "tf32",
        "Of matrix products: float32, tf32 (GPU) or bf16.",
        doc='Of matrix products: "float32"; "tf32" (on a GPU; the same as float32 elsewhere); '
        '"bf16", dense layers in bfloat16. Counts and likelihoods stay float32.',
        commands=TRAIN,
        options=PRECISIONS,
        panel=EXPERT,
    )
    cuda_graph: bool | None = option(
        None,
        "Replay steps on a GPU as CUDA graphs.",
        doc="On a GPU that keeps the counts, replay each step as one CUDA graph. None: if one "
        "process trains alone; True: also in each of several, as two graphs.",
        commands=TRAIN,
        unset="if one process trains alone",
        panel=EXPERT,
    )
    sync_batch_norm: bool = option(
        False,
        "Normalise over all processes (torchrun).",
        doc="With several processes, normalise over the minibatches of all of them.",
        commands=TRAIN,
        panel=EXPERT,
    )
    compile: bool = option(
        False,
        "Run the hidden layers through torch.compile.",
        doc="Run the hidden layers through ``torch.compile`` while training. Losses are the same "
        "to rounding; on a CPU steps were no faster for it (`bench/studies/compiled_layers.py`).",
        commands=TRAIN,
        panel=EXPERT,
    )

    def __post_init__(self) -> None:
        check_options(self)
        if self.batch_size == 1:
            raise InputError(
                "batch_size must be at least 2 for training: BatchNorm needs two cells per "
                "minibatch"
            )
        if self.train_size > 1:
            raise InputError(
                f"train_size is the share of cells to train on, above 0 and at most 1, "
                f"not {shown(self.train_size)}"
            )
        if self.compile and self.sync_batch_norm:
            raise InputError("compile and sync_batch_norm do not go together; leave out one")

    @property
    def rate(self) -> float:
        """The learning rate to begin with; see `resolved`."""
        assert isinstance(self.learning_rate, float)
        return self.learning_rate

    @property
    def epochs(self) -> int:
        """The number of epochs; see `resolved`."""
        return cast(int, self.max_epochs)

    @property
    def cells_per_minibatch(self) -> int:
        """The size of minibatches; see `resolved`."""
        return cast(int, self.batch_size)

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as plain values, for the training summary."""
        return asdict(self)


@documented()
@dataclass(frozen=True)
class CheckpointOptions:
    """Where and how often checkpoints are written.

    Parameters
    ----------
    {CheckpointOptions}

    Raises
    ------
    InputError
        A value out of range, or something asked for without a folder.
    """

    checkpoint_dir: str | os.PathLike[str] | None = option(
        None,
        "Folder for checkpoints.",
        doc="Folder for checkpoints: one when training ends, also by Ctrl-C or SIGTERM, and before "
        "that as often as the next two say. None writes none.",
        commands=(),
    )
    checkpoint_every: int | None = option(
        None,
        "Checkpoint after so many epochs; they stay.",
        doc="A checkpoint after so many epochs; None: not by epochs.",
        metavar="EPOCHS",
        unset="by minutes alone",
        minimum=1,
        panel=EXPERT,
    )
    checkpoint_minutes: float | None = option(
        None,
        "And after so many minutes, also within an epoch.",
        doc="A checkpoint after so many minutes, also within an epoch; None: not by time.",
        metavar="MINUTES",
        command_default=10.0,
        above=0.0,
        panel=EXPERT,
    )
    keep_checkpoints: int = option(
        2,
        "How many checkpoints stay.",
        doc="How many of the newest stay.",
        minimum=1,
        panel=EXPERT,
    )
    resume: bool = option(
        False,
        "Go on where the run was cut short.",
        doc="Go on from the newest checkpoint in `checkpoint_dir` (from the beginning if there is "
        "none): on a CPU to the same weights as without the break, bit for bit. Data, network, "
        "`seed`, `batch_size` and `train_size` must be what they were; the rest may change. "
        "`max_epochs` counts from the beginning.",
        panel=FILES,
    )

    def __post_init__(self) -> None:
        check_options(self)
        by_every = self.checkpoint_every is not None or self.checkpoint_minutes is not None
        if self.checkpoint_dir is None and (by_every or self.resume):
            name = "resume" if self.resume else "checkpoint_every and checkpoint_minutes"
            raise InputError(f"{name} needs checkpoint_dir, the folder for the checkpoints")

    def as_dict(self) -> dict[str, Any]:
        """Return the options by their names."""
        return asdict(self)
