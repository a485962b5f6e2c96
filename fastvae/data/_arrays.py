"""One-dimensional arrays in HDF5 files and zarr stores, read by slices, with faults named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ._watch import Watch


@contextmanager
def fast_zarr() -> Iterator[None]:
    """Open zarr arrays with the decoder written in Rust where it is installed (zarrs).

    Raises
    ------
    InputError
        zarr itself is not installed.
    """
    import importlib.util

    try:
        import zarr
    except ImportError as error:
        raise InputError(
            'zarr stores need the zarr library: pip install "fastvae[stream]"'
        ) from error
    if importlib.util.find_spec("zarrs") is None:
        yield
        return
    import zarrs  # noqa: F401  registers itself

    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        yield


class StoredArray:
    """A slice at a time of an array on disk.

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
    """

    def __init__(
        self, array: Any, where: str, watch: Watch, files: Callable[[int, int], list[Path]]
    ) -> None:
        self.array = array
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
    def chunk(self) -> int:
        """Length of the pieces that are compressed each on its own; 1 where there are none."""
        chunks = getattr(self.array, "chunks", None)
        return int(chunks[0]) if chunks else 1

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return entries `start` to `stop`.

        Raises
        ------
        InputError
            They cannot be read, or their file has changed since it was opened.
        """
        if start >= stop:
            return np.empty((0, *self.shape[1:]), dtype=self.dtype)
        self.watch.check(self._files(start, stop))
        try:
            return np.asarray(self.array[start:stop])
        except Exception as error:  # each codec raises its own
            raise InputError(
                f"{self.where} cannot be read from entry {start} to {stop} ({error}): it is "
                "damaged or incomplete; copy or download it again"
            ) from error


def hdf5_array(dataset: Any, where: str, watch: Watch, path: Path) -> StoredArray:
    """Wrap an h5py dataset of the file `path`."""
    return StoredArray(dataset, where, watch, lambda start, stop: [path])


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
    return StoredArray(array, where, watch, files)
