"""What of a query matched the reference, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data._names import a_few
from ..data.genes import Genes, columns_of
from ..data.opening import FileFrames, Frames

MISSING_WARNING = 0.2
"""A larger share of missing genes is warned of."""


@dataclass(frozen=True)
class GenesReport:
    """Genes that a reference has and its query lacks (in any of its files), and the reverse."""

    missing: tuple[str, ...]
    n_unused: int

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; the names of all genes missing are in ``data`` there."""
        return {"missing_genes": len(self.missing), "unused_genes": self.n_unused}


def genes_report(frames: Frames, reference: Genes) -> GenesReport:
    """Compare the genes of what was opened with those of the reference."""
    if isinstance(frames, FileFrames):
        each = [file.genes for file in frames.files]
    else:
        each = [Genes.of(frames.var)]
    lost = np.zeros(len(reference.names), dtype=bool)
    unused: set[str] = set()
    for genes in each:
        found = columns_of(reference, genes)
        lost |= found < 0
        used = set(found.tolist())
        unused.update(name for column, name in enumerate(genes.names) if column not in used)
    missing = tuple(name for name, is_lost in zip(reference.names, lost, strict=True) if is_lost)
    return GenesReport(missing, len(unused))


def missing_text(genes: GenesReport, n_genes: int) -> str:
    """Say how many genes are missing, and which."""
    share = 100 * len(genes.missing) / n_genes
    return (
        f"{len(genes.missing)} of the {n_genes} genes of the reference ({share:.0f} %) are not in "
        f"the query and count as zero: {a_few(genes.missing)}; the fewer genes are shared, the "
        "less the latent positions mean"
    )


def origin_lines(origin: Mapping[str, Any], missing: Sequence[str], n_genes: int) -> list[str]:
    """Describe the origin of a model; nothing for one that was trained from the beginning."""
    if "converted_from" in origin:
        return [f"weights from {origin['converted_from']}"]
    if "mapped_onto" not in origin:
        return []
    frozen = {True: "all but the new columns", False: "nothing"}
    freeze = frozen.get(origin["freeze"], f"the {origin['freeze']}")
    lines = [f"mapped onto {origin['mapped_onto']}; frozen in training: {freeze}"]
    for word, names in (("new", origin["new_batches"]), ("known", origin["known_batches"])):
        if names:
            lines.append(f"{word} batches: {a_few(names)}")
    if missing:
        share = 100 * len(missing) / n_genes
        lines.append(
            f"{len(missing)} of {n_genes} genes missing ({share:.1f} %), taken as zero: "
            f"{a_few(missing)}"
        )
    if origin["unused_genes"]:
        lines.append(f"{origin['unused_genes']} genes of the query not used")
    return lines
