"""`Model` as a model of scvi-tools and back, with scvi-tools running both sides."""

import numpy as np
import pytest
import torch
from scvi_cells import SEED, draw_counts, make_cells
from witness import assert_parity

from fastvae import InputError, Model
from fastvae._torch import evaluating
from fastvae.data import Minibatches
from fastvae.train.step import loss_terms

scvi = pytest.importorskip("scvi")

from fastvae.integrations.convert import from_scvi_tools, to_scvi_tools  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

CASES = {
    "plain": {},
    "batches": {"batch_key": "donor", "n_layers": 2},
    "numbered": {"batch_key": "lane", "reconstruction_loss": "poisson"},
    "learned": {
        "batch_key": "donor",
        "labels_key": "cell_type",
        "dispersion": "gene-batch",
        "use_observed_lib_size": False,
        "reconstruction_loss": "nb",
    },
    "labels": {"labels_key": "cell_type", "dispersion": "gene-label", "latent_distribution": "ln"},
    "told": {
        "batch_key": "donor",
        "n_layers": 2,
        "encode_covariates": True,
        "use_observed_lib_size": False,
    },
    "gene_cell": {"batch_key": "donor", "dispersion": "gene-cell", "layer": "counts"},
    "covariates": {
        "batch_key": "donor",
        "categorical_covariate_keys": ["lane", "cell_type"],
        "continuous_covariate_keys": ["age"],
        "n_layers": 2,
    },
    "encoded": {
        "categorical_covariate_keys": ["lane"],
        "continuous_covariate_keys": ["age", "size"],
        "encode_covariates": True,
        "use_observed_lib_size": False,
        "reconstruction_loss": "nb",
    },
    "sized": {
        "batch_key": "donor",
        "size_factor_key": "size",
        "continuous_covariate_keys": ["age"],
    },
    "first_layer": {
        "batch_key": "donor",
        "categorical_covariate_keys": ["lane"],
        "size_factor_key": "size",
        "encode_covariates": True,
        "deeply_inject_covariates": False,
        "n_layers": 2,
        "dispersion": "gene-batch",
        "reconstruction_loss": "poisson",
    },
}
each_case = pytest.mark.parametrize("name", CASES)


def cells():
    adata, number = make_cells(draw_counts()), np.arange(30)
    adata.obs["age"] = (number * 7 % 30) / 15.0 - 1.0
    adata.obs["size"] = 0.5 + (number * 11 % 30) / 20.0
    return adata


def trained(name):
    model = Model(cells(), n_hidden=8, n_latent=3, **CASES[name])
    return model.fit(4, seed=0, batch_size=10, progress=False)


def outputs(theirs):
    (tensors,) = theirs._make_data_loader(theirs.adata, batch_size=theirs.adata.n_obs)
    torch.manual_seed(SEED)
    with torch.no_grad():
        inference, generative, loss = theirs.module(tensors)
    elbo = -sum(loss.reconstruction_loss.values()) - sum(loss.kl_local.values())
    return inference, generative["px"], elbo


@each_case
def test_outputs_are_equal(name):
    model = trained(name)
    theirs = to_scvi_tools(model, cells())
    inference, px, elbo = outputs(theirs)
    (batch,) = Minibatches(model._store, np.arange(model._store.n_cells), batch_size=1000)
    with evaluating(model.module, SEED):  # the draws of scvi-tools
        loss, kl, _ = loss_terms(model.module, batch)
    assert_parity(-(loss + kl), elbo, "ELBO")
    with evaluating(model.module, SEED):
        more = batch.covariates.given()
        mine = model.module.inference(batch.x, batch.batch_index, batch.y, **more)
    assert_parity(mine["px_scale"], px.scale, "normalized expression", 1e-6)
    if CASES[name].get("latent_distribution") != "ln":
        latent = torch.from_numpy(model.get_latent_representation())
        assert_parity(latent, inference["qz"].loc, "latent")
    want = theirs.get_normalized_expression(n_samples=300, return_numpy=True)
    got = model.get_normalized_expression(n_samples=300, return_numpy=True)
    scale = want.sum(1).mean()  # 1 without size factors
    np.testing.assert_allclose(got, want, atol=0.02 * scale)  # Monte Carlo
    assert np.abs(got - want).mean() < 1e-3 * scale


