"""Options of the commands that read counts, declared once for all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .inputs import assignments
from .options import (
    AllowFractional,
    AllowLinks,
    BatchKeyOf,
    GeneNames,
    Genome,
    Layer,
    NewAllowFractional,
    NewGeneNames,
    NewLayer,
    NewUseRaw,
    UseRaw,
)


@dataclass(frozen=True)
class SlotOptions:
    """Where in the data the counts are."""

    layer: Layer = None
    use_raw: UseRaw = False
    genome: Genome = None
    allow_fractional: AllowFractional = False
    allow_links: AllowLinks = False
    gene_names: GeneNames = None

    def arguments(self) -> dict[str, Any]:
        """Return them as the arguments of what reads data in Python."""
        return dict(vars(self))


@dataclass(frozen=True)
class NewSlotOptions:
    """Where in new data for a model the counts are; by default where the model had them."""

    layer: NewLayer = None
    use_raw: NewUseRaw = False
    genome: Genome = None
    allow_fractional: NewAllowFractional = None
    allow_links: AllowLinks = False
    gene_names: NewGeneNames = None
    batch_key_of: BatchKeyOf = None

    def arguments(self) -> dict[str, Any]:
        """Return them as the arguments of what reads data in Python.

        Raises
        ------
        InputError
            ``--batch-key-of`` is not of the form FILE=COLUMN.
        """
        return vars(self) | {"batch_key_of": assignments(self.batch_key_of, "--batch-key-of")}
