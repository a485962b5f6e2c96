"""Checks of counts, made once, when they are read."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from .._words import a_few
from ..errors import InputError

if TYPE_CHECKING:
    import pandas as pd


_CHUNK = 1 << 22
# log1p of counts per million stays below 14, log2 of them below 20.
_LARGEST_LOG = 20.0
_CORRECTED = (
    ". If they are counts that were corrected for ambient RNA (CellBender, SoupX, DecontX), pass "
    "allow_fractional=True"
)


def _no_candidates() -> list[str]:
    return []


@dataclass(frozen=True)
class Origin:
    """Where counts come from, for messages.

    Attributes
    ----------
    source
        The file, folder or object.
    slot
        The matrix in it: ``X``, ``layers['counts']``, ``raw.X``; empty if the source is a matrix.
    cells, genes
        Names of rows and columns.
    candidates
        Finds other matrices of the source that look like counts, as instructions to the user.
    """

    source: str
    slot: str
    cells: pd.Index | Sequence[str]
    genes: pd.Index
    candidates: Callable[[], list[str]] = _no_candidates

    @property
    def where(self) -> str:
        """``"X of atlas.h5ad"``, or the source alone where it is the matrix itself."""
        return f"{self.slot} of {self.source}" if self.slot else self.source

    @property
    def shape(self) -> tuple[int, int]:
        """(cells, genes)."""
        return len(self.cells), len(self.genes)

    def advice(self) -> str:
        """Say which matrix to use instead, if the source has one."""
        found = self.candidates()
        if found:
            return f"Raw counts are needed; {'; '.join(found)}"
        return (
            f"Raw counts are needed{', and nothing else in it looks like them' * bool(self.slot)}"
        )


def check_axes(origin: Origin) -> None:
    """Check cell and gene names before the matrix is read.

    Raises
    ------
    InputError
        No or one cell, no or one gene, duplicate gene names.
    """
    n_cells, n_genes = origin.shape
    if n_cells == 0 or n_genes == 0:
        raise InputError(
            f"{origin.where} is empty ({n_cells} cells x {n_genes} genes); "
            "check the filtering that came before"
        )
    if n_cells == 1:
        raise InputError(
            f"{origin.where} has one cell; at least two are needed. "
            "Rows are cells and columns are genes: is it transposed?"
        )
    if n_genes == 1:
        raise InputError(
            f"{origin.where} has one gene; at least two are needed. "
            "Rows are cells and columns are genes: is it transposed?"
        )
    if not origin.genes.is_unique:
        repeated = origin.genes[origin.genes.duplicated()].unique()
        raise InputError(
            f"{origin.source} has duplicate genes: {a_few(repeated)}. Genes are matched by name, "
            "so names must be unique: pass gene_names=, the column of var that has the gene ids, "
            "or call adata.var_names_make_unique()"
        )


def canonicalise(counts: sp.csr_matrix) -> None:
    """Sort columns within rows, sum duplicate entries (as scipy does), drop stored zeros."""
    counts.sum_duplicates()
    counts.eliminate_zeros()


def check_counts(
    counts: sp.csr_matrix, origin: Origin, *, warn: bool = True, allow_fractional: bool = False
) -> None:
    """Check values, in chunks; cells without any count are allowed.

    Parameters
    ----------
    counts
        Canonical CSR float32 (N, G).
    origin
        For the messages.
    warn
        Whether a few values that are not whole numbers give a ``UserWarning``.
    allow_fractional
        Whether values may be other than whole numbers, few or many.

    Raises
    ------
    InputError
        A negative, NaN or infinite value (first one, with its cell and gene); nothing but zeros;
        values that look log-normalised (most are not whole numbers and none is above 20) or
        scaled to a common total per cell.
    """
    check = CountCheck(origin)
    check.add(counts)
    check.finish(warn=warn, allow_fractional=allow_fractional)


class CountCheck:
    """The checks of `check_counts`, on a matrix that is read in blocks of rows.

    Parameters
    ----------
    origin
        Of the whole matrix.
    """

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._rows = self._stored = self._fractional = self._filled = 0
        self._first = ""
        self._largest = 0.0
        self._least_total, self._largest_total, self._sum_of_totals = np.inf, 0.0, 0.0

    def add(self, counts: sp.csr_matrix) -> None:
        """Check the next rows: canonical CSR float32; raises InputError for a bad value."""
        values = counts.data
        fractional_before = self._fractional
        for start in range(0, len(values), _CHUNK):
            chunk = values[start : start + _CHUNK]
            low, high = float(chunk.min()), float(chunk.max())
            if not (low >= 0 and high < np.inf):  # NaN fails every comparison
                bad = start + int(np.flatnonzero(~(np.isfinite(chunk) & (chunk >= 0)))[0])
                _refuse_value(counts, bad, self._origin, self._rows)
            self._largest = max(self._largest, high)
            fractional = chunk != np.rint(chunk)
            n_here = int(np.count_nonzero(fractional))
            if n_here and not self._first:
                at = start + int(np.argmax(fractional))
                self._first = _describe(counts, at, self._origin, self._rows)
            self._fractional += n_here
        self._stored += len(values)
        self._rows += counts.shape[0]
        if self._fractional > fractional_before or self._filled:
            self._add_totals(counts)

    def _add_totals(self, counts: sp.csr_matrix) -> None:
        totals = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
        totals = totals[totals > 0]
        if len(totals):
            self._filled += len(totals)
            self._least_total = min(self._least_total, float(totals.min()))
            self._largest_total = max(self._largest_total, float(totals.max()))
            self._sum_of_totals += float(totals.sum())

    def finish(self, *, warn: bool = True, allow_fractional: bool = False) -> None:
        """Judge the whole matrix: raise InputError if these are no counts, warn of odd ones."""
        origin = self._origin
        if self._stored == 0:
            raise InputError(f"{origin.where} holds nothing but zeros. {origin.advice()}")
        if self._fractional == 0 or allow_fractional:
            return
        share = self._fractional / self._stored
        if share > 0.5:
            self._refuse_normalised(share)
        if warn:
            warnings.warn(
                f"{origin.where}: {self._fractional} of {self._stored} values "
                f"({100 * share:.2g} %) are not whole numbers, first {self._first}; they are used "
                "as they are, but counts are expected",
                UserWarning,
                stacklevel=3,
            )

    def _refuse_normalised(self, share: float) -> None:
        origin = self._origin
        described = f"{100 * share:.0f} % of its non-zero values are not whole numbers"
        if self._largest < _LARGEST_LOG:
            raise InputError(
                f"{origin.where} looks log-normalised: {described} and the largest is "
                f"{self._largest:.4g}. {origin.advice()}{_CORRECTED}"
            )
        mean = self._sum_of_totals / max(self._filled, 1)
        if self._filled > 1 and self._largest_total - self._least_total < 1e-3 * mean:
            raise InputError(
                f"{origin.where} looks normalised: {described} and every cell sums to "
                f"{mean:.6g}. {origin.advice()}{_CORRECTED}"
            )


def _refuse_value(counts: sp.csr_matrix, position: int, origin: Origin, first_row: int) -> None:
    value = float(counts.data[position])
    if value < 0:
        kind, hint = "a negative value", "counts cannot be negative, scaled values can"
    elif np.isnan(value):
        kind, hint = "a NaN", "every entry must be a number"
    else:
        kind, hint = "an infinite value", "every entry must be finite"
    where = _describe(counts, position, origin, first_row)
    raise InputError(f"{origin.where} holds {kind}: {where}; {hint}. {origin.advice()}")


def _describe(counts: sp.csr_matrix, position: int, origin: Origin, first_row: int) -> str:
    row = first_row + int(np.searchsorted(counts.indptr, position, side="right")) - 1
    column = int(counts.indices[position])
    return (
        f"{float(counts.data[position]):.6g} at cell {str(origin.cells[row])!r} (row {row}), "
        f"gene {str(origin.genes[column])!r} (column {column})"
    )
