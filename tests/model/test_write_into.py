"""The latent space added to a file of the user's: what is kept, and what an interruption leaves."""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import anndata
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
from command_line import run
from output_faults import die, failing, full_disk
from places import FIXTURES
from small_models import small_data

from fastvae import InputError, Model, _files
from fastvae.data import insertion
from fastvae.data.insertion import Insertion

TRAIN = ["--max-epochs", 1, "--n-latent", 3, "--n-hidden", 8, "--batch-key", "batch", "-q"]


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(small_data(), n_hidden=8, n_latent=3).fit(1, seed=0, progress=False)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A file with something in every slot."""
    adata = small_data()
    adata.layers["counts"] = adata.X.copy()
    adata.raw = adata
    adata.obsm["X_pca"] = np.arange(240.0).reshape(120, 2)
    adata.obsp["connectivities"] = sp.random(120, 120, 0.02, format="csr", random_state=0)
    adata.uns["colours"] = {"batch": np.array(["#fff", "#000"], dtype=object)}
    adata.write_h5ad(tmp_path / "cells.h5ad", compression="gzip")
    return tmp_path / "cells.h5ad"


def content(path: Path) -> dict[str, Any]:
    """Every object of a file but the array: how it is stored, its stored bytes, its attributes."""
    found: dict[str, Any] = {}

    def look(name: str, node: Any) -> None:
        attributes = {key: str(value) for key, value in node.attrs.items()}
        if not isinstance(node, h5py.Dataset):
            found[name] = attributes
            return
        how = (node.shape, str(node.dtype), node.chunks, node.compression)
        if node.dtype == object or node.shape == ():
            stored: Any = repr(node[()].tolist() if node.shape else node[()])
        elif node.chunks is None:
            stored = node[()].tobytes()
        else:
            places = [node.id.get_chunk_info(n) for n in range(node.id.get_num_chunks())]
            stored = [node.id.read_direct_chunk(place.chunk_offset) for place in places]
        found[name] = (attributes, how, stored)

    with h5py.File(path, "r") as file:
        found["/"] = {key: str(value) for key, value in file.attrs.items()}
        file.visititems(look)
    found.pop("obsm/X_fastvae", None)
    return found


def test_everything_else_is_as_it_was(model: Model, data: Path) -> None:
    before, mode = content(data), 0o640
    data.chmod(mode)
    latent = model.write_latent_into(data)
    np.testing.assert_array_equal(latent, model.get_latent_representation(data))
    assert content(data) == before
    assert len(before) > 20
    assert data.stat().st_mode & 0o777 == mode
    found = anndata.read_h5ad(data)
    np.testing.assert_array_equal(found.obsm["X_fastvae"], latent)
    assert list(found.obsm) == ["X_fastvae", "X_pca"]
    assert [path.name for path in data.parent.iterdir()] == ["cells.h5ad"]


def test_an_array_that_is_there_is_kept_unless_asked(model: Model, data: Path) -> None:
    model.write_latent_into(data, key="X_scvi")
    bytes_before = data.read_bytes()
    with pytest.raises(InputError, match=r'has obsm\["X_scvi"\] already'):
        model.write_latent_into(data, key="X_scvi")
    assert data.read_bytes() == bytes_before
    other = Model(small_data(), n_hidden=8, n_latent=2).fit(1, seed=0, progress=False)
    latent = other.write_latent_into(data, overwrite=True, key="X_scvi")
    np.testing.assert_array_equal(anndata.read_h5ad(data).obsm["X_scvi"], latent)


def test_a_link_still_leads_to_the_file(model: Model, data: Path) -> None:
    (data.parent / "elsewhere").mkdir()
    link = data.parent / "elsewhere" / "link.h5ad"
    link.symlink_to(data)
    model.write_latent_into(link)
    assert link.is_symlink()
    assert "X_fastvae" in anndata.read_h5ad(data).obsm


@pytest.mark.parametrize("version", ["0.7.8", "0.9.2", "0.13.4"])
def test_files_of_every_anndata(version: str, tmp_path: Path) -> None:
    with tarfile.open(FIXTURES / "anndata" / f"{version}.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    path = sorted(tmp_path.rglob("*.h5ad"))[0]
    before = content(path)
    n_cells = anndata.read_h5ad(path).n_obs
    values = np.random.default_rng(0).normal(size=(n_cells, 2)).astype(np.float32)
    Insertion.checked(path, "X_fastvae", overwrite=False).write(values)
    assert {**content(path), "obsm": 0} == {**before, "obsm": 0}
    np.testing.assert_array_equal(anndata.read_h5ad(path).obsm["X_fastvae"], values)


@contextmanager
def steps_between(fail: Any, where: str) -> Iterator[None]:
    """Fail in the middle of copying, or after half of the new array is there."""

    def half_a_copy(source: Path, target: Path) -> None:
        Path(target).write_bytes(Path(source).read_bytes()[:5000])
        fail()

    def half_an_array(path: Path, key: str, values: np.ndarray) -> None:
        with h5py.File(path, "r+") as file:
            file["obsm"][key] = values[:60]
            file.flush()
            fail()

    name, change = {"copy": ("shutil.copyfile", half_a_copy), "array": ("_insert", half_an_array)}[
        where
    ]
    with mock.patch(f"fastvae.data.insertion.{name}", change):
        yield


def faults_at(where: Any, fail: Any) -> Any:
    """Fail at a step by its number, or between steps."""
    return failing(where, fail) if isinstance(where, int) else steps_between(fail, where)


def as_it_was_or_whole(path: Path, before: bytes, whole: dict[str, Any], n_latent: int = 3) -> bool:
    """Whether the file is as it was; it must be that or have the whole array."""
    if path.read_bytes() == before:
        return True
    assert anndata.read_h5ad(path).obsm["X_fastvae"].shape == (120, n_latent)
    assert content(path) == whole
    return False


@pytest.mark.parametrize("where", ["copy", "array", *range(1, 8)])
def test_a_full_disk_leaves_the_file(model: Model, data: Path, where: Any) -> None:
    before, whole = data.read_bytes(), content(data)
    said = ""
    with faults_at(where, full_disk):
        try:
            model.write_latent_into(data)
        except InputError as error:
            said = str(error)
    untouched = as_it_was_or_whole(data, before, whole)
    assert "cells.h5ad" in said if untouched else not said
    assert [path.name for path in data.parent.iterdir()] == ["cells.h5ad"]


@pytest.mark.parametrize("where", ["copy", "array", 1, 2, 3, 4])
def test_a_kill_leaves_the_file(model: Model, data: Path, where: Any) -> None:
    before, whole = data.read_bytes(), content(data)
    place = Insertion.checked(data, "X_fastvae", overwrite=False)
    latent = model.get_latent_representation()
    child = os.fork()
    if child == 0:
        try:
            with faults_at(where, die):
                place.write(latent)
        finally:
            os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 99)
    assert code == 99 or where == 4
    untouched = as_it_was_or_whole(data, before, whole)
    assert untouched or where in (3, 4)
    model.write_latent_into(data, overwrite=True)  # the same again
    assert not as_it_was_or_whole(data, before, whole)


def test_a_file_that_another_program_changes_meanwhile_is_left(model: Model, data: Path) -> None:
    place = Insertion.checked(data, "X_fastvae", overwrite=False)
    latent = model.get_latent_representation()
    with h5py.File(data, "r+") as file:
        file.attrs["note"] = "of another program"
    changed = data.read_bytes()
    with pytest.raises(InputError, match="was changed by another program meanwhile"):
        place.write(latent)
    assert data.read_bytes() == changed


def test_a_copy_that_does_not_read_back_is_not_used(
    model: Model, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = data.read_bytes()
    insert = insertion._insert

    def lossy(path: Path, key: str, values: np.ndarray) -> None:
        insert(path, key, values)
        with h5py.File(path, "r+") as file:
            del file["layers/counts"]

    monkeypatch.setattr(insertion, "_insert", lossy)
    with pytest.raises(InputError, match=r"is left as it was: .*does not read back"):
        model.write_latent_into(data)
    assert data.read_bytes() == before


def test_what_cannot_be_written_into(
    model: Model, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"into \.h5ad files only"):
        model.write_latent_into(data.parent / "cells.zarr")
    with pytest.raises(InputError, match="key must be a printable name without a slash"):
        model.write_latent_into(data, key="a/b")
    with h5py.File(data, "r+") as file:
        del file["obsm"]
        file["obsm"] = np.zeros(3)
    with pytest.raises(InputError, match="written by a very old anndata"):
        model.write_latent_into(data)
    room = shutil.disk_usage(data.parent)._replace(free=1000)
    monkeypatch.setattr(_files.shutil, "disk_usage", lambda _: room)
    small_data().write_h5ad(data)
    with pytest.raises(InputError, match=r"the disk has 0\.0 MB free; make room, or"):
        model.write_latent_into(data)


def test_the_command_line(data: Path, tmp_path: Path) -> None:
    run("train", data, "-o", tmp_path / "run", *TRAIN)
    before = content(data)
    said = run("embed", tmp_path / "run", data, "--write-into").stdout
    assert said == f'{data}: obsm["X_fastvae"] (120, 3) added, all else as it was\n'
    expected = anndata.read_h5ad(tmp_path / "run" / "latent.h5ad").obsm["X_fastvae"]
    np.testing.assert_array_equal(anndata.read_h5ad(data).obsm["X_fastvae"], expected)
    assert content(data) == before
    both = ["embed", tmp_path / "run", data, "--write-into", "-o", tmp_path / "out.h5ad"]
    assert 'has obsm["X_fastvae"] already; pass --overwrite' in run(*both, code=2).stderr
    assert not (tmp_path / "out.h5ad").exists()
    run(*both, "--overwrite")
    np.testing.assert_array_equal(
        anndata.read_h5ad(tmp_path / "out.h5ad").obsm["X_fastvae"], expected
    )
    for words, message in (
        ([data], "name the file to write (--output FILE), or give --write-into"),
        ([data, data, "--write-into"], "and 2 are given; repeat the command for each"),
        ([data, "-o", data, "--overwrite"], "whose counts would be lost"),
    ):
        assert message in run("embed", tmp_path / "run", *words, code=2).stderr


def test_map_writes_into_the_query(data: Path, tmp_path: Path) -> None:
    run("train", data, "-o", tmp_path / "run", *TRAIN, "--no-plots")
    query = anndata.read_h5ad(data)[:50].copy()
    query.obs["batch"] = "new"
    query.write_h5ad(tmp_path / "query.h5ad")
    words = ["map", tmp_path / "run", tmp_path / "query.h5ad", "--max-epochs", 1, "-q"]
    words += ["--no-plots", "--write-into"]
    said = run(*words, "-o", tmp_path / "mapped").stdout
    assert f"{tmp_path / 'query.h5ad'}: the latent space was added" in said
    found = anndata.read_h5ad(tmp_path / "query.h5ad").obsm["X_fastvae"]
    expected = anndata.read_h5ad(tmp_path / "mapped" / "latent.h5ad").obsm["X_fastvae"]
    np.testing.assert_array_equal(found, expected)
    assert "already" in run(*words, "-o", tmp_path / "again", code=2).stderr
    assert not (tmp_path / "again").exists()
