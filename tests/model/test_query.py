"""New data mapped onto a trained model: what moves, what does not, and what is said."""

import inspect
import json
from dataclasses import fields

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from small_models import small_data

from fastvae import InputError, Model
from fastvae.data import Minibatches
from fastvae.model.mapping import Query
from fastvae.train.schedules import epoch_seed

SMALL = {"n_hidden": 8, "n_latent": 3, "batch_key": "batch"}
FIT = {"max_epochs": 3, "batch_size": 20, "seed": 0, "progress": False}
MAY_MOVE = {  # the library encoder is not run with the observed library size
    True: set(),
    "decoder": {"z_encoder"},
    "encoder": {"decoder", "px_r"},
    False: {"z_encoder", "decoder", "px_r"},
}


def cells(batches=("q1", "q2"), seed=7):
    """Cells with the genes of the reference; their batches have these names."""
    adata = small_data(seed=seed)
    adata.obs["batch"] = np.array(batches)[np.arange(adata.n_obs) % len(batches)]
    return adata


def reference(**options):
    return Model(small_data(), **{**SMALL, **options}).fit(3, seed=0, progress=False)


@pytest.fixture(scope="module")
def trained():
    return reference(n_layers=2, dispersion="gene-batch")


def same(a, b):
    return torch.equal(a, b.to(a.dtype))


def old_part(name, old, new):
    """The part of a wider tensor that the reference has."""
    return new if old.shape == new.shape else new[:, : old.shape[1]]


@pytest.mark.parametrize("freeze", MAY_MOVE)
def test_which_weights_move(trained, freeze):
    """With weight decay, and batch normalisation's running statistics."""
    before = {name: value.clone() for name, value in trained.module.state_dict().items()}
    model = trained.map_query(cells(), freeze=freeze, weight_decay=0.1, **FIT)
    moved, can_move = set(), MAY_MOVE[freeze]
    start = Model.load_query(cells(), trained, freeze=freeze).module.state_dict()
    for name, new in model.module.state_dict().items():
        if not same(before[name], old_part(name, before[name], new)):
            moved.add(name.split(".")[0])
        if new.shape != before[name].shape:
            n_old = before[name].shape[1]
            assert not torch.equal(new[:, n_old:], start[name][:, n_old:]), name
    assert moved == can_move
    for name, value in trained.module.state_dict().items():
        assert torch.equal(before[name], value), f"the reference's {name} moved"
    names = [name for name, _ in Model.load_query(cells(), trained).module.named_parameters()]
    assert [name for name, _ in model.module.named_parameters()] == names
    assert all(weight.requires_grad for weight in model.module.parameters())
    assert "train" not in vars(model.module)
    assert model.module.frozen_parts == ()
    assert not any(hasattr(part, "parametrizations") for part in model.module.modules())
    assert model.get_elbo() > Model.load_query(cells(), trained, freeze=freeze).get_elbo()


def test_frozen_parts_are_those_of_the_reference_in_training_too(trained):
    """One step by hand: the gradient is that of the network in evaluation."""
    query = cells()
    model = Model.load_query(query, trained)
    store, before = model._store, model.module.state_dict()
    start = {name: value.clone() for name, value in before.items()}
    model.fit(1, batch_size=1000, train_size=1.0, learning_rate=1e-3, weight_decay=0.0,
              n_epochs_kl_warmup=None, seed=0, progress=False)  # fmt: skip
    by_hand = Model.load_query(query, trained).module
    by_hand.load_state_dict(start)
    name = "decoder.px_decoder.fc_layers.Layer 0.0.weight"
    weight = by_hand.get_parameter(name)
    (batch,) = Minibatches(store, batch_size=1000, shuffle=True, seed=0)
    torch.manual_seed(epoch_seed(0, 0, 0))
    first, _, _ = by_hand(batch.x, None, None, batch.batch_index)
    gradient = torch.autograd.grad(first.mean(), weight)[0][:, -2:]
    want = -1e-3 * gradient / (gradient.abs() + 0.01)  # the first step of Adam with eps=0.01
    step = model.module.get_parameter(name)[:, -2:] - start[name][:, -2:]
    torch.testing.assert_close(step, want, rtol=1e-3, atol=1e-7)


