"""The choice of variable genes is scanpy's, from memory and from disk."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from typer.testing import CliRunner

from fastvae import Model
from fastvae.cli import app
from fastvae.data import joint
from fastvae.errors import InputError

# Columns that scanpy 1.11.5 chooses with flavor="seurat_v3", n_top_genes=30; the second with
# batch_key="batch".
EXPECTED = {
    None: "8 13 14 19 20 27 34 41 44 46 48 49 52 56 58 60 62 64 67 75 77 81 85 91 93 97 101 103 "
    "106 118",
    "batch": "4 8 13 20 27 34 41 44 46 48 49 52 58 60 62 64 66 67 75 77 78 81 85 91 93 94 99 101 "
    "106 118",
}

# Of the first 12 cells, where scanpy fails with its own span and is asked again with span=0.5.
OF_FEW_CELLS = (
    "4 11 14 20 22 23 25 26 32 33 34 41 46 49 52 53 61 62 67 74 75 77 78 79 93 94 96 100 107 118"
)

# Of pbmc_3tech_1200, n_top_genes=200: batch, the span scanpy needs there, digest of its genes.
OF_BLOOD = [
    ("3pv1", 0.5, "3667b485d64560f0"),
    ("3pv2", 0.5, "4f45ca0818d81e3f"),
    ("5p", 0.3, "5b176ea3f8b75f14"),
]


def _counts() -> np.ndarray:
    rng = np.random.default_rng(7)
    n, g = 300, 120
    mean = rng.gamma(0.6, 2.0, g) + 0.02
    theta = rng.uniform(0.2, 5, g)
    depth = rng.lognormal(0, 0.3, n)
    types = rng.integers(0, 3, n)
    effect = np.exp(rng.normal(0, 1, (3, g)) * (rng.random(g) < 0.2))
    rates = rng.gamma(theta, mean / theta, (n, g)) * effect[types] * depth[:, None]
    counts = rng.poisson(rates).astype(np.float32)
    counts[:, 5] = 0
    return counts


@pytest.fixture(name="path")
def fixture_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("skmisc")
    monkeypatch.setattr(joint, "_LARGEST_POOL", 64)
    adata = anndata.AnnData(sp.csr_matrix(_counts()))
    adata.obs_names = [f"c{i}" for i in range(300)]
    adata.var_names = [f"g{i}" for i in range(120)]
    adata.obs["batch"] = pd.Categorical([f"b{i % 3}" for i in range(300)])
    adata.write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


@pytest.mark.parametrize("batch_key", [None, "batch"])
@pytest.mark.parametrize("residence", ["host", "disk"])
def test_the_genes_are_those_of_scanpy(path: Path, residence: str, batch_key: str | None) -> None:
    model = Model(
        path, batch_key=batch_key, residence=residence, n_top_genes=30, n_hidden=4, n_latent=2
    )
    expected = [f"g{i}" for i in EXPECTED[batch_key].split()]
    assert model.gene_names == expected
    whole = anndata.read_h5ad(path)[:, expected].X.toarray()
    got = model._store.part(np.arange(300), model.module.px_r.device).minibatch(0, 300)
    np.testing.assert_array_equal(got.x.to_dense().numpy(), whole)
    groups = whole if batch_key is None else whole[0::3]
    totals = groups.sum(1)
    mean = np.log(totals[totals > 0]).mean()
    assert float(got.local_l_mean[0]) == pytest.approx(mean, rel=1e-5)


def _few(n_cells: int, n_genes: int = 120) -> anndata.AnnData:
    adata = anndata.AnnData(sp.csr_matrix(_counts()[:n_cells, :n_genes]))
    adata.var_names = [f"g{i}" for i in range(n_genes)]
    return adata


def _blood() -> anndata.AnnData:
    folder = os.environ.get("FASTVAE_TEST_DATA", "")
    if not folder:
        pytest.skip("FASTVAE_TEST_DATA names no folder")
    return anndata.read_h5ad(Path(folder) / "pbmc_3tech_1200.h5ad")


def test_few_cells_have_the_genes_of_scanpy_with_a_wider_span() -> None:
    pytest.importorskip("skmisc")
    with pytest.warns(UserWarning, match=r"variable genes: .* all cells \(12 cells\): span 0\.5$"):
        model = Model(_few(12), n_top_genes=30, n_hidden=4, n_latent=2)
    assert model.gene_names == [f"g{i}" for i in OF_FEW_CELLS.split()]


@pytest.mark.parametrize(("n_cells", "n_genes"), [(2, 120), (3, 120), (5, 60), (50, 3), (50, 4)])
def test_the_fit_never_breaks_down(n_cells: int, n_genes: int) -> None:
    pytest.importorskip("skmisc")
    data = _few(n_cells, n_genes)
    with pytest.warns(UserWarning, match="variable genes"):
        model = Model(data, n_top_genes=3, n_hidden=4, n_latent=2)
    assert len(model.gene_names) == 3
    # A parabola through two or three cells' genes still prefers what varies to what does not.
    spread = np.asarray(data[:, model.gene_names].X.toarray().std(0))
    assert (spread > 0).all()


def test_small_batches_of_blood_cells_are_named_once() -> None:
    pytest.importorskip("skmisc")
    data = _blood()
    with pytest.warns(UserWarning, match="variable genes") as caught:
        model = Model(data, batch_key="batch", n_top_genes=500, n_hidden=4, n_latent=2)
    (message,) = [str(one.message) for one in caught]
    assert "'3pv1' (290 cells): span 0.5; '3pv2' (480 cells): span 0.5" in message
    assert "'5p'" not in message
    assert len(model.gene_names) == 500


@pytest.mark.filterwarnings("ignore:variable genes")
@pytest.mark.parametrize(("batch", "span", "digest"), OF_BLOOD)
def test_genes_of_blood_cells_are_those_of_scanpy(batch: str, span: float, digest: str) -> None:
    pytest.importorskip("skmisc")
    data = _blood()
    data = data[data.obs["batch"] == batch].copy()
    genes = sorted(Model(data, n_top_genes=200, n_hidden=4, n_latent=2).gene_names)
    assert hashlib.sha256("\n".join(genes).encode()).hexdigest()[:16] == digest
    scanpy = pytest.importorskip("scanpy")
    found = scanpy.pp.highly_variable_genes(
        data, flavor="seurat_v3", n_top_genes=200, span=span, inplace=False
    )
    assert genes == sorted(found.index[found["highly_variable"]])


def test_command_line_and_new_data(path: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ["--n-top-genes", "20", "--max-epochs", "1", "--n-hidden", "4", "-q"]
    result = CliRunner().invoke(app, ["train", str(path), "-o", str(run), *options])
    assert result.exit_code == 0, result.output
    model = Model.load(run, path)
    latent = anndata.read_h5ad(run / "latent.h5ad")
    assert latent.shape == (300, 20)
    np.testing.assert_allclose(
        model.get_latent_representation(), latent.obsm["X_fastvae"], atol=1e-5
    )


def test_what_cannot_be_chosen(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="from 2 to the 120 genes of the data, not 121"):
        Model(path, n_top_genes=121)
    with pytest.raises(InputError, match="n_top_genes must be a whole number of at least 2"):
        Model(path, n_top_genes=1)
    adata = anndata.read_h5ad(path)
    adata.obs["batch"] = ["alone", *["rest"] * 299]
    with pytest.raises(InputError, match="batch 'alone' has fewer than two cells"):
        Model(adata, batch_key="batch", n_top_genes=20)
    monkeypatch.setitem(__import__("sys").modules, "skmisc.loess", None)
    with pytest.raises(InputError, match="needs scikit-misc: pip install scikit-misc"):
        Model(path, n_top_genes=20)
