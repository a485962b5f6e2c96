"""Arrays in HDF5 files and zarr stores, read by slices; errors name the array."""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..._words import reason
from ...errors import InputError


@contextmanager
def fast_zarr() -> Iterator[None]:
    """Open zarr arrays with the decoder written in Rust where it is installed (zarrs).

    Raises
    ------
    InputError
        zarr itself is not installed.
    """
    try:
        import zarr
    except ImportError as error:
        raise InputError(
            'zarr stores need the zarr library: pip install "fastvae-scvi[stream]"'
        ) from error
    if importlib.util.find_spec("zarrs") is None:
        yield
        return
    importlib.import_module("zarrs")  # registers itself
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        yield


class StoredArray:
    """An array on disk, read a slice at a time.

    Parameters
    ----------
    array
        h5py dataset or zarr array; the first axis is sliced.
    where
        Names it in messages.
    watch
        Of the files it is in.
    files
        The files that hold a range of it.
    parallel
        Whether it is a zarr array, of which several ranges are read faster at once.
    """

    def __init__(
        self,
        array: Any,
        where: str,
        watch: Watch,
        files: Callable[[int, int], list[Path]],
        *,
        parallel: bool,
    ) -> None:
        self.array = array
        self.parallel = parallel
        self.where = where
        self.watch = watch
        self._files = files

    @property
    def dtype(self) -> np.dtype:
        """Of the values as they are stored."""
        return self.array.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """As stored."""
        return tuple(self.array.shape)

    def __len__(self) -> int:
        return int(self.array.shape[0])

    @property
    def chunks(self) -> tuple[int, ...] | None:
        """Shape of the pieces that are compressed each on its own; None where there are none."""
        chunks = getattr(self.array, "chunks", None)
        return tuple(chunks) if chunks else None

    @property
    def chunk(self) -> int:
        """Length of these pieces; 1 where there are none."""
        return int(self.chunks[0]) if self.chunks else 1

    def __getitem__(self, span: slice) -> np.ndarray:
        """Read a slice without steps; see `read`."""
        start, stop, _ = span.indices(len(self))
        return self.read(start, stop)

    def read(self, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        """Return entries `start` to `stop`, in `out` where that is given: of the same type.

        Raises
        ------
        InputError
            They cannot be read, or their file has changed since it was opened.
        """
        if start >= stop:
            return np.empty((0, *self.shape[1:]), dtype=self.dtype)
        self.watch.check(self._files(start, stop))
        with self._naming(start, stop):
            if out is None:
                return np.asarray(self.array[start:stop])
            self.array.read_direct(out, np.s_[start:stop])
            return out

    async def read_async(self, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        """Do the same, beside others, for a zarr array."""
        if start >= stop:
            return np.empty((0, *self.shape[1:]), dtype=self.dtype)
        self.watch.check(self._files(start, stop))
        with self._naming(start, stop):
            array = self.array.async_array
            if out is None:
                return np.asarray(await array.getitem(slice(start, stop)))
            await _decode_into(array, slice(start, stop), out)
            return out

    @contextmanager
    def _naming(self, start: int, stop: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # each codec raises its own
            raise InputError(
                f"{self.where} cannot be read from entry {start} to {stop} ({reason(error)}): it "
                "is damaged or incomplete; copy or download it again"
            ) from error


async def _decode_into(array: Any, span: slice, out: np.ndarray) -> None:
    """Decode part of a zarr array where it is wanted, which spares a copy and fresh memory.

    zarr offers that to callers that wait only, so the call is one it may change: then it is copied.
    """
    try:
        from zarr.core.buffer import default_buffer_prototype
        from zarr.core.indexing import BasicIndexer

        prototype = default_buffer_prototype()
        read = array._get_selection(
            BasicIndexer(span, shape=array.shape, chunk_grid=array.metadata.chunk_grid),
            prototype=prototype,
            out=prototype.nd_buffer.from_numpy_array(out),
        )
    except (ImportError, AttributeError, TypeError):
        out[:] = await array.getitem(span)
    else:
        await read


def read_spans(
    arrays: Sequence[StoredArray],
    spans: Sequence[tuple[int, int]],
    into: Sequence[np.ndarray] | None = None,
) -> list[list[np.ndarray]]:
    """Read the same ranges of several arrays, at the same time where that is faster.

    Parameters
    ----------
    arrays
        Of one length.
    spans
        Ranges of entries.
    into
        For each array, of its type: memory for what is read, one range after the other.

    Returns
    -------
    list of list of ndarray
        For each array, what is in each range.

    Raises
    ------
    InputError
        As `StoredArray.read`.
    """
    n = len(spans)
    edges = np.cumsum([0, *(stop - start for start, stop in spans)]).tolist()
    tasks = [
        (array, span, None if into is None else into[which][edges[i] : edges[i + 1]])
        for which, array in enumerate(arrays)
        for i, span in enumerate(spans)
    ]
    if all(array.parallel for array in arrays):

        async def together() -> list[np.ndarray]:
            return await asyncio.gather(*(a.read_async(*span, out) for a, span, out in tasks))

        flat = asyncio.run_coroutine_threadsafe(together(), _loop()).result()
    else:
        flat = [array.read(*span, out) for array, span, out in tasks]
    return [flat[i * n : (i + 1) * n] for i in range(len(arrays))]


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    """One event loop in a thread of its own: a notebook's main thread has one running already."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="fastvae-zarr", daemon=True).start()
    return loop


def hdf5_array(dataset: Any, where: str, watch: Watch, path: Path) -> StoredArray:
    """Wrap an h5py dataset of the file `path`."""
    return StoredArray(dataset, where, watch, lambda start, stop: [path], parallel=False)


def zarr_array(array: Any, where: str, watch: Watch, root: Path) -> StoredArray:
    """Wrap a zarr array of the store `root`; a missing chunk is a fault, not zeros.

    Raises
    ------
    InputError
        The store has fewer chunk files than the array needs.
    """
    # A shard is one file with many chunks in it; only zarr v3 has them.
    length = int((getattr(array, "shards", None) or array.chunks)[0])
    rest = (0,) * (len(array.shape) - 1)

    def files(start: int, stop: int) -> list[Path]:
        encode = array.metadata.encode_chunk_key
        numbers = range(start // length, (stop - 1) // length + 1)
        return [root / array.path / encode((number, *rest)) for number in numbers]

    wanted = files(0, array.shape[0]) if array.shape[0] else []
    missing = [path for path in wanted if not path.is_file()]
    if missing:
        first = wanted.index(missing[0]) * length
        raise InputError(
            f"{where} is incomplete: {len(missing)} of its {len(wanted)} chunk files are missing, "
            f"first {missing[0]} (entries from {first} on); copy or download the store again"
        )
    return StoredArray(array, where, watch, files, parallel=True)


class Watch:
    """The state of files when they were first looked at.

    Parameters
    ----------
    source
        What the user calls the whole of them.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self._states: dict[Path, tuple[int, int, int]] = {}

    def check(self, paths: Iterable[Path]) -> None:
        """Compare each with its state at the first check.

        Raises
        ------
        InputError
            It is not there, or is another or longer or shorter or written to.
        """
        for path in paths:
            try:
                found = os.stat(path)
            except OSError as error:
                raise InputError(
                    f"{path}{self._part_of(path)} cannot be read any more ({error.strerror}): it "
                    "was deleted or moved while in use; put it back and start again"
                ) from error
            state = found.st_size, found.st_mtime_ns, found.st_ino
            if self._states.setdefault(path, state) != state:
                raise InputError(
                    f"{path}{self._part_of(path)} was changed while in use (it had "
                    f"{self._states[path][0]} bytes and has {state[0]}); start again, and leave "
                    "the file alone until the end"
                )

    def _part_of(self, path: Path) -> str:
        return "" if str(path) == self.source else f" (part of {self.source})"