def test_cells_of_the_reference_are_where_they_were(trained):
    model = trained.map_query(cells(), **FIT)
    np.testing.assert_array_equal(
        model.get_latent_representation(small_data()), trained.get_latent_representation()
    )
    np.testing.assert_allclose(
        model.get_elbo(small_data(), return_mean=False), trained.get_elbo(return_mean=False),
        rtol=1e-6,
    )  # fmt: skip
    want = trained.get_latent_representation(cells(trained.batch_categories))
    np.testing.assert_array_equal(model.get_latent_representation(), want)


@pytest.mark.parametrize("key", [None, "one"])
def test_reference_with_one_batch_or_none(key):
    data = small_data()
    data.obs["one"] = "only"
    known = Model(data, n_hidden=8, n_latent=3, batch_key=key).fit(3, seed=0, progress=False)
    model = known.map_query(cells(), batch_key="batch", **FIT)
    assert model.batch_categories == [(key and "only") or "reference", "q1", "q2"]
    first = model.module.decoder.px_decoder.fc_layers[0][0].weight
    assert torch.equal(first[:, 3], torch.zeros(8))  # the reference's own column
    data.obs["batch"] = model.batch_categories[0]
    np.testing.assert_allclose(
        model.get_elbo(data, return_mean=False), known.get_elbo(return_mean=False), rtol=1e-6
    )


def test_library_prior_of_new_batches_is_theirs():
    known = reference(use_observed_lib_size=False)
    query = cells()
    query.X = query.X * 3
    model = Model.load_query(query, known)
    totals = np.log(np.asarray(query.X.sum(1)).ravel())
    want = [totals[query.obs["batch"] == name].mean() for name in ("q1", "q2")]
    np.testing.assert_allclose(model._setup.log_library_mean[2:], want, rtol=1e-6)
    assert model._setup.log_library_mean[:2] == known._setup.log_library_mean
    codes = model._store.batch_codes[:3]
    batch = next(iter(model._minibatches(model._store, np.arange(3), 3)))
    got = batch.local_l_mean.ravel().numpy()
    np.testing.assert_allclose(got, np.array(model._setup.log_library_mean)[codes], rtol=1e-6)


def test_known_and_new_batches_together(trained):
    both = cells((trained.batch_categories[1], "q1"))
    model = trained.map_query(both, **FIT)
    assert model.batch_categories == [*trained.batch_categories, "q1"]
    assert model.origin["new_batches"] == ["q1"]
    assert model.origin["known_batches"] == [trained.batch_categories[1]]
    np.testing.assert_array_equal(model._store.batch_codes[:4], [1, 2, 1, 2])


