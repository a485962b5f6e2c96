"""Distinct names for the files of one data set, and options that are given by file."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._words import a_few
from ..errors import InputError, shown
from .keys import Key, checked_key

# Names that pipelines give to the counts of every sample: they do not tell samples apart.
_SAME_FOR_ALL = re.compile(
    r"outs|(sample_)?(filtered|raw)_(feature|gene)_bc_matri(x|ces)(\.h5)?|matrix\.mtx(\.gz)?"
    r"|(.*_?)Solo\.out|Gene|GeneFull|filtered|raw|counts_(un)?filtered"
)


@dataclass(frozen=True)
class FileBatches:
    """Each file is a batch, where it has no column for them.

    Attributes
    ----------
    known
        Names of batches of a saved model.
    tail
        What the paths of its files had in common at their end: left out of the names.
    strict
        Refuse files that have such a column.
    """

    known: tuple[str, ...] = ()
    tail: tuple[str, ...] = ()
    strict: bool = False

    def names(self, paths: Sequence[Path]) -> list[str]:
        """Name the batch of each file: as the model does, else by what distinguishes it."""
        known = set(self.known)
        found = list(distinct_names(paths, self.tail))
        for number, path in enumerate(paths):
            whole = _parts(path)
            ends = [
                "/".join(parts[first:])
                for parts in (_without(whole, self.tail), whole)
                for first in range(len(parts))
            ]
            found[number] = next((end for end in ends if end in known), found[number])
        return found


def key_of_files(data: Any, batch_key: Any, batch_per_file: str | None) -> Key | None:
    """Return the batch column: `batch_per_file` where that is given.

    Raises
    ------
    InputError
        Both are given, it is no name, or `data` are not files.
    """
    batch_key = checked_key(batch_key, "batch_key")
    if batch_per_file is None:
        return batch_key
    if not isinstance(batch_per_file, str) or not batch_per_file:
        raise InputError(
            "batch_per_file must be a name for the column of obs with the batch of each file, not "
            f"{shown(batch_per_file)}"
        )
    if batch_key is not None and not (isinstance(batch_key, str) and batch_key == batch_per_file):
        raise InputError(
            f"batch_key={shown(batch_key)} and batch_per_file={shown(batch_per_file)} exclude "
            "each other: "
            "the batch is a column of obs, or the file; give one"
        )
    paths = data if isinstance(data, (list, tuple)) else [data]
    if not paths or not all(isinstance(path, (str, os.PathLike)) for path in paths):
        raise InputError(
            "batch_per_file needs the paths of files; for an object in memory give batch_key, the "
            "column of obs with the batch"
        )
    return batch_per_file


def common_tail(paths: Sequence[Path]) -> tuple[str, ...]:
    """Return the parts that all paths end with; for a single path, those that pipelines write."""
    if len(paths) == 1:
        parts = _parts(paths[0])
        named = [i for i, part in enumerate(parts) if not _SAME_FOR_ALL.fullmatch(part)]
        return parts[named[-1] + 1 :] if named else ()
    first, *rest = [_parts(path) for path in paths]
    n_common = 0
    while all(
        len(parts) > n_common + 1
        and len(first) > n_common + 1
        and parts[-1 - n_common] == first[-1 - n_common]
        for parts in rest
    ):
        n_common += 1
    return first[len(first) - n_common :]


def distinct_names(paths: Sequence[Path], tail: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Name each path by as much of its end as distinguishes it from the others.

    What all end with tells nothing and is left out: ``a/counts`` and ``b/counts`` are "a" and "b",
    ``a/x.h5ad``, ``b/x.h5ad`` and ``b/y.h5ad`` are "a/x.h5ad", "b/x.h5ad" and "y.h5ad". `tail` is
    left out of those that end with it.
    """
    each = [_without(_parts(path), tail) for path in paths]
    common = common_tail(paths)
    if len(common) > len(tail):
        each = [_without(_parts(path), common) for path in paths]
    length = [1] * len(each)
    while True:
        names = ["/".join(parts[-n:]) for parts, n in zip(each, length, strict=True)]
        counts = Counter(names)
        repeated = [i for i, name in enumerate(names) if counts[name] > 1]
        longer = [i for i in repeated if length[i] < len(each[i])]
        if not longer:
            return tuple(names)
        for i in longer:
            length[i] += 1


def by_file(
    given: Mapping[str, str], paths: Sequence[Path], names: Sequence[str]
) -> list[str | None]:
    """Return the value given for each file, or None.

    A file is meant by its path, by its name among these files (`distinct_names`), or by its own
    name where no other has it.

    Raises
    ------
    InputError
        No file is meant, several are, or two different values are given for one.
    """
    found: list[str | None] = [None] * len(paths)
    for key, value in given.items():
        number = _meant(str(key), paths, names)
        if found[number] not in (None, value):
            raise InputError(
                f"two batch keys are given for {paths[number]}: {found[number]!r} and {value!r}; "
                "give one"
            )
        found[number] = value
    return found


def _meant(key: str, paths: Sequence[Path], names: Sequence[str]) -> int:
    """Number of the file that `key` names."""
    whole = _parts(Path(key).expanduser())
    ways = (
        [i for i, path in enumerate(paths) if str(path) == key or _parts(path) == whole],
        [i for i, name in enumerate(names) if name == key],
        [i for i, path in enumerate(paths) if path.name == key],
    )
    meant = next((way for way in ways if way), [])
    if len(meant) == 1:
        return meant[0]
    if meant:
        raise InputError(
            f"a batch key is given for {key!r}, which {len(meant)} files have as their name: "
            f"{a_few([str(paths[i]) for i in meant])}; name one of them by its path, or by its "
            f"name among these files: {a_few([names[i] for i in meant])}"
        )
    raise InputError(
        f"a batch key is given for {key!r}, which is none of the files: {a_few(names)}"
    )


def _parts(path: Path) -> tuple[str, ...]:
    """Parts of the absolute path, without links followed and without the root."""
    return Path(os.path.abspath(path)).parts[1:]


def _without(parts: tuple[str, ...], tail: tuple[str, ...]) -> tuple[str, ...]:
    n = len(tail)
    return parts[:-n] if 0 < n < len(parts) and parts[-n:] == tail else parts
