"""Files: none is left half-written by a crash or a full disk, and no pipe is waited for."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError


@contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `target`; on success it is synced and renamed onto it.

    The suffix is kept, for writers that choose a format by it. On any error the temporary file
    is removed and `target` is untouched.
    """
    target = Path(target)
    handle, name = tempfile.mkstemp(
        prefix=f".{target.stem}-", suffix=target.suffix, dir=target.parent
    )
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable_folder(path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Create the output folder `path`; refuse one that has anything in it unless `overwrite`.

    Raises
    ------
    InputError
        If it is a file, has content and `overwrite` is false, or cannot be written.
    """
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"output folder {folder} is a file; choose another name")
    try:
        if folder.is_dir() and any(folder.iterdir()) and not overwrite:
            raise InputError(
                f"output folder {folder} already exists and is not empty; "
                "choose another name or pass --overwrite (overwrite=True)"
            )
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"output folder {folder} cannot be written: {error.strerror}") from error
    return folder


def check_new_file(path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Refuse an output file that exists unless `overwrite`, or whose folder cannot be written.

    Raises
    ------
    InputError
        Says which of the two it is.
    """
    target = Path(path)
    if target.is_dir():
        raise InputError(f"output file {target} is a folder; choose another name")
    if target.exists() and not overwrite:
        raise InputError(
            f"output file {target} already exists; choose another name or pass --overwrite "
            "(overwrite=True)"
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise InputError(f"output file {target} cannot be written: {error.strerror}") from error
    return target


def check_regular(path: Path) -> None:
    """Refuse a pipe, a device or a socket, which would never end or do harm.

    Raises
    ------
    InputError
        Says what it is.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise InputError(f"{path} cannot be opened: {error.strerror}") from error
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return
    kinds = ((stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))
    kind = next((name for test, name in kinds if test(mode)), "a device")
    raise InputError(f"{path} is {kind}, not a file; write the data to a file first")
