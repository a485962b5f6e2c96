"""Helpers around torch: devices, seeded generators, evaluation mode, hooks."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

import torch
from torch import nn

from .errors import InputError, shown

Module = TypeVar("Module", bound=nn.Module)

APPLE = {"mps"}
"""Types of devices that have neither float64 nor sparse CSR tensors: Apple's GPUs."""


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """Return the device called `device`; "auto" is the first CUDA device if there is one.

    Raises
    ------
    InputError
        An unknown name, or a device that this machine or this torch does not have; an Apple GPU,
        which `training_device` allows.
    """
    found = training_device(device)
    if found.type in APPLE:
        raise InputError(
            f"device {str(device)!r} is for training alone: Apple's GPUs have no float64, which "
            "answers are summed in; use 'cpu' here, and 'mps' in fit() or fastvae train"
        )
    return found


def training_device(device: str | torch.device = "auto") -> torch.device:
    """Return the device called `device`, as `resolve_device` does, or an Apple GPU ("mps").

    Raises
    ------
    InputError
        An unknown name, or a device that this machine or this torch does not have.
    """
    if isinstance(device, str) and device == "auto":
        return torch.device("cuda", 0) if _has_cuda() else torch.device("cpu")
    try:
        found = torch.device(device)
    except Exception:  # torch raises many kinds, for values that are no name
        found = None
    if found is None or found.type not in {"cpu", "cuda", *APPLE}:
        raise InputError(
            f"unknown device {shown(device)}; use 'auto', 'cpu', 'cuda', 'cuda:N' or 'mps'"
        )
    if found.type == "cpu":
        return torch.device("cpu")
    if found.type in APPLE:
        if found.type == "mps" and not torch.backends.mps.is_available():
            raise InputError(
                f"device {str(device)!r} is not available: torch sees no Apple GPU here; use 'cpu'"
            )
        return found
    if torch.version.hip is not None:
        raise InputError(
            f"device {str(device)!r} cannot be used: this torch is built for ROCm (AMD), where the "
            "Triton kernels were never run; use 'cpu'"
        )
    if not torch.cuda.is_available():
        raise InputError(
            f"device {str(device)!r} is not available: torch sees no CUDA device here; use 'cpu' "
            "or 'auto', or install a CUDA build of torch"
        )
    index = found.index if found.index is not None else torch.cuda.current_device()
    if index >= torch.cuda.device_count():
        raise InputError(
            f"device {str(device)!r} is not available: this machine has CUDA devices 0 to "
            f"{torch.cuda.device_count() - 1}"
        )
    return torch.device("cuda", index)


def _has_cuda() -> bool:
    """Whether there is a CUDA device; torch gives AMD's GPUs that name too."""
    return torch.version.hip is None and torch.cuda.is_available()


def widest(device: torch.device) -> torch.dtype:
    """Return the dtype of long sums on `device`: float64, and float32 where that is all it has."""
    return torch.float32 if device.type in APPLE else torch.float64


def generator_state(device: torch.device) -> torch.Tensor | None:
    """Return the state of torch's generator of a GPU; None for the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_rng_state(device)
    return torch.get_device_module(device).get_rng_state() if device.type in APPLE else None


def set_generator_state(device: torch.device, state: torch.Tensor) -> None:
    """Restore what `generator_state` returned."""
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.get_device_module(device).set_rng_state(state)


def device_of(module: nn.Module) -> torch.device:
    """Return the device that the parameters are on."""
    return next(module.parameters()).device


def current(device: torch.device) -> AbstractContextManager[object]:
    """Make a GPU the current device inside the block; a CPU needs nothing."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed torch's generators of the CPU and of `device`, as ``torch.manual_seed`` does.

    That one goes through all other kinds of devices too, and writes down the stack of its caller
    for each that is not in use: host time at each epoch and each validation.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(seed)
    elif device.type in APPLE:
        torch.get_device_module(device).manual_seed(seed)


@contextmanager
def seeded(device: torch.device, seed: int | None) -> Iterator[None]:
    """Draw from `seed` inside the block and leave torch's generators as they were.

    None draws from torch's own generators as they stand, which then move on.
    """
    if seed is None:
        yield
        return
    before = generator_state(device)
    try:
        with torch.random.fork_rng(devices=[]):  # the CPU's
            seed_generators(seed, device)
            yield
    finally:
        if before is not None:
            set_generator_state(device, before)


@contextmanager
def evaluating(module: nn.Module, seed: int | None = 0) -> Iterator[None]:
    """Evaluate inside the block: eval mode, no gradients, random numbers from `seed`.

    Every submodule's training flag is put back afterwards, also where they differed.
    """
    flags = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad(), seeded(device_of(module), seed):
            yield
    finally:
        for part, training in flags:
            if part.training != training:
                part.training = training


def readable(values: torch.Tensor, force: bool | None) -> bool:
    """Whether a check may look at numbers: on the CPU or where asked, never while compiling."""
    return bool(values.device.type == "cpu" or force) and not torch.compiler.is_compiling()


def has_hooks(module: nn.Module) -> bool:
    """Whether hooks are registered on `module` itself."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def sharing(kind: type[Module], module: nn.Module) -> Module:
    """Return a module of the class `kind` that shares all that `module` has.

    Both have the same parameters, buffers, submodules, hooks and settings: what training writes
    into the one is in the other. `kind` must compute from attributes of these names.
    """
    shared = kind.__new__(kind)  # its constructor would make parameters of its own
    shared.__setstate__(dict(vars(module)))
    return shared


def csr_of(
    crow: torch.Tensor, col: torch.Tensor, values: torch.Tensor, size: tuple[int, int]
) -> torch.Tensor:
    """Join tensors of one device as a ``torch.sparse_csr`` tensor, unchecked."""
    _silence_beta_warning()
    return torch.sparse_csr_tensor(crow, col, values, size=size, check_invariants=False)


@functools.cache
def _silence_beta_warning() -> None:
    """Silence torch's once-per-process notices about CSR tensors.

    Cheaper than a filter around every minibatch, and no other warning is touched.
    """
    with warnings.catch_warnings():
        for notice in ("Sparse CSR tensor support is in beta", "Sparse invariant checks are"):
            warnings.filterwarnings("ignore", message=notice)
        torch.sparse_csr_tensor([0, 0], [], [], size=(1, 1))
