"""Bad inputs of folders with a matrix-market file and tables of names."""

from __future__ import annotations

import gzip
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from count_data import dense_counts, write_mtx_folder

from fastvae.data import read

BANNER = "%%MatrixMarket matrix coordinate integer general"


def _read(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read(folder)


def changed(folder: Path, name: str, change: Callable[[list[str]], list[str]]) -> None:
    """Read a folder with the lines of one of its files changed."""
    path = write_mtx_folder(folder / "run", dense_counts()) / name
    lines = change(path.read_text(encoding="utf-8").splitlines())
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    _read(path.parent)


def content(folder: Path, name: str, data: bytes) -> None:
    """Read a folder with other content in one of its files."""
    path = write_mtx_folder(folder / "run", dense_counts()) / name
    path.write_bytes(data)
    _read(path.parent)


def line(number: int, text: str, name: str = "matrix.mtx") -> Callable[[Path], None]:
    """Replace one line, counted from 1."""
    return lambda d: changed(d, name, lambda rows: [*rows[: number - 1], text, *rows[number:]])


def _bomb(folder: Path, name: str) -> None:
    head = f"{BANNER}\n13 40 1\n1 1 1\n".encode() if name == "matrix.mtx" else b""
    content(folder, name, gzip.compress(head + b"\n" * 50_000_000))


def _cut(folder: Path) -> None:
    run = write_mtx_folder(folder / "run", dense_counts(), zipped=("matrix.mtx",))
    path = run / "matrix.mtx.gz"
    path.write_bytes(path.read_bytes()[:-40])
    _read(run)


def _prefixes(folder: Path) -> None:
    for prefix in ("GSM1_", "GSM2_"):
        for path in write_mtx_folder(folder / "made", dense_counts()).iterdir():
            path.rename(folder / f"{prefix}{path.name}")
    (folder / "made").rmdir()
    _read(folder)


def _one_file_missing(folder: Path) -> None:
    for path in write_mtx_folder(folder / "made", dense_counts()).iterdir():
        path.rename(folder / f"GSM1_{path.name}")
    (folder / "made").rmdir()
    (folder / "GSM1_barcodes.tsv").unlink()
    _read(folder)


def _starsolo(folder: Path) -> None:
    for way in ("Gene", "GeneFull"):
        write_mtx_folder(folder / "Solo.out" / way / "filtered", dense_counts())
    _read(folder / "Solo.out")


def _swapped(folder: Path) -> None:
    run = write_mtx_folder(folder / "run", dense_counts())
    shutil.move(run / "barcodes.tsv", run / "kept")
    shutil.move(run / "features.tsv", run / "barcodes.tsv")
    shutil.move(run / "kept", run / "features.tsv")
    _read(run)


def _only_h5(folder: Path) -> None:
    (folder / "filtered_feature_bc_matrix.h5").write_bytes(b"x")
    _read(folder)


CASES: list[tuple[str, Callable[[Path], Any]]] = [
    ("a folder with files of two samples", _prefixes),
    ("a sample without its barcodes", _one_file_missing),
    ("a folder with two ways to count", _starsolo),
    ("a folder with an .h5 file alone", _only_h5),
    ("barcodes and genes swapped", _swapped),
    ("a .mtx without a banner", line(1, "13 40 175")),
    ("a .mtx that says pattern", line(1, "%%MatrixMarket matrix coordinate pattern general")),
    ("a .mtx that says complex", line(1, "%%MatrixMarket matrix coordinate complex general")),
    ("a .mtx that says symmetric", line(1, "%%MatrixMarket matrix coordinate integer symmetric")),
    ("a dense .mtx", line(1, "%%MatrixMarket matrix array integer general")),
    ("a .mtx without sizes", line(3, "13 40")),
    ("a .mtx of negative size", line(3, "-13 40 175")),
    ("a .mtx of more genes than exist", line(3, "99999999999 40 175")),
    ("a .mtx that declares what it cannot hold", line(3, "13 40 520")),
    ("a .mtx that declares more entries than places", line(3, "1 40 175")),
    ("a .mtx that ends early", lambda d: changed(d, "matrix.mtx", lambda rows: rows[:-9])),
    ("a .mtx that goes on", lambda d: changed(d, "matrix.mtx", lambda rows: [*rows, rows[-1]])),
    ("an entry with a word", line(9, "1 2 three")),
    ("an entry of two numbers", line(9, "1 2")),
    ("an entry of four numbers", line(9, "1 2 3 4")),
    ("an entry counted from zero", line(9, "0 2 3")),
    ("an entry of a gene beyond the last", line(9, "14 2 3")),
    ("an entry of a cell beyond the last", line(9, "3 41 3")),
    ("an entry of a fraction among integers", line(9, "3 2 1.5")),
    ("an entry that is NaN", line(9, "3 2 NaN")),
    ("an entry too large for a count", line(9, "3 2 99999999999999999999")),
    ("a negative entry", line(9, "3 2 -7")),
    ("a .mtx.gz cut short", _cut),
    ("a .mtx.gz that expands without measure", lambda d: _bomb(d, "matrix.mtx")),
    (
        "a .mtx of bytes",
        lambda d: content(d, "matrix.mtx", f"{BANNER}\n13 40 1\n1 1 1\n\0".encode()),
    ),
    ("barcodes that are bytes", lambda d: content(d, "barcodes.tsv", bytes(range(256)))),
    ("barcodes in Latin-1", lambda d: content(d, "barcodes.tsv", "Zürich\n".encode("latin-1"))),
    ("barcodes without end", lambda d: _bomb(d, "barcodes.tsv")),
    (
        "barcodes of quite another number",
        lambda d: changed(d, "barcodes.tsv", lambda rows: rows * 30),
    ),
    ("a line of barcodes without end", lambda d: content(d, "barcodes.tsv", b"A" * 3_000_000)),
    ("a barcode too few", line(9, "", "barcodes.tsv")),
    ("genes with a field too few", line(9, "ENSG0008", "features.tsv")),
    ("genes with an open quote", line(9, '"ENSG0008\tG8\tGene Expression', "features.tsv")),
    ("a gene without a name", line(9, "\t\tGene Expression", "features.tsv")),
]
