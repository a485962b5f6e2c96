"""Many files as one data set: genes matched by name, categories joined, every count checked."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from .._words import a_few
from ..errors import InputError, size_text
from .checks import CountCheck, canonicalise
from .covariates import covariates_of_files
from .file_names import FileBatches, by_file, distinct_names
from .genes import STRICT, Genes, MayLack, columns_of, hint, refusal
from .keys import encode, join_codes
from .request import Wanted
from .sources.countfile import CountFile
from .sources.inputs import open_input
from .sources.matrix import ENTRY_BYTES, Entries
from .stores.disk import DiskStore, as_float32, distinct_cells
from .stores.host import CountStore
from .stores.store import library_statistics

FILE = "file"
"""The column of joined obs with the name of the file that each cell is from."""

_FEW_COMMON = 0.5
"""A smaller share of the genes of a file in common with the others is warned of."""
_CHECK_BYTES = 24 << 20
_LARGEST_POOL = 1 << 16
_LEAST_POOL = 1 << 10
_PROCESS_BYTES = 160 << 20  # network, optimiser, activations, threads' stacks
_CELL_BYTES = 72  # row offsets, codes, lengths, orders of an epoch
_POOL_COPIES = 6  # pools at once: trained on, ready, being read; and what is freed late
_BLOCKS_PER_POOL = 64


def open_files(paths: Sequence[Path], wanted: Wanted, memory: int | None) -> list[CountFile]:
    """Open every file; counts are read only of files that cannot be streamed.

    Each gets its name among the others, and where its batches are. `memory` is as `open_input` has
    it.

    Raises
    ------
    InputError
        One is given twice, or cannot be used; or batch keys that do not fit the files.
    """
    seen: set[Path] = set()
    for path in paths:
        if path.resolve() in seen:
            raise InputError(f"{path} is given twice; give each file once")
        seen.add(path.resolve())
    names = distinct_names(paths)
    batch_keys = by_file(wanted.batch_key_of, paths, names)
    files = [open_input(path, wanted.slot, memory) for path in paths]
    for file, name, batch_key in zip(files, names, batch_keys, strict=True):
        file.name, file.batch_key = name, batch_key or wanted.batch_key
    _name_batches(files, paths, wanted)
    return files


def _name_batches(files: Sequence[CountFile], paths: Sequence[Path], wanted: Wanted) -> None:
    """Give files a batch each where that is asked for, or "file" is asked for and no column."""
    rule, key = wanted.file_batches, wanted.batch_key
    if rule is None and key == FILE:
        rule = FileBatches(tuple(wanted.batch_categories or ()))
    if rule is None or key is None:
        return
    for file, name in zip(files, rule.names(paths), strict=True):
        if file.batch_key != key:
            continue
        if key not in file.columns():
            file.batch = name
        elif rule.strict:
            raise InputError(
                f"{file.source} has a column {key!r} in obs already, and batch_per_file={key!r} "
                f"makes a new one; give another name, or batch_key={key!r} to use it"
            )


def stream(
    files: Sequence[CountFile], wanted: Wanted, memory: int, *, workers: int = 1
) -> DiskStore:
    """Join files as one store, and read through them once to check every count.

    Parameters
    ----------
    files
        Opened.
    wanted
        Genes, batches, labels.
    memory
        Bytes that the process may take from now on.
    workers
        Threads that read ahead, 0 to 2; they change no order.

    Raises
    ------
    InputError
        Genes or categories that do not fit, values that are not counts, a damaged file, or too
        little memory.
    """
    found = _read_through(files, wanted, keep=False)
    pool, block = _pool(files, found.lengths, memory)
    return DiskStore(
        **found.annotation,
        files=tuple(files),
        gene_maps=found.gene_maps,
        cell_lengths=found.lengths,
        pool_size=pool,
        block_size=block,
        n_workers=min(workers, 2),
    )


def load(files: Sequence[CountFile], wanted: Wanted) -> CountStore:
    """Join files as one store in memory: each is read once, and its counts are checked.

    Raises
    ------
    InputError
        As `stream`, but for the memory: the counts do not fit.
    """
    found = _read_through(files, wanted, keep=True)
    columns, values = found.entries.finished()
    shape = len(found.lengths), len(found.annotation["gene_names"])
    crow = np.zeros(shape[0] + 1, dtype=np.int32 if len(values) < 2**31 else np.int64)
    np.cumsum(found.lengths, out=crow[1:])
    counts = sp.csr_matrix((values, columns, crow), shape=shape)
    counts.has_canonical_format = True
    cells = distinct_cells([file.cell_names() for file in files], files)
    return CountStore(**found.annotation, counts=counts, cell_names=cells)


def counts_bytes(files: Sequence[CountFile]) -> int:
    """About how many bytes all counts take in memory."""
    return sum(int(file.rows.bytes_before(file.n_cells)) // 2 for file in files)


class _Found(NamedTuple):
    """What reading files from first to last cell brings.

    `annotation` has the fields of every `Store`, `gene_maps` and `lengths` are those of a
    `DiskStore`, and `entries` are the counts, none unless they are to be kept.
    """

    annotation: dict[str, Any]
    gene_maps: tuple[np.ndarray | None, ...]
    lengths: np.ndarray
    entries: Entries


def _read_through(files: Sequence[CountFile], wanted: Wanted, *, keep: bool) -> _Found:
    """Match genes and categories, and read all counts once, to check them."""
    genes, gene_maps = match_genes(files, wanted.genes, wanted.may_lack)
    batch_codes, batches = _categories(files, wanted, "batch")
    label_codes, labels = _categories(files, wanted, "label")
    covariates, categories = covariates_of_files(
        [(file.source, file.column) for file in files],
        wanted.covariate_keys,
        wanted.covariate_categories,
    )
    n_cells, n_genes = len(batch_codes), len(genes.names)
    reading = f"reading {n_cells} cells x {n_genes} genes"
    entries = Entries(n_cells, lambda _: reading, counts_bytes(files) // ENTRY_BYTES)
    lengths, totals = [], []
    for file, gene_map in zip(files, gene_maps, strict=True):
        for matrix in _checked_strips(file, wanted.slot.allow_fractional):
            chosen = matrix if gene_map is None else _chosen(matrix, gene_map)
            lengths.append(np.diff(chosen.indptr).astype(np.int32))
            totals.append(np.asarray(chosen.sum(axis=1, dtype=np.float64)).ravel())
            if keep:
                entries.add(*_placed(chosen, gene_map, n_genes), chosen.shape[0])
    of_cells = np.concatenate(totals)
    mean, variance = library_statistics(of_cells, batch_codes, max(len(batches), 1))
    annotation = {
        "gene_names": np.array(genes.names, dtype=object),
        "batch_codes": batch_codes,
        "batch_categories": batches,
        "label_codes": label_codes,
        "label_categories": labels,
        "covariates": covariates,
        "covariate_categories": categories,
        "log_library_mean": mean,
        "log_library_var": variance,
    }
    return _Found(annotation, gene_maps, np.concatenate(lengths), entries)


def match_genes(
    files: Sequence[CountFile],
    wanted: Genes | None,
    may_lack: MayLack = STRICT,
    *,
    warn: bool = True,
) -> tuple[Genes, tuple[np.ndarray | None, ...]]:
    """Return the genes of the store, and for each file the column of each of its genes or -1.

    Without `wanted` they are those that all files have, in the order of the first file. The column
    is None where the genes of a file are those of the store, in their order.

    Parameters
    ----------
    files
        One or several.
    wanted
        Their names, and their ids where these are known; else the ids are those of the first file.
    may_lack
        Which of them may be missing.
    warn
        As in `columns_of`.

    Raises
    ------
    InputError
        Genes that are wanted and missing, or fewer than two in common.
    """
    if wanted is None:
        genes, columns = _common(files, warn)
    else:
        if len(set(wanted.names)) < len(wanted.names) or len(wanted.names) < 2:
            raise InputError(
                f"{len(set(wanted.names))} different genes are asked for by {len(wanted.names)} "
                "names; name at least two genes, each once"
            )
        given = bool(wanted.ids)
        genes, columns = wanted.with_ids_of(files[0].genes), []
        for number, file in enumerate(files):
            compare = warn and (given or number > 0)
            columns.append(columns_of(genes, file.genes, file.source, warn=compare))
            _check_missing(file, genes, columns[-1], may_lack)
    maps: list[np.ndarray | None] = []
    for file, of_file in zip(files, columns, strict=True):
        place = np.full(len(file.var_names), -1, dtype=np.int32)
        there = np.flatnonzero(of_file >= 0)
        place[of_file[there]] = there
        same = len(place) == len(genes.names) and np.array_equal(place, np.arange(len(place)))
        maps.append(None if same else place)
    return genes, tuple(maps)


def _common(files: Sequence[CountFile], warn: bool) -> tuple[Genes, list[np.ndarray]]:
    """Genes that all files have, and their columns in each."""
    first = files[0].genes
    columns = [np.arange(len(first.names))]
    kept = np.ones(len(first.names), dtype=bool)
    for file in files[1:]:
        columns.append(columns_of(first, file.genes, file.source, warn=warn))
        before, kept = kept, kept & (columns[-1] >= 0)
        n_common = int(np.count_nonzero(kept))
        fewest = min(int(np.count_nonzero(before)), len(file.var_names))
        if n_common >= max(2, _FEW_COMMON * fewest) or (not warn and n_common > 1):
            continue
        theirs = [name for name, there in zip(first.names, before, strict=True) if there]
        lost = [name for name, there in zip(first.names, kept, strict=True) if not there]
        reason = hint(file.source, file.genes, lost, first, file.var())
        begin = (
            f"its own begin with {a_few(file.var_names, 3)}, theirs with {a_few(sorted(theirs), 3)}"
        )
        text = f"{file.source} has {n_common} genes in common with the files before it ({begin})"
        if n_common < 2:
            raise InputError(f"{text}{reason or '; give all files the same kind of gene names'}")
        warnings.warn(f"{text}; the others are left out{reason}", UserWarning, stacklevel=3)
    rows = np.flatnonzero(kept).tolist()
    ids = [first.ids[row] for row in rows] if first.ids else ()
    return Genes([first.names[row] for row in rows], ids), [each[rows] for each in columns]


def _check_missing(file: CountFile, genes: Genes, found: np.ndarray, may_lack: MayLack) -> None:
    missing = [name for name, column in zip(genes.names, found, strict=True) if column < 0]
    if not missing:
        return
    var = file.var()
    if may_lack.too_few(missing, len(genes.names)):
        raise InputError(refusal(file.source, file.genes, missing, genes, var, may_lack))
    missing = [name for name in missing if name not in may_lack.genes]
    if missing:
        reason = hint(file.source, file.genes, missing, genes, var)
        raise InputError(
            f"{file.source} lacks {len(missing)} of the {len(genes.names)} genes wanted: "
            f"{a_few(missing)}{reason or '; leave the file or the genes out'}"
        )


def _categories(
    files: Sequence[CountFile], wanted: Wanted, what: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Codes of all cells; categories in the order in which the files bring them."""
    batch, key, known = what == "batch", wanted.key_of(what), wanted.known(what)
    if key is None and not known:
        return np.zeros(sum(file.n_cells for file in files), dtype=np.int64), ()
    parts = []
    for file in files:
        own = file.batch_key if batch and file.batch is None else key
        try:
            frame = file.batches(key) if batch else file.column(key)
            parts.append(encode(frame, own, known, what))
        except InputError as error:
            raise InputError(f"{file.source}: {error}") from error
    return join_codes(parts, known)


