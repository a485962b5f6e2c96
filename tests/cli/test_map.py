"""``fastvae map``: the query and its reference together, and labels for the query."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from command_line import run
from small_models import small_data

from fastvae import Model
from fastvae.cli.joint import summary

TRAIN = ["--max-epochs", 1, "--n-latent", 3, "--n-hidden", 8, "--batch-key", "batch", "-q"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference")
    small_data().write_h5ad(folder / "cells.h5ad")
    run("train", folder / "cells.h5ad", "-o", folder / "run", *TRAIN)
    return folder / "run"


@pytest.fixture(scope="module")
def query(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("query") / "query.h5ad"
    adata = small_data(seed=7)[:50].copy()
    adata.obs["batch"] = "new"
    adata.obs_names = [f"q{number}" for number in range(adata.n_obs)]
    adata.write_h5ad(path)
    return path


def test_labels_and_a_joint_file_are_written(trained: Path, query: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mapped"
    options = ["--labels", "cell_type", "--max-uncertainty", 0.3, "--max-epochs", 1, "-q"]
    said = run("map", trained, query, "-o", folder, *options).stdout
    for name in ("joint.h5ad", "joint.png", "labels.csv"):
        assert str(folder / name) in said
    assert (folder / "joint.png").read_bytes()[:4] == b"\x89PNG"
    joint = anndata.read_h5ad(folder / "joint.h5ad")
    assert joint.obs["origin"].tolist() == ["reference"] * 120 + ["query"] * 50
    assert joint.obsm["X_umap"].shape == (170, 2)
    table = pd.read_csv(folder / "labels.csv", index_col="cell")
    expected = Model.load(folder, query).transfer_labels("cell_type", trained, max_uncertainty=0.3)
    assert table.index.tolist() == expected.index.tolist()
    assert table["label"].tolist() == expected["label"].tolist()
    np.testing.assert_allclose(table["uncertainty"], expected["uncertainty"], rtol=1e-12)
    n_unknown = int((expected["label"] == "Unknown").sum())
    assert f"labels of {50 - n_unknown} of 50 cells, {n_unknown} Unknown; median" in said
    assert f"next:\n  fastvae report {folder} {query}\n  fastvae de {folder} {query}" in said


def test_the_summary_counts_labels_that_cells_got() -> None:
    names = ["T", "B", "NK", "DC", "Mono", "Platelet", "Mast"]
    label = pd.Categorical(["Unknown"] * 9 + [*"TTTTBB"], [*names, "Unknown"])
    table = pd.DataFrame({"label": label, "uncertainty": 0.25})
    assert summary(table) == [
        "labels of 6 of 15 cells, 9 Unknown; median uncertainty 0.25",
        "  T 4, B 2",
    ]


def test_without_labels_the_command_for_them_is_named(
    trained: Path, query: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "mapped"
    said = run("map", trained, query, "-o", folder, "--max-epochs", 1, "-q", "--no-plots").stdout
    assert f"fastvae map {trained} {query} --labels COLUMN -o {folder} --overwrite" in said
    assert not list(folder.glob("*.png"))
    assert not (folder / "labels.csv").exists()
    assert "X_umap" not in anndata.read_h5ad(folder / "joint.h5ad").obsm


def test_a_run_that_replaces_another_leaves_nothing_of_it(
    trained: Path, query: Path, tmp_path: Path
) -> None:
    words = ["map", trained, query, "-o", tmp_path / "a", "--max-epochs", 1, "-q"]
    run(*words, "--labels", "cell_type", "--labels", "batch")
    labels = pd.read_csv(tmp_path / "a" / "labels.csv")["label"]
    assert labels.str.fullmatch(r"type_\d \| batch_\d").all()
    run(*words, "--overwrite", "--freeze", "none")
    left = {path.name for path in (tmp_path / "a").iterdir()}
    assert not left & {"joint.h5ad", "joint.png", "labels.csv"}


def test_without_positions_of_the_reference(trained: Path, query: Path, tmp_path: Path) -> None:
    Model.load(trained).save(tmp_path / "bare")
    words = ["map", tmp_path / "bare", query, "-o", tmp_path / "out", "--max-epochs", 1, "-q"]
    said = run(*words, "--labels", "cell_type", code=2).stderr
    missing = tmp_path / "bare" / "latent.h5ad"
    assert f"{missing} is missing; write it with fastvae embed {tmp_path / 'bare'} DATA" in said
    assert not (tmp_path / "out").exists()
    assert f"no joint.h5ad: {missing} is missing" in run(*words).stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--labels", "celltype"], "obs has no column 'celltype'"),
        (["--labels", "cell_type", "--freeze", "none"], "choose all, decoder or encoder"),
        (["--labels", "cell_type", "--max-uncertainty", 2], "--max-uncertainty must be at most 1"),
        (["--labels", "cell_type", "--n-neighbors", 0], "--n-neighbors must be a whole number"),
        (["--max-uncertainty", 0.2], "name them with --labels"),
    ],
)
def test_refusals_come_before_training(
    trained: Path, query: Path, tmp_path: Path, options: list[object], message: str
) -> None:
    said = run("map", trained, query, "-o", tmp_path / "out", *options, code=2).stderr
    assert message in said
    assert not (tmp_path / "out").exists()


def test_an_unseen_batch_is_named_with_the_command_for_it(query: Path, tmp_path: Path) -> None:
    small_data().write_h5ad(tmp_path / "cells.h5ad")
    run("train", tmp_path / "cells.h5ad", "-o", tmp_path / "run", *TRAIN, "--encode-covariates")
    said = run("embed", tmp_path / "run", query, "-o", tmp_path / "a.h5ad", code=2).stderr
    assert "that the model was not trained with: 'new'" in said
    assert "map these data onto the model (fastvae map)" in said
    assert not (tmp_path / "a.h5ad").exists()
