"""Matrix-market files (.mtx): counts as text, one entry per line, checked as they are read.

numpy reads blocks of lines that are three whole numbers each, pandas all others. scipy's parser
ends the process on some malformed files; run in a process of its own, it would cost a start and a
copy of all entries for every file.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import scipy.sparse as sp

from ..._memory import require_memory
from ...errors import InputError
from .hdf5 import reporting_damage
from .text_file import line_blocks, most_bytes, open_bytes

_BANNER = "%%MatrixMarket matrix coordinate integer general"
_LONGEST_HEADER = 1 << 20
_SHORTEST_ENTRY = len("1 1 1\n")
_LARGEST_SIZE = 2**31 - 1  # columns are int32
_ENTRY_BYTES = 12  # int32 row, int32 column, float32 value
_NUMBERS = b"0123456789+-.eE \t\r\n"
_SIZES = re.compile(rb"[ \t]*(\d{1,18})[ \t]+(\d{1,18})[ \t]+(\d{1,18})[ \t\r\n]*")
_WHOLE = re.compile(r"\+?\d+(\.0*)?")
_REAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


@dataclass(frozen=True)
class Header:
    """What the file says about itself.

    Attributes
    ----------
    n_rows, n_columns, n_entries
        Declared sizes.
    whole
        Whether the values are integers.
    n_bytes, n_lines
        Length of the header.
    """

    n_rows: int
    n_columns: int
    n_entries: int
    whole: bool
    n_bytes: int
    n_lines: int


def read_header(path: Path) -> Header:
    """Read and check banner, comments and sizes.

    Raises
    ------
    InputError
        Not a general coordinate matrix of numbers, or more entries than the file can hold.
    """
    with reporting_damage(path), open_bytes(path) as handle:
        banner = _text(handle.readline(_LONGEST_HEADER))
        n_bytes, n_lines = handle.tell(), 1
        _check_banner(path, banner)
        while line := handle.readline(_LONGEST_HEADER):
            n_bytes, n_lines = handle.tell(), n_lines + 1
            if n_bytes > _LONGEST_HEADER:
                raise InputError(f"{path} has no sizes in its first megabyte; download it again")
            if line.strip() and not line.startswith(b"%"):
                break
        sizes = _SIZES.fullmatch(line)
    if sizes is None:
        raise InputError(
            f"{path}, line {n_lines}: expected the numbers of rows, columns and entries, found "
            f"{_shown(_text(line))}; the file is damaged, download it again"
        )
    n_rows, n_columns, n_entries = map(int, sizes.groups())
    found = Header(n_rows, n_columns, n_entries, "real" not in banner.lower(), n_bytes, n_lines)
    _check_sizes(path, found)
    return found


def read_counts(path: Path, header: Header, *, cells_in_rows: bool) -> sp.csr_matrix:
    """Read all entries.

    Parameters
    ----------
    path
        The file.
    header
        What `read_header` found in it.
    cells_in_rows
        Whether its rows are cells, and not genes.

    Returns
    -------
    scipy.sparse.csr_matrix
        float32 (cells, genes); repeated entries are summed.

    Raises
    ------
    InputError
        A line is not an entry or lies outside the declared sizes, their number differs from the
        declared one, or too large for the memory that is available.
    """
    n_rows, n_columns, n_entries = header.n_rows, header.n_columns, header.n_entries
    require_memory(
        n_entries * (_ENTRY_BYTES + 8),
        f"reading {path} ({n_rows} x {n_columns}, {n_entries} values)",
    )
    # A compressed entry takes about three bytes; more room is made when entries have come.
    room = min(n_entries, path.stat().st_size // 2)
    rows, columns = np.empty(room, dtype=np.int32), np.empty(room, dtype=np.int32)
    values = np.empty(room, dtype=np.float32)
    n_read = 0
    for block_rows, block_columns, block_values in _entries(path, header):
        start, n_read = n_read, n_read + len(block_rows)
        if n_read > n_entries:
            raise InputError(
                f"{path} holds more than the {n_entries} entries that it declares; it is damaged "
                "or two files were joined: copy or download it again"
            )
        if n_read > room:
            room = min(n_entries, max(n_read, room + room // 2))
            for array in (rows, columns, values):
                array.resize(room, refcheck=False)
        with np.errstate(over="ignore"):  # beyond float32 becomes inf, which the check reports
            values[start:n_read] = block_values
        np.subtract(block_rows, 1, out=rows[start:n_read], casting="unsafe")
        np.subtract(block_columns, 1, out=columns[start:n_read], casting="unsafe")
    if n_read < n_entries:
        raise InputError(
            f"{path} ends after {n_read} of the {n_entries} entries that it declares: it is "
            "incomplete; copy or download it again"
        )
    places, shape = ((rows, columns), (n_rows, n_columns))
    if not cells_in_rows:
        places, shape = places[::-1], shape[::-1]
    return sp.coo_matrix((values, places), shape=shape).tocsr()


def _check_banner(path: Path, banner: str) -> None:
    words = banner.lower().split()
    if words[:1] != ["%%matrixmarket"]:
        found = f"its first line is {_shown(banner)}"
    elif words[1:3] != ["matrix", "coordinate"] or len(words) != 5:
        found = f"it says {_shown(banner)}"
    elif words[3] == "pattern":
        found = "it is a pattern: it says where counts are, and not how many"
    elif words[3] not in ("integer", "real"):
        found = f"it holds {words[3]!r} values"
    elif words[4] != "general":
        found = f"it is {words[4]!r}, which cells x genes cannot be"
    else:
        return
    raise InputError(
        f"{path} is not a matrix-market count matrix: {found}; expected {_BANNER!r} "
        "(or real) at its start"
    )


def _check_sizes(path: Path, header: Header) -> None:
    if max(header.n_rows, header.n_columns) > _LARGEST_SIZE:
        raise InputError(
            f"{path} declares {header.n_rows} x {header.n_columns} cells and genes, which no data "
            "set has; the file is damaged, download it again"
        )
    places = header.n_rows * header.n_columns
    fits = (most_bytes(path) - header.n_bytes + 1) // _SHORTEST_ENTRY
    if header.n_entries > min(places, fits):
        raise InputError(
            f"{path} declares {header.n_entries} entries, but "
            + (f"has {places} places" if places <= fits else f"its length has room for {fits}")
            + "; it is damaged or incomplete: copy or download it again"
        )


def _entries(path: Path, header: Header) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield rows, columns (both from 1, within the sizes) and values, block by block."""
    n_lines = header.n_lines
    with reporting_damage(path), open_bytes(path) as handle:
        _skip(handle, header.n_bytes)
        for block in line_blocks(handle, path):
            if block.strip(b" \t\r\n"):
                parsed = _parse(block, header)
                if parsed is None:
                    raise InputError(_first_bad_line(path, block, n_lines, header))
                yield parsed
            n_lines += block.count(b"\n")


