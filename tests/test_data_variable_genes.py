"""The choice of variable genes is scanpy's, from memory and from disk."""

from __future__ import annotations

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
