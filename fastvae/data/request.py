"""What to take from the data - genes, columns, slots - and where the counts may stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .._memory import available_memory, parse_size
from ..errors import InputError, one_of
from .covariates import CovariateKeys
from .file_names import FileBatches
from .genes import STRICT, Genes, MayLack
from .keys import Key
from .sources.slots import Slot
from .stores.residence import RESIDENCES


@dataclass(frozen=True)
class Wanted:
    """What to take from the files.

    Attributes
    ----------
    slot
        Where the counts are in each of them.
    batch_key, labels_key
        Columns of obs.
    covariates
        Columns of obs with covariates and size factors.
    batch_key_of
        Other names of the batch column, of the files that `by_file` says.
    file_batches
        Each file is a batch, where it has no column `batch_key`.
    batch_categories, label_categories, covariate_categories, gene_names
        Those of a saved model, or None.
    gene_ids
        Their ids, of a saved model; none where it does not know them.
    may_lack
        Which of `gene_names` may be missing.
    by_counts
        Take the counts alone: batches, labels and covariates may be unknown or missing; all codes
        are 0, and there are no covariates.
    """

    slot: Slot = field(default_factory=Slot)
    batch_key: Key | None = None
    labels_key: Key | None = None
    covariates: CovariateKeys = field(default_factory=CovariateKeys)
    batch_key_of: Mapping[str, str] = field(default_factory=dict)
    file_batches: FileBatches | None = None
    batch_categories: Sequence[str] | None = None
    label_categories: Sequence[str] | None = None
    covariate_categories: Sequence[Sequence[str]] | None = None
    gene_names: Sequence[str] | None = None
    gene_ids: Sequence[str] | None = None
    may_lack: MayLack = STRICT
    by_counts: bool = False

    def __post_init__(self) -> None:
        if self.batch_key_of and isinstance(self.batch_key, tuple):
            raise InputError(
                "batch_key_of names one column for a file, and batch_key names several; join these "
                "to one column in each file"
            )

    def key_of(self, what: str) -> Key | None:
        """Return the column with the codes of the cells: of "batch" or "label"."""
        if self.by_counts:
            return None
        return self.batch_key if what == "batch" else self.labels_key

    def known(self, what: str) -> Sequence[str] | None:
        """Return the categories of a saved model that cells are to be coded by."""
        if self.by_counts:
            return None
        return self.batch_categories if what == "batch" else self.label_categories

    @property
    def covariate_keys(self) -> CovariateKeys:
        """The columns of covariates that are to be read."""
        return CovariateKeys() if self.by_counts else self.covariates

    @property
    def genes(self) -> Genes | None:
        """The genes wanted, None for all."""
        return None if self.gene_names is None else Genes.of_model(self.gene_names, self.gene_ids)


_SPARE = 0.7  # share of the free memory that counts may take without being asked for
_STREAMING_SHARE = 0.3  # share of it for streaming without a limit given
_MOST_STREAMING = 4 << 30


@dataclass(frozen=True)
class Source:
    """How data are to be opened.

    Attributes
    ----------
    residence
        "auto", "host", "disk" or "device" (first read into memory or streamed, as for "auto").
    memory_limit
        A size such as "500MB", or None.
    """

    residence: str = "auto"
    memory_limit: int | str | None = None

    def __post_init__(self) -> None:
        one_of("residence", self.residence, RESIDENCES)
        if self.memory_limit is not None:
            parse_size(self.memory_limit, "memory_limit")

    def streaming_memory(self) -> int:
        """Bytes that streaming may take."""
        if self.memory_limit is not None:
            return parse_size(self.memory_limit, "memory_limit")
        free = available_memory() or _MOST_STREAMING
        return min(int(free * _STREAMING_SHARE), _MOST_STREAMING)

    def counts_memory(self) -> int | None:
        """Bytes that counts in memory may take; None where that is unknown."""
        if self.memory_limit is not None:
            return parse_size(self.memory_limit, "memory_limit")
        free = available_memory()
        return None if free is None else int(free * _SPARE)
