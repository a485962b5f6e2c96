"""The command line, from a file to a run folder and back."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
from command_line import run
from small_models import small_data

import fastvae
from fastvae import Model
from fastvae.cli import demo
from fastvae.train import COLUMNS, read_history

TRAIN = ["--max-epochs", "2", "--batch-size", "32", "--n-latent", "3", "--n-hidden", "8"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "cells.h5ad"
    adata = small_data()
    adata.layers["counts"] = adata.X.copy()
    adata.write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    run("train", data, "-o", folder, "--batch-key", "batch", "--device", "cpu", *TRAIN)
    return folder


def test_train_leaves_a_whole_run(data: Path, trained: Path) -> None:
    assert sorted(path.name for path in trained.iterdir()) == [
        "README.md",
        "config.json",
        "history.csv",
        "latent.h5ad",
        "latent.png",
        "log.txt",
        "loss.png",
        "model.safetensors",
    ]
    history = read_history(trained / "history.csv")
    assert tuple(history) == COLUMNS
    assert history["epoch"] == [1, 2]
    assert (trained / "loss.png").read_bytes()[:4] == b"\x89PNG"
    latent = anndata.read_h5ad(trained / "latent.h5ad")
    assert latent.X is None
    assert latent.obs["batch"].tolist() == small_data().obs["batch"].tolist()

    # The command does what the class does with the same options and seed.
    model = Model(data, batch_key="batch", n_latent=3, n_hidden=8)
    model.fit(2, batch_size=32, seed=0, progress=False, device="cpu")
    np.testing.assert_array_equal(latent.obsm["X_fastvae"], model.get_latent_representation())


def test_without_a_name_the_run_is_named_after_the_data(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run("train", data, "--max-epochs", 1, "--quiet")
    assert (tmp_path / f"{data.stem}_fastvae" / "model.safetensors").is_file()


def test_train_says_what_it_wrote(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = ["--max-epochs", 1, "--batch-key", "batch"]
    result = run("train", data, "-o", folder, *options)
    assert "epoch 1/1  -ELBO" in result.stderr
    assert "cells/s" in result.stderr
    assert result.stdout.startswith("trained for 1 epochs (finished), training -ELBO")
    for name in ("model.safetensors", "config.json", "history.csv", "loss.png", "latent.h5ad"):
        assert str(folder / name) in result.stdout
    assert f"fastvae embed {folder} {data}" in result.stdout
    quiet = run("train", data, "-o", folder, *options, "--overwrite", "--quiet")
    assert quiet.stderr == ""


def test_options_reach_the_model(data: Path, tmp_path: Path) -> None:
    options = {
        "--labels-key": "cell_type",
        "--layer": "counts",
        "--n-layers": 2,
        "--dropout-rate": 0.2,
        "--dispersion": "gene-label",
        "--reconstruction-loss": "nb",
        "--latent-distribution": "ln",
        "--learning-rate": 0.002,
        "--n-epochs-kl-warmup": 7,
        "--train-size": 0.75,
        "--seed": 5,
    }
    flat = [part for pair in options.items() for part in pair]
    flat += ["--learned-library", "--first-layer-covariates", "--early-stopping", "-q"]
    run("train", data, "-o", tmp_path, *TRAIN, *flat)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["options"] == {
        "n_latent": 3,
        "n_hidden": 8,
        "n_layers": 2,
        "dropout_rate": 0.2,
        "dispersion": "gene-label",
        "reconstruction_loss": "nb",
        "latent_distribution": "ln",
        "use_observed_lib_size": False,
        "encode_covariates": False,
        "deeply_inject_covariates": False,
    }
    settings = config["training"]["settings"]
    assert (settings["learning_rate"], settings["n_epochs_kl_warmup"]) == (0.002, 7)
    assert (settings["train_size"], settings["early_stopping"]) == (0.75, True)
    assert (settings["batch_size"], settings["max_epochs"]) == (32, 2)
    assert (config["training"]["seed"], config["training"]["n_train"]) == (5, 90)
    assert (config["slot"]["layer"], config["data"]["labels_key"]) == ("counts", "cell_type")


def test_embed_gives_the_latent_space_of_training(
    data: Path, trained: Path, tmp_path: Path
) -> None:
    out = tmp_path / "deep" / "out.h5ad"
    result = run("embed", trained, data, "-o", out)
    assert "120 cells" in result.stdout
    found = anndata.read_h5ad(out)
    expected = anndata.read_h5ad(trained / "latent.h5ad")
    np.testing.assert_array_equal(found.obsm["X_fastvae"], expected.obsm["X_fastvae"])
    again = run("embed", trained, data, "-o", out, code=2)
    assert "already exists" in again.stderr
    run("embed", trained, data, "-o", out, "--overwrite")


def test_existing_output_is_refused_before_any_work(
    data: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the data were read")

    monkeypatch.setattr("fastvae.data.opening.open_files", never)
    before = {path: path.read_bytes() for path in trained.iterdir()}
    result = run("train", data, "-o", trained, code=2)
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith(f"error: output folder {trained} already exists")
    assert {path: path.read_bytes() for path in trained.iterdir()} == before


def test_failed_training_leaves_no_empty_folder(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = run("train", data, "-o", folder, "--batch-key", "donor", code=2)
    assert result.stderr.startswith("error: obs has no column 'donor' (--batch-key)")
    assert not folder.exists()


def test_defects_keep_their_traceback(
    data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    def defect(*_: Any, **__: Any) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr("fastvae.data.opening.open_files", defect)
    with pytest.raises(RuntimeError, match="a defect"):
        run("train", data, "-o", tmp_path / "run")


def test_warnings_are_one_line(data: Path, tmp_path: Path) -> None:
    adata = anndata.read_h5ad(data)
    adata.X.data[0] = 1.5
    adata.write_h5ad(tmp_path / "odd.h5ad")
    done = subprocess.run(
        [sys.executable, "-m", "fastvae", "info", str(tmp_path / "odd.h5ad")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr.startswith("warning: X of")
    assert done.stderr.count("\n") == 1
    assert re.search(r"X as counts +yes, with some values that are not whole", done.stdout)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_training_is_saved(
    number: signal.Signals,
    status: int,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from fastvae.train import run as training

    calls = []
    original = training.apply_gradients

    def press(*arguments: Any) -> None:
        original(*arguments)
        calls.append(1)
        if len(calls) == 6:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(training, "apply_gradients", press)
    folder = tmp_path / "run"
    arguments = [*TRAIN, "--max-epochs", 50, "--train-size", 1]
    result = run("train", data, "-o", folder, *arguments, code=status)
    assert "interrupted after 1 whole epochs; saving what was learned" in result.stderr
    model = Model.load(folder, data)
    assert model.training["ending"] == "interrupted"
    assert (model.training["epochs"], model.training["steps"]) == (1, 6)
    assert np.isfinite(model.get_latent_representation()).all()
    monkeypatch.setattr(training, "apply_gradients", original)
    again = run("train", data, "-o", folder, *arguments[:-4], "--train-size", 1, "--resume")
    assert "resuming from" in again.stderr
    assert "after 1 whole epochs and 2 minibatches of the next" in again.stderr


def test_ctrl_c_outside_of_training_has_its_status(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def press(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fastvae.cli.info.describe", press)
    assert run("info", data, code=130).stderr == "interrupted\n"


def test_diverged_training_keeps_its_last_good_weights(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = [*TRAIN, "--max-epochs", 50, "--learning-rate", 1e9, "--quiet"]
    result = run("train", data, "-o", folder, *arguments, code=2)
    assert "error: training stopped in epoch" in result.stderr
    assert f"the last good weights are in {folder}" in result.stderr
    model = Model.load(folder, data)
    assert model.training["ending"] == "non-finite"
    assert np.isfinite(model.get_latent_representation()).all()


def test_info_on_data(data: Path) -> None:
    adata = small_data()
    lines = dict(
        line.split("  ", 1) for line in run("info", data).stdout.splitlines() if "  " in line
    )
    found = {name: value.strip() for name, value in lines.items()}
    assert (found["cells"], found["genes"], found["layers"]) == ("120", "30", "counts")
    assert found["raw"] == "none"
    assert found["X as counts"] == "yes"
    assert found["non-zero"] == f"{100 * adata.X.nnz / 3600:.2f} % of the entries"
    assert found["counts"] == f"1 to {adata.X.max():g} where not zero"
    assert found["obs['batch']"] == "2 categories (batch_0, batch_1); can be a --batch-key"
    assert found["obs['library']"] == "float64"
    assert found["likely batches"] == "batch: --batch-key batch"
    assert found["likely labels"] == "cell_type: --labels-key cell_type"


def test_info_on_data_without_counts_still_says_what_is_there(data: Path, tmp_path: Path) -> None:
    adata = anndata.read_h5ad(data)
    adata.raw = adata
    adata.X = np.log1p(adata.X.toarray() / 7)
    adata.write_h5ad(tmp_path / "logs.h5ad")
    text = run("info", tmp_path / "logs.h5ad").stdout
    assert re.search(r"X as counts +no: X of .* looks log-normalised", text)
    assert "layer 'counts' looks like counts" in text
    assert re.search(r"raw +30 genes", text)


def test_info_on_a_run(trained: Path) -> None:
    text = run("info", trained).stdout
    for expected in (
        "2 in obs['batch']: batch_0, batch_1",
        "n_latent                  3",
        "n_train                   108",
        "ending                    finished",
        "batch_size                32",
    ):
        assert expected in text


def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "DEMO_FIT", {**demo.DEMO_FIT, "max_epochs": 1})
    adata = demo.demo_data()
    assert set(demo.MARKERS) <= set(adata.var_names)
    small = adata[::12].copy()
    monkeypatch.setattr(demo, "demo_data", lambda: small)
    folder = tmp_path / "demo"
    result = run("demo", "-o", folder, "--quiet")
    assert (folder / "latent.png").read_bytes()[:4] == b"\x89PNG"
    assert (folder / "latent.h5ad").is_file()
    assert "<h1>fastvae demo" in (folder / "report.html").read_text()
    shares = (
        r"nearest neighbours that are of the same batch: before 0\.\d\d, after 0\.\d\d, by chance"
    )
    assert re.search(shares, result.stdout)
    assert re.search(
        r"Cells whose label is that of most of their .*: before 0\.\d\d", result.stdout
    )
    assert "fastvae train data.h5ad --batch-key COLUMN -o run" in result.stdout
    assert "-ELBO" in result.stdout


def test_version_and_module() -> None:
    assert run("--version").stdout == f"fastvae {fastvae.__version__}\n"
    done = subprocess.run(
        [sys.executable, "-m", "fastvae", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"fastvae {fastvae.__version__}\n"


def test_help_imports_nothing_heavy() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "fastvae", "train", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "120"},
    )
    assert "--batch-key" in done.stdout
    assert "fastvae train atlas.h5ad --batch-key donor -o run" in done.stdout
    imported = {line.split("|")[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "typer" in imported
    assert not imported & {"torch", "numpy", "anndata", "pandas", "scipy", "matplotlib", "h5py"}
