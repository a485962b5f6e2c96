"""Encoders that are told the batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from small_models import small_data
from torch import Tensor, nn

import fastvae
from fastvae import VAE, InputError, Model, functional

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")

N, G, K = 24, 17, 3
FIT: dict[str, Any] = {"batch_size": 20, "seed": 0, "progress": False, "device": "cpu"}


def counts() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.poisson(torch.full((N, G), 0.7), generator=generator)
    return x, torch.arange(N)[:, None] % K


def network(**options: Any) -> VAE:
    torch.manual_seed(1)
    options = {"n_layers": 2, "n_hidden": 8, "n_latent": 3, "dropout_rate": 0.0, **options}
    return VAE(G, n_batch=K, encode_covariates=True, **options)


def encoded_by_hand(encoder: Any, x: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
    """Dense: one-hot columns joined to the input of every linear layer."""
    one_hot, hidden = nn.functional.one_hot(batch.squeeze(1), K).to(x), torch.log1p(x)
    for block in encoder.encoder.fc_layers:
        linear, norm = block[0], block[1]
        hidden = torch.cat([hidden, one_hot], 1) @ linear.weight.T + linear.bias
        mean, var = hidden.mean(0), hidden.var(0, unbiased=False)
        hidden = torch.relu((hidden - mean) / torch.sqrt(var + 1e-3) * norm.weight + norm.bias)
    return encoder.mean_encoder(hidden), torch.exp(encoder.var_encoder(hidden)) + 1e-4


@pytest.mark.parametrize("backend", ["torch", "cpu"])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("learned", [False, True])
def test_loss_and_gradients_are_those_of_dense_layers(
    backend: str, sparse: bool, learned: bool
) -> None:
    x, batch = counts()
    model = network(use_observed_lib_size=not learned)
    prior = (torch.full((N, 1), 2.5), torch.full((N, 1), 0.4)) if learned else (None, None)
    if backend == "cpu":
        pytest.importorskip("fastvae.kernels.backends.cpu")
    torch.manual_seed(5)
    with functional.use_backend(backend):
        first, kl, _ = model(x.to_sparse_csr() if sparse else x, *prior, batch)
        (first + kl).sum().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    other = network(use_observed_lib_size=not learned)
    torch.manual_seed(5)
    q_m, q_v = encoded_by_hand(other.z_encoder, x, batch)
    z = q_m + torch.sqrt(q_v) * torch.randn_like(q_m)
    log_library, expected = torch.log(x.sum(1, keepdim=True)), functional.kl_normal(q_m, q_v)
    if learned:
        l_m, l_v = encoded_by_hand(other.l_encoder, x, batch)
        log_library = l_m + torch.sqrt(l_v) * torch.randn_like(l_m)
        expected = expected + functional.kl_normal(l_m, l_v, *prior)
    _, _, rate, dropout = other.decoder("gene", z, log_library, batch)
    expected = expected + other.get_reconstruction_loss(x, rate, torch.exp(other.px_r), dropout)
    expected.sum().backward()
    torch.testing.assert_close(first + kl, expected, rtol=2e-5, atol=1e-5)
    wanted = {name: p.grad for name, p in other.named_parameters() if p.grad is not None}
    assert set(found) == set(wanted)
    for name, gradient in wanted.items():
        scale = float(gradient.abs().max()) + 1.0  # biases before a batch norm have rounding alone
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-4 * scale, msg=name)
    columns = found["z_encoder.encoder.fc_layers.Layer 0.0.weight"][:, G:]
    assert (columns.abs().amax(0) > 1e-3).all()


def test_methods_of_the_network_are_told_the_batch() -> None:
    x, batch = counts()
    model = network(use_observed_lib_size=False).eval()
    one, other = (model.inference(x, codes) for codes in (batch, (batch + 1) % K))
    assert not torch.allclose(one["qz_m"], other["qz_m"], atol=1e-3)
    assert not torch.allclose(one["ql_m"], other["ql_m"], atol=1e-3)
    torch.testing.assert_close(
        model.inference(x, batch, transform_batch=1)["qz_m"], one["qz_m"]
    )  # the decoder's alone
    for codes in (batch, batch.squeeze(1), nn.functional.one_hot(batch.squeeze(1), K)):
        torch.testing.assert_close(
            model.sample_from_posterior_z(x, give_mean=True, batch_index=codes), one["qz_m"]
        )
    torch.manual_seed(0)
    library = model.sample_from_posterior_l(x, batch_index=batch)
    torch.manual_seed(0)
    torch.testing.assert_close(library, model.l_encoder(torch.log1p(x), batch)[2])
    assert model.get_latents(x, batch_index=batch)[0].shape == (N, 3)
    with pytest.raises(InputError, match="batch_index is missing"):
        model.sample_from_posterior_z(x)


def test_nothing_changes_where_it_is_off() -> None:
    torch.manual_seed(0)
    plain = VAE(G, n_batch=K)
    torch.manual_seed(0)
    off = VAE(G, n_batch=K, encode_covariates=False)
    assert list(plain.state_dict()) == list(off.state_dict())
    for name, value in plain.state_dict().items():
        assert torch.equal(value, off.state_dict()[name]), name
    del off.__dict__["encode_covariates"]  # as in a model pickled before there was the option
    x, batch = counts()
    torch.manual_seed(0)
    expected = plain(x, torch.ones(N, 1), torch.ones(N, 1), batch)[0]
    torch.manual_seed(0)
    assert torch.equal(off(x, torch.ones(N, 1), torch.ones(N, 1), batch)[0], expected)
    assert VAE(G, n_batch=1, encode_covariates=True).state_dict().keys() == off.state_dict().keys()


@pytest.fixture(scope="module")
def trained() -> Model:
    model = Model(
        small_data(), batch_key="batch", encode_covariates=True, n_hidden=8, n_latent=3, n_layers=2
    )
    return model.fit(20, learning_rate=1e-2, **FIT)


def query() -> Any:
    adata = small_data(seed=7)
    adata.obs["batch"] = np.array(["q1", "q2"])[np.arange(adata.n_obs) % 2]
    return adata


def test_model_answers_saves_and_loads(trained: Model, tmp_path: Any) -> None:
    data = small_data()
    x = torch.from_numpy(data.X.toarray().astype(np.float32))
    codes = torch.from_numpy(trained._store.batch_codes)[:, None]
    found = trained.get_latent_representation()
    with torch.no_grad():
        expected, _ = trained.module.z_encoder.moments(torch.log1p(x), codes)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-5)
    swapped = data.copy()
    swapped.obs["batch"] = (
        data.obs["batch"].astype(str).map({"batch_0": "batch_1", "batch_1": "batch_0"})
    )
    assert np.abs(trained.get_latent_representation(swapped) - found).max() > 0.01
    trained.save(tmp_path / "run")
    again = Model.load(tmp_path / "run", data, device="cpu")
    np.testing.assert_array_equal(again.get_latent_representation(), found)
    assert again.get_elbo() == trained.get_elbo()
    assert "told to the encoder" in repr(again)
    assert np.isfinite(again.get_marginal_ll(n_mc_samples=3))
    table = again.differential_expression(groupby="cell_type", n_samples_overall=50)
    assert np.isfinite(table["lfc_mean"]).all()


FROZEN = {
    True: ("z_encoder", "decoder", "px_r", "l_encoder"),
    "decoder": ("decoder", "px_r", "l_encoder"),
    "encoder": ("z_encoder", "l_encoder"),
}


@pytest.mark.parametrize("freeze", FROZEN)
def test_query_moves_new_columns_and_its_latent_positions(trained: Model, freeze: Any) -> None:
    before = {name: value.clone() for name, value in trained.module.state_dict().items()}
    fixed = trained.get_latent_representation()
    start = Model.load_query(query(), trained, freeze=freeze, device="cpu")
    at_first = start.get_latent_representation()
    weight = "z_encoder.encoder.fc_layers.Layer {}.0.weight"
    state = start.module.state_dict()
    for layer, width in ((0, 30), (1, 8)):
        old = before[weight.format(layer)]
        assert state[weight.format(layer)].shape == (8, width + 4)
        mean = old[:, width:].mean(1, keepdim=True).expand(-1, 2)
        torch.testing.assert_close(state[weight.format(layer)][:, width + 2 :], mean)
    mapped = trained.map_query(
        query(), freeze=freeze, max_epochs=5, learning_rate=1e-2, weight_decay=0.1, **FIT
    )
    assert np.abs(mapped.get_latent_representation() - at_first).max() > 0.01
    for name, new in mapped.module.state_dict().items():
        old, part = before[name], name.split(".")[0]
        kept = new if old.shape == new.shape else new[:, : old.shape[1]]
        if part in FROZEN[freeze]:
            assert torch.equal(old, kept.to(old.dtype)), name
        elif part == "z_encoder" and name.endswith("0.weight"):
            assert not torch.equal(old, kept), name
    for layer, width in ((0, 30), (1, 8)):
        columns = mapped.module.state_dict()[weight.format(layer)][:, width + 2 :]
        assert not torch.equal(columns, state[weight.format(layer)][:, width + 2 :])
    if freeze is True:  # cells of the reference stay where they are
        np.testing.assert_allclose(
            mapped.get_latent_representation(small_data()), fixed, rtol=1e-5, atol=1e-6
        )


def test_batch_is_needed(tmp_path: Any) -> None:
    with pytest.raises(InputError, match=r"encode_covariates=True .* needs batch_key"):
        Model(small_data(), encode_covariates=True)
    assert not fastvae.Model(small_data(), batch_key="batch").module.encode_covariates


def test_sparse_counts_stay_sparse_while_columns_are_frozen(
    trained: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first layer is then a parametrised one; its counts must not be laid out densely."""
    seen = []
    original = functional.count_linear

    def watched(x: Tensor, *rest: Any) -> Tensor:
        seen.append(x.layout)
        return original(x, *rest)

    monkeypatch.setattr(functional, "count_linear", watched)
    trained.map_query(query(), max_epochs=1, **FIT)
    assert len(seen) >= 6
    assert set(seen) == {torch.sparse_csr}
