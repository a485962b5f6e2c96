"""Models around the scvi-tools door: files, `accelerate`, scArches, minified data, SCANVI, DE."""

import numpy as np
import pytest
import torch

scvi = pytest.importorskip("scvi")
from scvi import module as theirs  # noqa: E402

from fastvae._torch import sharing  # noqa: E402
from fastvae.datasets import simulate  # noqa: E402
from fastvae.errors import InputError  # noqa: E402
from fastvae.integrations import scvi_tools as door  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

QUIET = {"accelerator": "cpu", "enable_progress_bar": False}


def data(n=300, seed=0, batches=None):
    adata = simulate(n, 40, density=0.25, seed=seed)
    draw = np.random.default_rng(seed)
    adata.obs["label"] = np.array(["a", "b", "unknown"])[draw.integers(0, 3, n)]
    if batches is not None:
        adata.obs["batch"] = np.array(batches)[draw.integers(0, len(batches), n)]
    return adata


def trained(cls, adata, **options):
    scvi.settings.seed = 0
    cls.setup_anndata(adata, batch_key="batch", labels_key="label")
    model = cls(adata, n_hidden=16, n_latent=4, **options)
    model.train(2, **QUIET)
    return model


def same_weights(one, other):
    state, expected = one.module.state_dict(), other.module.state_dict()
    assert list(state) == list(expected)
    for key, value in expected.items():
        torch.testing.assert_close(state[key], value, rtol=0, atol=0, msg=key)


def answers(model):
    scvi.settings.seed = 0
    return {
        "latent": model.get_latent_representation(),
        "expression": model.get_normalized_expression(n_samples=3, return_numpy=True),
        "batch": model.get_normalized_expression(transform_batch="batch_1", return_numpy=True),
        "elbo": np.array(model.get_elbo()),
        "marginal": np.array(model.get_marginal_ll(n_mc_samples=8)),
        "likelihood": model.get_likelihood_parameters()["dispersions"],
        "reconstruction": np.array(model.get_reconstruction_error()["reconstruction_loss"]),
        "correlation": model.get_feature_correlation_matrix(n_samples=2).to_numpy(),
    }


