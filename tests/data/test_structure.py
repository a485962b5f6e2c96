"""Files whose objects are not what their format wants: refused by name before they are decoded."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import socket
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
from command_line import RUNNER, run
from count_data import annotated, dense_counts, write_v3_h5

from fastvae import Model
from fastvae.cli import app
from fastvae.data import read
from fastvae.errors import InputError
from fastvae.train import read_history

SMALL = {"n_latent": 2, "n_hidden": 4}
Change = Callable[[h5py.File], Any]


@pytest.fixture(name="h5ad", scope="module")
def fixture_h5ad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    adata = annotated()
    adata.obs["depth"] = np.arange(adata.n_obs, dtype=np.float32)
    adata.layers["other"] = adata.X.copy()
    adata.raw = adata
    adata.uns["note"] = "x"
    adata.obsm["X_pca"] = np.zeros((adata.n_obs, 2))
    path = tmp_path_factory.mktemp("h5ad") / "cells.h5ad"
    adata.write_h5ad(path)
    return path


@pytest.fixture(name="path")
def fixture_path(h5ad: Path, tmp_path: Path) -> Path:
    """A copy of a file, to be changed."""
    return Path(shutil.copy(h5ad, tmp_path))


@pytest.fixture(name="stores", scope="module")
def fixture_stores(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    return {n: write_zarr(tmp_path_factory.mktemp("zarr"), n) for n in (2, 3)}


@pytest.fixture(name="store", params=[2, 3])
def fixture_store(stores: dict[int, Path], tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A copy of a store of each format, to be changed."""
    return Path(shutil.copytree(stores[request.param], tmp_path / "cells.zarr"))


def write_zarr(folder: Path, zarr_format: int) -> Path:
    with warnings.catch_warnings(), anndata.settings.override(zarr_write_format=zarr_format):
        warnings.simplefilter("ignore")
        annotated().write_zarr(folder / "cells.zarr")
    return folder / "cells.zarr"


