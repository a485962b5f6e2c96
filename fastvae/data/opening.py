"""Open what a user gives as a store, in memory or on disk."""

from __future__ import annotations

import itertools
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..errors import InputError, file_path
from .file_names import common_tail
from .frames import KnownFrames, LiveFrames, joined_obs
from .joint import FILE, counts_bytes, load, match_genes, open_files, stream
from .request import Source, Wanted
from .sources.countfile import CountFile, constant
from .sources.hdf5 import is_zarr
from .sources.inputs import open_input, read_whole
from .stores.disk import DiskStore, distinct_cells
from .stores.host import CountStore
from .stores.store import Store, log_library_statistics
from .variable_genes import variable_genes

if TYPE_CHECKING:
    import pandas as pd


class Frames(Protocol):
    """obs and var, of an AnnData or of files."""

    @property
    def obs(self) -> pd.DataFrame:
        """One row per cell."""

    @property
    def var(self) -> pd.DataFrame:
        """One row per gene."""


def open_data(data: Any, wanted: Wanted, source: Source) -> tuple[Store, Frames]:
    """Open `data` and check every count.

    Parameters
    ----------
    data
        What `read` takes, an AnnData zarr, or a list of paths.
    wanted
        Genes, batches, labels.
    source
        Where the counts are to be kept.

    Returns
    -------
    store
        `CountStore` or `DiskStore`.
    frames
        obs and var, read from files when they are asked for.

    Raises
    ------
    InputError
        Anything about the data that does not fit; the message names the file.
    """
    paths = _paths(data)
    if paths is None:
        if source.residence == "disk":
            raise InputError(
                "residence='disk' needs the path of an .h5ad file or a zarr store, not an object "
                "in memory"
            )
        return _of_object(data, wanted)
    by_file = bool(wanted.batch_key_of or wanted.file_batches or wanted.batch_key == FILE)
    if len(paths) == 1 and not _streamable(paths[0]):
        if source.residence == "disk":
            raise InputError(
                f"{paths[0]} cannot be streamed; write it as zarr once (fastvae convert "
                f"{paths[0].name} -o {paths[0].stem}.zarr) and use that, or residence='host'"
            )
        if not by_file:
            return _whole(open_input(paths[0], wanted.slot), wanted)
    simple = len(paths) == 1 and not is_zarr(paths[0]) and not by_file
    memory = source.streaming_memory()
    files = open_files(paths, wanted, None if simple and source.residence == "host" else memory)
    if source.residence != "disk":
        room = source.counts_memory()
        fits = room is None or counts_bytes(files) <= room
        if simple and (fits or source.residence == "host"):
            return _whole(files[0], wanted)
        if fits or source.residence == "host":
            return load(files, wanted), FileFrames(tuple(files), wanted)
    loaded = [file.source for file in files if file.checked]
    if loaded:
        raise InputError(
            f"{loaded[0]} cannot be streamed; write it as zarr once (fastvae convert) and use that"
        )
    store = stream(files, wanted, memory)
    return store, FileFrames(tuple(files), wanted)


def narrowed(
    store: Store, frames: Frames, wanted: Wanted, source: Source, n_top_genes: int
) -> tuple[Store, Frames]:
    """Keep the most variable genes only; see `variable_genes`.

    Raises
    ------
    InputError
        As `variable_genes`.
    """
    names = variable_genes(store, n_top_genes)
    wanted = replace(wanted, gene_names=names)
    if isinstance(store, DiskStore) and isinstance(frames, FileFrames):
        store = stream(frames.files, wanted, source.streaming_memory())
        return store, FileFrames(frames.files, wanted)
    assert isinstance(store, CountStore)
    position = {name: column for column, name in enumerate(store.gene_names)}
    counts = store.counts[:, np.array([position[name] for name in names])]
    mean, var = log_library_statistics(counts, store.batch_codes, len(store.log_library_mean))
    narrow = replace(
        store,
        counts=counts,
        gene_names=np.array(names, dtype=object),
        log_library_mean=mean,
        log_library_var=var,
    )
    var = frames.var.loc[names]
    if isinstance(frames, LiveFrames):
        return narrow, replace(frames, var=var)
    return narrow, KnownFrames(frames.obs, var)


