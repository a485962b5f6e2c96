"""The matrices of an AnnData object or an .h5ad file, under one set of names."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from ..._words import those_there
from ...errors import InputError, shown, text, true_or_false
from .matrix import sample
from .matrix_structure import CheckedMatrices
from .node import Node

X = "X"
"""What `layer` is called to mean ``X`` itself."""

RAW = "raw.X"
"""The name of the matrix of ``raw``."""


@dataclass(frozen=True)
class Slot:
    """Where in the data the counts are, and whether they must be whole numbers.

    Attributes
    ----------
    layer
        Name of a layer; None and "X" are ``X`` itself.
    use_raw
        ``raw`` instead.
    genome
        Which genome of a 10x file that holds several.
    allow_fractional
        Take corrected counts, which are no longer whole numbers.
    allow_links
        Also read what a file stores in other files, to which it leads.
    gene_names
        Column of var with the names of the genes; None is its index.
    names_asked_for
        False where this is only how other data were: data without the column have the names in
        the index.
    asked_for
        False where this is only where the counts of other data were: data with a single matrix
        need not have it there.

    Raises
    ------
    InputError
        Both a layer and raw.
    """

    layer: str | None = None
    use_raw: bool = False
    genome: str | None = None
    allow_fractional: bool = False
    asked_for: bool = True
    allow_links: bool = False
    gene_names: str | None = None
    names_asked_for: bool = True

    def __post_init__(self) -> None:
        if self.layer is not None:
            text("layer", self.layer, "the name of a layer")
        if self.genome is not None:
            text("genome", self.genome, "the name of a genome")
        if self.gene_names is not None:
            text("gene_names", self.gene_names, "the name of a column of var")
        for name in ("use_raw", "allow_fractional", "allow_links"):
            object.__setattr__(self, name, true_or_false(name, getattr(self, name)))
        if self.layer is not None and self.use_raw:
            raise InputError("layer= and use_raw=True exclude each other; pass one of them")

    def __str__(self) -> str:
        name = "raw" if self.use_raw else X
        name = f"layers[{self.layer!r}]" if self.in_layer else name
        name = name if self.genome is None else f"{name}, genome {self.genome}"
        name = f"{name}, fractions allowed" if self.allow_fractional else name
        return name if self.gene_names is None else f"{name}, genes by var[{self.gene_names!r}]"

    @property
    def in_layer(self) -> bool:
        """Whether the counts are in a layer, rather than in X or raw."""
        return self.layer not in (None, X)

    def to_config(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        values = asdict(self)
        del values["asked_for"], values["allow_links"], values["names_asked_for"]
        return values

    def refuse_choice(self, kind: str) -> None:
        """Refuse to choose among the matrices of a `kind` of data that has one only.

        Raises
        ------
        InputError
            A layer or raw was asked for.
        """
        if self.asked_for and (self.in_layer or self.use_raw):
            option = "use_raw=True" if self.use_raw else f"layer={self.layer!r}"
            raise InputError(f"{kind} has one matrix only; leave out {option}")


@dataclass(frozen=True)
class _Matrix:
    """One matrix: its name, what sentences call it, the option that chooses it, how to get it."""

    name: str
    words: str
    option: str
    get: Callable[[], Any]


@dataclass(frozen=True)
class Slots:
    """What a source holds; matrices are references, not read yet.

    Attributes
    ----------
    source
        Name for messages.
    x, raw
        Return ``X`` and the matrix of ``.raw``; None where there is none.
    layers
        The layers by name.
    """

    source: str
    x: Callable[[], Any] | None
    layers: Mapping[str, Any]
    raw: Callable[[], Any] | None

    def choose(self, slot: Slot) -> tuple[str, Any]:
        """Return the name and the matrix that the options ask for.

        Raises
        ------
        InputError
            It is not there; the message lists what is.

        Warns
        -----
        UserWarning
            It was not asked for and is not there, so the only matrix is taken.
        """
        there = self._there()
        found = [matrix for matrix in there if _is_meant(matrix, slot)]
        if len(found) > 1:
            raise InputError(
                f"{self.source} has X and also a layer named 'X', so layer='X' could be either; "
                "rename the layer"
            )
        if not found and not slot.asked_for and len(there) == 1:
            found = there
            warnings.warn(
                f"{self.source} has no {slot}, where the model's counts were; its only matrix, "
                f"{found[0].words}, is taken (pass {found[0].option} to say so)",
                UserWarning,
                stacklevel=2,
            )
        if not found:
            raise InputError(f"{self.source} has no {self._missing(slot)}")
        return found[0].name, found[0].get()

    def count_like(self, chosen: str) -> list[str]:
        """Say how to get each other matrix that looks like counts."""
        return [
            f"{matrix.words} looks like counts: pass {matrix.option}"
            for matrix in self._there()
            if matrix.name != chosen and _looks_like_counts(matrix.get)
        ]

    def _there(self) -> list[_Matrix]:
        there = []
        if self.x is not None:
            there.append(_Matrix(X, X, "layer='X'", self.x))
        for name in self.layer_names():
            get = partial(self.layers.__getitem__, name)
            there.append(_Matrix(f"layers[{name!r}]", f"layer {name!r}", f"layer={name!r}", get))
        if self.raw is not None:
            there.append(_Matrix(RAW, "raw", "use_raw=True", self.raw))
        return there

    def layer_names(self) -> list[str]:
        """Return the names of the layers, sorted; anndata 0.13 has X among them, as None."""
        return sorted(name for name in self.layers if name is not None)

    def _missing(self, slot: Slot) -> str:
        if not slot.asked_for:
            advice = "; ".join(self.count_like("")) or "nothing else in it looks like counts"
            return f"{slot}, where the model's counts were; {advice}"
        if slot.in_layer:
            there = those_there(self.layer_names(), slot.layer, "no layers")
            return f"layer {shown(slot.layer)}; {there}"
        name = "raw; leave out use_raw=True" if slot.use_raw else X
        if not self.layer_names():
            return name
        return f"{name}; choose a layer with layer=: {those_there(self.layer_names())}"


def _is_meant(matrix: _Matrix, slot: Slot) -> bool:
    if slot.use_raw:
        return matrix.name == RAW
    if slot.layer is None:
        return matrix.name == X
    return matrix.option == f"layer={slot.layer!r}"


def stored_slots(group: Any, root: Node, wanted: Slot) -> Slots:
    """Return the matrices of a file, each checked when it is taken.

    Parameters
    ----------
    group
        What h5py or zarr call the root of the file.
    root
        The same as a node.
    wanted
        What will be asked for.

    Raises
    ------
    InputError
        What is asked for lies in another file.
    """
    matrices = CheckedMatrices(group, root)
    if wanted.in_layer:
        root.child("layers")
    try:
        raw = root.child("raw") if "raw" in root.names() else None
        has_raw = raw is not None and "X" in raw.names()
    except InputError:  # said when it is asked for
        has_raw = True
    return Slots(
        source=root.source,
        x=partial(matrices.__getitem__, "X") if "X" in root.names() else None,
        layers=CheckedMatrices(group, root, "layers"),
        raw=partial(matrices.__getitem__, "raw/X") if has_raw else None,
    )


def _looks_like_counts(matrix: Callable[[], Any]) -> bool:
    try:
        values = sample(matrix()).astype(np.float64)
    except (InputError, OSError, KeyError, TypeError, ValueError, AttributeError, IndexError):
        return False
    return bool(len(values) and values.min() >= 0 and values.max() > 0) and bool(
        np.array_equal(values, np.rint(values))
    )
