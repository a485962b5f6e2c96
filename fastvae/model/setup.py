"""A model without its weights: its options, and the genes, batches and labels that it knows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch

from .._words import a_few
from ..data.covariates import CovariateKeys
from ..data.file_names import FileBatches
from ..data.genes import MayLack, ids_of
from ..data.keys import Key, in_words
from ..data.opening import FileFrames, Frames, open_data
from ..data.request import Source, Wanted
from ..data.sources.slots import Slot
from ..data.stores.store import Store
from ..errors import InputError, real_number, shown, text, true_or_false, whole_number
from ..vae.semi_supervised import SemiSupervisedVAE, check_options
from ..vae.vae import VAE
from .labels import SemiSupervision
from .new_data import fitting, slot_of

WIDEST, DEEPEST = 100_000, 100
"""Largest width and number of hidden layers: more than anyone trains, and small enough to build."""


def batch_keys(given: Any) -> dict[str, str]:
    """Return ``batch_key_of``: file names to columns.

    Raises
    ------
    InputError
        It is no dictionary, or holds something else.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise InputError(
            f"batch_key_of must be a dictionary from file names to columns, not {shown(given)}"
        )
    for file, column in given.items():
        text("batch_key_of", file, "a dictionary with the names of files as keys")
        text(f"batch_key_of[{file!r}]", column, "the name of a column of obs")
    return dict(given)


@dataclass(frozen=True)
class Options:
    """The constructor's arguments that shape the network.

    Raises
    ------
    InputError
        A number out of range, or a word that is not known.
    """

    n_latent: int = 10
    n_hidden: int = 128
    n_layers: int = 1
    dropout_rate: float = 0.1
    dispersion: str = "gene"
    reconstruction_loss: str = "zinb"
    latent_distribution: str = "normal"
    use_observed_lib_size: bool = True
    encode_covariates: bool = False
    deeply_inject_covariates: bool = True

    def __post_init__(self) -> None:
        for name, most in (("n_latent", WIDEST), ("n_hidden", WIDEST), ("n_layers", DEEPEST)):
            number = whole_number(name, getattr(self, name), minimum=1, maximum=most)
            object.__setattr__(self, name, number)
        rate = real_number("dropout_rate", self.dropout_rate, below=1.0)
        object.__setattr__(self, "dropout_rate", rate)
        for name in ("dispersion", "reconstruction_loss", "latent_distribution"):
            text(name, getattr(self, name), "a word")  # which one is checked by the network
        for name in ("use_observed_lib_size", "encode_covariates", "deeply_inject_covariates"):
            object.__setattr__(self, name, true_or_false(name, getattr(self, name)))
        with torch.device("meta"):  # the words are checked where they are used
            VAE(2, n_batch=2, n_labels=2, check_counts=False, **asdict(self))

    def check_keys(
        self, batch_key: Key | None, labels_key: Key | None, covariates: CovariateKeys
    ) -> None:
        """Refuse options that do not fit the columns of obs that are given."""
        some = batch_key is not None or covariates.categorical or covariates.continuous
        if self.encode_covariates and not some:
            raise InputError(
                "encode_covariates=True tells the encoders the batch, which needs batch_key, the "
                "column of obs with the batch, or covariates; give batch_key or leave "
                "encode_covariates out"
            )
        if covariates.size_factor is not None and not self.use_observed_lib_size:
            raise InputError(
                "size_factor_key takes the place of the library size, which is then not learned; "
                "leave out use_observed_lib_size=False or size_factor_key"
            )
        needs = {"gene-batch": ("batch_key", batch_key), "gene-label": ("labels_key", labels_key)}
        name, key = needs.get(self.dispersion, ("", ""))
        if key is None:
            raise InputError(
                f"dispersion={self.dispersion!r} needs {name}, the column of obs with one "
                f"dispersion per category; give {name} or use dispersion='gene'"
            )


