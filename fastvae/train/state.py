"""The state of a training run at one moment, as tensors and numbers."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from .checkpoints import Loaded
from .history import COLUMNS, History, new_history

if TYPE_CHECKING:
    from .run import Run


@dataclass
class Within:
    """How far an epoch has come.

    Attributes
    ----------
    steps, cells
        Minibatches and cells that have been trained on.
    seconds
        Time spent on them.
    sums
        (2,) float64 on the device: the two loss terms, summed over those cells.
    """

    sums: Tensor
    steps: int = 0
    cells: int = 0
    seconds: float = 0.0


def copy_state(module: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the weights and buffers that later training cannot change."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def random_states(device: torch.device) -> dict[str, Tensor]:
    """Return the states of torch's generators that training on `device` draws from."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_random_states(states: dict[str, Tensor], device: torch.device) -> None:
    """Undo `random_states`; a generator that has no state there stays as it is."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


@dataclass
class Moment:
    """Weights, buffers, optimiser and random numbers after `steps` minibatches of an epoch."""

    weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    steps: int
    random: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, module: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> Moment:
        """Copy what is there now."""
        device = next(module.parameters()).device
        state = copy.deepcopy(optimizer.state_dict())
        return cls(copy_state(module), state, steps, random_states(device))

    def restore(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Put weights, buffers and optimiser back as they were."""
        module.load_state_dict(self.weights)
        optimizer.load_state_dict(copy.deepcopy(self.optimizer))


def pack_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's tensors as ``NUMBER/NAME``."""
    return {
        f"{number}/{name}": torch.as_tensor(value)
        for number, entries in optimizer.state_dict()["state"].items()
        for name, value in entries.items()
    }


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Undo `pack_optimizer`; options such as the learning rate are left alone."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, name = key.split("/")
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def with_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the same with ``prefix/`` before each name."""
    return {f"{prefix}/{name}": value for name, value in tensors.items()}


def below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Undo `with_prefix`, leaving out what has another prefix."""
    start = f"{prefix}/"
    return {name[len(start) :]: v for name, v in tensors.items() if name.startswith(start)}


def pack_history(history: History) -> dict[str, list[float | None]]:
    """Return `history` for JSON, which has no NaN."""
    return {k: [None if math.isnan(v) else v for v in column] for k, column in history.items()}


def unpack_history(packed: dict[str, list[float | None]], history: History) -> None:
    """Fill `history` with what `pack_history` returned."""
    if set(packed) != set(COLUMNS):
        raise InputError("the checkpoint's history has other columns; start again without resume")
    for name in new_history():
        history[name][:] = [math.nan if v is None else v for v in packed[name]]


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set it where it is kept: a captured step reads it from a tensor on the device."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def pack(run: Run) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return everything that decides how `run` goes on; to be called by all processes at once."""
    within, group = run.within, run.group
    done = torch.tensor([*within.sums.tolist(), within.cells], dtype=torch.float64)
    *sums, cells = group.add(done.to(run.device)).tolist()
    tensors = {
        **with_prefix("model", run.module.state_dict()),
        **with_prefix("optimizer", pack_optimizer(run.optimizer)),
    }
    for rank, states in enumerate(group.gather(random_states(run.device))):
        tensors |= with_prefix(f"random{rank}", states)
    state: dict[str, Any] = {
        "seed": run.seed,
        "settings": run.settings.as_dict(),
        "first_epoch": run.first_epoch,
        "first_step": run.first_step,
        "step": run.step,
        "steps": within.steps,
        "cells": int(cells),
        "seconds": within.seconds,
        "sums": sums,
        "learning_rate": float(run.optimizer.param_groups[0]["lr"]),
        "history": pack_history(run.history),
    }
    if run.plateau:
        state["plateau"] = run.plateau.state_dict()
    if run.stopper:
        state["stopping"] = run.stopper.state_dict()
        tensors |= with_prefix("best", run.stopper.best_state)
    return tensors, state


def unpack(run: Run, found: Loaded) -> None:
    """Take `run` back to the moment at which `pack` was called."""
    tensors, state = found.tensors, found.state
    run.module.load_state_dict(below("model", tensors))
    unpack_optimizer(run.optimizer, below("optimizer", tensors))
    set_random_states(below(f"random{run.group.rank}", tensors), run.device)
    unpack_history(state["history"], run.history)
    run.first_epoch, run.first_step = state["first_epoch"], state["first_step"]
    run.step = state["step"]
    # The sums of all processes together are the first one's to carry on.
    sums = torch.tensor(state["sums"], dtype=torch.float64, device=run.device)
    cells = state["cells"]
    if not run.group.leads:
        sums, cells = sums.zero_(), 0
    run.within = Within(sums, state["steps"], cells, state["seconds"])
    if run.settings.learning_rate == state["settings"]["learning_rate"]:
        set_learning_rate(run.optimizer, state["learning_rate"])
    if run.plateau and "plateau" in state:
        run.plateau.load_state_dict(state["plateau"])
    if run.stopper and "stopping" in state:
        best = {k: v.to(run.device) for k, v in below("best", tensors).items()}
        run.stopper.load_state_dict(state["stopping"], best)
        run.ended = "early stopping" if run.stopper.exhausted else None
