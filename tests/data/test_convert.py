"""`fastvae convert`: the same cells in another order, readable by others, never half written."""

from __future__ import annotations

import errno
import warnings
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
import zarr
from count_data import annotated, dense_counts
from typer.testing import CliRunner, Result

from fastvae import Model
from fastvae.cli import app
from fastvae.data import Minibatches, joint, read
from fastvae.data import convert as convert_module
from fastvae.data.opening import open_data
from fastvae.data.request import Source, Wanted

N, G = 150, 13


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joint, "_LARGEST_POOL", 32)
    monkeypatch.setattr(convert_module, "CHUNK", 16)
    monkeypatch.setattr(convert_module, "SHARD", 64)


@pytest.fixture(name="files")
def fixture_files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "a.h5ad", tmp_path / "b.h5ad"]
    for seed, path in enumerate(paths):
        counts = dense_counts(N, G, seed)
        counts[20] = 0
        adata = annotated(sp.csr_matrix(counts))
        adata.obs_names = [f"{path.stem}{i}" for i in range(N)]
        adata.write_h5ad(path)
    return paths


def _convert(files: list[Path], target: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["convert", *map(str, files), "-o", str(target), *options])


def _read(path: Path) -> anndata.AnnData:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return anndata.read_zarr(path)


def _names(tmp_path: Path) -> set[str]:
    return {path.name for path in tmp_path.iterdir()}


def test_every_cell_is_there_once(files: list[Path], tmp_path: Path) -> None:
    target = tmp_path / "atlas.zarr"
    result = _convert(files, target)
    assert result.exit_code == 0, result.output
    assert "verifying: 100 %" in result.output
    assert f"{target}: 300 cells x 13 genes" in result.output
    found = _read(target)
    assert found.X.dtype == np.float32
    assert found.X.has_canonical_format
    originals = anndata.concat([anndata.read_h5ad(path) for path in files])
    assert set(found.obs_names) == set(originals.obs_names)
    assert list(found.obs_names) != list(originals.obs_names)
    assert list(found.var_names) == list(originals.var_names)
    same = originals[found.obs_names]
    np.testing.assert_array_equal(found.X.toarray(), same.X.toarray())
    assert list(found.obs["batch"]) == list(same.obs["batch"])
    assert list(found.obs["file"]) == [f"{name[0]}.h5ad" for name in found.obs_names]
    assert len(set(found.obs_names[:32].str[0])) == 2  # of both files from the first pool on
    np.testing.assert_array_equal(read(target).X.toarray(), found.X.toarray())
    store, _ = open_data(target, Wanted(batch_key="batch"), Source("disk"))
    for minibatch in Minibatches(store, batch_size=20, shuffle=True):
        expected = found.X[minibatch.cells].toarray()
        np.testing.assert_array_equal(minibatch.x.to_dense().numpy(), expected)
    model = Model(target, batch_key="batch", residence="disk", n_hidden=4, n_latent=2)
    assert model.fit(1, seed=0, progress=False).get_latent_representation().shape == (300, 2)
    assert _names(tmp_path) == {"a.h5ad", "b.h5ad", "atlas.zarr"}


def test_order_may_be_kept_and_genes_chosen(files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "genes.txt").write_text("G5\nG0\nG3\n")
    options = ["--keep-order", "--genes", str(tmp_path / "genes.txt"), "-q"]
    result = _convert(files[:1], tmp_path / "atlas.zarr", *options)
    assert result.exit_code == 0, result.output
    found = _read(tmp_path / "atlas.zarr")
    expected = anndata.read_h5ad(files[0])[:, ["G5", "G0", "G3"]]
    assert list(found.var_names) == ["G5", "G0", "G3"]
    assert list(found.obs_names) == list(expected.obs_names)
    np.testing.assert_array_equal(found.X.toarray(), expected.X.toarray())


def test_the_seed_decides_the_order(files: list[Path], tmp_path: Path) -> None:
    orders = []
    for name, seed in (("one", "0"), ("two", "0"), ("three", "1")):
        _convert(files, tmp_path / name, "--seed", seed, "-q")
        orders.append(list(_read(tmp_path / name).obs_names))
    assert orders[0] == orders[1] != orders[2]


def _fail_after(monkeypatch: pytest.MonkeyPatch, writes: int, error: Exception) -> None:
    set_item = zarr.Array.__setitem__
    done = [0]

    def write(array: Any, key: Any, value: Any) -> None:
        if array.path in ("X/data", "X/indices"):
            done[0] += 1
            if done[0] > writes:
                raise error
        set_item(array, key, value)

    monkeypatch.setattr(zarr.Array, "__setitem__", write)


