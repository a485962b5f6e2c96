"""Subclasses and patched instances: forward takes the short cut only where it is faithful."""

import pytest
import torch
from tiny import BATCH, LABELS, PRIOR, G, N, build, forward
from torch import nn

from fastvae import LDVAE, VAE, InputError, functional
from fastvae.functional import heads
from fastvae.functional import likelihood as operations
from fastvae.nn import DecoderSCVI, Encoder, LinearDecoderSCVI, one_hot

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR")


@pytest.fixture
def x():
    return torch.poisson(torch.rand(N, G) * 4)


@pytest.fixture
def route(monkeypatch):
    """Notes whether the loss came from logits ("fused") or from the rate ("parts")."""
    taken = []
    ways = (
        (heads, "_nll", "fused"),
        (operations, "_nll", "fused"),
        (operations, "_log_prob", "parts"),
    )
    within = []  # heads may be decoded first, and the likelihood of the logits taken then
    for module, name, label in ways:
        original = getattr(module, name)

        def noted(*args, _original=original, _label=label):
            if not within:
                taken.append(_label)
            within.append(_label)
            try:
                return _original(*args)
            finally:
                within.pop()

        monkeypatch.setattr(module, name, noted)
    return taken


class Same(VAE):
    """Overrides without changing anything."""

    def inference(self, x, batch_index=None, y=None, n_samples=1, transform_batch=None):
        return super().inference(x, batch_index, y, n_samples, transform_batch)


DISPERSIONS = ["gene", "gene-batch", "gene-label", "gene-cell"]
KINDS = [(VAE, d) for d in DISPERSIONS] + [(LDVAE, d) for d in DISPERSIONS[:3]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("kind", "dispersion"), KINDS)
@pytest.mark.parametrize("likelihood", ["zinb", "nb", "poisson"])
def test_both_routes_agree(kind, likelihood, dispersion, dtype, x, route, monkeypatch):
    # eps = 0: the logits need none, and what scvi adds inside its logarithms is not compared here
    for name in ("zinb", "nb"):
        log_prob = getattr(operations, f"{name}_log_prob")
        monkeypatch.setattr(operations, f"{name}_log_prob", lambda *a, _f=log_prob: _f(*a, eps=0.0))
    results = []
    for way in ("fused", "parts"):
        vae = build(kind, reconstruction_loss=likelihood, dispersion=dispersion).to(dtype).train()
        if way == "parts":
            vae.get_reconstruction_loss = vae.get_reconstruction_loss
        losses = forward(vae, x.to(dtype))
        (losses * torch.linspace(-1, 2, 2 * N, dtype=dtype).view(2, N)).sum().backward()
        results.append((losses, {n: p.grad for n, p in vae.named_parameters()}))
    assert route == ["fused", "parts"]
    (fused, fused_grads), (parts, parts_grads) = results
    rtol, atol = (1e-5, 1e-4) if dtype == torch.float32 else (1e-10, 1e-10)
    torch.testing.assert_close(fused, parts, rtol=rtol, atol=atol)
    for name, want in parts_grads.items():
        if want is None:
            assert fused_grads[name] is None, name
        else:
            torch.testing.assert_close(fused_grads[name], want, rtol=rtol, atol=atol, msg=name)


def test_a_subclass_that_replaces_nothing_is_fused(x, route):
    class Named(VAE):
        def get_latents(self, x, y=None):
            return super().get_latents(x, y)

    torch.testing.assert_close(forward(build(Named), x), forward(build(), x), rtol=0, atol=0)
    assert route == ["fused", "fused"]


