"""Folders with a .mtx file, damaged line by line, and what a slow, separate parser finds."""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fuzzing import WrongAnswer

from fastvae import Model
from fastvae.data import read
from fastvae.errors import InputError

TOKENS = [
    *("0", "-1", "1", "2", "7", "41", "999", "2147483648", "4294967297", "9223372036854775807"),
    *("9223372036854775808", "99999999999999999999999", "1.5", "1.0", "0.25", "1e1", "1e400"),
    *(
        "-0",
        "+3",
        "007",
        "NaN",
        "nan",
        "inf",
        "-inf",
        "None",
        "abc",
        "1,5",
        "0x10",
        "1_0",
        "\u0663",
    ),
    *(
        "",
        '"3"',
        "1\u00a02",
        "%",
        "1-2",
        "--1",
        ".",
        "e",
        "1e",
        "\x00",
        "\x0b",
        "\x1c",
        "\u2028",
        "A" * 300,
    ),
]
BANNERS = [
    *("", "%", "%%MatrixMarket", "MatrixMarket matrix coordinate integer general"),
    *(
        "%%MatrixMarket matrix coordinate real general",
        "%%matrixmarket MATRIX coordinate Integer general",
    ),
    *(
        "%%MatrixMarket matrix coordinate integer general extra",
        "%%MatrixMarket matrix array real general",
    ),
    *(
        "%%MatrixMarket matrix coordinate integer symmetric",
        "%%MatrixMarket vector coordinate real general",
    ),
    *(
        "%%MatrixMarket matrix coordinate pattern general",
        "%%MatrixMarket matrix coordinate complex general",
    ),
    *(
        "%%MatrixMarket matrix coordinate integer skew-symmetric",
        "gene,cell,count",
        "\ufeff%%MatrixMarket",
    ),
]
HEADERS = {
    "cells": ["barcode", "x", "barcode\tsample"],
    "genes": ["gene_id\tgene_name\tfeature_type"],
}
STRONG = ("barcode", "bc_wells", "gene_id")
ROLES = ("matrix", "cells", "genes")
ENSEMBL, BARCODE = re.compile(r"ENSG\d{4,}"), re.compile(r"[ACGT]{8,}-1")
WHOLE, REAL = r"[+-]?\d+(\.0*)?([eE]\+?\d+)?", r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"


@dataclass
class Folder:
    """Files by role, as bytes, and how the tool names them."""

    names: dict[str, str]
    content: dict[str, bytes]
    cells_in_rows: bool
    comma: bool = False

    def write(self, folder: Path) -> None:
        for role, data in self.content.items():
            (folder / self.names[role]).write_bytes(data)


def made(rng: np.random.Generator) -> Folder:
    """Return a sound folder: a tool, a size, plain or compressed, integers or reals."""
    tool = rng.choice(["v2", "v3", "v3", "prefix", "kb", "parse"])
    n_cells, n_genes = (int(n) for n in rng.integers(2, 40, 2))
    if rng.random() < 0.1:
        n_cells = n_genes
    counts = rng.poisson(1.0, (n_cells, n_genes))
    counts[0, 0] += 1
    in_rows = tool in ("kb", "parse")
    cells = ["".join(rng.choice(list("ACGT"), 16)) + "-1" for _ in range(n_cells)]
    ids = [f"ENSG{i:011d}" for i in rng.permutation(n_genes)]
    field = str(rng.choice(["integer", "real"]))
    rows, columns = np.nonzero(counts if in_rows else counts.T)
    values = (counts if in_rows else counts.T)[rows, columns]
    shape = counts.shape if in_rows else counts.T.shape
    lines = [f"%%MatrixMarket matrix coordinate {field} general", "% made here"]
    lines += [f"{shape[0]} {shape[1]} {len(values)}"]
    lines += [f"{r + 1} {c + 1} {v}" for r, c, v in zip(rows, columns, values, strict=True)]
    kinds = ["Gene Expression"] * n_genes
    if tool == "v3" and rng.random() < 0.3:
        kinds[-1] = "Antibody Capture"
    genes = [f"{g}\tS{i}\t{kind}" for i, (g, kind) in enumerate(zip(ids, kinds, strict=True))]
    if tool == "v2":
        genes = [line.rpartition("\t")[0] for line in genes]
    names = dict(zip(ROLES, ("matrix.mtx", "barcodes.tsv", "features.tsv"), strict=True))
    if tool == "v2":
        names["genes"] = "genes.tsv"
    if tool == "prefix":
        names = {role: f"GSM1_a_{name}" for role, name in names.items()}
    if tool == "kb":
        names = {"matrix": "cells_x_genes.mtx"}
        names |= {
            role: f"cells_x_genes.{n}.txt"
            for role, n in (("cells", "barcodes"), ("genes", "genes"))
        }
        genes = ids
    if tool == "parse":
        names = dict(zip(ROLES, ("DGE.mtx", "cell_metadata.csv", "all_genes.csv"), strict=True))
        cells = ["bc_wells,sample,depth", *(f"{i}_{c},s{i % 2},{i}" for i, c in enumerate(cells))]
        genes = ["gene_id,gene_name,genome", *(f"{g},S{i},hg38" for i, g in enumerate(ids))]
    texts = dict(zip(ROLES, (lines, cells, genes), strict=True))
    content = {role: "".join(f"{line}\n" for line in text).encode() for role, text in texts.items()}
    made = Folder(names, content, in_rows, tool == "parse")
    for role in ROLES:
        if rng.random() < 0.3:
            made.content[role] = gzip.compress(content[role])
            made.names[role] += ".gz"
    return made


