"""Denoised expression written to files: the values, the memory, and what a failure leaves."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
from places import ROOT
from small_models import small_data

import fastvae
from fastvae import InputError, Model, _files
from fastvae._status import PercentLines
from fastvae.model import expression

KINDS = ["h5ad", "zarr", "mtx"]


@pytest.fixture(scope="module")
def model() -> Model:
    adata = small_data(300)
    return Model(adata, batch_key="batch", n_hidden=8, n_latent=3).fit(1, seed=0, progress=False)


def read(path: Path) -> tuple[np.ndarray, list[str], list[str]]:
    """Values (N, G), names of cells and of genes."""
    if path.suffix == ".mtx":
        names = [path.with_name(f"{path.stem}_{name}.tsv") for name in ("barcodes", "genes")]
        cells, genes = (name.read_text().splitlines() for name in names)
        return scipy.io.mmread(path).toarray().T.astype(np.float32), cells, genes
    found = anndata.read_h5ad(path) if path.suffix == ".h5ad" else anndata.read_zarr(path)
    assert found.X.dtype == np.float32
    return np.asarray(found.X), list(found.obs_names), list(found.var_names)


QUESTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "some": {"cells": [5, 250, 7], "genes": ["gene_3", "gene_1"], "seed": 4},
    "latent": {"library_size": "latent", "n_samples": 3},
    "batches": {"transform_batch": ["batch_0", "batch_1"], "library_size": 1e4, "batch_size": 70},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("question", QUESTIONS)
def test_values_are_those_in_memory(model: Model, tmp_path: Path, kind: str, question: str) -> None:
    asked = QUESTIONS[question]
    path = tmp_path / f"out.{kind}"
    expected = model.get_normalized_expression(**asked)
    assert model.write_normalized_expression(path, **asked) == expected.shape
    values, cells, genes = read(path)
    np.testing.assert_array_equal(values, expected.to_numpy())
    assert cells == [str(name) for name in expected.index]
    assert genes == list(expected.columns)
    own = {path.name, "out_genes.tsv", "out_barcodes.tsv"} if kind == "mtx" else {path.name}
    assert {one.name for one in tmp_path.iterdir()} == own


def test_what_else_is_in_the_file(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "out.h5ad"
    model.write_normalized_expression(path, transform_batch="batch_1", library_size=1e4)
    found = anndata.read_h5ad(path, backed="r")
    assert isinstance(found.file._file["X"], h5py.Dataset)
    obs = small_data(300).obs
    assert found.obs["cell_type"].tolist() == obs["cell_type"].tolist()
    about = found.uns["normalized_expression"]
    assert (about["n_samples"], about["library_size"]) == (1, 1e4)
    assert about["transform_batch"].tolist() == ["batch_1"]
    found.file.close()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_overwritten_unasked(model: Model, tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"out.{kind}"
    model.write_normalized_expression(path, genes=["gene_0"])
    before = read(path)[0]
    with pytest.raises(InputError, match="already exists"):
        model.write_normalized_expression(path, genes=["gene_1"])
    np.testing.assert_array_equal(read(path)[0], before)
    model.write_normalized_expression(path, genes=["gene_1"], overwrite=True)
    assert read(path)[2] == ["gene_1"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_leaves_what_was_there(
    model: Model, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"out.{kind}"
    model.write_normalized_expression(path, genes=["gene_0"])
    before = read(path)[0]
    names = {one.name for one in tmp_path.iterdir()}

    def until_full(*_: Any, **__: Any) -> Any:
        yield np.ones((64, 1), dtype=np.float32)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(expression.decode, "mean_expression", until_full)
    with pytest.raises(InputError, match=r"the disk is full .*before is untouched"):
        model.write_normalized_expression(path, genes=["gene_0"], overwrite=True)
    np.testing.assert_array_equal(read(path)[0], before)
    assert {one.name for one in tmp_path.iterdir()} == names


def test_a_disk_that_is_too_small_is_refused_at_once(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_files.shutil, "disk_usage", lambda _: type("Room", (), {"free": 1000}))
    with pytest.raises(InputError, match=r"needs 0\.0 MB and the disk has 0\.0 MB free"):
        model.write_normalized_expression(tmp_path / "out.h5ad")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "out.csv"}, "name it .h5ad, .zarr or .mtx"),
        ({"genes": ["nothing"]}, "genes asked for that the model was not trained on"),
        ({"library_size": 0}, "library_size must be a number greater than 0"),
        ({"n_samples": 0}, "n_samples must be a whole number of at least 1"),
        ({"transform_batch": "x"}, "transform_batch 'x' is not a category"),
        ({"cells": [300]}, "cells has row 300"),
    ],
)
def test_wrong_arguments_leave_nothing(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        model.write_normalized_expression(**{"path": "out.h5ad", **arguments})
    assert list(tmp_path.iterdir()) == []


def test_progress_is_said_where_it_takes_long(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(PercentLines, "EVERY_SECONDS", -1.0)
    model.write_normalized_expression(tmp_path / "a.h5ad", batch_size=150, progress=True)
    assert capsys.readouterr().err == "writing: 64 %\nwriting: 100 %\n"
    model.write_normalized_expression(tmp_path / "b.h5ad", batch_size=150)
    assert capsys.readouterr().err == ""


MEASURE = """
import sys
import numpy as np, scipy.sparse as sp, torch
from _kit.memory import peak_megabytes
from fastvae import Model
torch.set_num_threads(1)
counts = sp.random(20_000, 1_500, density=0.004, format="csr", dtype=np.float32, random_state=0)
counts.data[:] = 1
model = Model(counts, n_hidden=8, n_latent=3)
model.is_trained = True
def write(name, **options):
    model.write_normalized_expression(f"{name}.{sys.argv[1]}", batch_size=256, **options)
write("warm", cells=np.arange(64))
print(peak_megabytes(lambda: write("out"), torch.device("cpu")))
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="no peak is known")
@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_memory_does_not_grow_with_the_cells(tmp_path: Path, kind: str) -> None:
    paths = [str(ROOT / "bench"), str(Path(fastvae.__file__).parent.parent)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEASURE, kind],
        cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    assert float(done.stdout) < 60  # the values themselves are 120 MB
    assert read(tmp_path / f"out.{kind}")[0].shape == (20_000, 1_500)


def test_genes_have_their_ids(tmp_path: Path) -> None:
    adata = small_data()
    adata.var["gene_ids"] = [f"ENSG{number:011d}" for number in range(adata.n_vars)]
    model = Model(adata, n_hidden=8, n_latent=3).fit(1, seed=0, progress=False)
    model.write_normalized_expression(tmp_path / "out.h5ad", genes=["gene_2"])
    var = anndata.read_h5ad(tmp_path / "out.h5ad").var
    pd.testing.assert_frame_equal(
        var, pd.DataFrame({"gene_ids": ["ENSG00000000002"]}, index=["gene_2"]), check_dtype=False
    )
