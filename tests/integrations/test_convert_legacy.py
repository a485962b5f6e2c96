"""Checkpoints of scvi 0.6.8, against what it computed."""

import shutil

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from witness import (
    INDEX,
    INPUTS,
    LEGACY,
    N_GENES,
    array,
    arrays,
    assert_parity,
    batch_for,
    build,
    case_id,
    counts_for,
    load,
)

import fastvae
from fastvae import InputError, Model
from fastvae.datasets import simulate
from fastvae.integrations.legacy import from_legacy_checkpoint, load_vae, to_legacy_checkpoint

CASES = [case for case in INDEX["cases"] if "raises" not in case]
SEEN = ("dispersion", "n_batch", "n_labels", "n_hidden", "n_latent", "n_layers", "bias")


def unseen(case):
    """The options that weights do not show."""
    options = case["options"]
    kept = {k: v for k, v in options.items() if k not in SEEN and "layers" not in k}
    n_batch = options.get("n_batch", 0)
    groups = {"gene-batch": n_batch, "gene-label": options.get("n_labels")}
    if groups.get(options.get("dispersion")) == max(n_batch, 1):  # as many of the one as the other
        kept["dispersion"] = options["dispersion"]
    return kept


@pytest.mark.parametrize("zipped", [False, True], ids=["before torch 1.6", "zip"])
@pytest.mark.parametrize("case", CASES[::3], ids=case_id)
def test_the_network_is_read_off_the_weights(case, zipped, tmp_path):
    state = load(case, build(case)).state_dict()
    torch.save(state, tmp_path / "vae.pt", _use_new_zipfile_serialization=zipped)
    vae = load_vae(tmp_path / "vae.pt", **unseen(case))
    assert type(vae).__name__ == case["class"]
    torch.manual_seed(INDEX["seeds"]["eval"])
    outputs = vae.inference(counts_for(case), batch_for(case), INPUTS["y"])
    for name, want in arrays(case["eval"]["inference"]).items():
        assert_parity(outputs[name], want, name)
    loss = vae.get_reconstruction_loss(
        counts_for(case), outputs["px_rate"], outputs["px_r"], outputs["px_dropout"]
    )
    assert_parity(loss, array(case["eval"]["reconstruction_loss"]), "reconstruction loss")


def script_cells():
    """The cells that the recorded checkpoint was trained on."""
    import anndata
    import pandas as pd

    record = arrays(INDEX["training_script"])
    codes = record["batch_index"].long().ravel().numpy()
    obs = pd.DataFrame({"batch_indices": codes}, index=[f"cell{i}" for i in range(len(codes))])
    return anndata.AnnData(sp.csr_matrix(record["counts"].numpy()), obs), record


def test_model_of_the_recorded_checkpoint(tmp_path):
    cells, record = script_cells()
    model = from_legacy_checkpoint(LEGACY / "checkpoint.pt", cells, batch_key="batch_indices")
    latent = torch.from_numpy(model.get_latent_representation())
    assert_parity(latent, record["latent"], "latent mean")
    totals = np.log(record["counts"].numpy().sum(1, dtype=np.float64))
    codes = record["batch_index"].ravel().numpy()
    want = [totals[codes == batch].mean() for batch in (0, 1)]
    np.testing.assert_allclose(model._setup.log_library_mean, want, rtol=1e-6)
    model.save(tmp_path / "run")
    again = Model.load(tmp_path / "run", cells)
    np.testing.assert_array_equal(again.get_latent_representation(), latent.numpy())
    assert again.origin["checkpoint"] == "checkpoint.pt"
    before = again.get_elbo()
    assert again.fit(3, seed=0, progress=False).get_elbo() > before


def test_folder_of_a_posterior(tmp_path):
    shutil.copy(LEGACY / "checkpoint.pt", tmp_path / "model_params.pt")
    (tmp_path / "posterior_type.txt").write_text("Posterior")
    want = torch.load(LEGACY / "checkpoint.pt", weights_only=True)
    state = load_vae(tmp_path).state_dict()
    assert all(torch.equal(state[name], value) for name, value in want.items())


def test_there_and_back(tmp_path):
    adata = simulate(60, 20, n_batches=2, density=0.4, seed=0)
    model = Model(adata, batch_key="batch", n_hidden=8, n_latent=3).fit(2, seed=0, progress=False)
    to_legacy_checkpoint(model, tmp_path / "vae.pkl")
    with pytest.raises(InputError, match="already exists"):
        to_legacy_checkpoint(model, tmp_path / "vae.pkl")
    assert (tmp_path / "vae.pkl").read_bytes()[:2] != b"PK"
    back = from_legacy_checkpoint(
        tmp_path / "vae.pkl", adata, batch_key="batch", use_observed_lib_size=True
    )
    assert back._setup == model._setup
    np.testing.assert_array_equal(
        back.get_elbo(return_mean=False), model.get_elbo(return_mean=False)
    )


def saved(folder, thing):
    torch.save(thing, folder / "vae.pt")
    return folder / "vae.pt"


def test_dispersion_per_batch_or_per_label(tmp_path):
    made = fastvae.VAE(N_GENES, n_batch=2, n_labels=2, dispersion="gene-label", n_hidden=4)
    with pytest.raises(InputError, match="2 dispersions per gene and as many batches; say which"):
        load_vae(saved(tmp_path, made.state_dict()))


def test_refused(tmp_path):
    cells, _ = script_cells()
    path = LEGACY / "checkpoint.pt"
    for call, message in [
        (lambda: load_vae(tmp_path / "no.pt"), r"no\.pt does not exist"),
        (lambda: load_vae(saved(tmp_path, torch.ones(2))), "holds a Tensor; expected a state dict"),
        (lambda: load_vae(saved(tmp_path, {"a": torch.ones(2)})), r"not of a scvi\.models\.VAE"),
        (lambda: load_vae(saved(tmp_path, {"epoch": 3})), "entry 'epoch' is not a tensor"),
        (lambda: load_vae(path, n_latent=10), "has n_latent=4, not 10"),
        (lambda: load_vae(path, dispersion="gene-cell"), "has dispersion='gene', not 'gene-cell'"),
        (lambda: from_legacy_checkpoint(path, cells), "trained on 2 batches"),
        (
            lambda: from_legacy_checkpoint(path, cells[:, :9].copy(), batch_key="batch_indices"),
            "trained on 30 genes, and the data have 9",
        ),
        (lambda: from_legacy_checkpoint(path, cells, log_variational=False), "log_variational"),
    ]:
        with pytest.raises(InputError, match=message):
            call()


def test_a_pickled_model_is_refused_unread(tmp_path):
    vae = fastvae.VAE(N_GENES, n_hidden=4, n_latent=2)
    with pytest.raises(InputError, match=r"expected a state dict|without running code.*state_dict"):
        load_vae(saved(tmp_path, vae))
    (tmp_path / "vae.pt").write_bytes(b"no checkpoint at all")
    with pytest.raises(InputError, match=r"vae\.pt"):
        load_vae(tmp_path / "vae.pt")


def test_state_of_more_than_a_vae_is_refused(tmp_path):
    state = fastvae.VAE(N_GENES, n_hidden=4, n_latent=2).state_dict()
    state["classifier.0.weight"] = torch.ones(2)
    with pytest.raises(InputError, match=r"classifier\.0\.weight"):
        load_vae(saved(tmp_path, state))
