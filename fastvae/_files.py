"""Write files so that a crash or a full disk leaves none half-written, and refuse pipes."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import InputError, shortened, size_text

FULL = (errno.ENOSPC, errno.EDQUOT)

_EXCHANGE = 2  # RENAME_EXCHANGE of Linux


class WriteError(InputError, OSError):
    """A file that could not be written; the message names it and says what to do."""


def cannot_write(target: Path, error: BaseException, kept: str) -> WriteError:
    """Return the error for output that failed: which file, why, and what is there now.

    Parameters
    ----------
    target
        The file or folder that was asked for.
    error
        What the system, HDF5 or another library raised.
    kept
        What happened to the file that was there before.
    """
    text = " ".join(str(error).split())
    code = getattr(error, "errno", None)
    advice = "mend that or choose another place, and run the same command again"
    # HDF5 has the system's number in its text alone.
    if code in FULL or "No space left" in text or f"errno = {errno.ENOSPC}" in text:
        room = shutil.disk_usage(_existing(target.parent)).free
        reason = f"the disk is full ({size_text(room)} free)"
        advice = "make room and run the same command again"
    elif code == errno.EFBIG or "File too large" in text:
        reason = "it is larger than the system allows (ulimit -f)"
    else:
        reason = (code and os.strerror(code)) or shortened(text) or type(error).__name__
    return WriteError(f"{target} cannot be written: {reason}. {kept}; {advice}")


@contextmanager
def atomic_path(
    target: str | os.PathLike[str], *, name: Path | None = None, keep_mode: bool = False
) -> Iterator[Path]:
    """Yield a temporary path beside `target`; on success it is synced and renamed onto it.

    The suffix is kept, for writers that choose a format by it. On any error the temporary file
    is removed and `target` is untouched.

    Parameters
    ----------
    target
        The file.
    name
        What messages call it; `target` by default.
    keep_mode
        Leave the permissions of a file that is there as they are.

    Raises
    ------
    WriteError
        The system, or the library that writes, could not; the message names it.
    """
    target = Path(target)
    temporary: Path | None = None
    try:
        temporary = _temporary(target)
        yield temporary
        finish(temporary, target, target.stat().st_mode if keep_mode else None)
    except WriteError:
        raise
    except Exception as error:
        if not _of_the_system(error):
            raise
        name = name or target
        kept = "What was there before is untouched" if name.exists() else "Nothing is left of it"
        raise cannot_write(name, error, kept) from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def require_room(folder: Path, needed: int, what: str, advice: str) -> None:
    """Raise before a file is begun that the disk has no room for.

    Parameters
    ----------
    folder
        Where it is written.
    needed
        Bytes.
    what
        What needs them.
    advice
        What the user can do besides making room.

    Raises
    ------
    InputError
        It names `what`, what it needs and what is free.
    """
    free = shutil.disk_usage(_existing(folder)).free
    if needed > free:
        raise InputError(
            f"{what} needs {size_text(needed)} and the disk has {size_text(free)} free; make "
            f"room, or {advice}"
        )


def finish(temporary: Path, target: Path, mode: int | None = None) -> None:
    """Rename a written file to `target`, in one step that survives a power cut.

    Its permissions are `mode`, or those of a new file.
    """
    with temporary.open("rb") as written:
        os.fsync(written.fileno())
    umask = os.umask(0)
    os.umask(umask)
    temporary.chmod(0o666 & ~umask if mode is None else stat.S_IMODE(mode))
    temporary.replace(target)
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power cut, where the system can."""
    with suppress(OSError):  # Windows opens no folders; what is renamed is in place all the same
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def replace_folder(new: Path, target: Path) -> None:
    """Put the folder `new` in the place of `target`, which may be there; the old one is removed.

    On Linux the two are exchanged in one step. Where the file system cannot, the old folder is
    set aside for a moment, and put back if the new one does not go into its place.

    Raises
    ------
    WriteError
        A rename failed; the message says where the old and the new folder are.
    """
    aside = set_aside(target)
    try:
        if not target.exists():
            new.rename(target)
        elif _exchanged(new, target):
            aside = new  # the old one is there now
        else:
            shutil.rmtree(aside, ignore_errors=True)
            target.rename(aside)
            try:
                new.rename(target)
            except BaseException:
                aside.rename(target)
                raise
    except OSError as error:
        if target.exists():
            kept = f"What was there before is untouched, and the new one is complete in {new}"
        elif aside.exists():
            kept = f"What was there before is now in {aside}, and the new one is complete in {new}"
        else:
            kept = f"It is complete in {new}"
        raise cannot_write(target, error, kept) from error
    sync_folder(target.parent)
    shutil.rmtree(aside, ignore_errors=True)


def set_aside(target: Path) -> Path:
    """Return where `replace_folder` keeps the old folder for the moment of the exchange."""
    return target.with_name(f".{target.name}.old")


def _exchanged(one: Path, two: Path) -> bool:
    """Exchange two folders in one step; False where the system or the file system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:
        return False
    here = -100  # AT_FDCWD
    failed = function(here, os.fsencode(one), here, os.fsencode(two), _EXCHANGE)
    return bool(failed == 0)


def _temporary(target: Path) -> Path:
    handle, name = tempfile.mkstemp(
        prefix=f".{target.stem}-", suffix=target.suffix, dir=target.parent
    )
    os.close(handle)
    return Path(name)


def _of_the_system(error: BaseException) -> bool:
    """Whether the system refused; libraries in between wrap its errors in their own."""
    chain: BaseException | None = error
    while chain is not None:
        said = str(chain)
        if isinstance(chain, OSError) or "No space left" in said or "errno = " in said:
            return True
        chain = chain.__cause__ or chain.__context__
    return False


def _existing(folder: Path) -> Path:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


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