@each_case
def test_weights_come_back_bit_for_bit(name, tmp_path):
    model = trained(name)
    theirs = to_scvi_tools(model, cells())
    theirs.save(tmp_path / "saved")
    for back in (from_scvi_tools(theirs), from_scvi_tools(tmp_path / "saved")):
        state = back.module.state_dict()
        assert list(state) == list(model.module.state_dict())
        for key, value in model.module.state_dict().items():
            assert torch.equal(state[key], value), key
        assert back._setup == model._setup or CASES[name].get("use_observed_lib_size", True)
        assert back._setup.options == model._setup.options
        assert back._setup.batch_categories == model._setup.batch_categories
        assert back._setup.label_categories == model._setup.label_categories
        assert back._setup.covariates == model._setup.covariates
        assert back._setup.covariate_categories == model._setup.covariate_categories


def test_every_method_works_and_training_goes_on():
    model = trained("batches")
    theirs = to_scvi_tools(model, cells())
    assert theirs.is_trained
    assert len(theirs.history["elbo_train"]) == 4
    want = model.history["train_elbo"].iloc[-1]
    assert theirs.history["elbo_train"].iloc[-1, 0] == pytest.approx(want)
    np.testing.assert_array_equal(theirs.train_indices, model.train_cells)
    assert np.isfinite(theirs.get_marginal_ll(n_mc_samples=5))
    assert theirs.get_likelihood_parameters()["mean"].shape == theirs.adata.shape
    assert theirs.posterior_predictive_sample().shape == theirs.adata.shape
    found = theirs.differential_expression(groupby="cell_type", group1="T")
    assert set(found.index) == set(theirs.adata.var_names)
    before = theirs.get_elbo()
    theirs.train(20, accelerator="cpu", batch_size=10, enable_progress_bar=False)
    assert theirs.get_elbo() > before
    after = from_scvi_tools(theirs)
    np.testing.assert_allclose(
        after.get_latent_representation(), theirs.get_latent_representation(), atol=1e-6
    )


def test_cells_of_some_batches_with_more_genes_in_another_order():
    model = trained("numbered")
    wide = make_cells(np.concatenate([np.ones((30, 2), np.float32), draw_counts()], axis=1))
    wide.var_names = ["extra1", "extra2", *(f"G{i}" for i in range(16))]
    part = wide[wide.obs["lane"].to_numpy() == 10].copy()
    part = part[:, list(part.var_names[::-1])].copy()
    theirs = to_scvi_tools(model, part)
    assert list(theirs.adata.var_names) == model.gene_names
    assert theirs.summary_stats.n_batch == 2
    assert set(theirs.adata.obs["_scvi_batch"]) == {1}
    np.testing.assert_allclose(
        theirs.get_latent_representation(), model.get_latent_representation(part), atol=1e-6
    )


def test_our_own_class_can_be_asked_for():
    doors = pytest.importorskip("fastvae.integrations.scvi_tools")
    theirs = to_scvi_tools(trained("batches"), cells(), model_class=doors.SCVI)
    assert type(theirs) is doors.SCVI
    assert np.isfinite(theirs.get_elbo())


def test_refused():
    model = trained("batches")
    with pytest.raises(InputError, match="not been trained"):
        to_scvi_tools(Model(cells()), cells())
    with pytest.raises(InputError, match=r"2 of the model's 16 genes .*'G14', 'G15'"):
        to_scvi_tools(model, cells()[:, :14].copy())
    unknown = cells()
    unknown.obs["donor"] = "d"
    with pytest.raises(InputError, match="'d'"):
        to_scvi_tools(model, unknown)
    with pytest.raises(InputError, match="needs an AnnData"):
        to_scvi_tools(model, draw_counts())


@pytest.mark.parametrize(
    ("setup", "options", "named"),
    [
        ({"batch_key": "donor"}, {"batch_representation": "embedding"}, "batch_representation"),
        ({}, {"use_layer_norm": "both"}, "use_layer_norm"),
    ],
)
def test_models_without_counterpart(setup, options, named, tmp_path):
    adata = cells()
    scvi.model.SCVI.setup_anndata(adata, **setup)
    theirs = scvi.model.SCVI(adata, n_hidden=8, n_latent=3, **options)
    theirs.save(tmp_path / "saved")
    for source in (theirs, tmp_path / "saved"):
        with pytest.raises(InputError, match=named):
            from_scvi_tools(source)


def test_other_classes():
    adata = cells()
    scvi.model.LinearSCVI.setup_anndata(adata)
    with pytest.raises(InputError, match="LinearSCVI"):
        from_scvi_tools(scvi.model.LinearSCVI(adata, n_hidden=8, n_latent=3))
