"""``fastvae expression``."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pytest
from command_line import run
from small_models import small_data

from fastvae import Model

TRAIN = ["--max-epochs", 1, "--n-latent", 3, "--n-hidden", 8, "--batch-key", "batch", "-q"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("trained")
    small_data().write_h5ad(folder / "cells.h5ad")
    run("train", folder / "cells.h5ad", "-o", folder / "run", *TRAIN)
    return folder / "run", folder / "cells.h5ad"


def test_options_are_those_of_the_model(trained: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "genes.txt").write_text("gene_4\n# and\ngene_2\n")
    out = tmp_path / "out.h5ad"
    options = ["--genes", tmp_path / "genes.txt", "--library-size", "1e4", "--n-samples", 2]
    options += ["--transform-batch", "batch_1", "--transform-batch", "batch_0", "--seed", 3]
    # the counts are streamed from the file
    options += ["--residence", "disk", "--memory-limit", "300MB"]
    said = run("expression", *trained, "-o", out, *options).stdout
    assert said == f"{out}: denoised expression of 120 cells x 2 genes\n"
    expected = Model.load(*trained).get_normalized_expression(
        genes=["gene_4", "gene_2"],
        library_size=1e4,
        n_samples=2,
        transform_batch=["batch_1", "batch_0"],
        seed=3,
    )
    found = anndata.read_h5ad(out)
    np.testing.assert_array_equal(found.X, expected.to_numpy())
    assert list(found.var_names) == ["gene_4", "gene_2"]
    assert "already exists" in run("expression", *trained, "-o", out, code=2).stderr
    run("expression", *trained, "-o", out, "--overwrite", "--library-size", "latent")
    latent = Model.load(*trained).get_normalized_expression(library_size="latent")
    np.testing.assert_array_equal(anndata.read_h5ad(out).X, latent.to_numpy())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-o", "out.csv"], "name it .h5ad, .zarr or .mtx"),
        (["-o", "out.h5ad", "--library-size", "big"], "--library-size must be a number or latent"),
        (["-o", "out.h5ad", "--library-size", "-1"], "--library-size must be a number greater"),
        (["-o", "out.h5ad", "--n-samples", 0], "--n-samples must be a whole number"),
        (["-o", "out.h5ad", "--transform-batch", "x"], "--transform-batch 'x' is not a category"),
        (["-o", "out.h5ad", "--genes", "genes.txt"], "names 0 genes; at least one is needed"),
    ],
)
def test_refusals_leave_nothing(
    trained: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[object],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "genes.txt").write_text("# none\n")
    assert message in run("expression", *trained, *options, code=2).stderr
    assert [path.name for path in tmp_path.iterdir()] == ["genes.txt"]
