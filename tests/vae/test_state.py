"""Life of an instance: attributes, copies, precision, modes, seeds, several samples."""

import copy
import pickle

import pytest
import torch

from fastvae import LDVAE, VAE, functional

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR")

N, G = 6, 9
BATCH = torch.tensor([2, 0, 1, 1, 0, 2])[:, None]
PRIOR = torch.full((N, 1), 2.5), torch.full((N, 1), 0.7)


@pytest.fixture
def x():
    return torch.poisson(torch.rand(N, G) * 4)


def build(kind=VAE, **options):
    torch.manual_seed(1)
    return kind(G, **{"n_batch": 3, "n_labels": 2, "n_hidden": 8, "n_latent": 3, **options})


def forward(vae, x, batch=BATCH):
    torch.manual_seed(2)
    first, second, _ = vae(x, *PRIOR, batch)
    return torch.stack([first, second])


def test_eleven_positional_arguments(x):
    vae = VAE(G, 3, 2, 16, 4, 2, 0.25, "gene-batch", False, "nb", "ln")
    named = {
        "n_batch": 3,
        "n_labels": 2,
        "n_latent": 4,
        "dispersion": "gene-batch",
        "log_variational": False,
        "reconstruction_loss": "nb",
        "latent_distribution": "ln",
    }
    assert {name: getattr(vae, name) for name in named} == named
    assert vae.z_encoder.encoder.fc_layers[1][3].p == 0.25
    assert vae.decoder.px_decoder.fc_layers[1][0].weight.shape == (16, 19)
    assert not hasattr(vae, "classify")
    linear = LDVAE(G, 3, 2, 16, 4, 2, 0.25, "gene-batch", False, "zinb", False, True, "ln")
    assert linear.use_batch_norm is False
    assert linear.decoder.factor_regressor.fc_layers[0][0].bias is not None
    assert linear.latent_distribution == "ln"
    with pytest.raises(TypeError):
        VAE(G, 3, 2, 16, 4, 2, 0.25, "gene", True, "nb", "ln", True)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("kind", [VAE, LDVAE])
@pytest.mark.parametrize("latent_distribution", ["normal", "ln"])
def test_copies(copied, kind, latent_distribution, x):
    vae = build(kind, latent_distribution=latent_distribution, dispersion="gene-batch")
    want = forward(vae, x)
    want.sum().backward()
    twin = copied(vae)
    twin.load_state_dict(vae.state_dict())
    assert torch.equal(forward(twin, x), forward(vae, x))
    with torch.no_grad():
        next(twin.parameters()).add_(1)
    assert not torch.equal(next(twin.parameters()), next(vae.parameters()))


def test_attributes_are_read_at_call_time(x):
    vae, losses = build().eval(), {}
    for likelihood in ("zinb", "nb", "poisson"):
        vae.reconstruction_loss = likelihood
        losses[likelihood] = forward(vae, x)
        fresh = build(reconstruction_loss=likelihood).eval()
        assert torch.equal(losses[likelihood], forward(fresh, x))
    assert len({v[0, 0].item() for v in losses.values()}) == 3
    vae.log_variational = False
    vae.use_observed_lib_size = True
    fresh = build(reconstruction_loss="poisson", log_variational=False, use_observed_lib_size=True)
    assert torch.equal(forward(vae, x), forward(fresh.eval(), x))