def _parse(block: bytes, header: Header) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Return the entries of whole lines, or None if one of the lines is not an entry."""
    entries = _whole_numbers(block)
    if entries is None:
        entries = _any_numbers(block, header.whole)
    if entries is None:
        return None
    for places, size in zip(entries[:2], (header.n_rows, header.n_columns), strict=True):
        if places.min() < 1 or places.max() > size:
            return None
    # Here and not with all other checks of counts: repeated entries are summed before those.
    return None if entries[2].min() < 0 else entries


def _whole_numbers(block: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Parse what every tool writes: lines of three runs of digits, one space between."""
    if not block.endswith(b"\n"):
        block += b"\n"
    between = block.translate(None, b"0123456789")
    n_lines = len(between) // 3
    if between != b"  \n" * n_lines:
        return None
    numbers = np.fromstring(block, dtype=np.int64, sep=" ")
    # Two spaces leave room for three numbers: a line with fewer cannot be made up for by another.
    # Beyond int64 every number becomes the largest one.
    if len(numbers) != 3 * n_lines or numbers.max() == np.iinfo(np.int64).max:
        return None
    return numbers[0::3], numbers[1::3], numbers[2::3]


def _any_numbers(block: bytes, whole: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Parse three numbers per line, in any notation and with any blanks between."""
    import pandas as pd

    # No other characters are there, so the parser cannot read them as something else.
    if block.translate(None, _NUMBERS):
        return None
    try:
        frame = pd.read_csv(
            io.BytesIO(block),
            sep=r"\s+",
            header=None,
            dtype={0: np.int64, 1: np.int64, 2: np.int64 if whole else np.float64},
            engine="c",
            na_filter=False,
            low_memory=False,
            quoting=csv.QUOTE_NONE,
        )
    except (ValueError, OverflowError):  # pandas' own errors are ValueErrors
        return None
    if frame.shape[1] != 3 or any(kind.kind == "u" for kind in frame.dtypes):
        return None  # more or fewer fields, or a number beyond int64
    return frame[0].to_numpy(), frame[1].to_numpy(), frame[2].to_numpy()


def _first_bad_line(path: Path, block: bytes, n_before: int, header: Header) -> str:
    """Find the line that `_parse` refused and say what is wrong with it; this is slow."""
    kind = "integer" if header.whole else "number"
    shape = f"{header.n_rows} x {header.n_columns}"
    lines = block.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    for number, line in enumerate(lines, n_before + 1):
        fields = _text(line).split()
        if not fields:
            continue
        fault = None
        if len(fields) != 3 or not (_WHOLE.fullmatch(fields[0]) and _WHOLE.fullmatch(fields[1])):
            fault = f"expected row, column and {kind}"
        elif not 1 <= float(fields[0]) <= header.n_rows:
            fault = f"its row is not in 1..{header.n_rows} (declared: {shape}, counted from 1)"
        elif not 1 <= float(fields[1]) <= header.n_columns:
            fault = (
                f"its column is not in 1..{header.n_columns} (declared: {shape}, counted from 1)"
            )
        elif not (_WHOLE if header.whole else _REAL).fullmatch(fields[2].lstrip("-")):
            fault = f"its value is not {'an integer, as declared' if header.whole else 'a number'}"
        elif float(fields[2]) < 0:
            fault = "its value is negative, as scaled values can be and counts cannot"
        elif header.whole and float(fields[2]) >= 2**63:
            fault = "its value is too large for a count"
        if fault:
            return (
                f"{path}, line {number}: {_shown(_text(line))} is not an entry of counts: {fault}; "
                "the file is damaged or of another kind: download it again, or give raw counts"
            )
    return (
        f"{path} has an entry that cannot be read near line {n_before + 1}; "
        "it is damaged: copy or download it again"
    )


def _skip(handle: IO[bytes], n_bytes: int) -> None:
    while n_bytes > 0 and (chunk := handle.read(n_bytes)):
        n_bytes -= len(chunk)


def _text(line: bytes) -> str:
    return line.decode("utf-8", errors="replace").strip()


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:60] + "...")