def info(path: Path) -> Any:
    result = RUNNER.invoke(app, ["info", str(path)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def refused(path: Path, message: str) -> None:
    """Every way into the file gives one error that names it, and ends."""
    for way in (
        read,
        lambda p: Model(p, residence="disk" if p.suffix != ".h5" else "auto", **SMALL),
    ):
        with pytest.raises(InputError, match=message) as caught:
            way(path)
        assert path.name in str(caught.value)
    result = info(path)
    assert "Traceback" not in result.output
    assert result.exit_code in (0, 2)


def replaced(name: str, value: Any, **options: Any) -> Change:
    def change(file: h5py.File) -> None:
        attrs = dict(file[name].attrs) if name in file else {}
        del file[name]
        made = file.create_dataset(name, data=value, **options)
        made.attrs.update(attrs)

    return change


def removed(name: str) -> Change:
    return lambda file: file.__delitem__(name)


def grouped(name: str) -> Change:
    def change(file: h5py.File) -> None:
        del file[name]
        file.create_group(name)

    return change


def declared(name: str, shape: tuple[int, ...], dtype: Any, **options: Any) -> Change:
    """Put an array in the place of another that has a shape and no entries."""

    def change(file: h5py.File) -> None:
        attrs = dict(file[name].attrs)
        del file[name]
        file.create_dataset(name, shape, dtype=dtype, **options).attrs.update(attrs)

    return change


def retyped(name: str, dtype: str) -> Change:
    return lambda file: replaced(name, file[name][:].astype(dtype))(file)


def references(name: str) -> Change:
    def change(file: h5py.File) -> None:
        made = np.array([file["X"].ref] * len(file[name]), dtype=h5py.ref_dtype)
        replaced(name, made)(file)

    return change


def attribute(name: str, key: str, value: Any) -> Change:
    return lambda file: file[name].attrs.__setitem__(key, value)


H5AD: dict[str, tuple[Change, str]] = {
    # kinds of objects
    "a scalar column": (replaced("obs/depth", 3.0), r"obs\['depth'\] cannot be read .*shape \(\)"),
    "an empty column": (
        replaced("obs/depth", h5py.Empty("f4")),
        r"obs\['depth'\] cannot be read .*shape None",
    ),
    "a group for a column": (
        grouped("obs/depth"),
        r"obs\['depth'\] cannot be read .*stored as a group",
    ),
    "a table for a column": (
        replaced("obs/depth", np.zeros(40, dtype=[("a", "f4")])),
        r"obs\['depth'\] cannot be read .*not numbers or text",
    ),
    "a longer column": (
        replaced("obs/depth", np.zeros(41)),
        r"obs\['depth'\] cannot be read .*41 entries, its index has 40",
    ),
    "shorter codes": (
        replaced("obs/batch/codes", np.zeros(9, "i1")),
        r"obs\['batch'\] cannot be read .*9 entries, its index has 40",
    ),
    "codes that are no integers": (
        retyped("obs/batch/codes", "f4"),
        r"obs\['batch'\] cannot be read .*not whole numbers",
    ),
    "no categories": (
        removed("obs/batch/categories"),
        r"obs\['batch'\] cannot be read .*'categories' is not there",
    ),
    "a column that is not there": (removed("obs/depth"), r"obs\['depth'\] .*column-order names it"),
    "an odd column-order": (attribute("obs", "column-order", 7), r"obs cannot be read .*not names"),
    "a column named twice": (
        attribute("obs", "column-order", ["depth", "depth"]),
        r"columns 'depth' are named twice",
    ),
    "no index": (removed("obs/_index"), r"obs cannot be read .*its index '_index' is not there"),
    "an odd name of the index": (attribute("obs", "_index", 7), r"attribute '_index' is 7"),
    "a broken kind of a column": (
        attribute("obs/batch", "encoding-type", 7),
        r"attribute 'encoding-type' is 7",
    ),
    "obs is an array": (replaced("obs", np.zeros(40)), r"obs cannot be read .*not a data frame"),
    "X is a scalar": (replaced("X", 3.0), r"X of .* has shape \(\); expected two dimensions"),
    "X is text": (replaced("X", np.full((40, 13), b"a")), r"X of .* holds text values"),
    "data is a group": (grouped("X/data"), r"X of .* is damaged: its 'data' is a group"),
    "indptr is a scalar": (replaced("X/indptr", 3), r"X of .* is damaged: its 'indptr' has shape"),
    "data is longer": (replaced("X/data", np.ones(999, "f4")), r"its row pointers do not fit"),
    "a shape of words": (attribute("X", "shape", "large"), r"its shape is 'large'"),
    "a shape below zero": (attribute("X", "shape", [-4, 13]), r"its shape is \[-4, 13\]"),
    # positions are whole numbers
    "indices are floats": (retyped("X/indices", "f8"), r"'indices' holds .*float64; positions"),
    "indptr are floats": (retyped("X/indptr", "f4"), r"'indptr' holds .*float32; positions"),
    "indices are booleans": (retyped("X/indices", "?"), r"'indices' holds .*bool; positions"),
    "indices are references": (references("X/indices"), r"'indices' holds references; positions"),
    # more than the file can hold
    "a column without entries": (
        declared("obs/_index", (10**12,), h5py.string_dtype()),
        r"obs/_index of .* declares 8e\+12 bytes .* and 0 bytes of it are stored",
    ),
    "values without entries": (
        declared("X/data", (10**13,), "f4", chunks=(1000,)),
        r"its row pointers do not fit",
    ),
    "a matrix without entries": (
        declared("X", (10**9, 10**6), "f4", chunks=(1000, 1000)),
        r"X of .* declares 4e\+15 bytes",
    ),
    "texts as long as a book": (
        declared("obs/cell_type", (40,), "S1000000", chunks=(1,)),
        r"obs/cell_type of .* declares 4e\+07 bytes",
    ),
    "chunks that are not there": (
        declared("X/indptr", (41,), "i4", chunks=(10,)),
        r"X/indptr of .* is incomplete: 5 of its 5 chunks are not stored",
    ),
}


@pytest.mark.parametrize("case", H5AD)
def test_h5ad(path: Path, case: str) -> None:
    change, message = H5AD[case]
    with h5py.File(path, "r+") as file:
        change(file)
    refused(path, message)


@pytest.mark.parametrize("name", ["indices", "indptr"])
@pytest.mark.parametrize("dtype", ["f4", "?"])
def test_positions_of_objects(path: Path, name: str, dtype: str) -> None:
    """Of a backed AnnData, and of scipy's matrices."""
    with h5py.File(path, "r+") as file:
        retyped(f"X/{name}", dtype)(file)
    backed = anndata.read_h5ad(path, backed="r")
    with pytest.raises(InputError, match=rf"its '{name}' holds .*positions must be whole numbers"):
        read(backed)
    backed.file.close()
    matrix = sp.csr_matrix(dense_counts())
    setattr(matrix, name, getattr(matrix, name).astype(dtype))
    with pytest.raises(InputError, match=rf"its '{name}' holds .*positions must be whole numbers"):
        read(matrix)


@pytest.mark.parametrize("name", ["uns/note", "obsm/X_pca", "layers/other", "raw/X/indices"])
def test_what_is_not_needed_is_not_read(path: Path, name: str) -> None:
    with h5py.File(path, "r+") as file:
        file["uns"].attrs["encoding-type"] = 7
        file["obsm"].attrs["encoding-version"] = "none"
        file["uns"]["loop"] = file["uns"]
        del file[name]
        file[name] = h5py.ExternalLink("/dev/zero", "/x")
    np.testing.assert_array_equal(read(path).X.toarray(), dense_counts())
    Model(path, residence="disk", **SMALL)
    result = info(path)
    assert result.exit_code == 0
    assert "layers" in result.output


@pytest.mark.parametrize("name", ["data", "indices", "indptr", "barcodes", "features/name"])
@pytest.mark.parametrize("what", ["scalar", "group", "removed", "linked", "longer"])
def test_tenx(tmp_path: Path, name: str, what: str) -> None:
    path = write_v3_h5(tmp_path / "run.h5", dense_counts(), ["Gene Expression"] * 13)
    full = f"matrix/{name}"
    with h5py.File(path, "r+") as file:
        values = file[full][:]
        del file[full]
        if what == "scalar":
            file[full] = values[0]
        elif what == "group":
            file.create_group(full)
        elif what == "linked":
            file[full] = h5py.ExternalLink("other.h5", "/x")
        elif what == "longer":
            file[full] = np.concatenate([values, values])
    refused(path, r"run\.h5")


@pytest.mark.parametrize("name", ["indices", "indptr"])
def test_tenx_positions_are_integers(tmp_path: Path, name: str) -> None:
    path = write_v3_h5(tmp_path / "run.h5", dense_counts(), ["Gene Expression"] * 13)
    with h5py.File(path, "r+") as file:
        retyped(f"matrix/{name}", "f8")(file)
    refused(path, rf"matrix of .*'{name}' holds values of type float64; positions must be whole")


# Links out of a file


def linked(file: h5py.File, name: str, how: str, other: Path) -> None:
    name = f"{name}/values" if isinstance(file[name], h5py.Group) else name
    item = file[name]
    values, attrs = item[:], dict(item.attrs)
    del file[name]
    if how == "external link":
        with h5py.File(other, "a") as secret:
            secret[name].attrs.update(attrs) if name in secret else secret.__setitem__(name, values)
            secret[name].attrs.update(attrs)
        file[name] = h5py.ExternalLink(other.name, f"/{name}")
        return
    if how == "external storage":
        other.write_bytes(values.tobytes())
        size = values.nbytes
        made = file.create_dataset(
            name, values.shape, values.dtype, external=[(other.name, 0, size)]
        )
    else:
        with h5py.File(other, "w") as secret:
            secret["x"] = values
        layout = h5py.VirtualLayout(values.shape, values.dtype)
        layout[:] = h5py.VirtualSource(other.name, "x", values.shape)
        made = file.create_virtual_dataset(name, layout)
    made.attrs.update(attrs)


@pytest.mark.parametrize("how", ["external link", "external storage", "virtual"])
@pytest.mark.parametrize("name", ["obs/depth", "X/data", "obs/batch/codes", "var/gene_ids"])
def test_links_out_of_a_file(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, name: str
) -> None:
    if how != "external link" and name == "var/gene_ids":
        pytest.skip("texts lie in the file itself")
    monkeypatch.chdir(tmp_path)
    wanted = read(path)
    with h5py.File(path, "r+") as file:
        linked(file, name, how, tmp_path / "secret")
    refused(
        path,
        rf"{name}(/values)? of .* another file \(.*secret.*\), which is not read.*allow_links=True",
    )
    found = read(path, allow_links=True)
    np.testing.assert_array_equal(found.X.toarray(), wanted.X.toarray())
    assert found.obs.equals(wanted.obs)


@pytest.mark.parametrize("group", ["obs", "X", "layers"])
def test_groups_in_other_files(path: Path, tmp_path: Path, group: str) -> None:
    shutil.copy(path, tmp_path / "other.h5ad")
    with h5py.File(path, "r+") as file:
        del file[group]
        file[group] = h5py.ExternalLink("other.h5ad", f"/{group}")
    layer = "other" if group == "layers" else None
    with pytest.raises(InputError, match=rf"{group}.* is a link to another file \(other\.h5ad\)"):
        read(path, layer=layer)
    assert read(path, layer=layer, allow_links=True).n_obs == 40


def test_links_are_followed_on_request(path: Path, tmp_path: Path) -> None:
    """By every way in that takes data; a model keeps no such leave."""
    shutil.copy(path, tmp_path / "other.h5ad")
    sound = tmp_path / "other.h5ad"
    with h5py.File(path, "r+") as file:
        del file["X"]
        file["X"] = h5py.ExternalLink("other.h5ad", "/X")
    model = Model(path, allow_links=True, batch_key="batch", **SMALL)
    model.fit(1, seed=0, progress=False, device="cpu").save(tmp_path / "run")
    wanted = model.get_latent_representation(sound)
    np.testing.assert_array_equal(model.get_latent_representation(path, allow_links=True), wanted)
    model = Model.load(tmp_path / "run")
    for ask in (model.get_latent_representation, model.map_query):
        with pytest.raises(InputError, match=r"link to another file .* pass allow_links=True"):
            ask(path)
    query = model.map_query(
        path, allow_links=True, freeze="decoder", max_epochs=1, progress=False, device="cpu"
    )
    assert query.get_latent_representation().shape == wanted.shape
    made = tmp_path / "made"
    commands: dict[str, list[Any]] = {
        "train": [path, "-o", made / "run", "--max-epochs", 1, "-q"],
        "embed": [tmp_path / "run", path, "-o", made / "latent.h5ad"],
        "map": [
            tmp_path / "run",
            path,
            "-o",
            made / "query",
            *("--freeze", "decoder", "--max-epochs", 1, "-q"),
        ],
        "de": [tmp_path / "run", path, "--groupby", "cell_type", "-o", made / "de.csv"],
        "convert": [path, "-o", made / "atlas.zarr"],
        "info": [path],
    }
    made.mkdir()
    for command, arguments in commands.items():
        if command != "info":  # it says what else there is
            shown = run(command, *arguments, code=2).output
            assert "link to another file" in shown
            assert "pass --allow-links" in shown
        if command not in ("map", "de"):
            assert "not read" not in run(command, *arguments, "--allow-links").output


def test_soft_links(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file.move("X", "kept")
        file["X"] = h5py.SoftLink("/kept")  # within the file: nothing to say against it
    np.testing.assert_array_equal(read(path).X.toarray(), dense_counts())
    with h5py.File(path, "r+") as file:
        del file["kept"]
        file["kept"] = h5py.SoftLink("/X")
    refused(path, r"X of .* is a link in a circle")
    with h5py.File(path, "r+") as file:
        del file["kept"]
    refused(path, r"X of .* is a link to nothing")


@pytest.mark.parametrize("place", ["obs/depth", "obs/batch/codes", "obs", "X", "layers", "raw"])
def test_groups_in_a_circle(path: Path, place: str) -> None:
    with h5py.File(path, "r+") as file:
        if place in ("layers", "raw"):
            file[place]["again"] = file["/"]
            file["uns"]["again"] = file["/"]
        else:
            del file[place]
            file[place] = file["/"]
    result = info(path)
    assert result.exit_code == (2 if "obs" in place else 0), result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
def test_no_regular_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "cells.h5ad"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        os.chdir(tmp_path)
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    else:
        path = Path("/dev/zero")
    with pytest.raises(InputError, match=f"is a {kind}, not a file; write the data to a file"):
        read(path)
    result = info(path)
    assert result.exit_code == 2
    assert f"is a {kind}" in result.output


def test_a_pipe_for_a_history(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "history.csv")
    with pytest.raises(InputError, match=r"history\.csv is a pipe, not a file"):
        read_history(tmp_path / "history.csv")


# zarr stores


class Opens:
    """What a pickle can do."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["FASTVAE_PICKLED"],)


def array_name(store: Path, name: str) -> str:
    """Where the texts of `name` are: newer anndata keep them beside a mask."""
    return f"{name}/values" if (store / name / "values").exists() else name


def array_json(store: Path, name: str) -> tuple[Path, dict[str, Any]]:
    path = next(p for p in (store / name / "zarr.json", store / name / ".zarray") if p.exists())
    return path, json.loads(path.read_text())


@pytest.mark.parametrize("where", ["own", "root", "both"])
@pytest.mark.parametrize("name", ["X/data", "obs/cell_type/categories", "obs/_index"])
@pytest.mark.parametrize("codec", ["pickle", "msgpack2", "unknown"])
def test_codecs(
    store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    codec: str,
    name: str,
    where: str,
) -> None:
    monkeypatch.setenv("FASTVAE_PICKLED", str(tmp_path / "pickled"))
    name = array_name(store, name)
    path, metadata = array_json(store, name)
    if path.name == ".zarray":
        metadata |= {"filters": [{"id": codec}], "compressor": None, "dtype": "|O"}
        copy, entries = store / ".zmetadata", ("metadata", f"{name}/.zarray")
    else:
        metadata["codecs"] = [{"name": f"numcodecs.{codec}", "configuration": {}}]
        copy, entries = store / "zarr.json", ("consolidated_metadata", "metadata", name)
    for chunk in path.parent.rglob("[0-9]*"):
        if chunk.is_file():
            chunk.write_bytes(pickle.dumps(Opens()))
    if where in ("root", "both"):
        whole = json.loads(copy.read_text())
        inside = whole
        for key in entries[:-1]:
            inside = inside[key]
        inside[entries[-1]] = metadata
        copy.write_text(json.dumps(whole))
    if where in ("own", "both"):
        path.write_text(json.dumps(metadata))
        refused(store, rf"{name} of .*is stored with the codec '.*{codec}', which is not read")
    else:
        with pytest.raises(InputError, match=r"cells\.zarr"):  # the array's own codecs decode
            read(store)
    assert not (tmp_path / "pickled").exists()


def test_metadata_at_the_root_are_not_believed(store: Path) -> None:
    name = ".zmetadata" if (store / ".zmetadata").exists() else "zarr.json"
    text = (store / name).read_text()
    (store / name).write_text(text.replace("175", "17"))
    assert text.count("175") >= 2
    np.testing.assert_array_equal(read(store).X.toarray(), dense_counts())


@pytest.mark.parametrize("what", ["chunk", "folder", "metadata"])
def test_links_out_of_a_store(store: Path, tmp_path: Path, what: str) -> None:
    own = array_json(store, "obs/batch/codes")[0]
    chunk = next(p for p in own.parent.rglob("[0-9]*") if p.is_file())
    target = {"chunk": chunk, "folder": own.parent, "metadata": own}[what]
    target.rename(tmp_path / "secret")
    target.symlink_to(tmp_path / "secret")
    refused(store, r"is a link to .*secret, which is not read.*allow_links=True")
    assert read(store, allow_links=True).obs["batch"].iloc[1] == "b1"


@pytest.mark.parametrize("what", ["chunk", "metadata", "root"])
def test_pipes_in_a_store(store: Path, what: str) -> None:
    own = array_json(store, "obs/batch/codes")[0]
    chunk = next(p for p in own.parent.rglob("[0-9]*") if p.is_file())
    root = next(p for p in (store / "zarr.json", store / ".zgroup") if p.exists())
    target = {"chunk": chunk, "metadata": own, "root": root}[what]
    target.unlink()
    os.mkfifo(target)
    refused(store, r"is a pipe, not a file")


@pytest.mark.parametrize(
    ("name", "entries", "message"),
    [
        ("X/data", {"shape": [10**13]}, r"its row pointers do not fit"),
        ("X/indices", {"shape": [-3]}, r"damaged or incomplete \(its shape"),
        ("obs/_index", {"shape": [10**12]}, r"obs/_index(/values)? of .* declares \d+e\+1\d bytes"),
        ("obs/batch/codes", {"shape": [10**12]}, r"obs\['batch'\] .*its index has 40"),
        ("obs/batch/codes", {"shape": []}, r"damaged or incomplete \(its shape"),
        ("X/indptr", {"dtype": "<f8", "data_type": "float64"}, r"positions must be whole numbers"),
        ("X/indices", {"dtype": "|b1", "data_type": "bool"}, r"positions must be whole numbers"),
        ("obs/batch/codes", {"dtype": "<f8", "data_type": "float64"}, r"not whole numbers"),
    ],
)
def test_metadata_of_a_store(store: Path, name: str, entries: dict[str, Any], message: str) -> None:
    path, metadata = array_json(store, array_name(store, name))
    path.write_text(json.dumps(metadata | entries))
    refused(store, message)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"zarr_format": 9}', "[" * 10**5, "\0" * 9])
def test_metadata_that_are_none(store: Path, text: str) -> None:
    array_json(store, "X/data")[0].write_text(text)
    refused(store, r"X/data/\.?z\w+(\.json)? cannot be read: it is damaged or incomplete")


# What is odd and right


def test_well_compressed_files_are_read(tmp_path: Path) -> None:
    counts = np.zeros((30_000, 60), dtype=np.float32)
    counts[:, 7] = 1
    adata = annotated(sp.csr_matrix(counts))
    adata.obs["same"] = 0
    adata.write_h5ad(tmp_path / "a.h5ad", compression="gzip", compression_opts=9)
    assert read(tmp_path / "a.h5ad").X.nnz == 30_000
    adata.X = counts
    adata.write_h5ad(tmp_path / "b.h5ad", compression="gzip", compression_opts=9)
    assert read(tmp_path / "b.h5ad").X.nnz == 30_000
    for zarr_format in (2, 3):
        with warnings.catch_warnings(), anndata.settings.override(zarr_write_format=zarr_format):
            warnings.simplefilter("ignore")
            adata.write_zarr(tmp_path / f"{zarr_format}.zarr")
        assert read(tmp_path / f"{zarr_format}.zarr").obs["same"].sum() == 0
