"""The state of a training run at one moment, as tensors and numbers."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from .history import COLUMNS, History, new_history


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
