"""Which files of a folder belong together: a matrix, the names of its cells and of its genes.

Tools and archives name them differently:

| tool | matrix | cells | genes |
|---|---|---|---|
| Cell Ranger, STARsolo | matrix.mtx | barcodes.tsv | features.tsv or genes.tsv |
| GEO | GSM123_matrix.mtx | GSM123_barcodes.tsv | GSM123_features.tsv |
| kb-python | cells_x_genes.mtx | cells_x_genes.barcodes.txt | cells_x_genes.genes.txt |
| Parse Biosciences | DGE.mtx, count_matrix.mtx | cell_metadata.csv | all_genes.csv |
| alevin-fry | quants_mat.mtx | quants_mat_rows.txt | quants_mat_cols.txt |
"""

from __future__ import annotations

import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

from ..._words import a_few, those_there
from ...errors import InputError
from .hdf5 import reporting_damage

_MATRIX = re.compile(
    r"(?P<prefix>.*?)(?P<word>count_matrix|matrix|cells_x_genes|dge|quants_mat)?\.mtx", re.I
)
_NAMES = re.compile(
    r"(?:(?P<prefix>.*?)[._-])??"
    r"(?P<role>barcodes|cell_metadata|quants_mat_rows|cells|"
    r"features|all_genes|genes|quants_mat_cols|genes\.names)\.(tsv|txt|csv)",
    re.I,
)
_CELLS = ("barcodes", "cell_metadata", "quants_mat_rows", "cells")
_GENES = ("features", "genes", "all_genes", "quants_mat_cols")
_SYMBOLS = ("genes.names",)
_CELLS_IN_ROWS = ("cells_x_genes", "dge", "quants_mat")
_UNFILTERED = re.compile(r"unfiltered|(?<![a-z])raw(?![a-z])", re.I)
_DEEPEST = 6  # outs/per_sample_outs/S1/count/sample_filtered_feature_bc_matrix and one above
_MOST_FOLDERS = 5000


@dataclass(frozen=True)
class MtxFiles:
    """Files that belong together.

    Attributes
    ----------
    matrix, cells, genes
        The three.
    symbols
        Names of the genes, where they are in a file of their own.
    cells_in_rows
        Whether the tool that uses these names writes cells x genes.
    """

    matrix: Path
    cells: Path
    genes: Path
    symbols: Path | None
    cells_in_rows: bool


def is_mtx(path: Path) -> bool:
    """Whether `path` is named as a matrix-market file."""
    return _plain(path.name).lower().endswith(".mtx")


def matrix_with_prefix(path: Path) -> Path | None:
    """Return the one matrix of a folder whose name begins as `path` does, which is no file."""
    if not (path.name and path.parent.is_dir() and os.access(path.parent, os.R_OK | os.X_OK)):
        return None
    found = [p for p in _matrices_in(path.parent) if p.name.startswith(path.name)]
    return found[0] if len(found) == 1 else None


def find_mtx(path: Path, genome: str | None) -> MtxFiles:
    """Find the matrix in a folder or at a path, and the files that belong to it.

    Parameters
    ----------
    path
        A .mtx file, plain or compressed, or a folder with one in it or below it.
    genome
        Which of several folders of genomes.

    Raises
    ------
    InputError
        There is none, or several of which none is the filtered one of the others; or a file
        beside it is missing. The message says what is there and what to pass.
    """
    with reporting_damage(path):
        if path.is_dir():
            path = _choose_matrix(path, genome)
        elif not path.is_file():
            raise InputError(f"{path} is neither a file nor a folder; expected a matrix.mtx")
        return _beside(path)


def filtered_twin(path: Path) -> Path | None:
    """Return what holds the called cells of a file with all barcodes, if it is there."""
    for level in (path, path.parent, path.parent.parent):
        twin = level.parent / _as_filtered(level.name)
        if twin != level and twin.exists():
            return twin
    return None