@pytest.mark.parametrize("likelihood", ["zinb", "nb", "poisson"])
@pytest.mark.parametrize("by_parts", [False, True])
def test_observed_library_size(likelihood, by_parts, x):
    vae = build(use_observed_lib_size=True, reconstruction_loss=likelihood).eval()
    if by_parts:
        vae.inference = vae.inference
    torch.manual_seed(2)
    first, second, third = vae(x, None, None, BATCH)
    (first + second).sum().backward()
    assert third == 0.0
    assert all(p.grad is None for p in vae.l_encoder.parameters())

    torch.manual_seed(2)
    out = vae.inference(x, BATCH)
    log_total = x.sum(1, keepdim=True).log()
    torch.testing.assert_close(out["library"], log_total)
    torch.testing.assert_close(out["ql_m"], log_total)
    assert out["ql_v"].abs().max() == 0
    torch.testing.assert_close(out["px_rate"].sum(1), x.sum(1))
    loss = vae.get_reconstruction_loss(x, out["px_rate"], out["px_r"], out["px_dropout"])
    torch.testing.assert_close(first, loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(second, functional.kl_normal(out["qz_m"], out["qz_v"]))
    torch.testing.assert_close(vae.sample_from_posterior_l(x), log_total)
    several = vae.inference(x, BATCH, n_samples=2)
    torch.testing.assert_close(several["library"], log_total.expand(2, N, 1))
    empty = torch.cat([x[:-1], torch.zeros(1, G)])
    torch.manual_seed(2)
    assert vae(empty.to_sparse_csr(), None, None, BATCH)[0].isfinite().all()


def test_double(x):
    single = build(dispersion="gene-batch").eval()
    double = copy.deepcopy(single).double()
    losses = []
    for vae, dtype in ((single, torch.float32), (double, torch.float64)):
        for encoder in (vae.z_encoder, vae.l_encoder):  # variance 1e-4: the noise hardly counts
            encoder.var_encoder.weight.data.zero_()
            encoder.var_encoder.bias.data.fill_(-40.0)
        for form in (x.to(dtype), x.to(dtype).to_sparse_csr(), x):
            losses.append(forward(vae, form))
            assert losses[-1].dtype == dtype
    for loss in losses[1:3]:
        torch.testing.assert_close(loss, losses[0], rtol=1e-5, atol=1e-4)
    for loss in losses[4:]:
        torch.testing.assert_close(loss, losses[3], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(losses[3].float(), losses[0], rtol=0.02, atol=0.1)
    means = [vae.sample_from_posterior_z(x, give_mean=True) for vae in (single, double)]
    torch.testing.assert_close(means[1].float(), means[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("whole", [True, False], ids=["bfloat16", "autocast"])
@pytest.mark.parametrize("sparse", [False, True])
def test_half_precision(whole, sparse, x):
    """Losses stay float32: counts and sums are not for 8 bits of mantissa."""
    vae = build().eval()
    want = forward(vae, x)
    vae = vae.bfloat16() if whole else vae
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not whole):
        got = forward(vae, x.to_sparse_csr() if sparse else x)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got[0], want[0], rtol=0.02, atol=0.0)
    got.sum().backward()
    assert all(p.grad.isfinite().all() for p in vae.decoder.px_scale_decoder.parameters())


def test_same_seed_same_result_and_no_gradient_where_none_is_wanted(x):
    vae = build()
    assert torch.equal(forward(vae, x)[1], forward(vae, x)[1])
    with torch.no_grad():
        assert not forward(vae, x).requires_grad
        assert not vae.get_sample_rate(x, BATCH).requires_grad
    assert forward(vae, x).requires_grad
    assert vae.sample_from_posterior_z(x, give_mean=True).requires_grad
    assert not vae.inference(x, BATCH, n_samples=2)["z"].requires_grad


def test_reconstruction_loss_is_fresh_writable_and_swallows_keywords(x):
    vae = build().eval()
    out = vae.inference(x, BATCH)
    parts = out["px_rate"], out["px_r"], out["px_dropout"]
    first = vae.get_reconstruction_loss(x, *parts, bernoulli_params=None)
    kept = first.clone()
    first += 1.0
    torch.testing.assert_close(vae.get_reconstruction_loss(x, *parts), kept)
    first.sum().backward()
    assert vae.px_r.grad.abs().max() > 0


@pytest.mark.parametrize("dispersion", ["gene", "gene-batch", "gene-cell"])
@pytest.mark.parametrize("likelihood", ["zinb", "nb", "poisson"])
def test_reconstruction_loss_of_several_samples(dispersion, likelihood, x):
    vae = build(dispersion=dispersion, reconstruction_loss=likelihood).eval()
    out = vae.inference(x, BATCH, n_samples=4)
    loss = vae.get_reconstruction_loss(x, out["px_rate"], out["px_r"], out["px_dropout"])
    assert loss.shape == (4, N)
    for s in range(4):
        theta = out["px_r"][s] if out["px_r"].dim() == 3 else out["px_r"]
        one = vae.get_reconstruction_loss(x, out["px_rate"][s], theta, out["px_dropout"][s])
        torch.testing.assert_close(loss[s], one)


@pytest.mark.parametrize("n_samples", [1, 0, -2])
def test_fewer_than_two_samples_are_one(n_samples, x):
    vae = build().eval()
    torch.manual_seed(2)
    want = vae.get_sample_scale(x, BATCH)
    torch.manual_seed(2)
    got = vae.get_sample_scale(x, BATCH, n_samples=n_samples)
    assert torch.equal(got, want)
    torch.testing.assert_close(got.sum(-1), torch.ones(N))


def test_moments_of_the_posterior_mean_on_the_simplex(x):
    vae = build(latent_distribution="ln").eval()
    mean = vae.sample_from_posterior_z(x, give_mean=True, n_samples=4000)
    draws = torch.stack([vae.get_latents(x)[0] for _ in range(400)])
    torch.testing.assert_close(mean.sum(-1), torch.ones(N))
    torch.testing.assert_close(mean, draws.mean(0).detach(), atol=0.06, rtol=0)


def test_training_step_lowers_the_loss(x):
    vae = build(dispersion="gene-cell", n_layers=2)
    optimizer = torch.optim.Adam(vae.parameters(), lr=0.01)
    losses = []
    for _ in range(60):
        first, second, _ = vae(x.to_sparse_csr(), *PRIOR, BATCH)
        loss = (first + second).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
