"""New data mapped onto a trained model: `Model.load_query`, `Model.map_query`."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .._options import picked
from .._words import a_few
from ..data.categories import as_known
from ..data.file_names import FileBatches, key_of_files
from ..data.genes import Genes, MayLack, columns_of
from ..data.keys import Key, in_words
from ..data.opening import FileFrames, Frames, open_data
from ..data.request import Source, Wanted
from ..data.sources.slots import Slot
from ..data.stores.store import Store, warn_of_small_batches
from ..errors import InputError, file_path, real_number
from .base import State
from .freezing import check_mode
from .new_data import Reading, fitting, slot_of
from .setup import Setup, batch_keys

if TYPE_CHECKING:
    from typing import Self


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
    layer: str | None
    use_raw: bool
    genome: str | None
    min_genes: float
    batch_key_of: Mapping[str, str] | None
    device: str | torch.device
    residence: str
    memory_limit: int | str | None
    batch_per_file: str | None
    allow_fractional: bool | None
    allow_links: bool
    gene_names: str | None

    def __post_init__(self) -> None:
        object.__setattr__(self, "freeze", check_mode(self.freeze))
        share = real_number("min_genes", self.min_genes)
        if share > 1:
            raise InputError(f"min_genes is a share of the genes, at most 1, not {share:g}")
        object.__setattr__(self, "min_genes", share)

    def reading(self) -> Reading:
        """Return how the counts are read."""
        return Reading(
            layer=self.layer,
            use_raw=self.use_raw,
            genome=self.genome,
            allow_fractional=self.allow_fractional,
            allow_links=self.allow_links,
            gene_names=self.gene_names,
        )

    def source(self) -> Source:
        """Return where the counts are kept."""
        return Source(self.residence, self.memory_limit)


class Querying(State):
    """The part of `Model` that maps new data onto a reference."""

    @classmethod
    def load_query(
        cls,
        data: Any,
        reference: Any,
        *,
        batch_key: str | Sequence[str] | None = None,
        freeze: bool | str = True,
        layer: str | None = None,
        use_raw: bool = False,
        genome: str | None = None,
        min_genes: float = 0.1,
        batch_key_of: Mapping[str, str] | None = None,
        device: str | torch.device = "auto",
        residence: str = "auto",
        memory_limit: int | str | None = None,
        batch_per_file: str | None = None,
        allow_fractional: bool | None = None,
        allow_links: bool = False,
        gene_names: str | None = None,
    ) -> Self:
        """Make a model of `data` with the weights of a trained reference, wider by new batches.

        Batches are matched by name. A new one gets columns of its own in the decoder (with
        ``encode_covariates`` in the encoders too, and in a dispersion per batch), which begin as
        the mean of those of the reference, and a prior of the library size from its cells. `fit`
        then trains what is not frozen; before that the model answers as the reference would. The
        reference itself is not changed.

        Parameters
        ----------
        data
            The query, of any kind that `Model` takes. Genes are matched by their ids, or by name:
            those that the reference does not have are left out, those that are missing count as
            zero.
        reference
            A trained model, or the folder that it was saved to.
        batch_key
            Column of obs with the batch, or several, whose combinations are; None is that of the
            reference.
        freeze
            What `fit` leaves bit-equal, batch normalisation included. True: everything but the
            new columns; unless the reference was made with ``encode_covariates``, the encoder is
            never told the batch, so all latent positions are those of the reference. "decoder":
            the encoders are trained too, so that the query moves to where the reference's decoder
            explains it; embed the reference's cells with the reference. "encoder": all of the
            decoder is trained, and of the encoders only new columns. False: everything is trained.
        gene_names
            Column of ``var`` of `data` that names the genes; that of the reference, or the index
            of data without it.
        layer, use_raw, genome, allow_fractional, allow_links
            Where the counts are in `data`, and whether they may be other than whole numbers; as
            the reference had them if none is given. Data with a single matrix may have it
            elsewhere.
        min_genes
            Refuse data with a smaller share of the reference's genes.
        batch_key_of, batch_per_file, residence, memory_limit
            As in `Model`. Files are batches without being asked for where those of the reference
            were; one that has the name of a batch of the reference is of that batch.
        device
            Where the network goes, as in `fit`.

        Returns
        -------
        Model
            Its ``origin`` says what was matched; it is saved with it.

        Raises
        ------
        InputError
            The reference is not trained, there is nothing to train, or the data do not fit.

        Warns
        -----
        UserWarning
            More than a fifth of the reference's genes are missing.

        Notes
        -----
        The idea is that of scArches (Lotfollahi et al. 2022). There, as scvi-tools does it, the
        columns of old batches move as well, and weight decay moves every weight.
        """
        return _mapped(cls, data, reference, picked(Query, locals()))

    def map_query(
        self,
        data: Any,
        *,
        batch_key: str | Sequence[str] | None = None,
        freeze: bool | str = True,
        layer: str | None = None,
        use_raw: bool = False,
        genome: str | None = None,
        min_genes: float = 0.1,
        batch_key_of: Mapping[str, str] | None = None,
        device: str | torch.device = "auto",
        residence: str = "auto",
        memory_limit: int | str | None = None,
        batch_per_file: str | None = None,
        allow_fractional: bool | None = None,
        allow_links: bool = False,
        gene_names: str | None = None,
        **fit: Any,
    ) -> Self:
        """Map `data` onto this model and train what is new: `load_query`, then `fit`.

        Parameters
        ----------
        data, batch_key, freeze, layer, use_raw, genome, min_genes, batch_key_of, residence, \
