"""Non-finite values: detect them once per epoch, find where they began, undo the damage.

Checking every step would make the host wait for the device every step. Instead the sums of an
epoch are checked when they are read anyway; if they are not finite, the epoch is run again
from its first weights, now with every step checked. Order and random numbers of an epoch depend
only on the seed and the epoch's number, so the second run meets the same failure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .._torch import device_of, widest
from ..data import Minibatch
from ..errors import InputError
from .state import copy_state

CORRECT_THE_DATA = "Correct that number in the data, or drop the cell"
"""What to do about a number of the data that is not finite."""


class Failure(NamedTuple):
    """The first number that was not finite.

    Attributes
    ----------
    step
        Number of the minibatch, from 1.
    what
        Which number it is.
    remedy
        What to do about it; None where the cause is not known.
    """

    step: int
    what: str
    remedy: str | None = None


class NonFiniteError(InputError):
    """Training met a NaN or an infinity; the model holds the last good weights.

    Attributes
    ----------
    steps
        Optimiser steps that these weights have taken in this run.
    """

    def __init__(self, message: str, steps: int) -> None:
        super().__init__(message)
        self.steps = steps


def first_non_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Return the name of the first tensor that is not finite throughout, or None.

    It waits for the device once where all are finite.
    """
    named = [(name, value.detach()) for name, value in tensors if value.is_floating_point()]
    named = [(name, value) for name, value in named if value.numel() > 0]
    if not named:
        return None
    # NaN and infinity reach the norm, which also overflows where large weights are finite
    if bool(torch.nn.utils.get_total_norm([value for _, value in named]).isfinite()):
        return None
    finite = torch.stack([value.isfinite().all() for _, value in named]).tolist()
    return next((name for (name, _), fine in zip(named, finite, strict=True) if not fine), None)


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Return whether all are finite throughout; waits for the device once where they are."""
    return first_non_finite((str(number), value) for number, value in enumerate(tensors)) is None


def find_failure(
    module: nn.Module,
    batches: Iterator[Minibatch],
    gradients: Callable[[Minibatch, Tensor], None],
    apply: Callable[[], None],
    together: Callable[[bool], list[bool]],
) -> Failure | None:
    """Train on `batches` with every step checked, up to the first that fails.

    Parameters
    ----------
    gradients, apply
        The two halves of a step.
    together
        Whether the step failed in any process.

    Returns
    -------
    Failure or None
        The step counts from the first of `batches`; None if all went well. `module` is left as it
        was before that step.
    """
    device = device_of(module)
    sums = torch.zeros(2, dtype=widest(device), device=device)
    for number, batch in enumerate(batches, start=1):
        before = copy_state(module)
        gradients(batch, sums.zero_())
        found = _failure(number, batch, sums, module)
        apply()
        name = first_non_finite(module.state_dict().items())
        if found is None and name is not None:
            found = Failure(number, f"{name} after the optimiser's step")
        if together(found is not None)[0]:
            module.load_state_dict(before)
            return found or Failure(number, "a number in another process")
    return None


def _failure(number: int, batch: Minibatch, sums: Tensor, module: nn.Module) -> Failure | None:
    """Return what is not finite once the gradients of a minibatch are there, the data first."""
    if what := problem_with_input(batch):
        return Failure(number, what, CORRECT_THE_DATA)
    what = _problem_with_loss(sums) or _problem_with_gradient(module)
    return Failure(number, what) if what else None


def problem_with_input(batch: Minibatch) -> str | None:
    """Name the first number of a minibatch's data that is not finite; None if all are."""
    wrong = (~_counts(batch).isfinite()).reshape(-1).nonzero()
    if len(wrong):
        return f"the count of {_place(batch, int(wrong[0]))}"
    for name in ("local_l_mean", "local_l_var"):
        bad = (~getattr(batch, name).isfinite()).nonzero()
        if len(bad):
            return f"{name} of cell {batch.cells[int(bad[0, 0])]} (rows from 0)"
    return None


def _counts(batch: Minibatch) -> Tensor:
    """Return the counts that a minibatch stores: all of a dense matrix, the nonzero ones of CSR."""
    return batch.x if batch.x.layout == torch.strided else batch.x.values()


def _place(batch: Minibatch, entry: int) -> str:
    """Say of which cell and gene a count is, given its position among those that are stored."""
    x = batch.x
    if x.layout == torch.strided:
        row, column = divmod(entry, x.shape[1])
    else:
        row = int((x.crow_indices() <= entry).sum()) - 1
        column = int(x.col_indices()[entry])
    return f"cell {batch.cells[row]} and gene {column} (rows and columns from 0)"


def _problem_with_loss(sums: Tensor) -> str | None:
    reconstruction, kl = sums.tolist()
    if not math.isfinite(reconstruction):
        return f"the reconstruction loss ({reconstruction})"
    return None if math.isfinite(kl) else f"the KL divergence ({kl})"


def _problem_with_gradient(module: nn.Module) -> str | None:
    gradients = ((name, p.grad) for name, p in module.named_parameters() if p.grad is not None)
    name = first_non_finite(gradients)
    return f"the gradient of {name}" if name else None


def non_finite_error(
    epoch: int,
    step: int | None,
    what: str,
    learning_rate: float,
    steps: int,
    checkpoints: Path | None = None,
    remedy: str | None = None,
) -> NonFiniteError:
    """Return the error for `what` in `epoch`, and in `step` of it where that is known.

    `checkpoints` is the folder of the last good ones, if there are any; `remedy` is what to do
    where that is known.
    """
    where = f"epoch {epoch}" + (f", step {step}" if step is not None else "")
    moment = "step" if step is not None else "epoch"
    kept = ""
    if checkpoints is not None:
        kept = f"; resume goes on from the last good checkpoint in {checkpoints}"
    remedy = remedy or (
        f"Try a lower learning_rate (it was {learning_rate:g}) or max_grad_norm=10, and look for "
        "cells with extreme counts"
    )
    return NonFiniteError(
        f"training stopped in {where}: {what} is not finite. The model keeps its weights from "
        f"before that {moment}. {remedy}{kept}",
        steps,
    )
