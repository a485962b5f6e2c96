"""Folders with a matrix-market file and tables of names, joined to one `CountFile`."""

from __future__ import annotations

import warnings
from pathlib import Path

from ..._words import a_few
from .countfile import MemoryFile
from .folder_layout import MtxFiles, find_mtx
from .matrix_market import Header, read_counts, read_header
from .name_tables import NameTable, cells_of, check_not_swapped, genes_of, read_table
from .tenx import assembled, check_lengths


def read_mtx_folder(path: Path, genome: str | None, allow_fractional: bool) -> MemoryFile:
    """Read a matrix-market file and the names of its cells and genes, each plain or compressed.

    Parameters
    ----------
    path
        The folder of Cell Ranger, STARsolo, kb-python or Parse Biosciences, one above it, or the
        .mtx file itself, which chooses among several with prefixes in one folder.
    genome
        Which genome, where Cell Ranger 2 wrote a folder for each (``filtered_gene_bc_matrices``).
    allow_fractional
        Whether values may be other than whole numbers.

    Returns
    -------
    MemoryFile
        Checked counts; ``var`` has ``gene_ids`` and, where given, ``feature_types`` and
        ``genome``; ``obs`` has what the tool says about each cell (Parse Biosciences).

    Raises
    ------
    InputError
        A file is missing or damaged, several are meant, or the three do not fit together.
    """
    files = find_mtx(path, genome)
    header = read_header(files.matrix)
    sizes = header.n_rows, header.n_columns
    cells_in_rows, cell_table, gene_table = _oriented(
        files, header, read_table(files.cells, sizes), read_table(files.genes, sizes)
    )
    cells, genes = cells_of(cell_table), genes_of(gene_table, files.symbols)
    check_not_swapped(cells, genes, (files.cells, files.genes))
    repeated = cells.index[cells.index.duplicated()].unique()
    if len(repeated):
        warnings.warn(
            f"{files.cells} has {len(repeated)} barcodes more than once: {a_few(repeated)}; each "
            "line is taken as a cell of its own",
            UserWarning,
            stacklevel=2,
        )
    counts = read_counts(files.matrix, header, cells_in_rows=cells_in_rows)
    chosen = genome if "genome" in genes else None
    return assembled(counts, cells, genes, files.matrix, chosen, allow_fractional)


def _oriented(
    files: MtxFiles, header: Header, cells: NameTable, genes: NameTable
) -> tuple[bool, NameTable, NameTable]:
    """Find out from the numbers of names whether rows are cells; if equal, as the tool writes."""
    usual = files.cells_in_rows
    fits = {}
    for in_rows in (usual, not usual):
        sizes = (header.n_rows, header.n_columns)
        n_cells, n_genes = sizes if in_rows else sizes[::-1]
        fitted = cells.fitted(n_cells), genes.fitted(n_genes)
        fits[in_rows] = (len(fitted[0].rows) == n_cells) + (len(fitted[1].rows) == n_genes)
        if fits[in_rows] == 2:
            if in_rows != usual:
                found, expected = ("cells x genes", "genes x cells")[:: 1 if in_rows else -1]
                warnings.warn(
                    f"{files.matrix} is {found} by the numbers of its names ({n_cells} cells, "
                    f"{n_genes} genes) and is read so; files of these names are usually {expected}",
                    UserWarning,
                    stacklevel=3,
                )
            return in_rows, *fitted
    in_rows = usual if fits[usual] >= fits[not usual] else not usual
    n_cells, n_genes = (header.n_rows, header.n_columns)[:: 1 if in_rows else -1]
    check_lengths(str(files.matrix), n_cells, len(cells.rows), n_genes, len(genes.rows))
    raise AssertionError("one of the two lengths differs")
