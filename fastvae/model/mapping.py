"""New data mapped onto a trained model: what `Model.load_query` makes of both."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from .._words import a_few
from ..data.categories import as_known
from ..data.file_names import FileBatches, key_of_files
from ..data.genes import Genes, MayLack, columns_of
from ..data.keys import Key, in_words
from ..data.opening import FileFrames, Frames, open_data
from ..data.request import Source, Wanted
from ..data.sources.slots import Slot
from ..data.stores.store import Store, warn_of_small_batches
from ..errors import InputError, real_number
from .freezing import check_mode
from .new_data import Reading, fitting, slot_of
from .provenance import weights_digest
from .setup import Setup, batch_keys
from .widening import extended_setup, recoded, widened

MISSING_WARNING = 0.2
"""A larger share of missing genes gives a warning."""


@dataclass(frozen=True)
class Query:
    """How new data are mapped: the arguments of `Model.load_query` and `Model.map_query`.

    Raises
    ------
    InputError
        An unknown `freeze`, or `min_genes` that is no share.
    """

    batch_key: str | Sequence[str] | None
    freeze: bool | str
    min_genes: float
    batch_per_file: str | None
    residence: str
    memory_limit: int | str | None

    def __post_init__(self) -> None:
        object.__setattr__(self, "freeze", check_mode(self.freeze))
        share = real_number("min_genes", self.min_genes)
        if share > 1:
            raise InputError(f"min_genes is a share of the genes, at most 1, not {share:g}")
        object.__setattr__(self, "min_genes", share)


@dataclass(frozen=True, eq=False)
class Mapped:
    """What a mapped model is made of.

    Attributes
    ----------
    setup
        That of the reference with the new batches.
    weights
        The state of the network.
    origin
        What was matched, as plain values.
    store, frames
        The query.
    """

    setup: Setup
    weights: dict[str, Tensor]
    origin: dict[str, Any]
    store: Store
    frames: Frames


def mapped(
    data: Any,
    setup: Setup,
    state: Mapping[str, Tensor],
    name: str,
    query: Query,
    reading: Reading,
) -> Mapped:
    """Match `data` with a reference; see `Model.load_query`.

    Parameters
    ----------
    data
        The query.
    setup, state, name
        Of the reference: setup, weights, and what messages and the origin call it.
    query, reading
        How the query is mapped, and how it is read.

    Raises
    ------
    InputError
        The data do not fit, or there is nothing new to train.

    Warns
    -----
    UserWarning
        Many genes of the reference are missing.
    """
    key = key_of_files(data, query.batch_key, query.batch_per_file) or setup.batch_key
    slot = slot_of(setup.slot, reading)
    wanted = _wanted(query, setup, key, fitting(slot, data), reading.get("batch_key_of"))
    store, frames = open_data(data, wanted, Source(query.residence, query.memory_limit))
    warn_of_small_batches(store, key)
    known_names = as_known(store.batch_categories, setup.batch_categories)
    store = replace(store, batch_categories=known_names)
    wide = extended_setup(setup, store, key, replace(slot, asked_for=True))
    new = [name for name in store.batch_categories if name not in setup.batch_categories]
    if query.freeze is True and not new:
        raise InputError(
            "there is nothing new to train: "
            + (f"the reference knows all batches in {in_words(key)}. " if key else "no batch_key. ")
            + "Ask the reference itself (get_latent_representation(data), fastvae embed), give "
            "another batch_key, or choose freeze='decoder'"
        )
    if isinstance(frames, FileFrames) and frames.batch_per_file:
        wide = replace(wide, batch_per_file=True, file_tail=setup.file_tail or frames.tail)
    genes = genes_report(frames, Genes.of_model(setup.gene_names, setup.gene_ids))
    wide = replace(wide, may_lack=genes.missing)
    if len(genes.missing) > MISSING_WARNING * len(setup.gene_names):
        warnings.warn(missing_text(genes, len(setup.gene_names)), UserWarning, stacklevel=5)
    origin = {
        "mapped_onto": name,
        "reference_sha256": weights_digest(state),
        "freeze": query.freeze,
        "reference_columns": len(wide.batch_categories) - len(new),
        "new_batches": new,
        "known_batches": [name for name in store.batch_categories if name not in new],
        **genes.as_dict(),
    }
    return Mapped(wide, widened(setup, wide, state), origin, recoded(store, wide), frames)


def _wanted(
    query: Query,
    setup: Setup,
    key: Key | None,
    slot: Slot,
    batch_key_of: Mapping[str, str] | None,
) -> Wanted:
    """Return what is to be read of the new data: the genes of the reference, and their batches."""
    file_batches = setup.file_batches() if key == setup.batch_key else None
    if query.batch_per_file is not None:
        file_batches = FileBatches(setup.batch_categories, setup.file_tail, strict=True)
    labelled = setup.options.dispersion == "gene-label"
    fewest = max(2, int(np.ceil(query.min_genes * len(setup.gene_names))))
    return Wanted(
        slot=slot,
        batch_key=key,
        labels_key=setup.labels_key if labelled else None,
        covariates=setup.covariates,
        batch_key_of=batch_keys(batch_key_of),
        file_batches=file_batches,
        label_categories=setup.label_categories if labelled else None,
        covariate_categories=setup.covariate_categories,
        gene_names=setup.gene_names,
        gene_ids=setup.gene_ids,
        may_lack=MayLack(setup.gene_names, fewest),
    )


@dataclass(frozen=True)
class GenesReport:
    """Genes that a query lacks (in any of its files), and how many of its own are not used."""

    missing: tuple[str, ...]
    n_unused: int

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
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
    if "weights_without_labels" in origin:
        return ["weights of encoders and decoder from a model without labels"]
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