memory_limit, device, batch_per_file, allow_fractional, allow_links, gene_names
            As in `load_query`.
        **fit
            As in `fit`, except that the KL divergence has its full weight from the beginning
            (``n_epochs_kl_warmup=None``): the latent space is there already.

        Returns
        -------
        Model
            A new one; this one is left as it is.

        Raises
        ------
        InputError
            As `load_query` and `fit`.
        """
        trainable: Any = _mapped(type(self), data, self, picked(Query, locals()))
        result: Self = trainable.fit(**{"n_epochs_kl_warmup": None, "device": device, **fit})
        return result


def _mapped(cls: Any, data: Any, reference: Any, query: Query) -> Any:
    """Make a model of class `cls`; see `Querying.load_query`."""
    known, name = _reference(cls, reference, query.device)
    setup = known._setup
    key = key_of_files(data, query.batch_key, query.batch_per_file) or setup.batch_key
    slot = slot_of(setup.slot, query.reading())
    store, frames = open_data(data, _wanted(query, setup, key, fitting(slot, data)), query.source())
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
        warnings.warn(missing_text(genes, len(setup.gene_names)), UserWarning, stacklevel=3)
    state = known.module.state_dict()
    model = cls._with_weights(
        wide, widened(setup, wide, state), device=query.device, is_trained=True
    )
    model.origin = {
        "mapped_onto": name,
        "reference_sha256": _digest(state),
        "freeze": query.freeze,
        "reference_columns": len(wide.batch_categories) - len(new),
        "new_batches": new,
        "known_batches": [name for name in store.batch_categories if name not in new],
        **genes.as_dict(),
    }
    model._attach(_recoded(store, wide), frames)
    model._residence = query.residence
    return model


def _wanted(query: Query, setup: Setup, key: Key | None, slot: Slot) -> Wanted:
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
        batch_key_of=batch_keys(query.batch_key_of),
        file_batches=file_batches,
        label_categories=setup.label_categories if labelled else None,
        gene_names=setup.gene_names,
        gene_ids=setup.gene_ids,
        may_lack=MayLack(setup.gene_names, fewest),
    )


def _reference(cls: Any, reference: Any, device: Any) -> tuple[Any, str]:
    if isinstance(reference, (str, os.PathLike)):
        reference = file_path("reference", reference)
        name = str(reference)
        try:
            reference = cls.load(reference, device="cpu")
        except InputError as error:
            raise InputError(f"reference: {error}") from error
    elif isinstance(reference, State):
        name = "a model in memory"
    else:
        raise InputError(
            "reference must be a trained fastvae.Model or the folder it was saved to, not "
            f"{type(reference).__name__}"
        )
    if not reference.is_trained:
        raise InputError("the reference has not been trained yet; call fit() on it first")
    return reference, name


def _digest(state: Mapping[str, torch.Tensor]) -> str:
    """The beginning of a SHA-256 of all weights, by name."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _recoded(store: Store, setup: Setup) -> Store:
    """The same cells, with the batch codes and library statistics of `setup`."""
    position = {name: code for code, name in enumerate(setup.batch_categories)}
    codes = store.batch_codes
    if store.batch_categories:
        table = np.array([position[name] for name in store.batch_categories], dtype=np.int64)
        codes = table[codes]
    return replace(
        store,
        batch_codes=codes,
        batch_categories=setup.batch_categories,
        log_library_mean=np.asarray(setup.log_library_mean, dtype=np.float32),
        log_library_var=np.asarray(setup.log_library_var, dtype=np.float32),
    )


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


UNNAMED = "reference"
"""The batch of the cells of a reference that had no batch key."""


def extended_setup(setup: Setup, store: Store, batch_key: Key | None, slot: Slot) -> Setup:
    """Return the setup of a reference with the batches of a query added behind its own.

    Parameters
    ----------
    setup
        Of the reference.
    store
        The query, with its own batch codes.
    batch_key, slot
        Of the query.

    Raises
    ------
    InputError
        The reference has batches and the query has no column for them, or a batch of the query
        has the name that stands for all cells of a reference without batches.
    """
    if batch_key is None:
        return replace(setup, slot=slot)
    known = setup.batch_categories if setup.batch_key is not None else (UNNAMED,)
    if setup.batch_key is None and UNNAMED in store.batch_categories:
        raise InputError(
            f"{in_words(batch_key)} has the batch {UNNAMED!r}, the name that the cells of a "
            "reference without batches get; rename it"
        )
    new = [code for code, name in enumerate(store.batch_categories) if name not in known]
    means, variances = store.log_library_mean.reshape(-1), store.log_library_var.reshape(-1)
    return replace(
        setup,
        batch_key=batch_key,
        slot=slot,
        batch_categories=(*known, *(store.batch_categories[code] for code in new)),
        log_library_mean=(*setup.log_library_mean, *(float(means[code]) for code in new)),
        log_library_var=(*setup.log_library_var, *(float(variances[code]) for code in new)),
    )


def widened(old: Setup, new: Setup, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state of the network of `new`, with every weight of the old one bit-equal.

    The column of a new batch is the mean of those of the old ones. A reference with one batch has
    none: its column, and those of new batches, are zeros, which leaves it as it was.
    """
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in new.build().state_dict().items()}
    result = {}
    for name, weight in state.items():
        n_more = shapes[name][-1] - weight.shape[-1] if weight.dim() else 0
        if n_more == 0:
            result[name] = weight.detach().clone()
            continue
        n_old = len(old.batch_categories)
        columns = weight[:, -n_old:] if n_old > 1 or name == "px_r" else None
        if columns is None:
            more = weight.new_zeros(weight.shape[0], n_more)
        else:
            more = columns.mean(dim=1, keepdim=True).expand(-1, n_more)
        result[name] = torch.cat([weight.detach(), more.detach()], dim=1)
    return result