def _checked_strips(file: CountFile, allow_fractional: bool) -> Iterator[sp.csr_matrix]:
    """Read a file from first to last cell: canonical CSR float32, checked once all are read."""
    check = CountCheck(file.origin())
    clean = True
    for first, last in _strips(file):
        ((of_rows, columns, values),) = file.rows.read([(first, last)])
        crow = np.concatenate([[0], np.cumsum(of_rows)])
        matrix: Any = sp.csr_matrix(
            (as_float32(values), columns, crow), shape=(last - first, file.rows.shape[1])
        )
        if not matrix.has_canonical_format or not np.all(matrix.data):
            clean = False
            matrix = matrix.copy()
            canonicalise(matrix)
        if not file.checked:
            check.add(matrix)
        yield matrix
    file.clean = clean
    if not file.checked:
        check.finish(allow_fractional=allow_fractional)


def _chosen(matrix: sp.csr_matrix, gene_map: np.ndarray) -> sp.csr_matrix:
    """Return the entries of genes that the store has, in the columns of the file."""
    keep = gene_map[matrix.indices] >= 0
    before = np.concatenate([[0], np.cumsum(keep)])
    return sp.csr_matrix(
        (matrix.data[keep], matrix.indices[keep], before[matrix.indptr]), shape=matrix.shape
    )


