"""The state of a training run at one moment, as tensors and numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .._torch import generator_state, set_generator_state
from ..errors import InputError
from .history import COLUMNS, History, new_history


@dataclass
class Within:
    """The part of an epoch that is done.

    Attributes
    ----------
    steps, cells
        Minibatches and cells that have been trained on.
    seconds
        Time spent on them.
    sums
        (2,) on the device, in its `widest` dtype: the two loss terms, summed over those cells.
    """

    sums: Tensor
    steps: int = 0
    cells: int = 0
    seconds: float = 0.0


def copy_state(module: nn.Module, into: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Return a copy of the weights and buffers that later training cannot change.

    `into` is an earlier copy that nobody needs any more; its memory is used again where it fits.
    """
    live = {name: value.detach() for name, value in module.state_dict().items()}
    kept = into or {}
    copy = {name: _memory_like(value, kept.get(name)) for name, value in live.items()}
    _copy_all([(copy[name], value) for name, value in live.items()])
    return copy


def _memory_like(value: Tensor, kept: Tensor | None) -> Tensor:
    alike = kept is not None and (kept.shape, kept.dtype, kept.device) == (
        value.shape,
        value.dtype,
        value.device,
    )
    return kept if kept is not None and alike else torch.empty_like(value)


def random_states(device: torch.device) -> dict[str, Tensor]:
    """Return the states of torch's generators that training on `device` draws from."""
    states = {"cpu": torch.get_rng_state()}
    state = generator_state(device)
    if state is not None:
        states[device.type] = state
    return states


def set_random_states(states: dict[str, Tensor], device: torch.device) -> None:
    """Restore what `random_states` returned; a generator without a state there stays as it is."""
    torch.set_rng_state(states["cpu"])
    if device.type != "cpu" and device.type in states:
        set_generator_state(device, states[device.type])


class Moment:
    """Weights, buffers, optimiser and random numbers after `steps` minibatches of an epoch.

    The memory is made once; taking the moment again copies all tensors of a kind at once.

    Parameters
    ----------
    module, optimizer
        Whose state it is.

    Attributes
    ----------
    steps
        Minibatches of the epoch that this state has seen.
    random
        See `random_states`.
    """

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._module, self._optimizer = module, optimizer
        self._kept: dict[str, Tensor] = {}
        self._known: frozenset[str] = frozenset()
        self.steps = 0
        self.random: dict[str, Tensor] = {}

    def take(self, steps: int) -> None:
        """Copy the current state."""
        live = self._live()
        for name, value in live.items():
            if name not in self._kept:
                self._kept[name] = torch.empty_like(value)
        _copy_all([(self._kept[name], value) for name, value in live.items()])
        self._known = frozenset(live)
        self.steps = steps
        self.random = random_states(next(self._module.parameters()).device)

    def restore(self) -> None:
        """Put weights, buffers and optimiser back, into the tensors that they have now.

        Entries of the optimiser that came later become 0, as Adam begins.
        """
        live = self._live()
        _copy_all([(live[name], self._kept[name]) for name in self._known])
        for name in live.keys() - self._known:
            live[name].zero_()

    def _live(self) -> dict[str, Tensor]:
        weights = {name: value.detach() for name, value in self._module.state_dict().items()}
        return {
            **with_prefix("model", weights),
            **with_prefix("optimizer", pack_optimizer(self._optimizer)),
        }


def _copy_all(pairs: list[tuple[Tensor, Tensor]]) -> None:
    """Copy each second tensor into the first; one call for all of a device and dtype."""
    alike: dict[tuple[torch.device, torch.dtype], list[tuple[Tensor, Tensor]]] = {}
    for pair in pairs:
        alike.setdefault((pair[0].device, pair[0].dtype), []).append(pair)
    with torch.no_grad():
        for some in alike.values():
            torch._foreach_copy_([to for to, _ in some], [of for _, of in some])


def pack_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's tensors as ``NUMBER/NAME``."""
    return {
        f"{number}/{name}": torch.as_tensor(value)
        for number, entries in optimizer.state_dict()["state"].items()
        for name, value in entries.items()
    }


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Restore what `pack_optimizer` returned; options such as the learning rate stay."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, name = key.split("/")
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def with_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the same with ``prefix/`` before each name."""
    return {f"{prefix}/{name}": value for name, value in tensors.items()}


def below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefix that `with_prefix` added; leave out tensors with another prefix."""
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
    """Set the rate, in place if it is a tensor: a captured step reads it from the device."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