def choose_genome(names: list[str], wanted: str | None, source: str) -> str:
    """Return the genome asked for, or the only one.

    Raises
    ------
    InputError
        It is not there, or there are several and none is asked for.
    """
    if wanted is not None:
        if wanted not in names:
            there = those_there(names, wanted, "no genomes named in it")
            raise InputError(f"{source} has no genome {wanted!r}; {there}")
        return wanted
    if len(names) > 1:
        raise InputError(
            f"{source} has {len(names)} genomes; {those_there(names)}; pass genome= to choose one"
        )
    return names[0]


def _choose_matrix(folder: Path, genome: str | None) -> Path:
    found = _matrices(folder)
    if not found:
        raise InputError(_nothing_in(folder))
    genomes = _genomes(folder, found)
    if genomes and (len(found) > 1 or genome is not None):
        return genomes[choose_genome(sorted(genomes), genome, str(folder))]
    twins = {matrix for matrix in found if _twin_among(matrix, folder, found)}
    kept = [matrix for matrix in found if matrix not in twins]
    if len(kept) > 1:
        raise InputError(_several_in(folder, kept))
    if twins:
        warnings.warn(
            f"{folder} holds {_folders_of(folder, found)}: reading the called cells, "
            f"{kept[0].parent}; pass {min(twins).parent} for all barcodes",
            UserWarning,
            stacklevel=2,
        )
    return kept[0]


def _matrices(folder: Path) -> list[Path]:
    """Return the matrices in the folder, or else those below it, nearest folders first."""
    found: list[Path] = []
    level, seen = [folder], {folder.resolve()}
    for _ in range(_DEEPEST):
        below: list[Path] = []
        for where in level:
            here = _matrices_in(where)
            found += here
            if not here and len(seen) < _MOST_FOLDERS:
                inner = {path.resolve(): path for path in reversed(_folders(where))}
                below += [path for key, path in sorted(inner.items()) if key not in seen]
                seen |= set(inner)
        if folder in (path.parent for path in found):
            break
        level = below
    return found


def _matrices_in(folder: Path) -> list[Path]:
    here = [path for path in _files(folder).values() if is_mtx(path)]
    plain = [path for path in here if _plain(path.name) == "matrix.mtx"]
    if plain and not any(_parts(path)[1] for path in here if path not in plain):
        return plain  # beside it STARsolo puts other ways to count, such as UniqueAndMult-EM.mtx
    return here


def _files(folder: Path) -> dict[str, Path]:
    """Return the files by their names without .gz; the plain one where both are there."""
    try:
        with os.scandir(folder) as entries:
            paths = [Path(entry.path) for entry in entries if entry.is_file()]
    except PermissionError as error:
        raise InputError(f"{folder} cannot be opened: no permission to read it") from error
    return {_plain(path.name): path for path in sorted(paths, reverse=True)}


