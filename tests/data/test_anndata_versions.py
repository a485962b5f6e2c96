"""Files of every anndata since 0.7: names and columns as its own reader gives them."""

from __future__ import annotations

import tarfile
import warnings
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from command_line import run
from places import FIXTURES

from fastvae import Model
from fastvae.data import read
from fastvae.errors import InputError

RECORDED = sorted((FIXTURES / "anndata").glob("*.tar.gz"))
CELLS = [f"cell{i}" for i in range(6)]
COUNTS = [[0, 3, 1, 0], [2, 0, 0, 1], [0, 0, 5, 2], [1, 1, 0, 0], [0, 7, 0, 3], [4, 0, 2, 0]]
NONE = None
VALUES = {
    "text": ["p", "q", "r", "s", "t", "u"],
    "donor": ["d1", "d2"] * 3,
    "stage": ["late", "early", "late"] * 2,
    "sorted_into": ["B", NONE, "T"] * 2,
    "lane": [3, 1, 2] * 2,
    "score": [0.5, NONE, 1.5, 2.0, NONE, 0.0],
    "control": [True, False, True, False, False, True],
    "dose": [1, NONE, 3] * 2,
    "treated": [True, NONE, False] * 2,
    "note": ["v", NONE, "w", "x", "y", NONE],
    "site": ["east", "west"] * 3,
}
BATCHES = {
    "text": ["p", "q", "r", "s", "t", "u"],
    "donor": ["d1", "d2"],
    "stage": ["early", "late"],
    "lane": ["1", "2", "3"],
    "control": ["False", "True"],
    "site": ["east", "west"],
}


def _anndata_reads(path: Path) -> anndata.AnnData:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return anndata.read_zarr(path) if path.suffix == ".zarr" else anndata.read_h5ad(path)


def _check(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    """Compare with what anndata reads, and with what was written."""
    pd.testing.assert_frame_equal(found, expected)
    assert list(found.index) == CELLS
    for name in found.columns:
        values = [None if pd.isna(value) else value for value in found[name]]
        assert values == VALUES[name], name


@pytest.fixture(params=RECORDED, ids=[path.name.removesuffix(".tar.gz") for path in RECORDED])
def recorded(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    with tarfile.open(request.param) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


@pytest.mark.parametrize("name", ["cells.h5ad", "cells.zarr"])
def test_every_version(recorded: Path, name: str) -> None:
    path = recorded / name
    expected = _anndata_reads(path)
    for options in ({"layer": "counts"}, {"use_raw": True}):
        found = read(path, **options)
        assert found.X.toarray().tolist() == COUNTS
        _check(found.obs, expected.obs)
        pd.testing.assert_frame_equal(found.var, expected.var)
    _check(read(expected, layer="counts").obs, expected.obs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of anndata itself, about files of before 0.8
        backed = anndata.read_h5ad(recorded / "cells.h5ad", backed="r")
    _check(
        read(backed, layer="counts").obs,
        _anndata_reads(recorded / "cells.h5ad").obs,
    )


@pytest.mark.filterwarnings("ignore:batches of obs.* with fewer than 3 cells:UserWarning")
@pytest.mark.parametrize("residence", ["host", "disk"])
@pytest.mark.parametrize("name", ["cells.h5ad", "cells.zarr"])
def test_any_column_names_batches(recorded: Path, name: str, residence: str) -> None:
    path = recorded / name
    expected = _anndata_reads(path)
    for key in [key for key in BATCHES if key in expected.obs]:
        model = Model(path, batch_key=key, layer="counts", residence=residence)
        assert model.batch_categories == BATCHES[key]
        assert model.gene_names == ["G1", "G2", "G3", "G4"]
    for key in [key for key in ("sorted_into", "dose", "treated", "note") if key in expected.obs]:
        with pytest.raises(InputError, match=rf"obs\['{key}'\].*is missing for \d of 6 cells"):
            Model(path, batch_key=key, layer="counts", residence=residence)


@pytest.mark.parametrize("name", ["cells.h5ad", "cells.zarr"])
def test_columns_of_streamed_cells_reach_the_latent_file(recorded: Path, name: str) -> None:
    path, folder = recorded / name, recorded / "run"
    run(
        "train",
        path,
        "--batch-key",
        "donor",
        "--layer",
        "counts",
        "--residence",
        "disk",
        "-o",
        folder,
        "--max-epochs",
        1,
        "--quiet",
        "--no-plots",  # six cells are too few for a UMAP
    )
    latent = _anndata_reads(folder / "latent.h5ad")
    assert list(latent.obs_names) == CELLS
    for key, values in latent.obs.items():
        assert [None if pd.isna(value) else value for value in values] == VALUES[key], key


@pytest.mark.parametrize("source", ["object", "cells.h5ad", "cells.zarr"])
def test_only_layers_with_a_name_are_offered(recorded: Path, source: str) -> None:
    data = _anndata_reads(recorded / "cells.zarr") if source == "object" else recorded / source
    with pytest.raises(InputError, match="there are 'counts'; did you mean 'counts'"):
        read(data, layer="count")
    with pytest.raises(InputError, match=r"layer 'counts' looks like counts"):
        read(data)


def test_info_lists_layers_with_a_name(recorded: Path) -> None:
    lines = run("info", recorded / "cells.h5ad").stdout.splitlines()
    assert [line.split() for line in lines if line.startswith("layers")] == [["layers", "counts"]]


def test_nothing_but_the_matrix_and_its_frames_is_read(recorded: Path) -> None:
    path = recorded / "cells.h5ad"
    expected = read(path, layer="counts")
    with h5py.File(path, "r+") as file:
        for name in ("uns", "obsm", "varm", "obsp", "varp"):
            if name in file:
                del file[name]
            file[name] = np.zeros(3)
            file[name].attrs["encoding-type"] = "of another world"
    found = read(path, layer="counts")
    pd.testing.assert_frame_equal(found.obs, expected.obs)
    assert Model(path, batch_key="donor", layer="counts", residence="disk").batch_categories
