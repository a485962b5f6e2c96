"""The tables beside a .mtx file: names of cells and genes, with or without a header line."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..._memory import require_memory
from ...errors import InputError
from .hdf5 import reporting_damage
from .text_file import read_lines

if TYPE_CHECKING:
    import pandas as pd


_IDS = ("gene_id", "gene_ids", "ensembl_id", "ensembl_gene_id", "ensembl", "geneid", "feature_id")
_SYMBOLS = (
    *("gene_name", "gene_names", "gene_symbol", "gene_symbols", "symbol", "genesymbol"),
    *("feature_name", "name", "gene", "genes", "feature", "features"),
)
_CELLS = (
    "barcode",
    "barcodes",
    "cell_barcode",
    "cell_id",
    "cell",
    "cells",
    "cell_name",
    "bc_wells",
)
_HEADERS = {*_IDS, *_SYMBOLS, *_CELLS, "id", "ids", "index"}
# What R and pandas write above a column without a name: a header only where a line is too many.
_WEAK_HEADERS = {"", "x", "v1", "0"}
_ROW_BYTES = 400  # a row in memory: its list, its fields
_TYPES = ("feature_type", "feature_types", "type")
_BARCODE = re.compile(r"[ACGTN]{8,}([^A-Za-z].*)?")
_ENSEMBL = re.compile(r"ENS[A-Z]*G\d{4,}(\.\d+)?")


@dataclass(frozen=True)
class NameTable:
    """Rows of a table, and its header where it has one.

    Attributes
    ----------
    path
        The file.
    rows
        One list of fields per line; blank lines are left out.
    header
        Names of the columns, or None.
    """

    path: Path
    rows: list[list[str]]
    header: list[str] | None

    def fitted(self, size: int) -> NameTable:
        """Drop the first line if it is one too many and could be a header."""
        rows = self.rows
        if self.header is None and len(rows) == size + 1 and rows[0][0].lower() in _WEAK_HEADERS:
            rows, _ = _without_row_numbers(rows[1:], rows[0])
            return NameTable(self.path, rows, None)
        return self

    def position(self, names: tuple[str, ...]) -> int | None:
        """Return the first column with one of these names in the header."""
        known = [name.lower() for name in self.header or []]
        return next((known.index(name) for name in names if name in known), None)

    def column(self, position: int | None) -> list[str] | None:
        """Return the column in that position, None where there is none."""
        if position is None or not self.rows or position >= len(self.rows[0]):
            return None
        return [row[position] for row in self.rows]


def read_table(path: Path, sizes: tuple[int, int]) -> NameTable:
    """Read a table of about as many rows as one of `sizes`.

    Raises
    ------
    InputError
        Not text, damaged, of quite another length, or lines of different numbers of fields.
    """
    with reporting_damage(path):
        lines = read_lines(path, sizes)
        require_memory(len(lines) * _ROW_BYTES, f"reading the {len(lines)} lines of {path}")
        comma = path.name.lower().removesuffix(".gz").endswith(".csv")
        try:
            reader = csv.reader(lines, delimiter="," if comma else "\t", strict=True)
            rows = [[field.strip() for field in row] for row in reader if any(map(str.strip, row))]
        except csv.Error as error:
            raise InputError(
                f"{path} is not a table of names ({error}); copy or download it again"
            ) from error
    header = None
    if rows and _is_header(rows):
        header, rows = rows[0], rows[1:]
        if rows and len(rows[0]) == len(header) + 1 and rows[0][0] == "1":
            header = ["", *header]  # R names every column but that of the row numbers
    _check_fields(path, rows, header)
    if header is not None:
        rows, header = _without_row_numbers(rows, header)
    return NameTable(path, rows, header)


def cells_of(table: NameTable) -> pd.DataFrame:
    """Return obs: barcodes as the index, and what other columns a table with a header has.

    Raises
    ------
    InputError
        A barcode is blank.
    """
    import pandas as pd

    position = table.position(_CELLS) or 0
    names = table.column(position) or []
    if "" in names:
        raise InputError(
            f"{table.path}: cell {names.index('') + 1} of {len(names)} has no barcode; every line "
            "needs one"
        )
    index = pd.Index(names, dtype=object)
    if table.header is None or len(table.header) == 1:
        return pd.DataFrame(index=index)
    # Written and read once more: pandas finds out which columns are numbers.
    text = io.StringIO()
    csv.writer(text).writerows([table.header, *table.rows])
    text.seek(0)
    frame = pd.read_csv(text, index_col=position, low_memory=False)
    return frame.set_axis(index)


def genes_of(table: NameTable, symbols: Path | None) -> pd.DataFrame:
    """Return var: symbols as index, ``gene_ids``; ``feature_types`` and ``genome`` where given.

    Parameters
    ----------
    table
        Of ids, and symbols beside them.
    symbols
        A file with one symbol per line, for tools that write them there.

    Raises
    ------
    InputError
        A gene has neither id nor symbol, or `symbols` has another number of lines.
    """
    import pandas as pd

    with_header = table.header is not None
    ids = table.column(table.position(_IDS) or 0) or []
    names = table.column(table.position(_SYMBOLS) if with_header else 1) or ids
    if symbols is not None:
        names = _symbols(symbols, len(ids))
    blank = [number for number, pair in enumerate(zip(ids, names, strict=True), 1) if not any(pair)]
    if blank:
        raise InputError(
            f"{table.path}: gene {blank[0]} of {len(ids)} has neither id nor symbol; every line "
            "needs one"
        )
    columns = {"gene_ids": [known or name for known, name in zip(ids, names, strict=True)]}
    by_position = not with_header and "features" in table.path.name.lower()
    types = table.column(2 if by_position else table.position(_TYPES))
    third = table.column(2) or []
    if types is None and "Gene Expression" in third:
        types = third
    if types is not None:
        columns["feature_types"] = types
    genome = table.column(table.position(("genome",)))
    if genome is not None:
        columns["genome"] = genome
    index = pd.Index([name or known for known, name in zip(ids, names, strict=True)], dtype=object)
    return pd.DataFrame({k: pd.Series(v, index, dtype=object) for k, v in columns.items()})


def check_not_swapped(cells: pd.DataFrame, genes: pd.DataFrame, files: tuple[Path, Path]) -> None:
    """Check that the file of genes does not hold barcodes, nor that of cells genes.

    Raises
    ------
    InputError
        It does, by what most of its names look like.
    """
    for names, pattern, holds in (
        (cells.index, _ENSEMBL, (files[0], "ids of genes", "barcodes")),
        (genes["gene_ids"], _BARCODE, (files[1], "barcodes", "genes")),
    ):
        first = [str(name) for name in names[:1000]]
        if sum(pattern.fullmatch(name) is not None for name in first) > len(first) / 2:
            raise InputError(
                f"{holds[0]} holds {holds[1]} ({first[0]!r}), and {holds[2]} were expected; are "
                f"{files[0].name} and {files[1].name} swapped?"
            )


def _is_header(rows: list[list[str]]) -> bool:
    first = [field.lower() for field in rows[0]]
    if first[0] in _HEADERS or (first[0] == "" and len(first) > 1 and first[1] in _HEADERS):
        return True
    return first[0] in _WEAK_HEADERS and len(rows) > 1 and len(rows[1]) == len(first) + 1


def _without_row_numbers(
    rows: list[list[str]], header: list[str]
) -> tuple[list[list[str]], list[str]]:
    """Leave out a first column without a name that counts the rows, as R and pandas write it."""
    if header[0] == "" and len(header) > 1 and rows and rows[0][0] in ("0", "1"):
        first = int(rows[0][0])
        if all(row[0] == str(number) for number, row in enumerate(rows, first)):
            return [row[1:] for row in rows], header[1:]
    return rows, header


def _check_fields(path: Path, rows: list[list[str]], header: list[str] | None) -> None:
    """Later columns may be missing (positions of genes); the first three are needed."""
    if not rows:
        return
    wanted = min(len(rows[0]), 3) if header is None else len(header)
    for number, row in enumerate(rows, 1):
        if min(len(row), 3 if header is None else len(row)) != wanted:
            raise InputError(
                f"{path} is not a table of names: row {number} has {len(row)} fields, "
                f"{len(rows[0]) if header is None else wanted} were expected "
                f"({row[0][:40]!r}); copy or download it again"
            )


def _symbols(path: Path, n_genes: int) -> list[str]:
    with reporting_damage(path):
        names = [line.strip() for line in read_lines(path, (n_genes,))]
    while names and not names[-1] and len(names) > n_genes:
        names.pop()
    if len(names) != n_genes:
        raise InputError(
            f"{path} has {len(names)} symbols, but there are {n_genes} gene ids; the files do not "
            "belong together or one is incomplete"
        )
    return names