def same_answers(one, other):
    for (name, value), expected in zip(answers(one).items(), answers(other).values(), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("saved", ["theirs", "ours"])
@pytest.mark.parametrize("kind", ["SCVI", "LinearSCVI"])
def test_saved_models_load_with_either_class(tmp_path, kind, saved):
    classes = {"theirs": getattr(scvi.model, kind), "ours": getattr(door, kind)}
    adata = data()
    model = trained(classes[saved], adata)
    model.save(tmp_path / "model")
    other = "ours" if saved == "theirs" else "theirs"
    loaded = classes[other].load(tmp_path / "model", adata=adata.copy())
    assert type(loaded) is classes[other]
    assert isinstance(loaded.module, door._module.Fused) is (other == "ours")
    same_weights(loaded, model)
    same_answers(loaded, model)
    loaded.train(1, **QUIET)


ARCHES = {
    "defaults": {},
    "unfrozen": {"unfrozen": True},
    "free expression and batch norm": {
        "freeze_expression": False,
        "freeze_batchnorm_encoder": False,
        "freeze_decoder_first_layer": False,
    },
    "frozen decoder batch norm": {"freeze_batchnorm_decoder": True, "freeze_dropout": True},
}


@pytest.mark.parametrize("name", ARCHES)
@pytest.mark.parametrize("encode", [True, False])
def test_a_query_moves_the_parameters_that_theirs_moves(name, encode):
    moved, models = {}, {}
    for who, cls in {"theirs": scvi.model.SCVI, "ours": door.SCVI}.items():
        options = {"encode_covariates": encode, "n_layers": 2, "dropout_rate": 0.2}
        reference = trained(cls, data(batches=["r1", "r2"]), **options)
        query = data(250, seed=1, batches=["q1", "q2", "q3"])
        scvi.settings.seed = 1
        model = cls.load_query_data(query, reference, **ARCHES[name])
        before = {key: value.clone() for key, value in model.module.state_dict().items()}
        model.train(3, plan_kwargs={"weight_decay": 0.0}, **QUIET)
        after = model.module.state_dict()
        moved[who] = {key: after[key] != value for key, value in before.items()}
        models[who] = model
        columns = moved[who]["z_encoder.encoder.fc_layers.Layer 0.0.weight"]
        if name == "defaults":  # the new batches' columns move, the genes' do not
            assert columns[:, 40 + 2 :].any() == encode
            assert not columns[:, :40].any()
    assert moved["ours"].keys() == moved["theirs"].keys()
    for key, places in moved["theirs"].items():
        assert torch.equal(moved["ours"][key], places), key
    gradients = [
        {key for key, p in model.module.named_parameters() if p.requires_grad}
        for model in models.values()
    ]
    assert gradients[0] == gradients[1]
    np.testing.assert_allclose(
        models["ours"].history["elbo_train"].to_numpy(float),
        models["theirs"].history["elbo_train"].to_numpy(float),
        rtol=1e-4,
    )


EMBEDDING = "_embeddings_dict.batch.weight"


@pytest.mark.parametrize("kind", ["SCVI", "SCANVI"])
@pytest.mark.parametrize("loop", ["lightning", "fastvae"])
@pytest.mark.parametrize("saved", [False, True])
def test_a_query_moves_the_embeddings_of_its_batches(kind, loop, saved, tmp_path):
    """As with scvi-tools from 1.5 on; before it, their embedding is thawed here by hand."""
    if kind == "SCANVI" and loop == "fastvae":
        pytest.skip("SCANVI is trained by Lightning")
    models, before = {}, {}
    for who, classes in {"theirs": scvi.model, "ours": door}.items():
        cls = getattr(classes, kind)
        # theirs cannot classify with an embedding in the encoder
        options = {"batch_representation": "embedding", "encode_covariates": kind == "SCVI"}
        reference = trained(classes.SCVI, data(batches=["r1", "r2"]), **options)
        if kind == "SCANVI":
            reference = cls.from_scvi_model(reference, unlabeled_category="unknown")
            reference.train(1, **QUIET)
        if saved:
            reference.save(tmp_path / who)
            reference = str(tmp_path / who)
        scvi.settings.seed = 1
        query = data(250, seed=1, batches=["q1", "q2", "q3"])
        model = models[who] = cls.load_query_data(query, reference)
        state = model.module.state_dict()
        before[who] = {key: value.clone() for key, value in state.items()}
        if who == "theirs":
            model.module.get_embedding("batch").weight.requires_grad = True
        training = {"loop": loop} if who == "ours" and kind == "SCVI" else {}
        model.train(3, plan_kwargs={"weight_decay": 0.0}, **training, **QUIET)
    for key, value in before["theirs"].items():
        torch.testing.assert_close(before["ours"][key], value, rtol=2e-3, atol=2e-4, msg=key)
    moved = {}
    for who, model in models.items():
        after = model.module.state_dict()
        moved[who] = {key: after[key] != value for key, value in before[who].items()}
        assert moved[who][EMBEDDING].all(1).tolist() == [False, False, True, True, True]
        assert not moved[who][EMBEDDING][:2].any()
    for key, places in moved["theirs"].items():
        assert torch.equal(moved["ours"][key], places), key
    if loop == "lightning":
        for key in ("elbo_train", "reconstruction_loss_train"):
            own, other = (models[who].history[key].to_numpy(float) for who in ("ours", "theirs"))
            np.testing.assert_allclose(own, other, rtol=1e-3)
    if kind == "SCVI":
        latent = models["ours"].get_latent_representation()
        models["ours"].module.load_state_dict(before["ours"])
        assert np.abs(latent - models["ours"].get_latent_representation()).max() > 1e-4


@pytest.mark.parametrize("kind", ["SCVI", "LinearSCVI"])
def test_accelerate_keeps_the_model_and_changes_how_it_computes(kind):
    adata = data()
    model = trained(getattr(scvi.model, kind), adata)
    twin = trained(getattr(scvi.model, kind), adata.copy())
    weights = list(model.module.parameters())
    history = {key: frame.copy() for key, frame in model.history.items()}
    assert door.accelerate(model) is model
    assert type(model) is getattr(scvi.model, kind)
    assert isinstance(model.module, door._module.Fused)
    assert all(a is b for a, b in zip(weights, model.module.parameters(), strict=True))
    assert all(frame.equals(model.history[key]) for key, frame in history.items())
    seams = {name: value for name, value in vars(model).items() if name.endswith("_cls")}
    door.accelerate(model)
    assert {name: value for name, value in vars(model).items() if name.endswith("_cls")} == seams
    same_answers(model, twin)
    for one in (model, twin):
        scvi.settings.seed = 3
        one.train(2, **QUIET)
    assert len(model.history["elbo_train"]) == 4
    expected = twin.history["elbo_train"].to_numpy(float)
    np.testing.assert_allclose(model.history["elbo_train"].to_numpy(float), expected, rtol=1e-4)


def test_accelerate_refuses_what_it_does_not_know():
    adata = data()
    scvi.model.SCVI.setup_anndata(adata)
    model = scvi.model.SCVI(adata, n_hidden=16)
    model.module = sharing(type("Mine", (theirs.VAE,), {}), model.module)
    with pytest.raises(InputError, match="Mine"):
        door.accelerate(model)


@pytest.mark.parametrize("how", ["our class", "accelerated"])
def test_scanvi_from_our_model_trains_as_theirs(how):
    models = []
    for own in (False, True):
        scvi.settings.seed = 0
        model = trained(door.SCVI if own and how == "our class" else scvi.model.SCVI, data())
        scvi.settings.seed = 1
        semi = (door.SCANVI if own and how == "our class" else scvi.model.SCANVI).from_scvi_model(
            model, unlabeled_category="unknown"
        )
        if own:
            door.accelerate(semi)
            assert isinstance(semi.module, door._module.SCANVAE)
        semi.train(2, **QUIET)
        models.append(semi)
    other, own = models
    assert own.history.keys() == other.history.keys()
    for key, frame in other.history.items():
        np.testing.assert_allclose(
            own.history[key].to_numpy(float),
            frame.to_numpy(float),
            rtol=1e-3,
            atol=1e-5,
            err_msg=key,
        )
    np.testing.assert_allclose(own.predict(soft=True), other.predict(soft=True), atol=5e-3)


@pytest.mark.parametrize("counts", [False, True])
def test_minified_data_answers_as_theirs(counts):
    found = []
    for cls in (scvi.model.SCVI, door.SCVI):
        adata = data()
        model = trained(cls, adata)
        qzm, qzv = model.get_latent_representation(return_dist=True)
        model.adata.obsm["X_latent_qzm"], model.adata.obsm["X_latent_qzv"] = qzm, qzv
        kind = "latent_posterior_parameters" + ("_with_counts" if counts else "")
        model.minify_adata(minified_data_type=kind)
        scvi.settings.seed = 2
        found.append(
            (
                model.get_latent_representation(),
                model.get_normalized_expression(n_samples=2, return_numpy=True),
                model.get_normalized_expression(library_size="latent", return_numpy=True),
            )
        )
    for other, own in zip(*found, strict=True):
        np.testing.assert_allclose(own, other, rtol=2e-3, atol=5e-3)


@pytest.mark.parametrize("mode", ["vanilla", "change"])
@pytest.mark.parametrize("weights", ["uniform", "importance"])
def test_differential_expression_is_theirs(mode, weights):
    adata = data()
    model = trained(scvi.model.SCVI, adata)
    tables = []
    for _ in range(2):
        scvi.settings.seed = 5
        table = model.differential_expression(
            groupby="label", group1="a", group2="b", mode=mode, weights=weights, silent=True
        )
        tables.append(table.sort_index())
        door.accelerate(model)
    other, own = tables
    assert list(own.columns) == list(other.columns)
    numbers = other.select_dtypes("number").columns
    np.testing.assert_allclose(own[numbers], other[numbers], rtol=2e-3, atol=2e-3)


def test_a_model_without_data_takes_a_datamodule():
    scvi.settings.seed = 0
    adata = data()
    door.SCVI.setup_anndata(adata, batch_key="batch")
    manager = door.SCVI._get_most_recent_anndata_manager(adata)
    datamodule = scvi.dataloaders.DataSplitter(manager)
    datamodule.n_vars, datamodule.n_batch = adata.n_vars, manager.summary_stats.n_batch
    model = door.SCVI(n_latent=4)
    model.train(max_epochs=1, datamodule=datamodule, **QUIET)
    assert isinstance(model.module, door._module.VAE)
    assert len(model.history["elbo_train"]) == 1