def _folders(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        return sorted(
            Path(entry.path)
            for entry in entries
            if entry.is_dir() and not entry.name.startswith(".") and os.access(entry.path, os.R_OK)
        )


def _genomes(folder: Path, found: list[Path]) -> dict[str, Path]:
    """Return matrices by genome where the folder is Cell Ranger 2's: one folder per genome."""
    by_name = {matrix.parent.name: matrix for matrix in found}
    alike = all(
        matrix.parent.parent == folder
        and _plain(matrix.name) == "matrix.mtx"
        and "genes.tsv" in _files(matrix.parent)
        and _as_filtered(matrix.parent.name) == matrix.parent.name != "filtered"
        for matrix in found
    )
    return by_name if alike and len(by_name) == len(found) else {}


def _twin_among(matrix: Path, folder: Path, found: list[Path]) -> bool:
    """Whether the same matrix is there for the called cells alone."""
    within = matrix.relative_to(folder)
    twin = folder.joinpath(*map(_as_filtered, within.parts[:-1]), within.name)
    return twin != matrix and any(_plain(str(other)) == _plain(str(twin)) for other in found)


def _as_filtered(name: str) -> str:
    return _UNFILTERED.sub("filtered", name)


def _beside(matrix: Path) -> MtxFiles:
    files = _files(matrix.parent)
    named = {key: found for key in files if (found := _NAMES.fullmatch(key))}
    keys = _prefixes(matrix)
    own = _plain(matrix.name)
    others = [path for key, path in files.items() if is_mtx(path) and key != own]
    taken = {prefix for other in others for prefix in _prefixes(other)} - {""}

    def of_role(roles: tuple[str, ...]) -> Path | None:
        for prefix in (*keys, ""):
            for role in roles:
                for key, match in named.items():
                    if (match["prefix"] or "", match["role"].lower()) == (prefix, role):
                        return files[key]
        # One file for the whole folder, named after the series and not after a sample.
        rest = [
            files[key]
            for key, match in named.items()
            if match["role"].lower() in roles and (match["prefix"] or "") not in taken
        ]
        return rest[0] if len(rest) == 1 else None

    cells, genes = of_role(_CELLS), of_role(_GENES)
    if cells is None or genes is None:
        raise InputError(_missing(matrix, cells, genes, sorted(p.name for p in files.values())))
    in_rows = (
        _parts(matrix)[1] in _CELLS_IN_ROWS
        or "cells_x_genes" in matrix.name
        or "cell_metadata" in cells.name
        or "all_genes" in genes.name
    )
    return MtxFiles(matrix, cells, genes, of_role(_SYMBOLS), in_rows)


def _parts(matrix: Path) -> tuple[str, str]:
    """Return what stands before the word for a matrix, and that word or nothing."""
    match = _MATRIX.fullmatch(_plain(matrix.name))
    assert match is not None
    return match["prefix"], (match["word"] or "").lower()


def _prefixes(matrix: Path) -> list[str]:
    """Return what names of files that belong to `matrix` may begin with."""
    stem = _plain(matrix.name)[: -len(".mtx")]
    return list(dict.fromkeys([_parts(matrix)[0].rstrip("._-"), stem]))


def _plain(name: str) -> str:
    return name[:-3] if name.lower().endswith(".gz") else name


def _missing(matrix: Path, cells: Path | None, genes: Path | None, there: list[str]) -> str:
    prefix = _parts(matrix)[0] if _parts(matrix)[1] else ""
    wanted = [f"{prefix}barcodes.tsv"] * (cells is None)
    wanted += [f"{prefix}features.tsv or {prefix}genes.tsv"] * (genes is None)
    others = [name for name in there if name != matrix.name]
    return (
        f"folder {matrix.parent} has no {' and no '.join(wanted)} (plain or .gz) beside "
        f"{matrix.name}, but {a_few(others, 8) if others else 'nothing else'}"
    )


def _nothing_in(folder: Path) -> str:
    files = _files(folder)
    pass_ = [path for path in files.values() if path.suffix.lower() in (".h5", ".h5ad")]
    if pass_:
        best = min(pass_, key=lambda path: ("raw" in path.name, path.name))
        found = f"; it holds {a_few(p.name for p in sorted(pass_))}: pass the file, such as {best}"
    else:
        names = [*files, *(f"{path.name}/" for path in _folders(folder))]
        found = f"; it holds {a_few(sorted(names)) if names else 'nothing'}"
    return (
        f"folder {folder} has no matrix.mtx or matrix.mtx.gz{found}; expected the folder that "
        "Cell Ranger, STARsolo, kb-python or Parse Biosciences wrote"
    )


def _several_in(folder: Path, found: list[Path]) -> str:
    if len({path.parent for path in found}) > 1:
        example = min(found, key=_plainness).parent
        return (
            f"{folder} holds {len(found)} matrices, in {_folders_of(folder, found)}; pass one of "
            f"these folders, such as {example}"
        )
    prefixes = {_parts(path)[0] for path in found if _parts(path)[1]}
    named = f" with the prefixes {a_few(sorted(prefixes))}" if len(prefixes) == len(found) else ""
    return (
        f"{folder} holds {len(found)} matrices{named}: {a_few(sorted(p.name for p in found))}; "
        f"pass one by its file, such as {min(found)}, or several of them"
    )


def _plainness(matrix: Path) -> tuple[bool, bool, int, str]:
    parts = {part.lower() for part in matrix.parts}
    other = bool(parts & {"velocyto", "sj"})
    return other, "filtered" not in str(matrix.parent), len(str(matrix)), str(matrix)


def _folders_of(folder: Path, found: list[Path]) -> str:
    return a_few(sorted({str(path.parent.relative_to(folder)) for path in found}), 8)
