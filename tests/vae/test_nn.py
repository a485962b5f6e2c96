"""The building blocks: sparse input, covariates, samples in front, logits against parameters."""

import pytest
import torch
from torch import nn

from fastvae import InputError
from fastvae._covariates import Codes
from fastvae.nn import (
    DecoderSCVI,
    Encoder,
    FCLayers,
    LinearDecoderSCVI,
    identity,
    one_hot,
    reparameterize_gaussian,
)

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR")


def counts(n=6, g=9):
    return torch.poisson(torch.rand(n, g) * 2)


@pytest.mark.parametrize("index", [[2, 0, 1], [[2], [0], [1]], [[2.0], [0.0], [1.0]]])
def test_one_hot(index):
    rows = one_hot(torch.tensor(index), 3)
    assert rows.dtype == torch.float32
    assert rows.tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0]]
    assert one_hot(rows, 3).tolist() == rows.tolist()


@pytest.mark.parametrize("code", [-1, 3])
def test_one_hot_out_of_range(code):
    index = torch.tensor([[code], [1]])
    with pytest.raises(InputError, match=rf"code {code}, outside 0\.\.2"):
        one_hot(index.cpu(), 3)
    # on an accelerator codes are looked at where that is asked for: it waits for the device
    with pytest.raises(InputError, match=rf"index holds the code {code}, outside 0\.\.2"):
        Codes(index, 2, "index", force=True).one_hot(3)


def test_reparameterize_takes_the_variance():
    mean, variance = torch.tensor([1.0, -2.0]).expand(20_000, 2), torch.tensor([4.0, 0.25])
    draws = reparameterize_gaussian(mean, variance.expand(20_000, 2))
    torch.testing.assert_close(draws.mean(0), mean[0], atol=0.06, rtol=0)
    torch.testing.assert_close(draws.var(0), variance, atol=0, rtol=0.05)


def test_reparameterize_draws_as_the_normal_distribution_does():
    mean, variance = torch.randn(5, 3), torch.rand(5, 3)
    torch.manual_seed(1)
    want = torch.distributions.Normal(mean, variance.sqrt()).rsample()
    torch.manual_seed(1)
    torch.testing.assert_close(reparameterize_gaussian(mean, variance), want)


@pytest.mark.parametrize("n_cat_list", [None, [3]])
def test_autocast_rounds_no_counts_dense_or_sparse(n_cat_list):
    encoder = Encoder(9, 2, n_cat_list, n_layers=2, n_hidden=5, dropout_rate=0).eval()
    first = encoder.encoder.fc_layers[0][0]
    x, batch = counts() + 256.0, torch.randint(0, 3, (6, 1))  # 257 is not a bfloat16 number
    seen = []
    encoder.encoder.fc_layers[0][1].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        dense = encoder.moments(x, batch)
        sparse = encoder.moments(x.to_sparse_csr(), batch)
    rows = x if n_cat_list is None else torch.cat([x, one_hot(batch, 3)], 1)
    want = nn.functional.linear(rows, first.weight, first.bias)
    for got in seen:
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-4)
    assert dense[0].dtype == sparse[0].dtype == torch.bfloat16