@pytest.mark.parametrize("writes", [0, 1, 2, 9])
def test_a_full_disk_leaves_nothing_and_can_be_resumed(
    files: list[Path], tmp_path: Path, writes: int
) -> None:
    target = tmp_path / "atlas.zarr"
    with pytest.MonkeyPatch.context() as patch:
        _fail_after(patch, writes, OSError(errno.ENOSPC, "No space left on device"))
        result = _convert(files, target, "-q")
    assert result.exit_code == 2
    assert ".atlas.zarr.partial cannot be written: the disk is full (" in result.output
    assert "make room and run the same command again" in result.output
    assert not target.exists()
    written: list[str] = []
    set_item = zarr.Array.__setitem__

    def note(array: Any, key: Any, value: Any) -> None:
        written.append(array.path)
        set_item(array, key, value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zarr.Array, "__setitem__", note)
        result = _convert(files, target, "-q")
    assert result.exit_code == 0, result.output
    assert ("went on from where" in result.output) is (writes >= 2)
    shards = -(-read(target).X.nnz // 64)
    assert written.count("X/data") == shards - writes // 2
    _convert(files, tmp_path / "whole.zarr", "-q")
    for name in ("data", "indices", "indptr"):
        a, b = (
            zarr.open_group(path, mode="r")["X"][name][:]
            for path in (target, tmp_path / "whole.zarr")
        )
        np.testing.assert_array_equal(a, b)
    assert list(_read(target).obs_names) == list(_read(tmp_path / "whole.zarr").obs_names)


def test_other_options_begin_anew(files: list[Path], tmp_path: Path) -> None:
    target = tmp_path / "atlas.zarr"
    with pytest.MonkeyPatch.context() as patch:
        _fail_after(patch, 6, OSError("broken"))
        result = _convert(files, target, "-q")
    assert "cannot be written: broken" in result.output
    result = _convert(files, target, "-q", "--seed", "5")
    assert result.exit_code == 0, result.output
    assert "went on" not in result.output
    _convert(files, tmp_path / "whole.zarr", "-q", "--seed", "5")
    np.testing.assert_array_equal(
        read(target).X.toarray(), read(tmp_path / "whole.zarr").X.toarray()
    )


def test_what_does_not_read_back_is_written_again(files: list[Path], tmp_path: Path) -> None:
    target = tmp_path / "atlas.zarr"
    set_item = zarr.Array.__setitem__

    def corrupt(array: Any, key: Any, value: Any) -> None:
        if array.path == "X/data" and key.start == 128:
            value = value + 1
        set_item(array, key, value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zarr.Array, "__setitem__", corrupt)
        result = _convert(files, target, "-q")
    assert result.exit_code == 2
    assert "entries 128 to 192 of X do not read back" in result.output
    assert not target.exists()
    result = _convert(files, target, "-q")
    assert "went on from where it had stopped" in result.output
    assert read(target).X.sum() == sum(read(path).X.sum() for path in files)


def test_nothing_is_overwritten_unasked(files: list[Path], tmp_path: Path) -> None:
    target = tmp_path / "atlas.zarr"
    assert _convert(files[:1], target, "-q").exit_code == 0
    result = _convert(files, target, "-q")
    assert result.exit_code == 2
    assert "already exists; choose another name or pass --overwrite" in result.output
    assert read(target).n_obs == N
    assert _convert(files, target, "-q", "--overwrite").exit_code == 0
    assert read(target).n_obs == 2 * N
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").touch()
    result = _convert(files, tmp_path / "folder", "-q", "--overwrite")
    assert "is no zarr store and is not replaced" in result.output
    assert (tmp_path / "folder" / "thesis.tex").exists()
    result = _convert([target], target, "-q", "--overwrite")
    assert "is one of the inputs" in result.output
    result = _convert(files, tmp_path / "none" / "atlas.zarr", "-q")
    assert "none is not a folder that can be written to" in result.output


def test_stored_by_gene_becomes_stored_by_cell(files: list[Path], tmp_path: Path) -> None:
    adata = anndata.read_h5ad(files[0])
    adata.X = adata.X.tocsc()
    adata.write_h5ad(tmp_path / "csc.h5ad")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        result = _convert([tmp_path / "csc.h5ad"], tmp_path / "atlas.zarr", "--keep-order")
    assert result.exit_code == 0, result.output
    assert "stored by gene (CSC)" in result.output
    np.testing.assert_array_equal(read(tmp_path / "atlas.zarr").X.toarray(), adata.X.toarray())
