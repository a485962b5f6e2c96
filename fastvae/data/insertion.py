"""`Insertion`: an array put into ``obsm`` of somebody's .h5ad file, everything else kept."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .._files import WriteError, atomic_path, require_room
from .._words import reason
from ..errors import InputError
from .sources.hdf5 import opened

ROOM = 1 << 24
"""Bytes for what HDF5 writes beside the values."""


@dataclass(frozen=True)
class Insertion:
    """A place in a file that is there.

    The array goes into a copy beside the file, which is read back and then takes the file's place
    in one step. Whatever interrupts this, the file is as it was or has the array.

    Attributes
    ----------
    path
        The .h5ad file; where a link was given, what it leads to.
    key
        The name in ``obsm``.
    state
        What tells whether the file was changed since it was looked at.
    """

    path: Path
    key: str
    state: tuple[int, int, int]

    @classmethod
    def checked(cls, path: Path, key: str, *, overwrite: bool) -> Insertion:
        """Look at the file, before any work is done.

        Raises
        ------
        InputError
            It is no .h5ad file that can be replaced, the disk has no room for a copy, or `key` is
            there and `overwrite` is false.
        """
        if "/" in key or not key.isprintable() or not key.strip("."):
            raise InputError(f"key must be a printable name without a slash, not {key!r}")
        if path.suffix != ".h5ad" or path.is_dir():
            raise InputError(
                f"path {path}: a latent space is written into .h5ad files only; write it beside "
                "the data (fastvae embed -o, Model.write_latent)"
            )
        import h5py

        with opened(path) as file:
            obsm = file.get("obsm")
            if obsm is not None and not isinstance(obsm, h5py.Group):
                raise InputError(
                    f"{path} was written by a very old anndata; read it and write it anew with "
                    "anndata, then repeat this"
                )
            if obsm is not None and key in obsm and not overwrite:
                raise InputError(
                    f'{path} has obsm["{key}"] already; pass --overwrite (overwrite=True) to '
                    "replace it"
                )
        target = path.resolve()
        if not os.access(target, os.W_OK) or not os.access(target.parent, os.W_OK):
            raise InputError(f"{path} and its folder must be writable; write a new file instead")
        needed = target.stat().st_size + ROOM
        require_room(target.parent, needed, f"the changed copy of {path}", "write a new file")
        return cls(target, key, _state(target))

    def write(self, values: np.ndarray) -> None:
        """Put `values` (N, ...) there, one row per cell of the file.

        Raises
        ------
        InputError
            The file was changed meanwhile, it cannot be written, or the copy does not read back.
        """
        with atomic_path(self.path, keep_mode=True) as copy:
            shutil.copyfile(self.path, copy)
            try:
                _insert(copy, self.key, values)
                _verify(self.path, copy, self.key, values)
            except Exception as error:  # h5py and anndata raise many kinds
                raise WriteError(
                    f"{self.path} is left as it was: the copy with the new array could not be "
                    f"written ({reason(error)})"
                ) from error
            if _state(self.path) != self.state:
                raise InputError(
                    f"{self.path} was changed by another program meanwhile, and is left as it is; "
                    "run this again"
                )


def _state(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _insert(path: Path, key: str, values: np.ndarray) -> None:
    import h5py
    from anndata.io import write_elem

    with h5py.File(path, "r+") as file:
        if "obsm" not in file:
            file.create_group("obsm").attrs.update(
                {"encoding-type": "dict", "encoding-version": "0.1.0"}
            )
        if key in file["obsm"]:
            del file["obsm"][key]
        write_elem(file["obsm"], key, values)


def _verify(path: Path, copy: Path, key: str, values: np.ndarray) -> None:
    """Read the array back, and look whether everything else is there."""
    import h5py

    with h5py.File(path, "r") as old, h5py.File(copy, "r") as new:
        same = np.array_equal(new["obsm"][key][:], values)
        if not same or _others(old, key) != _others(new, key):
            raise ValueError("it does not read back as it was written")


def _others(file: Any, key: str) -> dict[str, tuple[Any, ...]]:
    """Return shape, dtype and names of attributes of every object but ``obsm`` and the array."""
    place = f"obsm/{key}"
    names: list[str] = []
    file.visit(names.append)
    return {
        name: (
            getattr(file[name], "shape", None),
            getattr(file[name], "dtype", None),
            sorted(file[name].attrs),
        )
        for name in names
        if name not in ("obsm", place) and not name.startswith(f"{place}/")
    }