def test_overridden_inference(x, route):
    class Halved(VAE):
        def inference(self, x, batch_index=None, y=None, n_samples=1, transform_batch=None):
            outputs = super().inference(x, batch_index, y, n_samples, transform_batch)
            outputs["px_rate"] = outputs["px_rate"] / 2
            return outputs

    vae, plain = build(Halved), build(Same)
    torch.manual_seed(2)
    parts = plain.inference(x, BATCH, LABELS)
    want = plain.get_reconstruction_loss(
        x, parts["px_rate"] / 2, parts["px_r"], parts["px_dropout"]
    ) - plain.get_reconstruction_loss(x, parts["px_rate"], parts["px_r"], parts["px_dropout"])
    torch.testing.assert_close((forward(vae, x) - forward(plain, x))[0], want, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(forward(vae, x.to_sparse_csr()), forward(vae, x))
    assert "fused" not in route


def test_overridden_reconstruction_loss(x, route):
    """Also on values that are no counts, and with a name for it that VAE does not know."""

    class Gaussian(VAE):
        def get_reconstruction_loss(self, x, px_rate, px_r, px_dropout, **kwargs):
            assert self.reconstruction_loss == "gaussian"
            return ((x - px_rate) ** 2).sum(-1)

    vae = build(Gaussian, reconstruction_loss="gaussian", log_variational=False)
    values = x - 2
    torch.manual_seed(2)
    outputs = vae.inference(values, BATCH)
    kl_l = functional.kl_normal(outputs["ql_m"], outputs["ql_v"], *PRIOR)
    want = ((values - outputs["px_rate"]) ** 2).sum(-1) + kl_l
    torch.testing.assert_close(forward(vae, values)[0], want)
    torch.testing.assert_close(forward(vae, values.to_sparse_csr())[0], want)
    assert route == []


@pytest.mark.parametrize("where", ["instance", "class"])
@pytest.mark.parametrize("method", ["inference", "get_reconstruction_loss"])
def test_patched_methods(where, method, x, monkeypatch):
    vae, calls = build(), []
    want = forward(vae, x)
    original = getattr(vae if where == "instance" else VAE, method)

    def patched(*args, **keywords):
        calls.append(method)
        return original(*args, **keywords)

    monkeypatch.setattr(vae if where == "instance" else VAE, method, patched)
    torch.testing.assert_close(forward(vae, x), want, rtol=1e-5, atol=1e-5)
    assert calls == [method]


class Recorded(nn.Module):
    """Another module in the place of an encoder or a decoder."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.calls = inner, 0

    @property
    def z_transformation(self):
        return self.inner.z_transformation

    def forward(self, *args):
        self.calls += 1
        assert all(a.layout == torch.strided for a in args if torch.is_tensor(a))
        return self.inner(*args)


@pytest.mark.parametrize("name", ["z_encoder", "l_encoder", "decoder"])
@pytest.mark.parametrize("sparse", [False, True])
def test_replaced_modules(name, sparse, x, route):
    vae = build()
    want = forward(vae, x)
    setattr(vae, name, Recorded(getattr(vae, name)))
    got = forward(vae, x.to_sparse_csr() if sparse else x)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert getattr(vae, name).calls == 1
    assert route == ["fused", "parts"]


def test_replaced_by_stock_modules_stays_fused(x, route):
    """As LDVAE and VAEC do after the base constructor."""
    vae = build(n_batch=0)
    vae.decoder = DecoderSCVI(3, G, n_cat_list=[3, 2], n_layers=2, n_hidden=5).eval()
    vae.z_encoder = Encoder(G, 3, n_cat_list=[2], n_hidden=7).eval()
    forms = [forward(vae, x, LABELS), forward(vae, x, one_hot(LABELS, 2))]
    torch.testing.assert_close(forms[0], forms[1])
    vae.inference = vae.inference
    torch.testing.assert_close(forward(vae, x), forms[0], rtol=1e-5, atol=1e-5)
    assert route == ["fused", "fused", "parts"]
    with pytest.raises(InputError, match="covariate 0 is missing"):
        forward(vae, x, None)


def test_subclassed_modules(x, route):
    class Louder(LinearDecoderSCVI):
        def forward(self, dispersion, z, library, *cats):
            scale, r, rate, dropout = super().forward(dispersion, z, library, *cats)
            return scale, r, 2 * rate, dropout

    class Plain(LinearDecoderSCVI):
        pass

    vae = build(LDVAE, reconstruction_loss="poisson")
    weights, losses = vae.decoder.state_dict(), []
    for kind in (LinearDecoderSCVI, Plain, Louder):
        vae.decoder = kind(3, G, n_cat_list=[3]).eval()
        vae.decoder.load_state_dict(weights)
        losses.append(forward(vae, x)[0])
    assert route == ["fused", "fused", "parts"]
    torch.testing.assert_close(losses[0], losses[1])
    torch.manual_seed(2)
    rate = vae.inference(x, BATCH)["px_rate"] / 2
    doubled = rate.sum(-1) - x.sum(-1) * torch.log(torch.tensor(2.0))
    torch.testing.assert_close(losses[2] - losses[0], doubled, rtol=1e-4, atol=1e-4)


BYPASSED = ["z_encoder", "l_encoder", "decoder", "decoder.px_scale_decoder"]


@pytest.mark.parametrize("name", [*BYPASSED, "decoder.px_scale_decoder.1", "z_encoder.softmax"])
def test_hooks_on_modules_the_short_cut_would_not_call(name, x, route):
    vae, calls = build(latent_distribution="ln"), []
    want = forward(vae, x)
    module = vae.z_encoder.z_transformation if "softmax" in name else vae.get_submodule(name)
    handle = module.register_forward_hook(lambda *_: calls.append(name))
    torch.testing.assert_close(forward(vae, x), want, rtol=1e-5, atol=1e-5)
    assert calls == [name]
    handle.remove()
    forward(vae, x)
    assert route == ["fused", "parts", "fused"]


@pytest.mark.parametrize("kind", [VAE, LDVAE])
@pytest.mark.parametrize("likelihood", ["zinb", "nb"])
def test_hook_on_the_zero_inflation_head(kind, likelihood, x, route):
    vae, calls = build(kind, reconstruction_loss=likelihood), []
    inner = list(vae.decoder.px_dropout_decoder.modules())[-1]
    inner.register_forward_pre_hook(lambda *_: calls.append(1))
    forward(vae, x)
    assert calls == [1]
    assert route == ["fused" if likelihood == "zinb" else "parts"]


def test_hooks_on_inner_layers_stay_fused(x, route):
    vae, calls = build(), []
    for name in ("z_encoder.encoder.fc_layers", "decoder.px_scale_decoder.0", "decoder.px_decoder"):
        layer = vae.get_submodule(name)
        layer = layer[0][0] if name.endswith("fc_layers") else layer
        layer.register_forward_hook(lambda *_, _name=name: calls.append(_name))
    forward(vae, x.to_sparse_csr())
    assert len(calls) == 3
    assert route == ["fused"]


class Unused(nn.Linear):
    """A head that must not be run."""

    def forward(self, x):
        raise AssertionError("this head has no use here")


@pytest.mark.parametrize("likelihood", ["zinb", "nb", "poisson"])
@pytest.mark.parametrize("dispersion", ["gene", "gene-cell"])
def test_heads_without_use_are_not_run(likelihood, dispersion, x):
    vae = build(reconstruction_loss=likelihood, dispersion=dispersion)
    want = forward(vae, x)
    if likelihood != "zinb":
        vae.decoder.px_dropout_decoder = Unused(8, G)
    if dispersion == "gene" or likelihood == "poisson":
        vae.decoder.px_r_decoder = Unused(8, G)
    assert torch.equal(forward(vae, x), want)


def test_sparse_counts_are_never_made_dense(x, monkeypatch):
    vae, sparse = build(), x.to_sparse_csr()

    def to_dense(self, *args, **keywords):
        raise AssertionError("made dense")

    monkeypatch.setattr(torch.Tensor, "to_dense", to_dense)
    forward(vae, sparse).sum().backward()
    vae.inference(sparse, BATCH)
    vae.inference = vae.inference
    with pytest.raises(AssertionError, match="made dense"):
        forward(vae, sparse)


@pytest.mark.parametrize("name", ["z_encoder", "l_encoder.encoder"])
def test_hooks_on_encoders_see_dense_counts(name, x):
    vae, seen = build(), []
    vae.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for call in (vae.inference, lambda x, b: forward(vae, x)):
        call(x.to_sparse_csr(), BATCH)
        assert torch.equal(seen.pop(), torch.log1p(x))


def test_a_subclassed_encoder(x, route):
    class Certain(Encoder):
        def forward(self, x, *cat_list):
            mean, variance, _ = super().forward(x, *cat_list)
            return mean, variance, mean

    vae = build()
    vae.z_encoder = Certain(G, 3, n_hidden=8).eval()
    z = vae.inference(x.to_sparse_csr(), BATCH)["z"]
    assert torch.equal(z, vae.sample_from_posterior_z(x, give_mean=True))
    forward(vae, x)
    assert route == ["parts"]


def test_another_scale_activation_is_honoured(x, route):
    vae = build(reconstruction_loss="poisson")
    vae.decoder.px_scale_decoder[1] = nn.Softplus()
    torch.manual_seed(2)
    outputs = vae.inference(x, BATCH)
    kl_l = functional.kl_normal(outputs["ql_m"], outputs["ql_v"], *PRIOR)
    want = -torch.distributions.Poisson(outputs["px_rate"]).log_prob(x).sum(-1) + kl_l
    torch.testing.assert_close(forward(vae, x)[0], want)
    assert route == ["parts"]