def _placed(
    chosen: sp.csr_matrix, gene_map: np.ndarray | None, n_genes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return columns of the store and values, each row by column."""
    if gene_map is None:
        return chosen.indices, chosen.data
    shape = (chosen.shape[0], n_genes)
    placed = sp.csr_matrix((chosen.data, gene_map[chosen.indices], chosen.indptr), shape=shape)
    placed.sort_indices()
    return placed.indices, placed.data


def _strips(file: CountFile) -> list[tuple[int, int]]:
    ends = file.rows.bytes_before(np.arange(1, file.n_cells + 1))
    strips, first = [], 0
    while first < file.n_cells:
        limit = file.rows.bytes_before(first) + _CHECK_BYTES
        last = max(first + 1, int(np.searchsorted(ends, limit, side="right")))
        strips.append((first, last))
        first = last
    return strips


def _pool(files: Sequence[CountFile], lengths: np.ndarray, memory: int) -> tuple[int, int]:
    """How many cells are pooled and how many are read in one piece, within `memory`."""
    n_cells = len(lengths)
    bytes_per_cell = max(64.0, 8.0 * lengths.sum(dtype=np.int64) / n_cells)
    least = _PROCESS_BYTES + n_cells * _CELL_BYTES
    share = (memory - least) / _POOL_COPIES
    fitting = int(share / bytes_per_cell)
    if fitting < min(_LEAST_POOL, n_cells):
        needed = least + int(_POOL_COPIES * bytes_per_cell * min(_LEAST_POOL, n_cells))
        raise InputError(
            f"a memory limit of {size_text(memory)} is too little for {n_cells} cells from disk; "
            f"give at least {size_text(int(1.05 * needed))}"
        )
    # Powers of two, so that machines with about as much memory shuffle alike.
    pool = min(_LARGEST_POOL, 1 << (fitting.bit_length() - 1))
    natural = max(file.rows.natural_rows for file in files)
    return pool, max(1, min(natural, pool // _BLOCKS_PER_POOL))