@dataclass(frozen=True, eq=False)
class FileFrames:
    """obs and var of files, read when they are asked for."""

    files: tuple[CountFile, ...]
    wanted: Wanted

    @cached_property
    def obs(self) -> pd.DataFrame:
        """One row per cell; of several files the columns that any has, and the file of each cell.

        That column is ``file``, or ``file_1`` and so on where a file has one of that name.
        """
        key = self.wanted.batch_key
        frames = [file.joined(key) for file in self.files]
        if len(frames) == 1:
            return frames[0]
        taken = {name for frame in frames for name in frame.columns}
        names = itertools.chain([FILE], (f"{FILE}_{n}" for n in itertools.count(1)))
        if key != FILE or all(file.batch is None for file in self.files):
            own = next(name for name in names if name not in taken)
            for file, frame in zip(self.files, frames, strict=True):
                frame[own] = constant(file.name, len(frame))
        cells = distinct_cells([frame.index for frame in frames], self.files)
        joined = joined_obs(frames)
        joined.index = cells
        return joined

    @property
    def batch_per_file(self) -> bool:
        """Whether files are batches."""
        return any(file.batch is not None for file in self.files)

    @property
    def tail(self) -> tuple[str, ...]:
        """What the paths of the files have in common at their end."""
        return common_tail([Path(file.source) for file in self.files])

    @cached_property
    def var(self) -> pd.DataFrame:
        """One row per gene of the first file that the model uses, named as the model does."""
        import pandas as pd

        genes, (place, *_) = match_genes(
            self.files, self.wanted.genes, self.wanted.may_lack, warn=False
        )
        frame = self.files[0].var()
        if place is None:
            return frame
        columns = np.flatnonzero(place >= 0)
        columns = columns[np.argsort(place[columns])]
        frame = frame.iloc[columns].copy()
        frame.index = pd.Index([genes.names[number] for number in place[columns]], dtype=object)
        return frame


def _paths(data: Any) -> list[Path] | None:
    if isinstance(data, (str, os.PathLike)):
        data = [data]
    if not isinstance(data, Sequence) or not all(isinstance(d, (str, os.PathLike)) for d in data):
        return None
    if not data:
        raise InputError("no file is given; give at least one")
    return [file_path("data", path) for path in data]


def _streamable(path: Path) -> bool:
    return path.suffix == ".h5ad" or is_zarr(path)


def _whole(opened: CountFile, wanted: Wanted) -> tuple[CountStore, Frames]:
    """Read a single input into memory."""
    file = read_whole(opened, wanted.slot)
    obs, var = file.obs(), file.var()
    store = CountStore.of_checked(
        file.counts(),
        obs,
        var,
        batch_key=wanted.key_of("batch"),
        labels_key=wanted.key_of("label"),
        batch_categories=wanted.known("batch"),
        label_categories=wanted.known("label"),
        covariates=wanted.covariate_keys,
        covariate_categories=wanted.covariate_categories,
        gene_names=wanted.gene_names,
        gene_ids=wanted.gene_ids,
        may_lack=wanted.may_lack,
    )
    return store, KnownFrames(obs, var)


def _of_object(data: Any, wanted: Wanted) -> tuple[CountStore, Frames]:
    """Read an object in memory: a copy of its counts, and obs of an AnnData as it is when asked."""
    from anndata import AnnData

    store, frames = _whole(open_input(data, wanted.slot), wanted)
    if isinstance(data, AnnData):
        frames = LiveFrames(weakref.ref(data), frames.obs, frames.var)
    return store, frames