# ------------------------------------------------------------------ damage


def on_lines(change: Callable[[np.random.Generator, list[str]], None]) -> Callable[..., None]:
    """Damage the text of one file, inside its compression where it is compressed."""

    def damage(rng: np.random.Generator, folder: Folder) -> None:
        role = str(rng.choice(ROLES, p=(0.6, 0.2, 0.2)))
        data = folder.content.get(role, b"")
        packed = data[:2] == b"\x1f\x8b"
        try:
            lines = (gzip.decompress(data) if packed else data).decode().split("\n")
        except (OSError, EOFError, UnicodeDecodeError, zlib.error):
            return
        change(rng, lines)
        text = "\n".join(lines).encode("utf-8", "surrogatepass")
        folder.content[role] = gzip.compress(text) if packed else text

    return damage


def place(rng: np.random.Generator, lines: list[str]) -> int:
    """Return a line, one of the first four as often as all others."""
    return int(rng.integers(0, min(4, len(lines)) if rng.random() < 0.4 else len(lines)))


def token(rng: np.random.Generator, lines: list[str]) -> None:
    at = place(rng, lines)
    fields = re.split(r"([ \t,])", lines[at])
    fields[2 * int(rng.integers(0, (len(fields) + 1) // 2))] = str(rng.choice(TOKENS))
    lines[at] = "".join(fields)


def all_of_a_column(rng: np.random.Generator, lines: list[str]) -> None:
    column, by = int(rng.integers(0, 3)), int(rng.choice([-1, 1, -3, 100000]))
    for at in range(3, len(lines)):
        fields = lines[at].split(" ")
        if len(fields) == 3 and fields[column].isdigit():
            fields[column] = str(int(fields[column]) + by)
            lines[at] = " ".join(fields)


def size(rng: np.random.Generator, lines: list[str]) -> None:
    at = next((i for i, line in enumerate(lines) if line and line[0] != "%"), 0)
    fields = lines[at].split(" ")
    which = int(rng.integers(0, len(fields)))
    if fields[which].isdigit():
        by = int(rng.choice([-1, 1, 2, 1000, 10**6, 10**9, 10**12, 2**63]))
        fields[which] = str(max(int(fields[which]) + by, 0))
    lines[at] = " ".join(fields)


def transposed(rng: np.random.Generator, lines: list[str]) -> None:
    for at in range(2, len(lines)):
        fields = lines[at].split(" ")
        if len(fields) == 3:
            lines[at] = " ".join([fields[1], fields[0], fields[2]])


def remove(rng: np.random.Generator, lines: list[str]) -> None:
    del lines[place(rng, lines)]


def insert(rng: np.random.Generator, lines: list[str]) -> None:
    new = str(
        rng.choice(["", " ", "%", "% 1 1 1", "1 1 1", "\t", "barcode", "x", lines[-1], "ENSG1\tA"])
    )
    lines.insert(place(rng, lines), new)


def duplicate(rng: np.random.Generator, lines: list[str]) -> None:
    lines.insert(place(rng, lines), lines[place(rng, lines)])


def exchange(rng: np.random.Generator, lines: list[str]) -> None:
    a, b = place(rng, lines), place(rng, lines)
    lines[a], lines[b] = lines[b], lines[a]


def cut(rng: np.random.Generator, lines: list[str]) -> None:
    del lines[place(rng, lines) :]


def cut_within(rng: np.random.Generator, lines: list[str]) -> None:
    at = place(rng, lines)
    lines[at:] = [lines[at][: int(rng.integers(0, len(lines[at]) + 1))]]


def banner(rng: np.random.Generator, lines: list[str]) -> None:
    if lines and lines[0][:1] == "%":
        lines[0] = str(rng.choice(BANNERS))


def header(rng: np.random.Generator, lines: list[str]) -> None:
    lines.insert(0, str(rng.choice([*HEADERS["cells"], *HEADERS["genes"]])))


def ends(rng: np.random.Generator, lines: list[str]) -> None:
    end = str(rng.choice(["\r", "\r\r", " ", "\t", " \r"]))
    lines[:] = [line + end for line in lines]


def returns_only(rng: np.random.Generator, lines: list[str]) -> None:
    lines[:] = ["\r".join(lines)]


def spaces(rng: np.random.Generator, lines: list[str]) -> None:
    between = str(rng.choice(["  ", "\t", " \t ", "\u00a0"]))
    lines[:] = [" " * int(rng.integers(0, 2)) + line.replace(" ", between) for line in lines]


def field_less(rng: np.random.Generator, lines: list[str]) -> None:
    at = place(rng, lines)
    lines[at] = lines[at].rpartition(str(rng.choice([" ", "\t", ","])))[0]


def field_more(rng: np.random.Generator, lines: list[str]) -> None:
    at = place(rng, lines)
    lines[at] += str(rng.choice([" ", "\t", ","])) + str(rng.choice(TOKENS))


def blanked(rng: np.random.Generator, lines: list[str]) -> None:
    at = place(rng, lines)
    fields = lines[at].split("\t")
    fields[int(rng.integers(0, len(fields)))] = ""
    lines[at] = "\t".join(fields)


def quoted(rng: np.random.Generator, lines: list[str]) -> None:
    at = place(rng, lines)
    lines[at] = str(rng.choice(['"%s"', '"%s', '%s"', '""%s'])) % lines[at]


def nothing(rng: np.random.Generator, lines: list[str]) -> None:
    """Leave it: a sound folder must be read."""


def raw_bytes(rng: np.random.Generator, folder: Folder) -> None:
    """Damage bytes as they lie in the file, compressed or not."""
    role = str(rng.choice(list(folder.content)))
    data = bytearray(folder.content[role])
    how = rng.integers(0, 6)
    at = int(rng.integers(0, len(data) + 1))
    if how == 0:
        del data[at:]
    elif how == 1 and data:
        data[at - 1] ^= 1 << int(rng.integers(0, 8))
    elif how == 2:
        data[at:at] = rng.bytes(int(rng.integers(1, 40)))
    elif how == 3:
        data += rng.bytes(int(rng.integers(1, 40)))
    elif how == 4:
        data = bytearray(bytes(data).replace(b"\n", b"\n\n" * int(rng.choice([1, 600]))))
    else:
        data = bytearray(rng.bytes(200) if rng.random() < 0.5 else "é\n".encode("latin-1") * 30)
    folder.content[role] = bytes(data)


def packing(rng: np.random.Generator, folder: Folder) -> None:
    """Compress twice, unpack what is named .gz, or pack what is not."""
    role = str(rng.choice(list(folder.content)))
    data = folder.content[role]
    if data[:2] == b"\x1f\x8b" and rng.random() < 0.5:
        try:
            folder.content[role] = gzip.decompress(data)
        except (OSError, EOFError, zlib.error):
            return
    else:
        folder.content[role] = gzip.compress(data)


def bomb(rng: np.random.Generator, folder: Folder) -> None:
    role = str(rng.choice(list(folder.content)))
    line = [b"\n", b"1 1 1\n", b" ", b"A\n", b"%\n"][int(rng.integers(0, 5))]
    folder.content[role] = folder.content[role] + gzip.compress(line * (60_000_000 // len(line)), 1)


def of_another(rng: np.random.Generator, folder: Folder) -> None:
    role = str(rng.choice(ROLES))
    folder.content[role] = made(rng).content[role]


def swapped(rng: np.random.Generator, folder: Folder) -> None:
    a, b = (str(role) for role in rng.choice(ROLES, 2, replace=False))
    if {a, b} <= set(folder.content):
        folder.content[a], folder.content[b] = folder.content[b], folder.content[a]


def missing(rng: np.random.Generator, folder: Folder) -> None:
    folder.content.pop(str(rng.choice(ROLES)), None)


def emptied(rng: np.random.Generator, folder: Folder) -> None:
    folder.content[str(rng.choice(ROLES))] = b""


LINE_CHANGES = [
    *([token] * 8),
    *([size] * 2),
    *(all_of_a_column, transposed, remove, insert, insert, duplicate, exchange, cut, cut_within),
    *(banner, header, ends, returns_only, spaces, field_less, field_more, blanked, quoted, nothing),
]
FILE_CHANGES = [raw_bytes, raw_bytes, raw_bytes, packing, of_another, swapped, missing, emptied]


def damaged(number: int) -> Folder:
    """Return the folder of that number: sound, then changed once to three times."""
    rng = np.random.default_rng([20, number])
    folder = made(rng)
    for _ in range(int(rng.choice([1, 1, 2, 3]))):
        if not folder.content:
            break
        if rng.random() < 0.75:
            on_lines(LINE_CHANGES[int(rng.integers(0, len(LINE_CHANGES)))])(rng, folder)
        else:
            FILE_CHANGES[int(rng.integers(0, len(FILE_CHANGES)))](rng, folder)
    if number % 200 == 77 and folder.content:
        bomb(rng, folder)
    return folder


# ------------------------------------------------------------------ the slow parser


class Damaged(Exception):
    """The slow parser found the folder not to be sound."""


def text_of(data: bytes, encoding: str = "utf-8") -> str:
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.GzipFile(fileobj=io.BytesIO(data)).read(40_000_000)
        except (OSError, EOFError, zlib.error) as error:
            raise Damaged(error) from error
    if len(data) >= 40_000_000 or b"\0" in data:
        raise Damaged("bomb or bytes")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise Damaged(error) from error


def lines_of(text: str) -> list[str]:
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def number_in(text: str, pattern: str) -> float:
    if not re.fullmatch(pattern, text, re.ASCII):
        raise Damaged(f"{text!r} is no number")
    return float(text)


def slow_matrix(data: bytes) -> np.ndarray:
    """Return what a .mtx file holds, as it lies there."""
    lines = text_of(data, "latin-1").split("\n")  # comments may be in any language
    words = lines[0].lower().split()
    if len(words) != 5 or words[:3] != ["%%matrixmarket", "matrix", "coordinate"]:
        raise Damaged("banner")
    if words[3] not in ("integer", "real") or words[4] != "general":
        raise Damaged("kind")
    body = iter(lines[1:])
    first = next((line for line in body if line.strip() and line[0] != "%"), "")
    sizes = re.fullmatch(r"[ \t]*(\d+)[ \t]+(\d+)[ \t]+(\d+)[ \t\r]*", first, re.ASCII)
    if not sizes:
        raise Damaged("sizes")
    n_rows, n_columns, n_entries = map(int, sizes.groups())
    if n_rows * n_columns > 10**7:
        raise Damaged("sizes that no names fit")
    found, n_found = np.zeros((n_rows, n_columns)), 0
    for line in lines_of("\n".join(body)):
        if not line.strip(" \t"):
            continue
        fields = re.split(r"[ \t]+", line.strip(" \t"))
        if len(fields) != 3:
            raise Damaged("fields")
        row, column = (number_in(text, WHOLE) for text in fields[:2])
        value = number_in(fields[2], WHOLE if words[3] == "integer" else REAL)
        if not (1 <= row <= n_rows and 1 <= column <= n_columns and 0 <= value < np.inf):
            raise Damaged("bounds")
        if words[3] == "integer" and value > 2**63:
            raise Damaged("value")
        found[int(row) - 1, int(column) - 1] += value
        n_found += 1
    if n_found != n_entries:
        raise Damaged("number of entries")
    return found


def slow_names(data: bytes, comma: bool) -> tuple[list[list[str]], list[str] | None]:
    """Return the rows of a table of names, and its header."""
    text = text_of(data).removeprefix("\ufeff")
    try:
        reader = csv.reader(lines_of(text), delimiter="," if comma else "\t", strict=True)
        rows = [[f.strip() for f in row] for row in reader if any(f.strip() for f in row)]
    except csv.Error as error:
        raise Damaged(error) from error
    head = rows.pop(0) if rows and rows[0][0].lower() in STRONG else None
    widths = {len(row) if head else min(3, len(row)) for row in rows}
    if len(widths) > 1 or (head and widths - {len(head)}):
        raise Damaged("ragged")
    return rows, head


def fitted(rows: list[list[str]], wanted: int) -> list[list[str]]:
    weak = len(rows) == wanted + 1 and rows[0][0].lower() in ("x", "", "0", "v1")
    return rows[1:] if weak else rows


def slow_folder(folder: Folder) -> tuple[np.ndarray, list[str], list[str], bool]:
    """Return counts (cells, genes), barcodes and gene ids; and whether refusing is right too."""
    if set(folder.content) != set(ROLES):
        raise Damaged("missing")
    matrix = slow_matrix(folder.content["matrix"])
    cells, _ = slow_names(folder.content["cells"], folder.comma)
    genes, header = slow_names(folder.content["genes"], folder.comma)
    for in_rows in (folder.cells_in_rows, not folder.cells_in_rows):
        counts = matrix if in_rows else matrix.T
        kept = fitted(cells, counts.shape[0]), fitted(genes, counts.shape[1])
        if (len(kept[0]), len(kept[1])) == counts.shape:
            break
    else:
        raise Damaged("lengths")
    cells, genes = kept
    barcodes = [row[0] for row in cells]
    ids = [row[0] or (row[1] if len(row) > 1 else "") for row in genes]
    if "" in ids or "" in barcodes:
        raise Damaged("blank")
    for names, other in ((barcodes, ENSEMBL), (ids, BARCODE)):
        if sum(other.fullmatch(name) is not None for name in names) > len(names) / 2:
            raise Damaged("swapped")
    named = [h.lower() for h in header or []]
    typed = ("features" in folder.names["genes"] and header is None) or "feature_type" in named
    at = named.index("feature_type") if "feature_type" in named else 2
    if typed and genes and len(genes[0]) > at:
        kept_genes = [i for i, row in enumerate(genes) if row[at] == "Gene Expression"]
        counts, ids = counts[:, kept_genes], [ids[i] for i in kept_genes]
    if min(counts.shape) < 2 or not counts.any():
        raise Damaged("too small or empty")
    with np.errstate(over="ignore"):
        if np.isinf(counts.astype(np.float32)).any():
            raise Damaged("infinite")
    texts = {role: text_of(data, "latin-1") for role, data in folder.content.items()}
    unusual = (
        bool((counts != np.rint(counts)).any())
        or counts.max() >= 2**62  # about as far as whole numbers go
        or any(text.count("\n") > 1000 for text in texts.values())
    )
    return counts, barcodes, ids, unusual


# ------------------------------------------------------------------ one input


def try_one(number: int, path: Path) -> str:
    """Read the folder of that number and compare it with what the slow parser finds."""
    folder = damaged(number)
    folder.write(path)
    try:
        expected = slow_folder(folder)
    except Damaged as error:
        expected, why = None, str(error)
    source = path
    if number % 3 == 0 and "matrix" in folder.content:
        source = path / folder.names["matrix"]
    try:
        adata = read(source)
    except InputError as error:
        if "\n" in str(error) or len(str(error)) > 1500:
            raise WrongAnswer(f"not one line: {error}") from error
        if expected is not None and not expected[3]:
            raise WrongAnswer(f"a sound folder was refused: {error}") from error
        return "refused"
    if expected is None:
        raise WrongAnswer(f"a damaged folder ({why}) was read as {adata.shape}")
    counts, barcodes, ids, _ = expected
    if adata.shape != counts.shape or not np.allclose(adata.X.toarray(), counts, rtol=1e-6):
        raise WrongAnswer(f"counts differ: {adata.shape} and {counts.shape}")
    if adata.obs_names.tolist() != barcodes or adata.var["gene_ids"].tolist() != ids:
        raise WrongAnswer("names differ")
    if number % 10 == 0:
        Model(source, n_latent=2, n_hidden=4)
    return "read"
