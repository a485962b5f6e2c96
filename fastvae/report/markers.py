"""Marker genes of labels, from the counts alone: quick, for pictures."""

from __future__ import annotations

from typing import Any

import numpy as np

from .neighbours import scaled

LEAST_SHARE = 0.1
"""Of the cells of its label that have counts of a marker."""
LEAST_CELLS = 5


def marker_genes(
    counts: Any, label: np.ndarray, names: list[str], gene_names: list[str], most: int
) -> list[str]:
    """Return for each label the gene whose mean lies highest above that of every other label.

    Means are of log(1 + counts scaled to 10,000).

    Parameters
    ----------
    counts
        scipy CSR (N, G).
    label
        Codes (N,); cells with -1 are left out.
    names, gene_names
        Of the codes, and of the G genes.
    most
        Genes in all; the largest labels come first.
    """
    logs = scaled(counts).log1p()
    sizes = np.bincount(label[label >= 0], minlength=len(names))
    codes = [code for code in np.argsort(-sizes, kind="stable") if sizes[code] >= LEAST_CELLS]
    if len(codes) < 2:
        return []
    rows = [logs[np.flatnonzero(label == code)] for code in codes]
    means = np.stack([np.asarray(part.mean(axis=0)).ravel() for part in rows])
    seen = np.stack([np.bincount(p.indices, minlength=p.shape[1]) / p.shape[0] for p in rows])
    found: list[str] = []
    for place in range(min(len(codes), most)):
        others = np.delete(means, place, axis=0).max(axis=0)
        above = np.where(seen[place] >= LEAST_SHARE, means[place] - others, -np.inf)
        for gene in np.argsort(-above, kind="stable"):
            if above[gene] <= 0:
                break
            if gene_names[gene] not in found:
                found.append(gene_names[gene])
                break
    return found