@dataclass(frozen=True)
class Setup:
    """Options, and what data must have for the model to read them."""

    options: Options
    batch_key: Key | None
    labels_key: Key | None
    slot: Slot
    gene_names: tuple[str, ...]
    batch_categories: tuple[str, ...]
    label_categories: tuple[str, ...]
    log_library_mean: tuple[float, ...]
    log_library_var: tuple[float, ...]
    may_lack: tuple[str, ...] = ()
    """Genes that data may lack, because the query that was mapped onto a reference lacked them."""
    gene_ids: tuple[str, ...] = ()
    """Stable ids of the genes, "" for a gene without; empty in models saved before ids were."""
    batch_per_file: bool = False
    """Whether each file without the column `batch_key` is a batch, by its name."""
    file_tail: tuple[str, ...] = ()
    """The last parts that the paths of all files had in common."""
    covariates: CovariateKeys = field(default_factory=CovariateKeys)
    """Columns of obs with covariates and size factors."""
    covariate_categories: tuple[tuple[str, ...], ...] = ()
    """Categories of each categorical covariate."""
    semi_supervision: SemiSupervision | None = None
    """How labels are learned; None for a model that gives none. `label_categories` are then the
    labels that it gives."""

    def file_batches(self) -> FileBatches | None:
        """Return the rule by which files are batches, None where they are not."""
        return FileBatches(self.batch_categories, self.file_tail) if self.batch_per_file else None

    @classmethod
    def of(
        cls,
        options: Options,
        store: Store,
        batch_key: Key | None,
        labels_key: Key | None,
        slot: Slot,
        frames: Frames,
        covariates: CovariateKeys,
        semi_supervision: SemiSupervision | None = None,
    ) -> Setup:
        """Describe the data that a new model is made for."""
        labels = tuple(store.label_categories)
        if semi_supervision is not None and labels_key is not None:
            check_options(asdict(options))
            labels = semi_supervision.labels_among(labels, labels_key)
        per_file = isinstance(frames, FileFrames) and frames.batch_per_file
        return cls(
            options=options,
            batch_key=batch_key,
            labels_key=labels_key,
            slot=slot,
            gene_names=tuple(map(str, store.gene_names)),
            gene_ids=ids_of(frames.var, store.gene_names),
            batch_categories=tuple(store.batch_categories),
            label_categories=labels,
            log_library_mean=tuple(map(float, np.ravel(store.log_library_mean))),
            log_library_var=tuple(map(float, np.ravel(store.log_library_var))),
            batch_per_file=per_file,
            file_tail=frames.tail if isinstance(frames, FileFrames) and per_file else (),
            covariates=covariates,
            covariate_categories=store.covariate_categories,
            semi_supervision=semi_supervision,
        )

    def build(self) -> VAE:
        """Make the network; its weights come from torch's generator."""
        options: dict[str, Any] = {
            "n_batch": len(self.batch_categories) if self.batch_key is not None else 0,
            "n_labels": len(self.label_categories) if self.labels_key is not None else 0,
            "check_counts": False,  # the store has checked them
            "n_cats_per_cov": [len(names) for names in self.covariate_categories],
            "n_continuous_cov": len(self.covariates.continuous),
            "use_size_factor_key": self.covariates.size_factor is not None,
            **asdict(self.options),
        }
        how = self.semi_supervision
        if how is None:
            return VAE(len(self.gene_names), **options)
        linear = how.linear_classifier
        return SemiSupervisedVAE(len(self.gene_names), linear_classifier=linear, **options)

    def store_of(
        self,
        data: Any,
        source: Source | None = None,
        reading: Mapping[str, Any] | None = None,
        *,
        by_counts: bool = False,
    ) -> tuple[Store, Frames]:
        """Read `data` and bring its genes and categories into the model's order.

        Labels are read only if the model uses them. Library statistics are those of the data that
        the model was made for. `reading` says how the data are read: see `Reading`. With
        `by_counts` batches, labels and covariates may be unknown or missing, since only the counts
        are used.

        Returns
        -------
        tuple
            The store, and obs and var.
        """
        labelled = self.options.dispersion == "gene-label"
        wanted = Wanted(
            slot=fitting(slot_of(self.slot, reading or {}), data),
            batch_key=self.batch_key,
            labels_key=self.labels_key if labelled else None,
            covariates=self.covariates,
            batch_key_of=dict((reading or {}).get("batch_key_of") or {}),
            file_batches=self.file_batches(),
            batch_categories=self.batch_categories if self.batch_key is not None else None,
            label_categories=self.label_categories if labelled else None,
            covariate_categories=self.covariate_categories,
            gene_names=self.gene_names,
            gene_ids=self.gene_ids,
            may_lack=MayLack(self.may_lack),
            by_counts=by_counts,
        )
        store, frames = open_data(data, wanted, source or Source())
        if by_counts:
            return store, frames
        mean = np.asarray(self.log_library_mean, dtype=np.float32)
        var = np.asarray(self.log_library_var, dtype=np.float32)
        shape = np.shape(store.log_library_mean)
        store = replace(
            store, log_library_mean=mean.reshape(shape), log_library_var=var.reshape(shape)
        )
        return store, frames

    def library_in_words(self) -> str:
        """Say what expression is multiplied by."""
        if self.covariates.size_factor is not None:
            return f"size factors of {in_words(self.covariates.size_factor)}"
        return f"{'observed' if self.options.use_observed_lib_size else 'learned'} library size"

    def labels_line(self) -> str | None:
        """Describe the labels; None without a column of them."""
        if self.labels_key is None:
            return None
        line = f"{len(self.label_categories)} labels in {in_words(self.labels_key)}"
        if self.semi_supervision is None:
            return line
        unknown = self.semi_supervision.unlabeled_category
        return f"{line}, learned and predicted; {unknown!r} is unknown"

    def covariate_lines(self) -> list[str]:
        """Describe the covariates, a line for each kind."""
        told = " (told to the encoders too)" if self.options.encode_covariates else ""
        lines = []
        if self.covariates.categorical:
            each = zip(self.covariates.categorical, self.covariate_categories, strict=True)
            named = ", ".join(f"{in_words(key)} ({len(names)} categories)" for key, names in each)
            lines.append(f"categorical covariates {named}{told}")
        if self.covariates.continuous:
            named = ", ".join(map(in_words, self.covariates.continuous))
            lines.append(f"continuous covariates {named}{told}")
        return lines

    def covariate_rows(self) -> list[tuple[str, str]]:
        """Return names and values of the covariates for a table; none where there are none."""
        each = zip(self.covariates.categorical, self.covariate_categories, strict=True)
        rows = [
            ("categorical covariate", f"{len(names)} in {in_words(key)}: {a_few(names, 12)}")
            for key, names in each
        ]
        rows += [("continuous covariate", in_words(key)) for key in self.covariates.continuous]
        if self.covariates.size_factor is not None:
            rows.append(("size factor", in_words(self.covariates.size_factor)))
        return rows

    def to_config(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        data = {name: getattr(self, name) for name in _DATA_FIELDS}
        how = self.semi_supervision
        return {
            "options": asdict(self.options),
            "slot": self.slot.to_config(),
            "data": data,
            "covariates": asdict(self.covariates),
            **({} if how is None else {"semi_supervision": asdict(how)}),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Setup:
        """Undo `to_config`; raises KeyError, TypeError or ValueError for anything else."""
        data = {name: _tuples(value) for name, value in config["data"].items()}
        covariates = {name: _tuples(value) for name, value in config.get("covariates", {}).items()}
        how = config.get("semi_supervision")
        return cls(
            options=Options(**config["options"]),
            slot=Slot(**config["slot"]),
            covariates=CovariateKeys(**covariates),
            semi_supervision=None if how is None else SemiSupervision(**how),
            **data,
        )


def _tuples(value: Any) -> Any:
    """Lists of JSON, and those within them, as tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


_DATA_FIELDS = tuple(
    one.name
    for one in fields(Setup)
    if one.name not in ("options", "slot", "covariates", "semi_supervision")
)
