"""What a model answers, compared with its network asked by hand."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from small_models import small_data

from fastvae import Model, _memory
from fastvae.errors import InputError
from fastvae.model.posterior.noise import BlockNoise

DATA = small_data()
X = torch.from_numpy(DATA.X.toarray().astype(np.float32))
BATCH = torch.from_numpy(DATA.obs["batch"].astype("category").cat.codes.to_numpy().astype("int64"))


def fitted(**options: object) -> Model:
    model = Model(DATA, batch_key="batch", n_latent=3, n_hidden=16, **options)
    return model.fit(8, batch_size=32, seed=0, progress=False, learning_rate=5e-3, device="cpu")


@pytest.fixture(scope="module")
def model() -> Model:
    return fitted()


@pytest.fixture(scope="module")
def learned() -> Model:
    return fitted(use_observed_lib_size=False)


@pytest.fixture(scope="module")
def simplex() -> Model:
    return fitted(latent_distribution="ln")


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def encode(model: Model) -> tuple[torch.Tensor, torch.Tensor]:
    mean, var, _ = model.module.z_encoder(torch.log1p(X))
    return mean, var


def kl_divergence(mean: torch.Tensor, var: torch.Tensor, p_m: object, p_v: object) -> torch.Tensor:
    sd = torch.sqrt(torch.as_tensor(p_v))
    prior = torch.distributions.Normal(torch.as_tensor(p_m), sd)
    posterior = torch.distributions.Normal(mean, torch.sqrt(var))
    return torch.distributions.kl_divergence(posterior, prior).sum(1)


def test_latent_is_the_posterior_mean(model: Model) -> None:
    found = model.get_latent_representation(batch_size=50)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, encode(model)[0].numpy(), rtol=1e-4, atol=1e-5)


def test_latent_draws_have_the_posterior_variance(model: Model) -> None:
    mean, var = encode(model)
    draws = np.stack(
        [model.get_latent_representation(give_mean=False, seed=seed) for seed in range(400)]
    )
    standard = (draws - mean.numpy()) / np.sqrt(var.numpy())
    assert abs(standard.mean()) < 0.02
    assert standard.var() == pytest.approx(1.0, abs=0.02)


def test_simplex_latent_sums_to_one(simplex: Model) -> None:
    found = simplex.get_latent_representation()
    np.testing.assert_allclose(found.sum(1), 1.0, rtol=1e-5)
    mean, var = encode(simplex)
    draws = mean + torch.sqrt(var) * torch.randn(4000, *mean.shape)
    np.testing.assert_allclose(found, draws.softmax(-1).mean(0).numpy(), atol=0.02)


def test_cells_choose_and_order_rows(model: Model) -> None:
    everything = model.get_latent_representation()
    rows = np.array([7, 3, 3, 119])
    np.testing.assert_array_equal(
        model.get_latent_representation(cells=rows, batch_size=120), everything[rows]
    )
    mask = np.arange(120) % 5 == 2
    np.testing.assert_allclose(
        model.get_latent_representation(cells=mask), everything[mask], rtol=1e-5, atol=1e-6
    )
    per_cell = model.get_elbo(cells=[4, 2], return_mean=False)
    assert per_cell.shape == (2,)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([0, 120], "has row 120; there are rows 0 to 119"),
        ([-1], "has row -1"),
        (np.zeros(3, bool), r"mask of shape \(3,\); expected \(120,\)"),
        (np.zeros(120, bool), "selects no cell"),
        ([0.5], "must be row numbers or a boolean mask, not float64"),
        (["AAAC"], "cells has names that no cell has, or that several have: 'AAAC'; cells have"),
    ],
)
def test_bad_cells(model: Model, cells: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        model.get_latent_representation(cells=cells)


def test_expression_is_the_decoders(model: Model) -> None:
    found = model.get_normalized_expression()
    assert isinstance(found, pd.DataFrame)
    assert list(found.index) == list(DATA.obs_names)
    assert list(found.columns) == list(DATA.var_names)
    np.testing.assert_allclose(found.sum(axis=1), 1.0, rtol=1e-5)
    assert (found.to_numpy() > 0).all()

    mean, var = encode(model)
    z = mean + torch.sqrt(var) * BlockNoise(0, 0, 120, torch.device("cpu")).normal(mean)
    scale, _, _, _ = model.module.decoder("gene", z, torch.zeros(120, 1), BATCH.unsqueeze(1))
    np.testing.assert_allclose(found.to_numpy(), scale.numpy(), rtol=1e-3, atol=1e-7)


def test_transform_batch_changes_what_the_decoder_is_told(model: Model) -> None:
    names = model.batch_categories
    own = model.get_normalized_expression(return_numpy=True)
    each = [model.get_normalized_expression(transform_batch=b, return_numpy=True) for b in names]
    for code in range(2):
        mine = BATCH.numpy() == code
        np.testing.assert_array_equal(each[code][mine], own[mine])
        assert np.abs(each[1 - code][mine] / own[mine] - 1).max() > 0.05
    both = model.get_normalized_expression(transform_batch=names, return_numpy=True)
    np.testing.assert_allclose(both, (each[0] + each[1]) / 2, rtol=1e-5)


def test_expression_options(model: Model) -> None:
    own = model.get_normalized_expression(return_numpy=True)
    genes = [DATA.var_names[5], DATA.var_names[2]]
    part = model.get_normalized_expression(genes=genes)
    assert list(part.columns) == genes
    np.testing.assert_array_equal(part.to_numpy(), own[:, [5, 2]])
    one = model.get_normalized_expression(genes=genes[0], cells=[3])
    assert one.shape == (1, 1)
    scaled = model.get_normalized_expression(library_size=1e4, return_numpy=True)
    np.testing.assert_allclose(scaled, own * 1e4, rtol=1e-6)
    latent = model.get_normalized_expression(library_size="latent", return_numpy=True)
    np.testing.assert_allclose(latent, own * X.sum(1, keepdim=True).numpy(), rtol=1e-4)


def test_expression_draws(model: Model) -> None:
    draws = model.get_normalized_expression(n_samples=5, return_mean=False)
    assert draws.shape == (5, 120, 30)
    mean = model.get_normalized_expression(n_samples=5)
    np.testing.assert_allclose(mean.to_numpy(), draws.mean(0), rtol=1e-5)
    assert np.abs(draws[0] / draws[1] - 1).max() > 0.01
    np.testing.assert_array_equal(
        draws[0], model.get_normalized_expression(batch_size=512, return_numpy=True)
    )


def test_learned_library_is_drawn(learned: Model) -> None:
    rate = learned.get_normalized_expression(library_size="latent", n_samples=1500).to_numpy()
    mean, var, _ = learned.module.l_encoder(torch.log1p(X))
    expected = torch.exp(mean + var / 2).squeeze(1).numpy()  # the mean of a log-normal
    np.testing.assert_allclose(rate.sum(1), expected, rtol=0.1)
    assert np.corrcoef(rate.sum(1), expected)[0, 1] > 0.99


@pytest.mark.parametrize("kind", ["model", "learned", "simplex"])
def test_elbo_is_that_of_the_network(kind: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(kind)
    store = model._store
    l_mean, l_var = (
        torch.from_numpy(values)[BATCH].unsqueeze(1)
        for values in (store.log_library_mean, store.log_library_var)
    )
    network, noise = model.module, BlockNoise(0, 0, 120, torch.device("cpu"))
    mean, var = encode(model)
    z = network.z_encoder.z_transformation(mean + torch.sqrt(var) * noise.normal(mean))
    log_library, kl = torch.log(X.sum(1, keepdim=True)), kl_divergence(mean, var, 0.0, 1.0)
    if kind == "learned":
        mean, var, _ = network.l_encoder(torch.log1p(X))
        log_library = mean + torch.sqrt(var) * noise.normal(mean)
        kl = kl + kl_divergence(mean, var, l_mean, l_var)
    _, _, rate, dropout = network.decoder("gene", z, log_library, BATCH.unsqueeze(1))
    expected = network.get_reconstruction_loss(X, rate, torch.exp(network.px_r), dropout)
    elbo = model.get_elbo(return_mean=False)
    np.testing.assert_allclose(-elbo, (expected + kl).numpy(), rtol=1e-4)
    error = model.get_reconstruction_error(return_mean=False)
    np.testing.assert_allclose(error, expected.numpy(), rtol=1e-4)
    assert model.get_elbo() == pytest.approx(elbo.mean(), rel=1e-12)
    assert model.get_reconstruction_error() == pytest.approx(error.mean(), rel=1e-12)


def test_seed_of_a_question(model: Model) -> None:
    before = torch.get_rng_state()
    assert model.get_elbo() == model.get_elbo(seed=0) != model.get_elbo(seed=1)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(1)
    drawn = [model.get_elbo(seed=None) for _ in range(2)]
    assert drawn[0] != drawn[1]
    torch.manual_seed(1)
    assert model.get_elbo(seed=None) == drawn[0]
    assert not torch.equal(before, torch.get_rng_state())


def test_training_flags_are_left_as_found(model: Model) -> None:
    model.module.train()
    model.module.decoder.eval()
    flags = [part.training for part in model.module.modules()]
    means = model.module.z_encoder.encoder.fc_layers[0][1].running_mean.clone()
    try:
        for question in (
            model.get_latent_representation,
            model.get_normalized_expression,
            model.get_elbo,
        ):
            question()
            assert [part.training for part in model.module.modules()] == flags
        with pytest.raises(InputError):
            model.get_elbo(cells=[500])
        assert [part.training for part in model.module.modules()] == flags
    finally:
        model.module.eval()
    assert torch.equal(means, model.module.z_encoder.encoder.fc_layers[0][1].running_mean)


def test_gradients_stay_off_only_inside(model: Model) -> None:
    with torch.enable_grad():
        model.get_elbo()
        assert torch.is_grad_enabled()
    assert all(p.grad is None for p in model.module.parameters())


def test_result_that_does_not_fit_is_refused(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_memory, "available_memory", lambda: 4 * 120 * 30 - 1)
    with pytest.raises(InputError, match=r"expression of 120 x 30 values.*fewer genes"):
        model.get_normalized_expression()
    assert model.get_normalized_expression(cells=[0, 1]).shape == (2, 30)
    with pytest.raises(InputError, match="expression of 30 x 12 x 30 values"):
        model.get_normalized_expression(cells=np.arange(12), n_samples=30, return_mean=False)


def test_new_data_are_matched_by_gene_name(model: Model) -> None:
    own = model.get_latent_representation()
    other = DATA[:, ::-1].copy()
    extra = other[:, :3].copy()
    extra.var_names = ["extra_1", "extra_2", "extra_3"]
    import anndata

    wider = anndata.concat([other, extra], axis=1, merge="first")
    found = model.get_latent_representation(wider[60:].copy())
    np.testing.assert_allclose(found, own[60:], rtol=1e-4, atol=1e-5)
    expression = model.get_normalized_expression(wider[60:].copy(), genes=DATA.var_names[4])
    assert list(expression.index) == list(DATA.obs_names[60:])


def test_new_data_with_one_known_batch_keep_their_code(model: Model) -> None:
    second = DATA[DATA.obs["batch"] == "batch_1"].copy()
    found = model.get_normalized_expression(second, seed=3, return_numpy=True)
    told = model.get_normalized_expression(
        second, transform_batch="batch_1", seed=3, return_numpy=True
    )
    other = model.get_normalized_expression(
        second, transform_batch="batch_0", seed=3, return_numpy=True
    )
    np.testing.assert_array_equal(found, told)
    assert np.abs(found - other).max() > 1e-3


def test_library_prior_of_new_data_is_the_training_datas(learned: Model) -> None:
    cells = np.flatnonzero(BATCH.numpy() == 0)[:10]
    own = learned.get_elbo(cells=cells, return_mean=False)
    found = learned.get_elbo(DATA[cells].copy(), return_mean=False)
    np.testing.assert_allclose(found, own, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"genes": ["GX1", "GX2"]},
            "genes asked for that the model was not trained on: 'GX1', 'GX2'",
        ),
        ({"genes": ["GX1", "GENE_3"]}, "'GX1', 'GENE_3'; .*; did you mean 'gene_3'\\?$"),
        ({"genes": []}, "genes is empty"),
        ({"transform_batch": "batch_7"}, "transform_batch 'batch_7' is not a category of 'batch'"),
        ({"transform_batch": []}, "transform_batch is empty"),
        ({"n_samples": 0}, "n_samples must be"),
        ({"library_size": "observed"}, "library_size must be a number or 'latent'"),
        ({"library_size": 0}, "library_size must be a number greater than 0"),
        ({"batch_size": 0}, "batch_size must be"),
    ],
)
def test_bad_questions(model: Model, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        model.get_normalized_expression(**options)


def test_transform_batch_without_batches() -> None:
    model = Model(DATA, n_latent=2, n_hidden=4)
    model.is_trained = True
    with pytest.raises(InputError, match="this one has no batch_key"):
        model.get_normalized_expression(transform_batch="batch_0")


def test_cell_without_counts_has_finite_answers() -> None:
    adata = DATA.copy()
    adata.X = sp.diags_array(np.arange(120) != 5, dtype=np.float32) @ adata.X
    for observed in (True, False):
        model = Model(adata, batch_key="batch", n_hidden=8, use_observed_lib_size=observed)
        model.fit(2, batch_size=32, seed=0, progress=False)
        assert np.isfinite(model.get_latent_representation()[5]).all()
        assert np.isfinite(model.get_normalized_expression(cells=[5]).to_numpy()).all()
        assert np.isfinite(model.get_elbo(cells=[5]))
        assert np.isfinite(model.get_marginal_ll(cells=[5], n_mc_samples=3))
