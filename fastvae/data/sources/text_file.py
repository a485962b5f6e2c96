"""Text files that may be gzip-compressed, read in bounded pieces of whole lines."""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO, cast

from ...errors import InputError, size_text
from .hdf5 import check_file

_BLOCK = 8 << 20
_LONGEST_LINE = 1 << 20
_SPARE_LINES = 1000
# Tables of counts and names shrink to between a half and a thirtieth.
_MOST_EXPANSION = 200
_ALWAYS_ALLOWED = 16 << 20


def is_compressed(path: Path) -> bool:
    """Whether the content is gzip: downloads are often unpacked and keep the name, or lose it."""
    with path.open("rb") as handle:
        return handle.read(2) == b"\x1f\x8b"


def most_bytes(path: Path) -> int:
    """Return how much text `path` can hold: its size, or what is accepted of a compressed one."""
    size = path.stat().st_size
    return max(size * _MOST_EXPANSION, _ALWAYS_ALLOWED) if is_compressed(path) else size


@contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """Yield the content, unpacked.

    Raises
    ------
    InputError
        It cannot be opened or is empty.
    """
    check_file(path)
    with gzip.open(path) if is_compressed(path) else path.open("rb") as handle:
        yield cast(BinaryIO, handle)


def line_blocks(handle: IO[bytes], path: Path) -> Iterator[bytes]:
    """Yield whole lines, some megabytes at a time, from where `handle` stands.

    Raises
    ------
    InputError
        A compressed file expands to more than is accepted, or the content is not lines of text.
    """
    most, n_bytes, rest = most_bytes(path), handle.tell(), b""
    while chunk := handle.read(_BLOCK):
        n_bytes += len(chunk)
        if n_bytes > most:
            raise InputError(
                f"{path} expands to more than {size_text(most)}, over {_MOST_EXPANSION} times its "
                "size: it is not a table of counts or names; download it again"
            )
        if b"\0" in chunk:
            raise InputError(f"{path} is not text: it holds NUL bytes; copy or download it again")
        end = chunk.rfind(b"\n") + 1
        if end:
            yield rest + chunk[:end]
            rest = chunk[end:]
        else:
            rest += chunk
        if len(rest) > _LONGEST_LINE and b"\r" not in rest:
            raise InputError(
                f"{path} has a line of more than {size_text(_LONGEST_LINE)}; expected short lines "
                "of text: copy or download it again"
            )
    if rest:
        yield rest


def read_lines(path: Path, sizes: Sequence[int]) -> list[str]:
    """Read all lines, without their ends; blank ones are kept.

    Parameters
    ----------
    path
        Plain or compressed; UTF-8, with or without a byte order mark.
    sizes
        How many lines there may be, but for some blank ones and a header: any other number is
        refused before they are taken apart.

    Raises
    ------
    InputError
        As `line_blocks`; not UTF-8; too many lines.
    """
    blocks, n_lines, more = [], 0, "has"
    with open_bytes(path) as handle:
        for block in line_blocks(handle, path):
            block = block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            n_lines += block.count(b"\n")
            if n_lines > max(sizes) + _SPARE_LINES:
                more = "has more than"
                break
            blocks.append(block)
    if all(abs(n_lines - size) > _SPARE_LINES for size in sizes):
        expected = " or ".join(str(size) for size in dict.fromkeys(sizes))
        raise InputError(
            f"{path} {more} {min(n_lines, max(sizes) + _SPARE_LINES)} lines, and the matrix beside "
            f"it wants {expected}; the files do not belong together"
        )
    try:
        text = b"".join(blocks).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path} is not UTF-8 text: line {line} holds the byte "
            f"0x{error.object[error.start]:02x}; save it as UTF-8, or download it again"
        ) from error
    return text.split("\n")
