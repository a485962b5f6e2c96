"""Several files: their names, their cells, and each of them as a batch."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from count_data import annotated, dense_counts, write_mtx_folder
from typer.testing import CliRunner

from fastvae import Model
from fastvae.cli import app
from fastvae.data.file_names import distinct_names
from fastvae.data.opening import open_data
from fastvae.data.request import Source, Wanted
from fastvae.errors import InputError

SMALL: dict[str, Any] = {"n_latent": 2, "n_hidden": 4}
TENX = "filtered_feature_bc_matrix"


def _fastvae(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


@pytest.fixture(name="samples")
def fixture_samples(tmp_path: Path) -> list[Path]:
    """Two folders as Cell Ranger names them, with the same barcodes."""
    return [
        write_mtx_folder(tmp_path / name / TENX, dense_counts(seed=seed))
        for seed, name in enumerate("AB")
    ]


@pytest.fixture(name="atlases")
def fixture_atlases(tmp_path: Path) -> list[Path]:
    """Files of one name in two folders, and another; the batch column has a name in each."""
    paths = [tmp_path / "x" / "cells.h5ad", tmp_path / "y" / "cells.h5ad", tmp_path / "z.h5ad"]
    for seed, (path, key) in enumerate(zip(paths, ("donor", "sample", "who"), strict=True)):
        adata = annotated(dense_counts(seed=seed))
        adata.obs_names = [f"{seed}-{name}" for name in adata.obs_names]
        adata.obs = adata.obs.rename(columns={"batch": key})
        adata.obs[key] = adata.obs[key].astype(str) + path.parent.name[:1]
        path.parent.mkdir(exist_ok=True)
        adata.write_h5ad(path)
    return paths


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a.h5ad", "b.h5ad"], ["a.h5ad", "b.h5ad"]),
        (["A/m", "B/m"], ["A", "B"]),
        (["A/outs/m", "B/outs/m"], ["A", "B"]),
        (["A/m/", "B/m/"], ["A", "B"]),
        (["run1/A/m", "run2/A/m"], ["run1", "run2"]),
        (["run1/A/m", "run2/A/m", "run2/B/m"], ["run1/A", "run2/A", "B"]),
        (["a/x.h5ad", "b/x.h5ad", "b/y.h5ad"], ["a/x.h5ad", "b/x.h5ad", "y.h5ad"]),
        (["m", "A/m"], None),
        (["A/m"], ["m"]),
        ([f"A/outs/{TENX}"], ["A"]),
        (["A/filtered_feature_bc_matrix.h5"], ["A"]),
        ([f"A/outs/{TENX}", "A/raw_feature_bc_matrix"], [TENX, "raw_feature_bc_matrix"]),
    ],
)
def test_names_tell_files_apart(paths: list[str], names: list[str] | None, tmp_path: Path) -> None:
    found = distinct_names([tmp_path / path for path in paths])
    assert len(set(found)) == len(paths)
    assert names is None or list(found) == names


def test_names_of_random_trees_are_distinct_and_end_the_paths(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        parts = [rng.choice(list("ab"), size=rng.integers(1, 4)) for _ in range(4)]
        paths = list({tmp_path.joinpath(*some) for some in parts})
        names = distinct_names(paths)
        assert len(set(names)) == len(paths)
        for path, name in zip(paths, names, strict=True):
            assert f"/{name}/" in f"{path.as_posix()}/"


def test_folders_of_one_name_become_batches(samples: list[Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    _fastvae("train", *samples, "-o", run, "--batch-per-file", "sample", "--max-epochs", 1)
    assert Model.load(run).batch_categories == ["A", "B"]
    latent = anndata.read_h5ad(run / "latent.h5ad")
    assert latent.obs_names.is_unique
    objects = [AnnData(obs=pd.DataFrame(index=[f"AAAC{i}-1" for i in range(40)])) for _ in "AB"]
    expected = anndata.concat(objects, keys=["A", "B"], index_unique="-", label="sample")
    assert list(latent.obs_names) == list(expected.obs_names)
    for name in ("sample", "file"):
        assert list(latent.obs[name]) == list(expected.obs["sample"])
    whole = latent.obsm["X_fastvae"]

    _fastvae("embed", run, *samples, "-o", tmp_path / "both.h5ad")
    both = anndata.read_h5ad(tmp_path / "both.h5ad")
    np.testing.assert_allclose(both.obsm["X_fastvae"], whole, atol=1e-6)
    pd.testing.assert_frame_equal(both.obs, latent.obs)
    for number, name in enumerate("AB"):
        _fastvae("embed", run, samples[number], "-o", tmp_path / f"{name}.h5ad")
        one = anndata.read_h5ad(tmp_path / f"{name}.h5ad")
        np.testing.assert_allclose(
            one.obsm["X_fastvae"], whole[40 * number : 40 * number + 40], atol=1e-6
        )
        assert set(one.obs["sample"]) == {name}
        assert list(one.obs_names) == [f"AAAC{i}-1" for i in range(40)]
    _fastvae(
        "de", run, *samples, "--groupby", "sample", "-o", tmp_path / "de.csv", "--n-samples", 50
    )
    assert set(pd.read_csv(tmp_path / "de.csv")["group1"]) == {"A", "B"}


@pytest.mark.parametrize("options", [{"batch_key": "file"}, {"batch_per_file": "file"}])
def test_the_column_file_is_the_batch(samples: list[Path], options: dict[str, str]) -> None:
    model = Model(samples, **options, **SMALL).fit(1, seed=0, progress=False)
    assert model.batch_categories == ["A", "B"]
    table = model.differential_expression(groupby="file", n_samples_overall=50)
    assert set(table["group1"]) == {"A", "B"}
    np.testing.assert_allclose(
        model.get_latent_representation(samples[1]),
        model.get_latent_representation()[40:],
        atol=1e-6,
    )
    elsewhere = write_mtx_folder(samples[0].parents[1] / "C" / TENX, dense_counts())
    with pytest.raises(InputError, match=r"not trained with: 'C'"):
        model.get_elbo(elsewhere)


def test_a_single_file_is_a_batch_that_others_are_mapped_onto(
    samples: list[Path], tmp_path: Path
) -> None:
    _fastvae("train", samples[0], "-o", tmp_path / "one", "--batch-key", "file", "--max-epochs", 1)
    assert Model.load(tmp_path / "one").batch_categories == ["A"]
    run, third = tmp_path / "run", write_mtx_folder(tmp_path / "C" / TENX, dense_counts(seed=3))
    _fastvae("train", *samples, "-o", run, "--batch-per-file", "sample", "--max-epochs", 1)
    output = _fastvae("map", run, third, samples[1], "-o", tmp_path / "mapped", "--max-epochs", 1)
    assert "new batches: 'C' known batches: 'B'" in output
    mapped = Model.load(tmp_path / "mapped")
    assert mapped.batch_categories == ["A", "B", "C"]
    latent = anndata.read_h5ad(tmp_path / "mapped" / "latent.h5ad")
    assert list(latent.obs["sample"]) == ["C"] * 40 + ["B"] * 40
    _fastvae("embed", tmp_path / "mapped", third, "-o", tmp_path / "third.h5ad")
    third_alone = anndata.read_h5ad(tmp_path / "third.h5ad")
    np.testing.assert_allclose(
        third_alone.obsm["X_fastvae"], latent.obsm["X_fastvae"][:40], atol=1e-6
    )
    output = _fastvae(
        "map", tmp_path / "one", third, "--batch-per-file", "sample", "-o", tmp_path / "m2",
        "--max-epochs", 1,
    )  # fmt: skip
    assert "new batches: 'C'" in output


def test_converted_files_stay_apart(samples: list[Path], tmp_path: Path) -> None:
    target = tmp_path / "all.zarr"
    _fastvae("convert", *samples, "-o", target, "--batch-per-file", "sample")
    obs = anndata.read_zarr(target).obs
    assert obs.index.is_unique
    assert [name[-1] for name in obs.index] == list(obs["sample"]) == list(obs["file"])
    for key in ("sample", "file"):
        model = Model(target, batch_key=key, **SMALL)
        assert sorted(model.batch_categories) == ["A", "B"]


def _write(path: Path, adata: AnnData) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    adata.write_h5ad(path)
    return path


@pytest.mark.parametrize("residence", ["host", "disk"])
def test_names_of_cells_change_only_where_they_collide(tmp_path: Path, residence: str) -> None:
    one, two, three = (annotated() for _ in range(3))
    one.obs_names = [f"p{i}" for i in range(40)]
    two.obs_names = [f"q{i}" for i in range(40)]
    three.obs_names = ["p3", *two.obs_names[1:]]
    paths = [
        _write(tmp_path / name / "x.h5ad", adata)
        for name, adata in zip("ABC", (one, two, three), strict=True)
    ]
    store, frames = open_data(paths[:2], Wanted(), Source(residence))
    assert list(store.cell_names) == [*one.obs_names, *two.obs_names]
    store, frames = open_data([paths[0], paths[2]], Wanted(), Source(residence))
    assert list(store.cell_names[[0, 3, 40]]) == ["p0-A", "p3-A", "p3-C"]
    assert list(frames.obs.index) == list(store.cell_names)


def test_a_column_file_of_ones_own_is_kept(tmp_path: Path) -> None:
    one, two = annotated(), annotated()
    two.obs_names = [f"q{i}" for i in range(40)]
    one.obs["file"] = "mine"
    paths = [_write(tmp_path / name / "x.h5ad", each) for name, each in (("A", one), ("B", two))]
    _, frames = open_data(paths, Wanted(), Source())
    assert list(frames.obs["file"].astype(object).fillna("none")) == ["mine"] * 40 + ["none"] * 40
    assert list(frames.obs["file_1"]) == ["A"] * 40 + ["B"] * 40
    two.obs["file_1"] = 1
    paths[1] = _write(tmp_path / "C" / "x.h5ad", two)
    _, frames = open_data(paths, Wanted(), Source())
    assert list(frames.obs["file_2"]) == ["A"] * 40 + ["C"] * 40
    assert list(frames.obs["file_1"].fillna(0)) == [0] * 40 + [1] * 40
    with pytest.raises(InputError, match=r"x\.h5ad has a column 'file' in obs already"):
        Model(paths, batch_per_file="file")
    assert Model(paths[0], batch_key="file", **SMALL).batch_categories == ["mine"]


@pytest.mark.parametrize("spelled", ["path", "name", "mixed"])
@pytest.mark.parametrize("residence", ["host", "disk"])
def test_batch_columns_of_files(atlases: list[Path], spelled: str, residence: str) -> None:
    """Each file has its own; training and obs agree, whichever way the files are named."""
    names = {
        "path": [str(path) for path in atlases],
        "name": ["x/cells.h5ad", "y/cells.h5ad", "z.h5ad"],
        "mixed": [str(atlases[0]), "y/cells.h5ad", "z.h5ad"],
    }[spelled]
    batch_key_of = {names[1]: "sample", names[2]: "who"}
    wanted = Wanted(batch_key="donor", batch_key_of=batch_key_of)
    store, frames = open_data(atlases, wanted, Source(residence))
    expected = [
        value
        for path, key in zip(atlases, ("donor", "sample", "who"), strict=True)
        for value in anndata.read_h5ad(path).obs[key]
    ]
    assert [store.batch_categories[code] for code in store.batch_codes] == expected
    assert list(frames.obs["donor"]) == expected
    for path, key in itertools.islice(zip(atlases, ("donor", "sample"), strict=False), 1, None):
        alone = Wanted(batch_key="donor", batch_key_of={str(path): key})
        store, frames = open_data(path, alone, Source(residence))
        assert list(frames.obs["donor"]) == expected[40:80]


def test_batch_columns_of_files_in_every_command(atlases: list[Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    given = ["--batch-key-of", f"{atlases[1]}=sample", "--batch-key-of", "z.h5ad=who"]
    _fastvae("train", *atlases, "--batch-key", "donor", *given, "-o", run, "--max-epochs", 1)
    whole = anndata.read_h5ad(run / "latent.h5ad")
    _fastvae("embed", run, *atlases, *given, "-o", tmp_path / "e.h5ad")
    again = anndata.read_h5ad(tmp_path / "e.h5ad")
    pd.testing.assert_frame_equal(again.obs, whole.obs)
    np.testing.assert_allclose(again.obsm["X_fastvae"], whole.obsm["X_fastvae"], atol=1e-6)
    _fastvae("embed", run, atlases[1], *given[:2], "-o", tmp_path / "one.h5ad")
    one = anndata.read_h5ad(tmp_path / "one.h5ad")
    assert list(one.obs["donor"]) == list(whole.obs["donor"][40:80])
    np.testing.assert_allclose(one.obsm["X_fastvae"], whole.obsm["X_fastvae"][40:80], atol=1e-6)
    table = tmp_path / "de.csv"
    _fastvae("de", run, *atlases, *given, "--groupby", "donor", "-o", table, "--n-samples", 50)
    assert set(pd.read_csv(table)["group1"]) == set(whole.obs["donor"])
    keys = {atlases[1]: "sample", "z.h5ad": "who"}
    model = Model.load(run, atlases, batch_key_of=keys)
    for found in (
        model.get_latent_representation(),
        model.get_latent_representation(atlases, batch_key_of=keys),
    ):
        np.testing.assert_allclose(found, whole.obsm["X_fastvae"], atol=1e-6)
    _fastvae(
        "map", run, *atlases, "--batch-key", "cell_type", "-o", tmp_path / "m", "--max-epochs", 1
    )
    _fastvae(
        "convert", *atlases, "--batch-key", "donor", *given, "-o", tmp_path / "x.zarr",
        "--keep-order",
    )  # fmt: skip
    converted = anndata.read_zarr(tmp_path / "x.zarr").obs
    assert list(converted["donor"]) == list(whole.obs["donor"])


@pytest.mark.parametrize(
    ("batch_key_of", "message"),
    [
        ({"cells.h5ad": "sample"}, r"'cells\.h5ad', which 2 files .*'x/cells\.h5ad', 'y/cells"),
        ({"y/cells.h5ad": "sample", "cells.h5ad": "x"}, r"'cells\.h5ad', which 2 files"),
        ({"no.h5ad": "x"}, r"'no\.h5ad', which is none of the files: 'x/cells\.h5ad', 'y/cells"),
        ({"z.h5ad": "sample", "{z}": "who"}, r"two batch keys are given for .*'sample' and 'who'"),
        ({"y/cells.h5ad": "nothing", "z.h5ad": "who"}, r"y/cells\.h5ad: obs has no column 'noth"),
    ],
)
def test_batch_columns_that_fit_no_file(
    atlases: list[Path], batch_key_of: dict[str, str], message: str
) -> None:
    given = {key.format(z=atlases[2]): value for key, value in batch_key_of.items()}
    with pytest.raises(InputError, match=message):
        Model(atlases, batch_key="donor", batch_key_of=given)


@pytest.mark.filterwarnings("default:2 files are trained")
def test_several_files_without_a_batch_are_said_to_be_one(
    samples: list[Path], tmp_path: Path
) -> None:
    with pytest.warns(UserWarning, match=r"2 files are trained as one batch.*batch_per_file='samp"):
        Model(samples, **SMALL)
    output = _fastvae("train", *samples, "-o", tmp_path / "run", "--max-epochs", 1)
    assert "2 files are trained as one batch" in output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"batch_per_file": "s", "batch_key": "b"},
            r"batch_per_file='s' exclude each other",
        ),
        ({"batch_per_file": ""}, r"batch_per_file must be a name"),
        ({"batch_per_file": 3}, r"batch_per_file must be a name .* not 3"),
    ],
)
def test_bad_names_of_batches(samples: list[Path], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Model(samples, **options)
    with pytest.raises(InputError, match="batch_per_file needs the paths of files"):
        Model(annotated(), batch_per_file="sample")


def test_info_on_several(samples: list[Path]) -> None:
    output = _fastvae("info", *samples)
    for path in samples:
        assert f"file {path} cells 40 genes 13" in output
    assert "together 2 files cells 80 genes 13 in common A: 40 cells B: 40 cells" in output
    assert "such as 'AAAC0-1-A'" in output
    assert "--batch-per-file NAME makes each file a batch" in output
