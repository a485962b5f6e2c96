"""Counts streamed from disk: the same numbers, every cell once, an order of the seed alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from count_data import annotated, dense_counts, write_mtx_folder

from fastvae import Model
from fastvae.data import Minibatches, joint, read
from fastvae.data.opening import open_data
from fastvae.data.request import Source, Wanted
from fastvae.data.stores.device import DeviceStore
from fastvae.data.stores.disk import DiskStore
from fastvae.errors import InputError

N, G = 200, 13
WANTED = Wanted(batch_key="batch", labels_key="cell_type")


def _adata() -> anndata.AnnData:
    counts = dense_counts(N, G)
    counts[11] = 0
    counts[199] = 0
    return annotated(sp.csr_matrix(counts))


def _h5ad(path: Path, adata: anndata.AnnData, **options: str) -> Path:
    adata.write_h5ad(path / "cells.h5ad", **options)
    return path / "cells.h5ad"


def _zarr(path: Path, adata: anndata.AnnData, version: int) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with anndata.settings.override(zarr_write_format=version):
            adata.write_zarr(path / "cells.zarr", chunks=[50, G] if version == 2 else None)
    return path / "cells.zarr"


def _dense(adata: anndata.AnnData) -> anndata.AnnData:
    adata.X = adata.X.toarray()
    return adata


def _untidy(adata: anndata.AnnData) -> anndata.AnnData:
    """Columns backwards in each row, one entry in two halves, a stored zero, int64 throughout."""
    x = adata.X
    columns, values, crow = [], [], [0]
    for row in range(N):
        span = slice(x.indptr[row], x.indptr[row + 1])
        own, counts = list(x.indices[span][::-1]), list(x.data[span][::-1])
        if row == 3:
            at = own.index(2)
            counts[at] -= 400
            own, counts = [*own, 2], [*counts, 400.0]
        if row == 11:
            own, counts = [5], [0.0]
        columns += own
        values += counts
        crow.append(len(columns))
    matrix = sp.csr_matrix((N, G), dtype=np.float64)
    matrix.data, matrix.indices, matrix.indptr = (
        np.array(values),
        np.array(columns, dtype=np.int64),
        np.array(crow, dtype=np.int64),
    )
    adata.X = matrix
    return adata


FORMS: dict[str, Callable[[Path], Path]] = {
    "h5ad": lambda p: _h5ad(p, _adata()),
    "h5ad gzip": lambda p: _h5ad(p, _adata(), compression="gzip"),
    "h5ad dense": lambda p: _h5ad(p, _dense(_adata())),
    "h5ad untidy": lambda p: _h5ad(p, _untidy(_adata())),
    "zarr 2": lambda p: _zarr(p, _adata(), 2),
    "zarr 3": lambda p: _zarr(p, _adata(), 3),
    "zarr 3 dense": lambda p: _zarr(p, _dense(_adata()), 3),
}


@pytest.fixture(autouse=True)
def _small_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joint, "_LARGEST_POOL", 64)
    monkeypatch.setattr(joint, "_BLOCKS_PER_POOL", 8)
    monkeypatch.setattr(joint, "_CHECK_BYTES", 4000)
    monkeypatch.setattr("fastvae.data.stores.disk._RUN_BYTES", 1000)
    monkeypatch.setattr("fastvae.data.stores.disk._GROUP_BYTES", 3000)


def _open(path: Path | list[Path], wanted: Wanted = WANTED, **source: str) -> DiskStore:
    store, _ = open_data(path, wanted, Source("disk", **source))
    assert isinstance(store, DiskStore)
    return store


@pytest.fixture(name="store", scope="module")
def fixture_store(tmp_path_factory: pytest.TempPathFactory) -> DiskStore:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(joint, "_LARGEST_POOL", 64)
        patch.setattr(joint, "_BLOCKS_PER_POOL", 8)
        return _open(_h5ad(tmp_path_factory.mktemp("disk"), _adata()))


def _order(loader: Minibatches) -> list[int]:
    return [int(cell) for minibatch in loader for cell in minibatch.cells]


@pytest.mark.parametrize("form", FORMS)
def test_numbers_are_those_in_memory(tmp_path: Path, form: str) -> None:
    path = FORMS[form](tmp_path)
    disk = _open(path)
    memory, frames = open_data(path, WANTED, Source("host"))
    expected = _adata()
    assert memory.residence == "host"
    np.testing.assert_array_equal(memory.counts.toarray(), expected.X.toarray())
    np.testing.assert_array_equal(read(path).X.toarray(), expected.X.toarray())
    assert list(frames.obs["batch"]) == list(expected.obs["batch"])
    assert (disk.n_cells, disk.n_genes, disk.n_stored) == (N, G, expected.X.nnz)
    assert disk.n_empty_cells == memory.n_empty_cells == 2
    np.testing.assert_array_equal(disk.cell_names, memory.cell_names)
    np.testing.assert_array_equal(disk.gene_names, memory.gene_names)
    np.testing.assert_allclose(disk.log_library_mean, memory.log_library_mean, rtol=1e-6)
    np.testing.assert_allclose(disk.log_library_var, memory.log_library_var, rtol=1e-6)
    cells = np.random.default_rng(0).permutation(N)[:150]
    for options in ({}, {"cells": cells}, {"cells": cells, "shuffle": True}):
        seen = []
        for minibatch in Minibatches(disk, batch_size=16, **options):
            host = Minibatches(memory, batch_size=16).gather(minibatch.cells)
            for a, b in zip(minibatch[1:5], host[1:5], strict=True):
                torch.testing.assert_close(a, b, rtol=1e-6, atol=0)
            assert torch.equal(minibatch.x.to_dense(), host.x.to_dense())
            assert torch.equal(minibatch.x.col_indices(), host.x.col_indices())
            seen.extend(minibatch.cells)
        if "shuffle" in options:
            assert sorted(seen) == sorted(cells)
            assert list(seen) != list(cells)
        else:
            assert list(seen) == list(options.get("cells", range(N)))


def test_order_follows_seed_and_epoch_whatever_reads_ahead(store: DiskStore) -> None:
    orders = []
    for workers in (0, 1, 2):
        other = DiskStore(**{**vars(store), "n_workers": workers})
        loader = Minibatches(other, batch_size=10, shuffle=True, seed=3)
        loader.set_epoch(1)
        orders.append(_order(loader))
    assert sorted(orders[0]) == list(range(N))
    assert orders[0] == orders[1] == orders[2]
    loader.set_epoch(2)
    assert _order(loader) != orders[0]
    assert _order(Minibatches(store, batch_size=10, shuffle=True, seed=4)) != orders[0]


def test_pools_mix_blocks_from_everywhere(store: DiskStore) -> None:
    assert (store.pool_size, store.block_size) == (64, 8)
    order = _order(Minibatches(store, batch_size=16, shuffle=True, seed=0))
    blocks = np.array(order[:64]) // 8
    assert len(set(blocks)) == 8
    assert len(set(blocks[:16])) >= 6  # a minibatch has cells of nearly all of them
    assert np.ptp(blocks) > 12


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_every_cell_once(store: DiskStore, world_size: int) -> None:
    cells = np.arange(7, 190)
    orders = [
        _order(Minibatches(store, cells, batch_size=9, shuffle=True, rank=r, world_size=world_size))
        for r in range(world_size)
    ]
    assert sorted(cell for order in orders for cell in order) == list(cells)
    assert max(map(len, orders)) - min(map(len, orders)) <= 1


def test_an_epoch_can_be_resumed_anywhere(store: DiskStore) -> None:
    loader = Minibatches(store, batch_size=9, shuffle=True, seed=3)
    whole = [list(minibatch.cells) for minibatch in loader]
    for position in (0, 1, 6, 7, 8, len(whole) - 1, len(whole)):
        loader.load_state_dict({"epoch": 0, "position": position})
        assert [list(minibatch.cells) for minibatch in loader] == whole[position:]


def test_training_agrees_with_memory(tmp_path: Path) -> None:
    # With one pool for all cells only the order of the epoch differs.
    path = _h5ad(tmp_path, _adata())
    final = {}
    for residence in ("host", "disk"):
        model = Model(path, batch_key="batch", residence=residence, n_hidden=16, n_latent=3)
        model.fit(15, batch_size=32, seed=1, progress=False, n_epochs_kl_warmup=None)
        assert model.training["residence"] == residence
        final[residence] = model
    losses = [m.history["validation_elbo"].iloc[-1] for m in final.values()]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    np.testing.assert_array_equal(final["host"].train_cells, final["disk"].train_cells)
    final["disk"].save(tmp_path / "saved")
    loaded = Model.load(tmp_path / "saved", path, residence="disk")
    latent = final["disk"].get_latent_representation()
    np.testing.assert_array_equal(loaded.get_latent_representation(), latent)
    np.testing.assert_allclose(
        final["host"].get_latent_representation(path).shape, latent.shape, rtol=0
    )
    in_memory = Model.load(tmp_path / "saved", path, residence="host")
    np.testing.assert_allclose(in_memory.get_latent_representation(), latent, atol=1e-5)
    in_memory.write_latent(tmp_path / "memory.h5ad")
    loaded.write_latent(tmp_path / "disk.h5ad")
    a, b = (anndata.read_h5ad(tmp_path / name) for name in ("memory.h5ad", "disk.h5ad"))
    assert list(a.obs_names) == list(b.obs_names)
    assert list(a.obs["batch"]) == list(b.obs["batch"])
    assert list(a.var_names) == list(b.var_names)


def test_from_disk_to_the_device(store: DiskStore) -> None:
    device = DeviceStore.of(store, torch.device("cpu"))
    x = device.part(np.arange(N), torch.device("cpu")).minibatch(0, N).x
    np.testing.assert_array_equal(x.to_dense().numpy(), _adata().X.toarray())


def test_auto_streams_what_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _h5ad(tmp_path, _adata())
    assert open_data(path, WANTED, Source())[0].residence == "host"
    assert open_data(path, WANTED, Source("auto", "20 KB"))[0].residence == "host"
    with pytest.raises(InputError, match=r"memory limit of 0\.0 MB is too little for 200 cells"):
        open_data(path, WANTED, Source("auto", "2 KB"))
    monkeypatch.setattr(joint, "_PROCESS_BYTES", 0)
    monkeypatch.setattr(joint, "_CELL_BYTES", 0)
    monkeypatch.setattr(joint, "_LEAST_POOL", 8)
    store, _ = open_data(path, WANTED, Source("auto", "6 KB"))
    assert store.residence == "disk"
    assert store.pool_size * 64 * joint._POOL_COPIES <= 6000


def test_stored_by_gene_is_slow_and_says_so(tmp_path: Path) -> None:
    adata = _adata()
    adata.X = adata.X.tocsc()
    path = _h5ad(tmp_path, adata)
    with pytest.warns(UserWarning, match=r"X of .*stored by gene \(CSC\).*fastvae convert"):
        store = _open(path)
    counts, rows = store.load(np.arange(N))
    np.testing.assert_array_equal(counts[rows].toarray(), adata.X.toarray())
    with pytest.raises(InputError, match=r"stored by gene \(CSC\), and turning it takes"):
        _open(path, memory_limit="1KB")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: _adata(), "residence='disk' needs the path"),
        (lambda p: write_mtx_folder(p / "mtx", dense_counts()), "mtx cannot be streamed; write"),
        (lambda p: [], "no file is given"),
        (lambda p: [_h5ad(p, _adata())] * 2, "is given twice"),
        (lambda p: p / "none.h5ad", "none.h5ad does not exist"),
    ],
)
def test_what_cannot_be_streamed(
    tmp_path: Path, make: Callable[[Path], object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        open_data(make(tmp_path), WANTED, Source("disk"))


@pytest.mark.parametrize("limit", ["much", 0, True, "-3GB"])
def test_a_limit_that_is_no_size(limit: object) -> None:
    with pytest.raises(InputError, match="memory_limit must be a size such as 500MB"):
        Source("disk", limit)  # type: ignore[arg-type]
