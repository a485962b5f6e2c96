"""The matrices of an AnnData object or an .h5ad file, under one set of names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError
from ._matrix import sample
from ._names import those_there


@dataclass(frozen=True)
class Slots:
    """What a source holds; matrices are references, not read yet.

    Attributes
    ----------
    source
        Name for messages.
    x, layers
        ``X`` (None where there is none) and the layers by name.
    raw
        Returns the matrix of ``.raw``, or is None where there is none.
    """

    source: str
    x: Any
    layers: Mapping[str, Any]
    raw: Callable[[], Any] | None

    def choose(self, layer: str | None, use_raw: bool) -> tuple[str, Any]:
        """Return the name and the matrix that the options ask for.

        Raises
        ------
        InputError
            It is not there; the message lists what is.
        """
        if layer is not None:
            if layer not in self.layers:
                there = those_there(self.layer_names(), layer, "no layers")
                raise InputError(f"{self.source} has no layer {layer!r}; {there}")
            return f"layers[{layer!r}]", self.layers[layer]
        if use_raw:
            if self.raw is None:
                raise InputError(
                    f"{self.source} has no raw; leave out use_raw=True{self._layers()}"
                )
            return "raw.X", self.raw()
        if self.x is None:
            raise InputError(f"{self.source} has no X{self._layers()}")
        return "X", self.x

    def count_like(self, chosen: str) -> list[str]:
        """Say how to get each other matrix that looks like counts."""
        found = []
        if chosen != "X" and self.x is not None and _looks_like_counts(self.x):
            found.append("X looks like counts: leave out layer= and use_raw=")
        for name in self.layer_names():
            if chosen != f"layers[{name!r}]" and _looks_like_counts(self.layers[name]):
                found.append(f"layer {name!r} looks like counts: pass layer={name!r}")
        if chosen != "raw.X" and self.raw is not None and _looks_like_counts(self.raw()):
            found.append("raw looks like counts: pass use_raw=True")
        return found

    def layer_names(self) -> list[str]:
        """Return the names of the layers, sorted; anndata 0.13 has X among them, as None."""
        return sorted(name for name in self.layers if name is not None)

    def _layers(self) -> str:
        names = self.layer_names()
        return f"; choose a layer with layer=: {those_there(names)}" if names else ""


def _looks_like_counts(matrix: Any) -> bool:
    try:
        values = sample(matrix).astype(np.float64)
    except (OSError, KeyError, TypeError, ValueError, AttributeError, IndexError):
        return False
    return bool(len(values) and values.min() >= 0 and values.max() > 0) and bool(
        np.array_equal(values, np.rint(values))
    )
