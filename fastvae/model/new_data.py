"""`Reading`: how new data are read where they are not like the data of the model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypedDict

from ..data.sources.slots import Slot
from ..errors import InputError, file_path, true_or_false


class Reading(TypedDict, total=False):
    """Keyword arguments of every method that takes new data.

    Attributes
    ----------
    layer, use_raw
        The counts are in this layer ("X" for ``X`` itself), or in ``raw``. By default they are
        looked for where the model had them; data with a single matrix may have them there.
    genome
        Which genome of a 10x file that holds several.
    allow_fractional
        Take corrected counts, which are no longer whole numbers; by default if the model did.
    allow_links
        Also read what files store in other files; only for files that you trust.
    gene_names
        Column of var that names the genes; by default the model's, or the index without it.
    batch_key_of
        The batch column of the files in which it is not that of the model.
    """

    layer: str | None
    use_raw: bool
    genome: str | None
    allow_fractional: bool | None
    allow_links: bool
    gene_names: str | None
    batch_key_of: Mapping[str, str] | None


READING = tuple(Reading.__annotations__)
"""The names in `Reading`."""


def check_reading(data: Any, reading: Mapping[str, Any]) -> None:
    """Refuse keywords that are not of `Reading`, and those of new data where there are none.

    Raises
    ------
    TypeError
        No such keyword.
    InputError
        `data` is None.
    """
    for name in reading:
        if name not in READING:
            raise TypeError(f"unexpected keyword argument {name!r}")
    given = [
        name
        for name, value in reading.items()
        if not (value is None or value is False or (isinstance(value, Mapping) and not value))
    ]
    if data is None and given:
        raise InputError(
            f"{given[0]}= says how new data are read, and this call has none: give data=, or leave "
            f"out {given[0]}="
        )


def slot_of(model: Slot, reading: Mapping[str, Any]) -> Slot:
    """Return where the counts of new data are: where `reading` says, else as those of the model."""
    allowed = reading.get("allow_fractional")
    allowed = (
        model.allow_fractional if allowed is None else true_or_false("allow_fractional", allowed)
    )
    layer, genome = reading.get("layer"), reading.get("genome")
    use_raw = true_or_false("use_raw", reading.get("use_raw", False))
    links = true_or_false("allow_links", reading.get("allow_links", False))
    genome = model.genome if genome is None else genome
    if layer is None and not use_raw:
        layer, use_raw, asked_for = model.layer, model.use_raw, False
    else:
        asked_for = True
    column = reading.get("gene_names")
    return Slot(
        layer,
        use_raw,
        genome,
        allowed,
        asked_for,
        allow_links=links,
        gene_names=model.gene_names if column is None else column,
        names_asked_for=column is not None,
    )


def fitting(slot: Slot, data: Any) -> Slot:
    """Return `slot` without the genome where `data` cannot have several: in .h5ad and objects."""
    paths = data if isinstance(data, (list, tuple)) else [data]
    files = [file_path("data", path) for path in paths if isinstance(path, (str, os.PathLike))]
    several = any(path.suffix not in (".h5ad", ".zarr") for path in files)
    return slot if several else replace(slot, genome=None)
