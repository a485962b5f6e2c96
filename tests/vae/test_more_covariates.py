"""Categorical and continuous covariates and size factors of `VAE`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastvae import VAE, InputError, functional
from fastvae.nn import DecoderSCVI, FCLayers

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")

N, G, K, CATS, P = 24, 17, 3, (2, 1, 4), 2


def cells() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    number = torch.arange(N)
    return {
        "x": torch.poisson(torch.full((N, G), 0.7), generator=generator),
        "batch_index": number[:, None] % K,
        "cat_covs": torch.stack([number // 3 % 2, number * 0, number // 2 % 4], 1),
        "cont_covs": torch.randn(N, P, generator=generator),
        "size_factor": torch.rand(N, 1, generator=generator) + 0.5,
    }


def network(**options: Any) -> VAE:
    torch.manual_seed(1)
    fixed = {"n_layers": 2, "n_hidden": 8, "n_latent": 3, "dropout_rate": 0.0, "n_batch": K}
    more = {"n_cats_per_cov": CATS, "n_continuous_cov": P, "use_observed_lib_size": True}
    return VAE(G, **{**fixed, **more, **options})


def rows(batch_index: Tensor, cat_covs: Tensor) -> Tensor:
    """One-hot columns of everything with two categories or more."""
    codes = [(batch_index[:, 0], K), *((cat_covs[:, k], n) for k, n in enumerate(CATS))]
    return torch.cat([nn.functional.one_hot(c, n).float() for c, n in codes if n > 1], 1)


def layers_by_hand(layers: Any, x: Tensor, one_hot: Tensor, deeply: bool) -> Tensor:
    for number, block in enumerate(layers.fc_layers):
        linear, norm = block[0], block[1]
        if number == 0 or deeply:
            x = torch.cat([x, one_hot], 1)
        x = x @ linear.weight.T + linear.bias
        mean, var = x.mean(0), x.var(0, unbiased=False)
        x = torch.relu((x - mean) / torch.sqrt(var + 1e-3) * norm.weight + norm.bias)
    return x


@pytest.mark.parametrize("sized", [False, True])
@pytest.mark.parametrize("deeply", [True, False])
@pytest.mark.parametrize("encode", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_loss_and_gradients_are_those_of_dense_layers(
    backend: str, sparse: bool, encode: bool, deeply: bool, sized: bool
) -> None:
    if backend == "cpu":
        pytest.importorskip("fastvae.kernels.backends.cpu")
    options = {
        "encode_covariates": encode,
        "deeply_inject_covariates": deeply,
        "use_size_factor_key": sized,
    }
    given = cells()
    x, factor = given.pop("x"), given["size_factor"]
    model = network(**options)
    torch.manual_seed(5)
    with functional.use_backend(backend):
        first, kl, _ = model(x.to_sparse_csr() if sparse else x, None, None, **given)
        (first + kl).sum().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    other = network(**options)
    one_hot, cont = rows(given["batch_index"], given["cat_covs"]), given["cont_covs"]
    torch.manual_seed(5)
    seen = torch.log1p(x)
    if encode:
        hidden = layers_by_hand(
            other.z_encoder.encoder, torch.cat([seen, cont], 1), one_hot, deeply
        )
    else:
        hidden = layers_by_hand(other.z_encoder.encoder, seen, one_hot[:, :0], deeply)
    q_m, q_v = other.z_encoder.mean_encoder(hidden), other.z_encoder.var_encoder(hidden)
    q_v = torch.exp(q_v) + 1e-4
    z = q_m + torch.sqrt(q_v) * torch.randn_like(q_m)
    decoder: Any = other.decoder
    hidden = layers_by_hand(decoder.px_decoder, torch.cat([z, cont], 1), one_hot, deeply)
    logits = decoder.px_scale_decoder[0](hidden)
    rate = nn.functional.softplus(logits) * factor
    if not sized:
        rate = torch.softmax(logits, -1) * x.sum(1, keepdim=True)
    dropout = decoder.px_dropout_decoder(hidden)
    expected = functional.kl_normal(q_m, q_v)
    expected = expected + other.get_reconstruction_loss(x, rate, torch.exp(other.px_r), dropout)
    expected.sum().backward()
    torch.testing.assert_close(first + kl, expected, rtol=2e-5, atol=1e-5)
    wanted = {name: p.grad for name, p in other.named_parameters() if p.grad is not None}
    assert set(found) == set(wanted)
    for name, gradient in wanted.items():
        scale = float(gradient.abs().max()) + 1.0  # biases before a batch norm have rounding alone
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-4 * scale, msg=name)
    told = found["decoder.px_decoder.fc_layers.Layer 0.0.weight"][:, 3:]
    assert told.shape[1] == P + K + 2 + 4
    assert (told.abs().amax(0) > 1e-4).all()


@pytest.mark.parametrize("sized", [False, True])
def test_the_methods_agree(sized: bool) -> None:
    given = cells()
    model = network(encode_covariates=True, use_size_factor_key=sized).eval()
    torch.manual_seed(3)
    parts = model.inference(**given)
    x = given["x"]
    encoded = {name: given[name] for name in ("batch_index", "cat_covs", "cont_covs")}
    mean = model.sample_from_posterior_z(x, give_mean=True, **encoded)
    torch.testing.assert_close(mean, parts["qz_m"])
    torch.manual_seed(3)
    torch.testing.assert_close(model.get_sample_rate(**given), parts["px_rate"])
    torch.manual_seed(3)
    torch.testing.assert_close(model.get_latents(x, **encoded)[0], parts["z"])
    factor = given["size_factor"] if sized else x.sum(1, keepdim=True)
    torch.testing.assert_close(parts["px_rate"], factor * parts["px_scale"])
    torch.testing.assert_close(torch.exp(parts["library"]), factor)
    if not sized:
        torch.testing.assert_close(parts["px_scale"].sum(1), torch.ones(N))
    several = model.inference(**given, n_samples=4)
    assert several["px_rate"].shape == (4, N, G)
    # the loss from logits is that from the rate
    torch.manual_seed(4)
    fused = model(x, None, None, **{k: v for k, v in given.items() if k != "x"})[0]
    model.inference = model.inference
    torch.manual_seed(4)
    plain = model(x, None, None, **{k: v for k, v in given.items() if k != "x"})[0]
    torch.testing.assert_close(fused, plain, rtol=2e-5, atol=1e-5)


def test_another_batch_leaves_the_other_covariates() -> None:
    given = cells()
    model = network().eval()
    torch.manual_seed(0)
    changed = model.inference(**given, transform_batch=1)["px_scale"]
    torch.manual_seed(0)
    given["batch_index"] = torch.ones(N, 1, dtype=torch.int64)
    torch.testing.assert_close(changed, model.inference(**given)["px_scale"])
    torch.manual_seed(0)
    given["cat_covs"] = given["cat_covs"].clone()
    given["cat_covs"][:, 2] = 3 - given["cat_covs"][:, 2]
    assert not torch.allclose(changed, model.inference(**given)["px_scale"], rtol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cat_covs": None}, r"cat_covs\[:, 0\] is missing"),
        ({"cat_covs": torch.zeros(N, 2)}, r"cat_covs has shape \(24, 2\)"),
        ({"cat_covs": torch.full((N, 3), 3)}, r"cat_covs\[:, 0\] holds the code 3"),
        ({"cat_covs": "words"}, "cat_covs is not numeric"),
        ({"cont_covs": None}, "cont_covs is missing"),
        ({"cont_covs": torch.zeros(N, 3)}, r"cont_covs has shape \(24, 3\)"),
        ({"cont_covs": torch.full((N, P), torch.nan)}, "cont_covs has NaN or infinite"),
        ({"cont_covs": torch.full((N, P), torch.inf)}, "cont_covs has NaN or infinite"),
        ({"size_factor": None}, "size_factor is missing"),
        ({"size_factor": torch.zeros(N, 1)}, "size_factor must be > 0"),
        ({"size_factor": torch.full((N, 1), -1.0)}, "size_factor must be > 0"),
        ({"size_factor": torch.full((N, 1), torch.nan)}, "size_factor has NaN or infinite"),
    ],
)
def test_bad_covariates_are_refused(change: dict[str, Any], message: str) -> None:
    model = network(use_size_factor_key=True)
    given = {**cells(), **change}
    x = given.pop("x")
    with pytest.raises(InputError, match=message):
        model(x, None, None, **given)
    with pytest.raises(InputError, match=message):
        model.inference(x, **given)


def test_options_are_checked() -> None:
    with pytest.raises(InputError, match="n_continuous_cov"):
        VAE(G, n_continuous_cov=-1)
    with pytest.raises(InputError, match=r"n_cats_per_cov\[1\]"):
        VAE(G, n_cats_per_cov=[2, -1])
    with pytest.raises(InputError, match="scale_activation"):
        DecoderSCVI(2, G, scale_activation="exp")


def test_a_size_factor_changes_no_name_of_a_weight() -> None:
    plain, sized = VAE(G, n_batch=K), VAE(G, n_batch=K, use_size_factor_key=True)
    assert list(plain.state_dict()) == list(sized.state_dict())
    assert sized.use_observed_lib_size


def test_only_the_first_layer_is_told() -> None:
    layers = FCLayers(5, 4, [3], n_layers=3, n_hidden=6, inject_covariates=False)
    assert [block[0].in_features for block in layers.fc_layers] == [5 + 3, 6, 6]
    x, codes = torch.rand(N, 5), torch.arange(N)[:, None] % 3
    more = torch.rand(N, 2)
    wide = FCLayers(7, 4, [3], n_layers=3, n_hidden=6, inject_covariates=False).eval()
    dense = wide(torch.cat([x, more], 1), codes)
    torch.testing.assert_close(wide(x, codes, cont=more), dense)
    torch.testing.assert_close(wide(x.to_sparse_csr(), codes, cont=more), dense)


def test_half_precision_counts_and_numpy_covariates() -> None:
    given = cells()
    model = network().eval()
    torch.manual_seed(0)
    wanted = model.inference(**given)["px_rate"]
    torch.manual_seed(0)
    asked = {name: np.asarray(value) for name, value in given.items() if name != "x"}
    torch.testing.assert_close(model.inference(given["x"], **asked)["px_rate"], wanted)
