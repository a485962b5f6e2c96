"""Convert files to one AnnData zarr for streaming: shuffled, sharded, compressed, verified."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .._files import atomic_path, cannot_write, replace_folder, set_aside
from ..errors import InputError
from ..functional.gather import gather_rows
from .opening import FileFrames
from .order import BlockOrder, WholeOrder, shuffled
from .sources.arrays import fast_zarr
from .storable import storable
from .stores.disk import DiskStore

CHUNK = 1 << 15  # entries compressed together
SHARD = 1 << 22  # entries per file
_MANIFEST = "fastvae-convert.json"
_FORMAT = 1

Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class _Plan:
    """What will be written; the inputs and the options alone decide it."""

    store: DiskStore
    pools: list[tuple[int, int]]
    order: BlockOrder | WholeOrder
    shuffle: bool
    seed: int
    fingerprint: str

    def cells(self, number: int) -> np.ndarray:
        cells = self.order.at(*self.pools[number])
        return shuffled(cells, self.seed, 0, number) if self.shuffle else cells


def convert(
    store: DiskStore,
    frames: FileFrames,
    target: Path,
    *,
    seed: int = 0,
    shuffle: bool = True,
    overwrite: bool = False,
    report: Report = lambda *_: None,
) -> bool:
    """Write the cells of `store` to `target` in a random order.

    Parameters
    ----------
    store, frames
        Counts and obs.
    target
        Folder of the zarr store (version 3) that will be there when all is done, and not before.
        Until then what is written lies beside it in ``.NAME.partial``.
    seed, shuffle
        Cells are shuffled as in training: blocks at random, pools of blocks within; or kept in
        their order.
    overwrite
        Replace what is at `target`, at the very end.
    report
        Called with what is being done, how much of it is done, and of how much.

    Returns
    -------
    bool
        Whether the call continued the work of an earlier one.

    Raises
    ------
    InputError
        `target` is there, the disk is full or what was written does not read back; what is done is
        kept for the next call with the same inputs and options.
    """
    put_back(target)
    check_target(target, overwrite=overwrite)
    partial = target.with_name(f".{target.name}.partial")
    plan = _plan(store, seed, shuffle)
    sums = _begun(partial, plan.fingerprint)
    resumed = bool(sums)
    order = np.concatenate([plan.cells(number) for number in range(len(plan.pools))])
    crow = np.concatenate([[0], np.cumsum(store.cell_lengths[order], dtype=np.int64)])
    with fast_zarr(), _keeping(partial):
        if not resumed:
            _prepare(partial, store, crow)
        group = _open(partial)["X"]
        arrays = [group["data"], group["indices"]]
        total = -(-int(crow[-1]) // SHARD)
        _write_manifest(partial, plan.fingerprint, sums)
        for shard, values, columns in _shards(plan, crow, len(sums)):
            start = shard * SHARD
            for array, part in zip(arrays, (values, columns), strict=True):
                array[start : start + len(part)] = part
            sums.append([_crc(values), _crc(columns)])
            _write_manifest(partial, plan.fingerprint, sums)
            report("writing", shard + 1, total)
        _verify(partial, arrays, sums, plan.fingerprint, report)
        _write_frames(partial, frames, store, order)
    replace_folder(partial, target)
    with suppress(OSError):  # what is complete needs none
        (target / _MANIFEST).unlink()
    return resumed


def check_target(target: Path, *, overwrite: bool) -> None:
    """Refuse a folder that exists unless `overwrite`, and always anything but a zarr store.

    Raises
    ------
    InputError
        Says which.
    """
    if target.exists() and not overwrite:
        raise InputError(
            f"{target} already exists; choose another name or pass --overwrite (overwrite=True)"
        )
    marks = (target / "zarr.json", target / ".zgroup")
    if target.exists() and not any(mark.is_file() for mark in marks):
        raise InputError(f"{target} is no zarr store and is not replaced; choose another name")
    if not target.parent.is_dir() or not os.access(target.parent, os.W_OK):
        raise InputError(f"{target.parent} is not a folder that can be written to")


def _plan(store: DiskStore, seed: int, shuffle: bool) -> _Plan:
    cells = np.arange(store.n_cells)
    order: BlockOrder | WholeOrder
    if shuffle:
        order = BlockOrder(cells, store.block_edges, seed, 0, store.pool_size)
    else:
        order = WholeOrder(cells, False, seed, 0)
    size = store.pool_size
    pools = [(a, min(a + size, store.n_cells)) for a in range(0, store.n_cells, size)]
    digest = hashlib.sha256(
        json.dumps([_FORMAT, seed, shuffle, size, store.block_size, CHUNK, SHARD]).encode()
    )
    for file in store.files:
        state = os.stat(file.source)
        digest.update(f"{file.source}:{state.st_size}:{state.st_mtime_ns}:".encode())
    digest.update("\n".join(store.gene_names).encode())
    digest.update(store.cell_lengths.tobytes())
    return _Plan(store, pools, order, shuffle, seed, digest.hexdigest())


def _begun(partial: Path, fingerprint: str) -> list[list[int]]:
    """Checksums of the shards that an earlier call wrote; anything else there is removed."""
    try:
        manifest = json.loads((partial / _MANIFEST).read_text())
        if manifest["fingerprint"] == fingerprint:
            return list(manifest["checksums"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    shutil.rmtree(partial, ignore_errors=True)
    return []


def _write_manifest(partial: Path, fingerprint: str, sums: Sequence[Sequence[int]]) -> None:
    with atomic_path(partial / _MANIFEST) as temporary:
        temporary.write_text(json.dumps({"fingerprint": fingerprint, "checksums": list(sums)}))


def _open(partial: Path) -> Any:
    import zarr

    return zarr.open_group(partial, mode="r+", zarr_format=3, use_consolidated=False)


def _prepare(partial: Path, store: DiskStore, crow: np.ndarray) -> None:
    import zarr
    from zarr.codecs import BloscCodec, Crc32cCodec

    root = zarr.open_group(partial, mode="w", zarr_format=3)
    root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    x = root.create_group("X")
    shape = [store.n_cells, store.n_genes]
    x.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": shape})
    codecs = [BloscCodec(cname="lz4", clevel=3, shuffle="shuffle"), Crc32cCodec()]
    length = int(crow[-1])
    for name, dtype in (("data", "float32"), ("indices", "int32")):
        x.create_array(
            name, shape=(length,), dtype=dtype, chunks=(CHUNK,), shards=(SHARD,), compressors=codecs
        )
    x.create_array("indptr", data=crow, chunks=(1 << 20,))


def _shards(
    plan: _Plan, crow: np.ndarray, done: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Number, values and columns of each shard from `done` on."""
    first_row = int(np.searchsorted(crow, done * SHARD, side="right")) - 1
    first_pool = next((i for i, (_, b) in enumerate(plan.pools) if b > first_row), len(plan.pools))
    shard = done
    values, columns = np.empty(0, np.float32), np.empty(0, np.int32)
    begin = int(crow[plan.pools[first_pool][0]]) if first_pool < len(plan.pools) else 0
    skip = done * SHARD - begin
    for number in range(first_pool, len(plan.pools)):
        counts, rows = plan.store.load(plan.cells(number))
        _, more_columns, more_values = gather_rows(counts, rows)
        del counts
        values = np.concatenate([values, more_values[skip:]])
        columns = np.concatenate([columns, more_columns[skip:]])
        skip = 0
        last = number == len(plan.pools) - 1
        at = 0
        while len(values) - at >= SHARD or (last and at < len(values)):
            yield shard, values[at : at + SHARD], columns[at : at + SHARD]
            shard, at = shard + 1, at + SHARD
        values, columns = values[at:].copy(), columns[at:].copy()