def test_saved_loaded_and_trained_further(trained, tmp_path):
    trained.save(tmp_path / "reference")
    query = cells()
    model = Model.load_query(query, tmp_path / "reference").fit(**FIT)
    model.save(tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["origin"]["mapped_onto"] == str(tmp_path / "reference")
    again = Model.load(tmp_path / "run", query)
    np.testing.assert_array_equal(
        again.get_elbo(return_mean=False), model.get_elbo(return_mean=False)
    )
    before = {name: value.clone() for name, value in again.module.state_dict().items()}
    again.fit(**FIT)
    for name, old in trained.module.state_dict().items():
        assert torch.equal(old, old_part(name, old, again.module.state_dict()[name])), name
    name = "decoder.px_decoder.fc_layers.Layer 0.0.weight"
    assert not torch.equal(before[name], again.module.state_dict()[name])
    assert "mapped onto" in repr(again)


def test_interrupted_and_resumed(trained, tmp_path):
    whole = Model.load_query(cells(), trained).fit(**{**FIT, "max_epochs": 4})
    first = Model.load_query(cells(), trained)
    first.fit(**{**FIT, "max_epochs": 2}, checkpoint_dir=tmp_path)
    resumed = Model.load_query(cells(), trained)
    resumed.fit(**{**FIT, "max_epochs": 4}, checkpoint_dir=tmp_path, resume=True)
    for name, value in whole.module.state_dict().items():
        assert torch.equal(value, resumed.module.state_dict()[name]), name
    with pytest.raises(InputError, match="freeze"):
        Model.load_query(cells(), trained, freeze=False).fit(
            **{**FIT, "max_epochs": 4}, checkpoint_dir=tmp_path, resume=True
        )


def without(adata, names, extra=2):
    """Other genes in another order: some missing, some unknown to the reference."""
    kept = [name for name in adata.var_names[::-1] if name not in names]
    found = adata[:, kept].copy()
    more = anndata.AnnData(
        sp.csr_matrix(np.ones((adata.n_obs, extra), np.float32)), obs=adata.obs[[]].copy()
    )
    more.var_names = [f"extra{i}" for i in range(extra)]
    joined = anndata.concat([found, more], axis=1)
    joined.obs = adata.obs.copy()
    return joined


@pytest.mark.parametrize("kind", ["memory", "h5ad", "disk", "two files"])
def test_genes_are_matched_by_name(trained, kind, tmp_path):
    missing = [trained.gene_names[3], trained.gene_names[11]]
    full = cells()
    zeroed = full.X.toarray()
    zeroed[:, [full.var_names.get_loc(name) for name in missing]] = 0
    full.X = sp.csr_matrix(zeroed)
    data, options = without(cells(), missing), {}
    if kind != "memory":
        data.write_h5ad(tmp_path / "q.h5ad")
        options = {"residence": "disk", "memory_limit": "1GB"} if kind == "disk" else {}
        data = tmp_path / "q.h5ad"
    if kind == "two files":
        full.obs_names = [f"{name}-full" for name in full.obs_names]
        full.write_h5ad(tmp_path / "full.h5ad")
        data = [tmp_path / "q.h5ad", tmp_path / "full.h5ad"]
    model = trained.map_query(data, **options, **FIT)
    half = slice(None, full.n_obs)
    np.testing.assert_allclose(
        model.get_latent_representation()[half],
        trained.map_query(full, **FIT).get_latent_representation(), atol=1e-6,
    )  # fmt: skip
    assert model.origin["missing_genes"] == 2
    assert model.origin["unused_genes"] == 2
    assert f"2 of 30 genes missing (6.7 %), taken as zero: {missing[0]!r}, {missing[1]!r}" in (
        repr(model)
    )
    model.write_latent(tmp_path / "latent.h5ad")
    model.save(tmp_path / "run")
    again = Model.load(tmp_path / "run", data)
    np.testing.assert_allclose(again.get_elbo(), model.get_elbo(), rtol=1e-6)
    # strict for everything else
    with pytest.raises(InputError, match=r"1 of the .*30 genes"):
        again.get_elbo(without(cells(), [*missing, trained.gene_names[0]]))
    with pytest.raises(InputError, match=r"2 of the .*30 genes"):
        trained.get_elbo(without(cells(trained.batch_categories), missing))


def test_many_missing_genes_are_warned_of(trained):
    data = without(cells(), trained.gene_names[:10])
    with pytest.warns(
        UserWarning, match=r"10 of the 30 genes of the reference \(33 %\).*and 5 more"
    ):
        Model.load_query(data, trained)


def renamed(adata, prefix):
    adata.var_names = [f"{prefix}{i}" for i in range(adata.n_vars)]
    return adata


def no_column():
    adata = cells()
    del adata.obs["batch"]
    return adata


REFUSED = [
    (lambda m: m.map_query(cells(), freeze="all"), "freeze must be True, 'decoder', 'encoder'"),
    (lambda m: m.map_query(cells(m.batch_categories)), r"nothing new to train.*knows all batches"),
    (lambda m: m.map_query(cells(), min_genes=2), "min_genes is a share"),
    (
        lambda m: m.map_query(renamed(cells(), "ENSG")),
        "0 of the 30 genes of the reference are in the data",
    ),
    (lambda m: m.map_query(no_column()), "obs has no column 'batch'"),
    (lambda m: m.map_query(cells(), batch_key="donor"), "obs has no column 'donor'"),
    (lambda m: Model.load_query(cells(), 3), r"reference must be a trained fastvae\.Model"),
    (
        lambda m: Model.load_query(cells(), Model(cells(), **SMALL)),
        "reference has not been trained",
    ),
    (lambda m: Model.load_query(cells(), "/nowhere"), "is not a folder"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_refused(trained, call, message):
    with pytest.raises(InputError, match=message):
        call(trained)


def test_batch_named_like_a_reference_without_batches():
    known = Model(small_data(), n_hidden=8, n_latent=3).fit(1, seed=0, progress=False)
    with pytest.raises(InputError, match="has the batch 'reference'"):
        Model.load_query(cells(("reference",)), known, batch_key="batch")


def test_both_ways_of_mapping_take_the_same_options() -> None:
    load, both = (
        inspect.signature(function).parameters for function in (Model.load_query, Model.map_query)
    )
    names = [*(one.name for one in fields(Query)), "device"]
    assert {*load} == {"data", "reference", *names, "reading"}
    assert {*both} == {"self", "data", *names, "reading_and_fit"}
    assert [load[name] for name in names] == [both[name] for name in names]
