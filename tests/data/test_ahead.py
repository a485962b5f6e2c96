"""Parts read ahead of time into memory that is used again: nothing is mixed up or left running."""

from __future__ import annotations

import threading
from pathlib import Path

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
from count_data import annotated, dense_counts

from fastvae.data import Minibatches, joint
from fastvae.data.opening import open_data
from fastvae.data.prefetch import Ahead
from fastvae.data.request import Source, Wanted
from fastvae.data.sources import arrays as _arrays
from fastvae.data.stores.minibatch import SpareMemory

N, G = 200, 13


@pytest.fixture
def h5ad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(joint, "_LEAST_POOL", 32)
    monkeypatch.setattr(joint, "_LARGEST_POOL", 32)
    annotated(sp.csr_matrix(dense_counts(N, G))).write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


def test_minibatches_handed_out_outlive_the_memory_they_came_from(h5ad: Path) -> None:
    store, _ = open_data(h5ad, Wanted(batch_key="batch"), Source("disk"))
    truth = dense_counts(N, G)
    loader = Minibatches(store, batch_size=16, shuffle=True, seed=3)
    assert store.pool_cells < N // 4  # several parts, so that memory goes round
    kept = []
    for epoch in range(3):
        loader.set_epoch(epoch)
        kept.append(list(loader))
    for minibatches in kept:
        seen = np.concatenate([minibatch.cells for minibatch in minibatches])
        np.testing.assert_array_equal(np.sort(seen), np.arange(N))
        for minibatch in minibatches:
            np.testing.assert_array_equal(minibatch.x.to_dense().numpy(), truth[minibatch.cells])


def test_the_next_epoch_is_begun_before_it_is_asked_for(
    h5ad: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = open_data(h5ad, Wanted(), Source("disk"))
    loaded = []
    load = Minibatches._load

    def counted(self: Minibatches, key: tuple[int, int]) -> object:
        loaded.append(key)
        return load(self, key)

    monkeypatch.setattr(Minibatches, "_load", counted)
    loader = Minibatches(store, batch_size=32, shuffle=True)
    parts = [(epoch, part) for epoch in (0, 1) for part in range(7)]
    for epoch in (0, 1):
        loader.set_epoch(epoch)
        list(loader)
    loader._parts.drop()
    assert loaded[:14] == parts  # each part once, in order
    assert loaded[14:] in ([], [(2, 0)])


class _Work:
    def __init__(self) -> None:
        self.done: list[int] = []

    def __call__(self, key: int) -> int:
        if key == 4:
            raise ValueError("four")
        self.done.append(key)
        return key * key


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_results_come_in_the_order_asked_for_whatever_was_begun(workers: int) -> None:
    before = set(threading.enumerate())
    work, ahead = _Work(), Ahead[int, int](workers)
    follow = {0: 1, 1: 2, 2: 3, 7: 8}.get
    got = [ahead.take(key, work, follow) for key in (0, 1, 2, 7, 8, 1)]
    assert got == [0, 1, 4, 49, 64, 1]
    ahead.drop()
    left = set(threading.enumerate()) - before
    assert not any(thread.name.startswith("fastvae-data") for thread in left)


def test_what_goes_wrong_ahead_is_raised_where_it_is_due() -> None:
    work, ahead = _Work(), Ahead[int, int](1)
    assert ahead.take(3, work, lambda key: key + 1) == 9
    with pytest.raises(ValueError, match="four"):
        ahead.take(4, work, lambda key: None)


def test_memory_is_used_again_where_it_is_large_enough() -> None:
    memory = SpareMemory()
    columns, values = memory.take(100)
    assert [columns.dtype, values.dtype] == [np.int32, np.float32]
    first = columns.__array_interface__["data"][0]
    memory.give_back(columns, values)
    assert memory.take(90)[0].__array_interface__["data"][0] == first
    memory.give_back(columns, values)
    assert len(memory.take(1000)[1]) == 1000
    memory.give_back(columns.astype(np.int64), values)  # not its own
    assert memory.take(5)[0].dtype == np.int32


def test_zarr_without_the_call_that_decodes_in_place(
    h5ad: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zarr = pytest.importorskip("zarr", minversion="3")
    adata = anndata.read_h5ad(h5ad)
    path = h5ad.with_suffix(".zarr")
    from fastvae.data.convert import convert

    store, frames = open_data(h5ad, Wanted(), Source("disk"))
    convert(store, frames, path, shuffle=False)
    tried = []
    monkeypatch.delattr(zarr.core.indexing, "BasicIndexer")
    monkeypatch.setattr(_arrays, "_decode_into", _counting(tried, _arrays._decode_into))
    store, _ = open_data(path, Wanted(), Source("disk"))
    counts, rows = store.load(np.arange(N))
    assert tried
    np.testing.assert_array_equal(counts[rows].toarray(), adata.X.toarray())


def _counting(tried: list[int], call: object) -> object:
    async def counted(*args: object) -> None:
        tried.append(1)
        await call(*args)  # type: ignore[operator]

    return counted
