"""The hidden layers of encoders and decoder through ``torch.compile``, while training lasts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from ..nn import FCLayers

# Random numbers are torch's own, so that a seed gives the losses that it gives without compiling.
_OPTIONS: dict[str, Any] = {"options": {"fallback_random": True}}

_MOST_VERSIONS = 64
"""How many compiled versions of `FCLayers.dense_layers` torch may keep.

Layers of one shape share theirs, also those of several models: one version for training, one for
validation, and these again for the size of a last minibatch. Each other shape adds as many; beyond
torch's own limit of 8 the rest would run uncompiled.
"""


def require_compiler(device: torch.device) -> None:
    """Compile a line of code for `device` and run it.

    Raises
    ------
    InputError
        torch cannot compile here; the message says why.
    """

    def probe(x: torch.Tensor) -> torch.Tensor:
        return (x + 1).relu()

    try:
        torch.compile(probe, **_OPTIONS)(torch.zeros(2, device=device))
    except Exception as error:  # each missing tool has an exception of its own
        reason = str(error).strip().splitlines() or [type(error).__name__]
        needed = "triton" if device.type == "cuda" else "a C++ compiler (such as g++)"
        raise InputError(
            f"compile=True, but torch.compile does not work here for {device.type} "
            f"({reason[0][:200]}); it needs {needed} - or leave compile out"
        ) from error


@contextmanager
def compiled_layers(module: nn.Module, wanted: bool, device: torch.device) -> Iterator[None]:
    """Compile the hidden layers of `module` inside the block; afterwards nothing is left of it.

    torch compiles all dense operations of `FCLayers`: linear layers beyond a first one on sparse
    counts, batch normalisation, ReLU, dropout. Modules, parameters and their names stay as they
    are. The operations on counts and the decoder's heads, single matrix products, are not compiled.

    Raises
    ------
    InputError
        `wanted`, and there is no working compiler for `device`.
    """
    if not wanted:
        yield
        return
    require_compiler(device)
    parts = [part for part in module.modules() if isinstance(part, FCLayers)]
    try:
        with torch._dynamo.config.patch(recompile_limit=_MOST_VERSIONS):
            for part in parts:
                part.compiled = torch.compile(part.dense_layers, **_OPTIONS)
            yield
    finally:
        for part in parts:
            part.compiled = None
