"""Files that are damaged or change while they are streamed: one error, never wrong counts."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import anndata
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
import zarr
from count_data import annotated, dense_counts

from fastvae.data import Minibatches, joint
from fastvae.data.opening import open_data
from fastvae.data.request import Source, Wanted
from fastvae.data.stores.store import Store
from fastvae.errors import InputError

N = 200


@pytest.fixture(autouse=True)
def _small_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joint, "_LARGEST_POOL", 64)


def _adata() -> anndata.AnnData:
    return annotated(sp.csr_matrix(dense_counts(N)))


@pytest.fixture(name="h5ad")
def fixture_h5ad(tmp_path: Path) -> Path:
    _adata().write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


@pytest.fixture(name="store", params=[2, 3])
def fixture_store(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A zarr store with many chunks: of 100 entries."""
    path = tmp_path / "cells.zarr"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with anndata.settings.override(zarr_write_format=request.param):
            _adata().write_zarr(path)
        group = zarr.open_group(path, mode="r+")
        for name in ("data", "indices"):
            values = group["X"][name][:]
            group["X"].create_array(name, data=values, chunks=(100,), overwrite=True)
        zarr.consolidate_metadata(path)
    return path


def _chunk(path: Path, name: str, number: int) -> Path:
    folder = path / "X" / name
    return next(p for p in (folder / "c" / str(number), folder / str(number)) if p.is_file())


def _stream(path: Path) -> Store:
    return open_data(path, Wanted(), Source("disk"))[0]


def _an_epoch(store: Store) -> None:
    for _ in Minibatches(store, batch_size=16, shuffle=True):
        pass


def _truncate(chunk: Path) -> None:
    chunk.write_bytes(chunk.read_bytes()[:10])


def _overwrite(chunk: Path) -> None:
    chunk.write_bytes(np.random.default_rng(0).bytes(chunk.stat().st_size))


@pytest.mark.parametrize("damage", [_truncate, _overwrite])
def test_a_damaged_chunk_is_named(store: Path, damage: Callable[[Path], None]) -> None:
    damage(_chunk(store, "data", 3))
    with pytest.raises(InputError, match=r"X of .*cells\.zarr, data cannot be read from entry \d+"):
        _stream(store)


def test_a_missing_chunk_is_not_zeros(store: Path) -> None:
    chunk = _chunk(store, "indices", 2)
    chunk.unlink()
    with pytest.raises(
        InputError, match=rf"1 of its \d+ chunk files are missing.*{chunk}.*entries from 200 on"
    ):
        _stream(store)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_truncate, r"was changed while in use \(it had \d+ bytes and has \d+\)"),
        (Path.unlink, r"cannot be read any more .*deleted or moved"),
    ],
)
def test_a_chunk_that_changes_during_training(
    store: Path, change: Callable[[Path], None], message: str
) -> None:
    streamed = _stream(store)
    _an_epoch(streamed)
    chunk = _chunk(store, "data", 3)
    change(chunk)
    with pytest.raises(InputError, match=message) as caught:
        _an_epoch(streamed)
    assert str(chunk) in str(caught.value)


def test_a_file_that_changes_during_training(h5ad: Path) -> None:
    streamed = _stream(h5ad)
    _an_epoch(streamed)
    with h5ad.open("ab") as file:
        file.write(b"x")
    with pytest.raises(InputError, match=r"cells\.h5ad was changed while in use"):
        _an_epoch(streamed)
    h5ad.unlink()
    with pytest.raises(InputError, match=r"cells\.h5ad cannot be read any more .*was deleted"):
        _an_epoch(streamed)


def _edit(path: Path, name: str, change: Callable[[np.ndarray], None]) -> None:
    with h5py.File(path, "r+") as file:
        values = file["X"][name][:]
        change(values)
        file["X"][name][:] = values


def _set(at: int, value: float) -> Callable[[np.ndarray], None]:
    return lambda values: values.__setitem__(at, value)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("indices", _set(500, 13), r"damaged at entry 500 \(row \d+\): its column 13 lies"),
        ("indices", _set(500, -1), r"damaged at entry 500 \(row \d+\): its column -1 lies"),
        ("indptr", _set(100, 10**6), r"row pointers do not fit"),
        ("data", _set(500, -2), r"a negative value: -2 at cell 'AAAC\d+-1' \(row \d+\), gene 'G"),
        ("data", _set(500, np.nan), r"holds a NaN"),
        ("data", _set(500, np.inf), r"holds an infinite value"),
    ],
)
def test_values_that_cannot_be(
    h5ad: Path, name: str, change: Callable[[np.ndarray], None], message: str
) -> None:
    _edit(h5ad, name, change)
    with pytest.raises(InputError, match=message) as caught:
        _stream(h5ad)
    assert str(h5ad) in str(caught.value)
    if name == "data":  # the cell named is the one that is wrong, in memory as on disk
        with pytest.raises(InputError) as in_memory:
            open_data(h5ad, Wanted(), Source("host"))
        assert str(in_memory.value) == str(caught.value)


def test_a_compressed_chunk_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "cells.h5ad"
    _adata().write_h5ad(path, compression="gzip")
    with h5py.File(path, "r") as file:
        at = file["X/data"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[at.byte_offset + 10 : at.byte_offset + 30] = bytes(20)
    path.write_bytes(bytes(content))
    with pytest.raises(InputError, match=r"X of .*cells\.h5ad, data cannot be read from entry 0"):
        _stream(path)


@pytest.mark.parametrize("kind", ["empty", "half", "log", "one gene", "wrong shape"])
def test_what_is_wrong_before_counts_are_read(h5ad: Path, kind: str) -> None:
    message = {
        "empty": r"is empty \(0 bytes\)",
        "half": r"damaged or truncated",
        "log": r"looks log-normalised.*layer 'counts' looks like counts",
        "one gene": r"has one gene",
        "wrong shape": r"is 199 x 13, but there are 200 cell names",
    }[kind]
    if kind == "empty":
        h5ad.write_bytes(b"")
    elif kind == "half":
        h5ad.write_bytes(h5ad.read_bytes()[:5000])
    elif kind == "log":
        adata = _adata()
        adata.layers["counts"] = adata.X.copy()
        adata.X.data = np.log1p(adata.X.data / 3)
        adata.write_h5ad(h5ad)
    elif kind == "one gene":
        _adata()[:, :1].copy().write_h5ad(h5ad)
    else:
        with h5py.File(h5ad, "r+") as file:
            file["X"].attrs["shape"] = (199, 13)
            indptr = file["X/indptr"][:]
            del file["X/indptr"]
            file["X/indptr"] = np.delete(indptr, 100)
    with pytest.raises(InputError, match=message):
        _stream(h5ad)


def test_nothing_runs_on_after_an_error(h5ad: Path) -> None:
    import threading

    before = set(threading.enumerate())
    streamed = _stream(h5ad)
    loader = iter(Minibatches(streamed, batch_size=16, shuffle=True))
    next(loader)
    h5ad.unlink()
    with pytest.raises(InputError, match="deleted"):
        list(loader)
    names = [thread.name for thread in set(threading.enumerate()) - before]
    assert not any(name.startswith("fastvae-data") for name in names)
