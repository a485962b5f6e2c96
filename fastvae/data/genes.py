"""Match the genes of data to those of a model, by stable ids, else by name."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from .._words import a_few, make_unique, those_there
from ..errors import InputError, shown
from .categories import category_name

if TYPE_CHECKING:
    import pandas as pd

ID_COLUMNS = ("gene_ids", "gene_id", "ensembl_id", "ensembl_gene_id", "ensembl", "feature_id")
"""Columns of var that are looked at for stable ids, the first that is there."""

FORMER = "var_names"
"""The column of var with the names that genes had before those of another column."""

_ENSEMBL = re.compile(r"(ENS[A-Z]*G\d{6,}|FBgn\d{5,}|WBGene\d{6,})(\.\d+)?")
_MOST = 0.9
_NUMBERED = re.compile(r"(.+)-\d+")


@dataclass(frozen=True)
class MayLack:
    """Which of the requested genes data may lack; these get zero counts.

    Attributes
    ----------
    genes
        Their names.
    least
        How many of the requested genes must be there all the same.
    """

    genes: Collection[str] = field(default_factory=frozenset)
    least: int = 0

    def allows(self, missing: Sequence[str], n_wanted: int) -> bool:
        """Whether `missing` of `n_wanted` genes may be."""
        allowed = set(self.genes)
        return n_wanted - len(missing) >= self.least and all(name in allowed for name in missing)

    def too_few(self, missing: Sequence[str], n_wanted: int) -> bool:
        """Whether they may not, because fewer than `least` are there."""
        return bool(self.genes) and n_wanted - len(missing) < self.least


STRICT = MayLack()
"""No gene may be missing."""


@dataclass(frozen=True, eq=False)
class Genes:
    """The genes of a data set or a model.

    Attributes
    ----------
    names
        Each once.
    ids
        As many stable ids, "" where there is none; or none at all.
    """

    names: Sequence[str]
    ids: Sequence[str] = ()

    @classmethod
    def of(cls, var: pd.DataFrame) -> Genes:
        """Return the genes of `var`: names from its index, ids from one of `ID_COLUMNS`."""
        names = [str(name) for name in var.index]
        for column in ID_COLUMNS:
            if column in var.columns:
                return cls(names, _clean(var[column]))
        if FORMER in var.columns and _are_ids(former := _clean(var[FORMER])):
            return cls(names, former)
        return cls(names, names if _are_ids(names) else ())

    @classmethod
    def of_model(cls, names: Iterable[Any], ids: Sequence[str] | None = None) -> Genes:
        """Return genes of these names and ids; without ids the names are, where they are ids."""
        texts = [str(name) for name in names]
        return cls(texts, ids or (texts if _are_ids(texts) else ()))

    @cached_property
    def stable(self) -> list[str]:
        """Ids without their versions; "" where there is none, or where several genes have it."""
        stable = [_without_version(name) for name in self.ids] or [""] * len(self.names)
        seen: dict[str, int] = {}
        for name in stable:
            seen[name] = seen.get(name, 0) + 1
        return [name if seen[name] == 1 else "" for name in stable]

    @cached_property
    def shared_symbols(self) -> set[str]:
        """Names that are a symbol of several genes, numbered from the second on: A and A-1."""
        names = set(self.names)
        found: set[str] = set()
        for name in self.names:
            numbered = _NUMBERED.fullmatch(name)
            if numbered and numbered[1] in names:
                found.update((name, numbered[1]))
        return found

    def with_ids_of(self, other: Genes) -> Genes:
        """Return these genes, with the ids that `other` has for their names if they have none."""
        if self.ids or not other.ids:
            return self
        known = dict(zip(other.names, other.ids, strict=True))
        return Genes(self.names, [known.get(name, "") for name in self.names])


def named(
    var: pd.DataFrame, column: str | None, source: str, *, required: bool = True
) -> pd.DataFrame:
    """Return `var` with the values of a column as its index.

    Genes without a value keep their name, values that several genes have are numbered. The former
    names are in a column `FORMER`, where there is none of that name.

    Parameters
    ----------
    var
        One row per gene.
    column
        None leaves `var` as it is.
    source
        What messages call it.
    required
        Refuse data without the column; otherwise they are left as they are.

    Raises
    ------
    InputError
        There is no such column.
    """
    import pandas as pd

    if column is None or column == var.index.name:
        return var
    if column not in var.columns:
        if not required:
            return var
        columns = [str(name) for name in var.columns]
        raise InputError(
            f"var of {source} has no column {shown(column)} (gene_names=); "
            f"{those_there(columns, str(column), 'no columns')}"
        )
    former = [str(name) for name in var.index]
    known = var[column].notna() & (var[column].astype(str) != "")
    names = [
        category_name(value) if there else name
        for value, there, name in zip(var[column], known, former, strict=True)
    ]
    frame = var.copy()
    if FORMER not in frame.columns:
        frame[FORMER] = former
    frame.index = pd.Index(make_unique(names), dtype=object)
    return frame


def ids_of(var: pd.DataFrame, names: Iterable[Any]) -> tuple[str, ...]:
    """Return the ids that `var` has for genes, "" for none of one; nothing where it has no ids."""
    have, wanted = Genes.of(var), Genes.of_model(names)
    if not have.ids:
        return ()
    return tuple(have.ids[int(i)] if i >= 0 else "" for i in columns_of(wanted, have))


def columns_of(wanted: Genes, have: Genes, source: str = "", *, warn: bool = False) -> np.ndarray:
    """Return the position in `have` of each of the genes `wanted`.

    Genes are the same that have the same id, whatever their names; where that is not known of
    both, or no gene has the id, those of one name. A symbol of several genes is no name for one of
    them if their ids differ.

    Parameters
    ----------
    wanted, have
        Names and ids.
    source
        Where `have` is from, for messages.
    warn
        Say which genes are matched in ways that may be wrong.

    Returns
    -------
    ndarray
        (len(wanted),) int64: numbers of genes of `have`, -1 where it has none.

    Raises
    ------
    InputError
        Ids and names contradict each other for most genes.

    Warns
    -----
    UserWarning
        Genes are matched by the numbered names of shared symbols, by an id of another version, by
        name though their ids differ, or by id though another gene has the name.
    """
    by_id = {gene: column for column, gene in enumerate(have.stable) if gene}
    by_name = {name: column for column, name in enumerate(have.names)}
    shared = wanted.shared_symbols | have.shared_symbols
    found = np.array(
        [by_id.get(gene, -1) if gene else -1 for gene in wanted.stable], dtype=np.int64
    )
    named = np.array([by_name.get(name, -1) for name in wanted.names], dtype=np.int64)
    unique = np.array([name not in shared for name in wanted.names], dtype=bool)
    both = (found >= 0) & (named >= 0) & unique
    contrary = both & (found != named)
    if contrary.sum() > max(1, both.sum() / 2):
        example = int(np.argmax(contrary))
        raise InputError(
            f"ids and names of genes in {source or 'the data'} contradict those wanted: of "
            f"{both.sum()} genes {contrary.sum()} have the id of one and the name of another "
            f"({wanted.names[example]!r} has the id of {have.names[int(found[example])]!r}); "
            f"correct or remove the column of ids ({', '.join(ID_COLUMNS[:3])} ...)"
        )
    free = np.ones(len(have.names) + 1, dtype=bool)
    free[found] = False
    rest = (found < 0) & (named >= 0) & free[named]
    with_ids = np.array([bool(gene) for gene in wanted.stable], dtype=bool)
    with_ids &= np.array([bool(gene) for gene in have.stable], dtype=bool)[named] & (named >= 0)
    rest &= unique | ~with_ids
    found[rest] = named[rest]
    if warn:
        _warn(wanted, have, source, found, {
            "unsure": rest & ~unique,
            "renamed ids": rest & with_ids,
            "contrary": contrary,
        })  # fmt: skip
    return found


def select_genes(
    counts: sp.csr_matrix,
    have: Genes,
    wanted: Genes,
    var: pd.DataFrame,
    may_lack: MayLack = STRICT,
    *,
    warn: bool = False,
) -> sp.csr_matrix:
    """Return the columns of the genes `wanted`, in their order; genes that may be missing are zero.

    Raises
    ------
    InputError
        Genes are missing that must be there.
    """
    found = columns_of(wanted, have, "the data", warn=warn)
    if np.array_equal(found, np.arange(counts.shape[1])):
        return counts
    missing = [name for name, column in zip(wanted.names, found, strict=True) if column < 0]
    if not may_lack.allows(missing, len(wanted.names)):
        raise InputError(refusal("the data", have, missing, wanted, var, may_lack))
    selected = counts[:, found[found >= 0]]
    if missing:
        there = np.flatnonzero(found >= 0).astype(selected.indices.dtype)
        arrays = (selected.data, there[selected.indices], selected.indptr)
        selected = sp.csr_matrix(arrays, shape=(counts.shape[0], len(wanted.names)))
    selected.sort_indices()
    return selected


def refusal(
    source: str,
    have: Genes,
    missing: Sequence[str],
    wanted: Genes,
    var: pd.DataFrame,
    may_lack: MayLack = STRICT,
) -> str:
    """Say which genes are missing, and where their names may be found."""
    n_wanted = len(wanted.names)
    found_hint = hint(source, have, missing, wanted, var)
    if may_lack.too_few(missing, n_wanted):
        text = (
            f"{n_wanted - len(missing)} of the {n_wanted} genes of the reference are in "
            f"{source}, and at least {may_lack.least} are needed: its genes begin with "
            f"{a_few(have.names, 3)}, those of the reference with {a_few(wanted.names, 3)}"
        )
        return text + (found_hint or "; give both the same kind of gene names")
    more = [name for name in missing if name not in set(may_lack.genes)]
    text = f"{len(more)} of the model's {n_wanted} genes are not in {source}: {a_few(more)}"
    return text + (
        found_hint or "; use the data it was trained on, or data aligned to the same annotation"
    )


def hint(source: str, have: Genes, missing: Sequence[str], wanted: Genes, var: pd.DataFrame) -> str:
    """Say why most of the genes that are missing may be there under other names, and what to do."""
    lost = set(missing)
    for column in var.columns:
        if len(lost.intersection(var[column].astype(str))) > len(lost) / 2:
            return f"; var[{column!r}] has them: pass gene_names={column!r}"
    by_case = {name.casefold(): name for name in have.names}
    alike = [name for name in missing if name.casefold() in by_case]
    if len(alike) > len(lost) / 2:
        return (
            f"; they are there in other letters ({by_case[alike[0].casefold()]!r} for "
            f"{alike[0]!r}): human symbols are written ACTB, mouse symbols Actb. Write both alike "
            "if the species is the same; if not, name the genes by their orthologs"
        )
    kinds = [_are_ids(wanted.names), _are_ids(have.names)]
    species = [_species(genes.ids or genes.names) for genes in (wanted, have)]
    if all(species) and species[0] != species[1]:
        return (
            f"; its ids are of another species ({species[1]}... for {species[0]}...): name the "
            "genes by their orthologs"
        )
    if kinds == [True, False]:
        return (
            f"; ids are wanted, and the genes of {source} have symbols: pass gene_names=, the "
            f"column of var that has ids, or add one ({ID_COLUMNS[0]!r})"
        )
    if kinds == [False, True]:
        return (
            f"; symbols are wanted, and the genes of {source} have ids: pass gene_names=, the "
            "column of var that has symbols, or add one"
        )
    return ""


def _warn(
    wanted: Genes, have: Genes, source: str, found: np.ndarray, ways: dict[str, np.ndarray]
) -> None:
    def names(which: np.ndarray) -> str:
        return a_few([wanted.names[int(i)] for i in np.flatnonzero(which)])

    unsure, renamed, contrary = ways["unsure"], ways["renamed ids"], ways["contrary"]
    source = source or "the data"
    same = len(have.names) == len(wanted.names) and np.array_equal(found, np.arange(len(found)))
    if unsure.any() and not same:
        _say(
            f"{source}: {unsure.sum()} genes are matched by symbols that several genes have, "
            f"numbered in an order that may differ: {names(unsure)}; give all data a column of ids "
            f"in var ({ID_COLUMNS[0]!r}), or leave these genes out (genes=)"
        )
    if renamed.any():
        _say(
            f"{source}: {renamed.sum()} genes are matched by name though their ids differ: "
            f"{names(renamed)}; they are from another annotation"
        )
    if contrary.any():
        _say(
            f"{source}: {contrary.sum()} genes are matched by id though another has their name: "
            f"{names(contrary)}"
        )
    if wanted.ids and have.ids:
        pairs = [(wanted.ids[i], have.ids[j]) for i, j in enumerate(found) if j >= 0]
        other = [pair for pair in pairs if pair[0] != pair[1] and _versioned(pair)]
        if other:
            _say(
                f"{source}: {len(other)} genes are matched by ids of another version, such as "
                f"{other[0][1]!r} for {other[0][0]!r}"
            )


def _say(text: str) -> None:
    warnings.warn(text, UserWarning, stacklevel=4)


def _versioned(pair: tuple[str, str]) -> bool:
    return _without_version(pair[0]) == _without_version(pair[1]) != ""


def _without_version(name: str) -> str:
    found = _ENSEMBL.fullmatch(name)
    return found[1] if found else name


def _are_ids(names: Sequence[str]) -> bool:
    return len(names) > 0 and sum(
        _ENSEMBL.fullmatch(str(name)) is not None for name in names
    ) > _MOST * len(names)


def _species(ids: Sequence[str]) -> str:
    """Prefix of the Ensembl ids; "" where they are no Ensembl ids, or of several species."""
    found = {re.sub(r"\d.*", "", name) for name in ids if _ENSEMBL.fullmatch(name)}
    return found.pop() if len(found) == 1 else ""


def _clean(column: Any) -> list[str] | tuple[()]:
    """Ids of a column of var as text, "" where missing; nothing where they are mere numbers."""
    values = [
        "" if missing else str(value) for value, missing in zip(column, column.isna(), strict=True)
    ]
    numbers = sum(value.replace(".", "").isdigit() for value in values)
    return () if numbers > len(values) / 2 else values