@pytest.mark.parametrize("n_cat_list", [None, [3], [3, 1, 2]])
@pytest.mark.parametrize("n_layers", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_sparse_first_layer(n_cat_list, n_layers, bias):
    layers = FCLayers(9, 4, n_cat_list, n_layers, n_hidden=5, dropout_rate=0, bias=bias)
    x, upstream = counts(), torch.randn(6, 4)
    cats = [torch.randint(0, 3, (6, 1)), None, torch.randint(0, 2, (6, 1))]
    gradients = []
    for form in (x, x.to_sparse_csr()):
        layers.zero_grad()
        out = layers(form, *cats)
        (out * upstream).sum().backward()
        gradients.append([out, *(p.grad.clone() for p in layers.parameters())])
    for dense, sparse in zip(*gradients, strict=True):
        torch.testing.assert_close(sparse, dense, rtol=1e-5, atol=1e-5)


def test_covariates_enter_every_layer_as_one_hot():
    layers = FCLayers(2, 3, [3], 2, n_hidden=4, dropout_rate=0, use_batch_norm=False)
    x, codes = torch.randn(5, 2), torch.tensor([0, 2, 1, 1, 0])
    first, second = layers.fc_layers[0][0], layers.fc_layers[1][0]
    assert first.weight.shape == (4, 5)
    assert second.weight.shape == (3, 7)
    hidden = torch.relu(x @ first.weight[:, :2].T + first.weight[:, 2:].T[codes] + first.bias)
    want = torch.relu(hidden @ second.weight[:, :4].T + second.weight[:, 4:].T[codes] + second.bias)
    for form in (codes, codes[:, None], codes[:, None].float(), one_hot(codes, 3)):
        torch.testing.assert_close(layers(x, form), want)
    torch.testing.assert_close(layers(x, codes, "ignored"), want)


@pytest.mark.parametrize("training", [False, True])
def test_samples_in_front_are_minibatches_of_their_own(training):
    layers = FCLayers(3, 4, [2], 2, n_hidden=5, dropout_rate=0)
    twin = FCLayers(3, 4, [2], 2, n_hidden=5, dropout_rate=0)
    twin.load_state_dict(layers.state_dict())
    layers.train(training), twin.train(training)
    z, codes = torch.randn(4, 6, 3), torch.randint(0, 2, (6, 1))
    torch.testing.assert_close(layers(z, codes), torch.stack([twin(one, codes) for one in z]))
    tracked = layers.fc_layers[0][1].num_batches_tracked
    assert tracked == (4 if training else 0)
    if training:  # a layer at a time sees the samples in the same order
        torch.testing.assert_close(
            layers.fc_layers[1][1].running_mean, twin.fc_layers[1][1].running_mean
        )


def test_a_changed_first_layer_is_called_on_sparse_input():
    layers, x = FCLayers(9, 4, dropout_rate=0), counts()
    seen = []
    handle = layers.fc_layers[0][0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    layers(x.to_sparse_csr())
    assert torch.equal(seen[0], x)
    handle.remove()

    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    layers.eval().fc_layers[0][0] = Doubled(9, 4)
    torch.testing.assert_close(layers(x.to_sparse_csr()), layers(x))


@pytest.mark.parametrize(
    ("cats", "message"),
    [
        ([], "0 covariates given"),
        ([None], "covariate 0 is missing"),
        ([torch.zeros(4, 1)], r"shape \(4, 1\)"),
        ([torch.zeros(6, 2)], r"shape \(6, 2\)"),
    ],
)
def test_bad_covariates(cats, message):
    with pytest.raises(InputError, match=message):
        FCLayers(9, 4, [3])(counts(), *cats)


def test_covariate_out_of_range():
    codes = torch.full((6, 1), 3, device="cpu")
    with pytest.raises(InputError, match=r"code 3, outside 0\.\.2"):
        FCLayers(9, 4, [3]).cpu()(counts().cpu(), codes)


def test_one_cell_cannot_be_trained_on():
    layers = FCLayers(9, 4)
    with pytest.raises(InputError, match="at least two cells"):
        layers(counts(1))
    assert layers.eval()(counts(1)).isfinite().all()
    assert FCLayers(9, 4, use_batch_norm=False)(counts(1)).isfinite().all()


@pytest.mark.parametrize("distribution", ["normal", "ln"])
def test_encoder(distribution):
    encoder, x = Encoder(9, 3, n_hidden=5, distribution=distribution).eval(), counts()
    q_m, q_log_v = encoder.moments(x)
    torch.manual_seed(2)
    mean, variance, sample = encoder(x)
    torch.manual_seed(2)
    want = q_m + (q_log_v.exp() + 1e-4).sqrt() * torch.randn(6, 3)
    torch.testing.assert_close(mean, q_m)
    torch.testing.assert_close(variance, q_log_v.exp() + 1e-4)
    torch.testing.assert_close(sample, want.softmax(-1) if distribution == "ln" else want)
    assert (encoder.z_transformation is identity) == (distribution == "normal")
    torch.manual_seed(2)
    torch.testing.assert_close(encoder(x.to_sparse_csr())[2], sample, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [DecoderSCVI, LinearDecoderSCVI])
@pytest.mark.parametrize("dispersion", ["gene", "gene-cell"])
def test_logits_are_what_forward_transforms(kind, dispersion):
    decoder = kind(3, 9, [2]).eval()
    z, library, codes = torch.randn(6, 3), torch.randn(6, 1), torch.randint(0, 2, (6, 1))
    scale, log_theta, rate, zi = decoder(dispersion, z, library, codes)
    logits, head, zi_logits = decoder.logits(dispersion, z, codes)
    torch.testing.assert_close(scale, logits.softmax(-1))
    torch.testing.assert_close(rate, library.exp() * logits.softmax(-1))
    torch.testing.assert_close(zi, zi_logits)
    if kind is DecoderSCVI and dispersion == "gene-cell":
        torch.testing.assert_close(log_theta, head)
    else:
        assert log_theta is None
        assert head is None
    assert decoder.logits(dispersion, z, codes, zero_inflation=False)[2] is None
