"""``fastvae map`` and ``fastvae import``, from files to run folders."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time

import anndata
import numpy as np
import pytest
import torch
from command_line import run
from places import FIXTURES, LEGACY
from scvi_cells import draw_counts, make_cells
from small_models import small_data

from fastvae import Model
from fastvae.train.checkpoints import CheckpointFiles

SAVED = FIXTURES / "scvi_tools"


def output_of(*arguments, code=0):
    return run(*arguments, code=code).output


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    adata = small_data()
    adata.write_h5ad(folder / "cells.h5ad")
    model = Model(adata, batch_key="batch", n_hidden=8, n_latent=3)
    model.fit(2, seed=0, progress=False).save(folder / "run")
    query = small_data(seed=7)[:, ::-1].copy()
    query.obs["donor"] = "new"
    query[:, :-1].copy().write_h5ad(folder / "query.h5ad")
    return folder


def test_map_leaves_a_run_like_any_other(reference, tmp_path):
    query, out = reference / "query.h5ad", tmp_path / "mapped"
    said = output_of(
        "map", reference / "run", query, "--batch-key", "donor", "-o", out,
        "--max-epochs", 2, "--freeze", "decoder", "--quiet",
    )  # fmt: skip
    assert "new batches: 'new'" in said
    assert "1 of 30 genes missing (3.3 %)" in said
    assert "frozen in training: the decoder" in said
    config = json.loads((out / "config.json").read_text())
    assert config["origin"]["new_batches"] == ["new"]
    for name in ("model.safetensors", "history.csv", "loss.png", "latent.h5ad"):
        assert (out / name).is_file(), name
    output_of("embed", out, query, "-o", tmp_path / "latent.h5ad")
    first, second = (anndata.read_h5ad(p) for p in (out / "latent.h5ad", tmp_path / "latent.h5ad"))
    np.testing.assert_array_equal(first.obsm["X_fastvae"], second.obsm["X_fastvae"])
    want = Model.load_query(query, reference / "run", batch_key="donor", freeze="decoder")
    want.fit(2, seed=0, progress=False, n_epochs_kl_warmup=None)
    np.testing.assert_array_equal(first.obsm["X_fastvae"], want.get_latent_representation())
    assert "mapped_onto" in output_of("info", out)
    for more, message in [
        ((), "already exists"),
        (("--overwrite", "--freeze", "half"), "--freeze must be"),
    ]:
        said = output_of(
            "map", reference / "run", query, "--batch-key", "donor", "-o", out, *more, code=2
        )
        assert message in said
    said = output_of(
        "map", reference / "run", query, "-o", reference / "run", "--overwrite", code=2
    )
    assert "is the reference itself" in said


def test_map_that_fails_leaves_nothing(reference, tmp_path):
    said = output_of(
        "map", reference / "run", reference / "cells.h5ad", "-o", tmp_path / "out", code=2
    )
    assert "nothing new to train" in said
    assert not (tmp_path / "out").exists()


def map_arguments(reference, out, *more):
    query = reference / "query.h5ad"
    options = ["--batch-key", "donor", "--freeze", "decoder", "--device", "cpu", "--quiet"]
    return ["map", reference / "run", query, "-o", out, *options, *more]


def test_interrupted_map_says_how_to_go_on(reference, tmp_path, monkeypatch):
    from fastvae.train import run as training

    calls, original = [], training.apply_gradients

    def press(*arguments):
        original(*arguments)
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    arguments = map_arguments(reference, tmp_path / "cut", "--max-epochs", 5, "--batch-size", 32)
    with monkeypatch.context() as patch:
        patch.setattr(training, "apply_gradients", press)
        patch.setattr(sys, "argv", ["fastvae", *map(str, arguments)])
        said = output_of(*arguments, code=130)
    assert "a checkpoint is written; go on with:\n  fastvae map " in said
    command = next(line for line in said.splitlines() if line.startswith("  fastvae map "))
    assert (tmp_path / "cut" / "checkpoints").is_dir()
    output_of(*shlex.split(command)[1:])
    assert not (tmp_path / "cut" / "checkpoints").exists()
    output_of(*map_arguments(reference, tmp_path / "whole", "--max-epochs", 5, "--batch-size", 32))
    names = ("model.safetensors", "latent.h5ad")
    cut, whole = ([(tmp_path / run / name) for name in names] for run in ("cut", "whole"))
    assert cut[0].read_bytes() == whole[0].read_bytes()
    np.testing.assert_array_equal(
        *(anndata.read_h5ad(paths[1]).obsm["X_fastvae"] for paths in (cut, whole))
    )


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9 on this system")
def test_killed_map_goes_on_to_the_same_weights(reference, tmp_path):
    out = tmp_path / "killed"
    options = ["--max-epochs", 120, "--batch-size", 32, "--freeze", "all", "--checkpoint-every", 1]
    arguments = list(map(str, map_arguments(reference, out, *options)))
    with subprocess.Popen(
        [sys.executable, "-m", "fastvae", *arguments], stdout=subprocess.DEVNULL
    ) as child:
        while not CheckpointFiles(out / "checkpoints").numbers():
            assert child.poll() is None, "it ended before its first checkpoint"
            time.sleep(0.005)
        child.kill()
    assert child.returncode == -signal.SIGKILL
    assert not (out / "model.safetensors").exists()
    for more, message in [
        ((), "already exists"),
        (("--resume", "--overwrite"), "leave one of them out"),
        (("--resume", "--freeze", "none"), "was written with freeze = True, and now it is False"),
    ]:
        assert message in output_of(*arguments, *more, code=2)
    other = Model.load(reference / "run")
    other.module.px_r.data += 1e-3
    other.save(tmp_path / "other")
    swapped = [str(tmp_path / "other") if "run" in word[-4:] else word for word in arguments]
    assert "the reference's weights" in output_of(*swapped, "--resume", code=2)
    output_of(*arguments, "--resume")
    output_of(*map_arguments(reference, tmp_path / "whole", *options))
    found, want = (Model.load(path) for path in (out, tmp_path / "whole"))
    assert found.training["epochs"] == want.training["epochs"] == 120
    for name, value in want.module.state_dict().items():
        assert torch.equal(value, found.module.state_dict()[name]), name


def test_import_of_scvi_tools_and_of_legacy(tmp_path):
    cells = make_cells(draw_counts())
    cells.write_h5ad(tmp_path / "cells.h5ad")
    said = output_of("import", SAVED / "batches", tmp_path / "cells.h5ad", "-o", tmp_path / "run")
    assert "weights from scvi-tools 1.4.2" in said
    with np.load(SAVED / "outputs.npz") as recorded:
        want = recorded["batches/qz_m"]
    latent = anndata.read_h5ad(tmp_path / "run" / "latent.h5ad").obsm["X_fastvae"]
    np.testing.assert_allclose(latent, want, atol=1e-5)
    cells.var["symbol"] = cells.var_names
    cells.var_names = [f"row {i}" for i in range(cells.n_vars)]
    cells.write_h5ad(tmp_path / "renamed.h5ad")
    output_of(
        "import", SAVED / "batches", tmp_path / "renamed.h5ad", "-o", tmp_path / "named",
        "--gene-names", "symbol",
    )  # fmt: skip
    latent = anndata.read_h5ad(tmp_path / "named" / "latent.h5ad").obsm["X_fastvae"]
    np.testing.assert_allclose(latent, want, atol=1e-5)
    said = output_of(
        "import", LEGACY / "checkpoint.pt", tmp_path / "cells.h5ad", "-o", tmp_path / "old", code=2
    )
    assert "trained on 30 genes, and the data have 16" in said
    assert not (tmp_path / "old").exists()


def test_encoder_that_is_told_the_batch(reference, tmp_path):
    cells, query = reference / "cells.h5ad", reference / "query.h5ad"
    told = ["--batch-key", "batch", "--encode-covariates", "--n-hidden", 8, "--n-latent", 3]
    output_of("train", cells, "-o", tmp_path / "run", *told, "--max-epochs", 2, "--quiet")
    model = Model.load(tmp_path / "run", cells)
    assert model.module.encode_covariates
    swapped = small_data()
    names = {"batch_0": "batch_1", "batch_1": "batch_0"}
    swapped.obs["batch"] = swapped.obs["batch"].astype(str).map(names)
    ours, theirs = (model.get_latent_representation(data) for data in (None, swapped))
    assert np.abs(ours - theirs).max() > 1e-3
    assert "encode_covariates" in output_of("info", tmp_path / "run")
    out = tmp_path / "mapped"
    output_of(
        "map", tmp_path / "run", query, "--batch-key", "donor", "-o", out,
        "--max-epochs", 3, "--quiet",
    )  # fmt: skip
    before = Model.load_query(query, tmp_path / "run", batch_key="donor")
    moved = Model.load(out, query).get_latent_representation()
    assert np.abs(moved - before.get_latent_representation()).max() > 1e-3
