"""What a user may choose about training, checked in one place."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

from ..errors import InputError, one_of, real_number, shown, true_or_false, whole_number
from .step import PRECISIONS

BASE_BATCH_SIZE = 128
BASE_LEARNING_RATE = 1e-3
"""scvi's; larger minibatches scale the rate from here."""


MOST_EPOCHS = 1_000_000
"""Training for longer would not end."""


def _is_auto(value: Any) -> bool:
    return isinstance(value, str) and value == "auto"


@dataclass(frozen=True)
class TrainSettings:
    """Everything that decides a training run, apart from the data and the seed.

    Parameters
    ----------
    max_epochs
        Passes over the training cells; None chooses by the number of cells.
    batch_size
        Cells per minibatch, at least 2 because BatchNorm needs a variance; "auto" chooses by
        device and number of cells (`auto_batch_size`).
    train_size
        Share of the cells trained on, in (0, 1]; the others are for validation.
    early_stopping, early_stopping_patience, early_stopping_min_delta
        Stop when the validation ELBO has not improved by more than `min_delta` for `patience`
        epochs, and go back to the weights of the best epoch.
    learning_rate, eps, weight_decay
        Of Adam. The rate "auto" is ``1e-3 * sqrt(batch_size / 128)``; None is the same where
        `batch_size` is "auto", and 1e-3 otherwise.
    n_epochs_kl_warmup, n_steps_kl_warmup
        The KL weight grows from 0 to 1 over so many epochs, or, when `n_steps_kl_warmup` is
        given, over so many minibatches. None for both: the weight is 1 throughout.
    max_grad_norm
        Clip the norm of the whole gradient to this; None does not clip.
    reduce_lr_on_plateau, lr_factor, lr_patience, lr_min
        Multiply the rate by `lr_factor`, down to `lr_min`, whenever the validation ELBO (without
        validation, the training ELBO) has had no new best for more than `lr_patience` epochs.
    precision
        Of matrix products: "float32"; "tf32" (on a GPU; the same as float32 elsewhere); "bf16",
        dense layers in bfloat16. Counts and likelihoods stay float32.
    cuda_graph
        On a GPU, replay the step as one CUDA graph where that is possible. None: where one process
        trains alone; True: also in each of several, as two graphs.
    sync_batch_norm
        With several processes, normalise over the minibatches of all of them.
    compile
        Run the hidden layers through ``torch.compile``.

    Raises
    ------
    InputError
        Any value outside its range.
    """

    max_epochs: int | None = None
    batch_size: int | Literal["auto"] = 128
    train_size: float = 0.9
    early_stopping: bool = False
    early_stopping_patience: int = 45
    early_stopping_min_delta: float = 0.0
    learning_rate: float | Literal["auto"] | None = None
    eps: float = 0.01
    weight_decay: float = 1e-6
    n_epochs_kl_warmup: int | None = 400
    n_steps_kl_warmup: int | None = None
    max_grad_norm: float | None = None
    reduce_lr_on_plateau: bool = False
    lr_factor: float = 0.6
    lr_patience: int = 30
    lr_min: float = 0.0
    precision: str = "tf32"
    cuda_graph: bool | None = None
    sync_batch_norm: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        if self.max_epochs is not None:
            epochs = whole_number("max_epochs", self.max_epochs, minimum=1, maximum=MOST_EPOCHS)
            self._set("max_epochs", epochs)
        if not _is_auto(self.batch_size):
            batch_size = whole_number("batch_size", self.batch_size, minimum=1)
            if batch_size == 1:
                raise InputError(
                    "batch_size must be at least 2 for training: BatchNorm needs two cells per "
                    "minibatch"
                )
            self._set("batch_size", batch_size)
        train_size = real_number("train_size", self.train_size, above=0.0)
        if train_size > 1:
            raise InputError(
                f"train_size is the share of cells to train on, above 0 and at most 1, "
                f"not {shown(self.train_size)}"
            )
        self._set("train_size", train_size)
        name = "early_stopping_patience"
        self._set(name, whole_number(name, self.early_stopping_patience, minimum=1))
        name = "early_stopping_min_delta"
        self._set(name, real_number(name, self.early_stopping_min_delta))
        if self.learning_rate is not None and not _is_auto(self.learning_rate):
            self._set("learning_rate", real_number("learning_rate", self.learning_rate, above=0.0))
        self._set("eps", real_number("eps", self.eps, above=0.0))
        self._set("weight_decay", real_number("weight_decay", self.weight_decay))
        for name in ("n_epochs_kl_warmup", "n_steps_kl_warmup"):
            if getattr(self, name) is not None:
                self._set(name, whole_number(name, getattr(self, name), minimum=0))
        if self.max_grad_norm is not None:
            self._set("max_grad_norm", real_number("max_grad_norm", self.max_grad_norm, above=0.0))
        self._set("lr_patience", whole_number("lr_patience", self.lr_patience, minimum=0))
        self._set("lr_factor", real_number("lr_factor", self.lr_factor, above=0.0, below=1.0))
        self._set("lr_min", real_number("lr_min", self.lr_min))
        one_of("precision", self.precision, PRECISIONS)
        for name in ("early_stopping", "reduce_lr_on_plateau", "sync_batch_norm", "compile"):
            self._set(name, true_or_false(name, getattr(self, name)))
        if self.cuda_graph is not None:
            self._set("cuda_graph", true_or_false("cuda_graph", self.cuda_graph))
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

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as plain values, for the training summary."""
        return asdict(self)