def _crc(values: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(values).data)


def _verify(
    partial: Path, arrays: Sequence[Any], sums: list[list[int]], fingerprint: str, report: Report
) -> None:
    """Read back every shard and compare checksums; the next call writes a bad one again."""
    for shard, wanted in enumerate(sums):
        span = slice(shard * SHARD, (shard + 1) * SHARD)
        try:
            found = [_crc(np.asarray(array[span])) for array in arrays]
        except Exception:  # each codec raises its own
            found = []
        if found != wanted:
            _write_manifest(partial, fingerprint, sums[:shard])
            raise InputError(
                f"{partial}: entries {span.start} to {span.stop} of X do not read back as they "
                "were written: the disk or the memory is faulty; run the same command again to "
                "write them anew"
            )
        report("verifying", shard + 1, len(sums))


def _write_frames(partial: Path, frames: FileFrames, store: DiskStore, order: np.ndarray) -> None:
    import warnings

    import zarr
    from anndata.io import write_elem

    obs = storable(frames.obs.iloc[order], "obs")
    var = storable(frames.var.loc[list(store.gene_names)], "var")
    root = _open(partial)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # notices about defaults of future versions
        write_elem(root, "obs", obs)
        write_elem(root, "var", var)
        for name in ("layers", "obsm", "varm", "obsp", "varp", "uns"):
            write_elem(root, name, {})
        zarr.consolidate_metadata(partial)
    _sort_metadata(partial / "zarr.json")


def _sort_metadata(path: Path) -> None:
    """Sort the metadata by path: zarr loses nodes when it reads another order."""
    text = json.loads(path.read_text())
    nodes = text["consolidated_metadata"]["metadata"]
    text["consolidated_metadata"]["metadata"] = dict(sorted(nodes.items()))
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(text, indent=2))


def put_back(target: Path) -> None:
    """Put the old store back where a process died just before the new one took its place."""
    aside = set_aside(target)
    if aside.is_dir() and not target.exists():
        aside.rename(target)


@contextmanager
def _keeping(partial: Path) -> Iterator[None]:
    """Say where the finished work is when writing fails."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # zarr and its codecs raise many kinds
        kept = "What is done is kept there: run the same command again to go on, or delete it"
        raise cannot_write(partial, error, kept) from error
