"""Sampling, KL, the first layer on counts and the choice of a backend."""

import math

import pytest
import scipy.stats
import torch
from torch.distributions import Normal, kl_divergence

from fastvae import InputError
from fastvae import functional as fn
from fastvae.functional import dispatch as _backend

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR")


def heads(n=5, latent=3, dtype=torch.float64):
    q_mean, q_log_var, p_mean = (torch.randn(n, latent, dtype=dtype) for _ in range(3))
    p_var = torch.rand(n, latent, dtype=dtype) + 0.2
    return [t.requires_grad_() for t in (q_mean, q_log_var, p_mean, p_var)]


@pytest.mark.parametrize("latent_distribution", ["normal", "ln"])
@pytest.mark.parametrize("prior", [False, True], ids=["standard", "given"])
@pytest.mark.parametrize("n", [0, 1, 5])
def test_sample_and_kl(dtype, close, latent_distribution, prior, n):
    leaves = heads(n, dtype=dtype)[: 4 if prior else 2]
    upstream = [torch.randn(n, 3), torch.randn(n, 3), torch.randn(n, 3), torch.randn(n)]
    torch.manual_seed(3)
    got = fn.sample_and_kl(*leaves, latent_distribution=latent_distribution)
    total = sum((g * u).sum() for g, u in zip(got, upstream, strict=True))

    # The noise is the backend's own; the same seed gives it back as the normal sample.
    torch.manual_seed(3)
    with torch.no_grad():
        z, q_mean, q_var, _ = fn.sample_and_kl(*leaves)
        noise = (z - q_mean) / q_var.sqrt()
    q_mean, q_var = leaves[0], leaves[1].exp() + 1e-4
    z = q_mean + q_var.sqrt() * noise
    z = z.softmax(-1) if latent_distribution == "ln" else z
    p = Normal(leaves[2], leaves[3].sqrt()) if prior else Normal(*torch.tensor([0.0, 1]).to(dtype))
    expected = z, q_mean, q_var, kl_divergence(Normal(q_mean, q_var.sqrt()), p).sum(-1)
    reference = sum((g * u).sum() for g, u in zip(expected, upstream, strict=True))

    for a, b in zip(got, expected, strict=True):
        close(a, b)
    grads = torch.autograd.grad(total, leaves), torch.autograd.grad(reference, leaves)
    for a, b in zip(*grads, strict=True):
        close(a, b)


def test_the_reference_draws_like_torch():
    leaves = heads()[:2]
    torch.manual_seed(3)
    z = fn.sample_and_kl(*leaves)[0]
    torch.manual_seed(3)
    expected = Normal(leaves[0], (leaves[1].exp() + 1e-4).sqrt()).rsample()
    torch.testing.assert_close(z, expected)


def test_noise_is_standard_normal_and_repeats_with_the_seed(backend):
    n = 20_000
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(fn.sample_and_kl(torch.zeros(n, 2), torch.zeros(n, 2), var_eps=0.0)[0])
    one, again, other = draws
    assert torch.equal(one, again)
    assert abs(torch.corrcoef(torch.stack([one[:, 0], other[:, 0]]))[0, 1]) < 5 / math.sqrt(n)
    assert abs(torch.corrcoef(one.t())[0, 1]) < 5 / math.sqrt(n)
    result = scipy.stats.kstest(one.flatten().double().cpu().numpy(), "norm")
    assert result.pvalue > 1e-4


def test_the_library_prior_broadcasts(backend):
    mean, log_var = torch.randn(6, 1), torch.randn(6, 1)
    _, _, _, one = fn.sample_and_kl(mean, log_var, torch.tensor(0.3), torch.tensor(2.0))
    _, _, _, many = fn.sample_and_kl(
        mean, log_var, torch.full((6, 1), 0.3), torch.full((6, 1), 2.0)
    )
    torch.testing.assert_close(one, many)


def test_samples_have_the_mean_and_variance_asked_for(backend):
    n = 50_000
    mean, log_var = torch.full((n, 1), 1.5), torch.full((n, 1), math.log(0.49))
    z, _, q_v, _ = fn.sample_and_kl(mean, log_var)
    assert z.mean().item() == pytest.approx(1.5, abs=5 * 0.7 / math.sqrt(n))
    assert z.var().item() == pytest.approx(q_v[0].item(), rel=5 * math.sqrt(2 / n))
    torch.testing.assert_close(q_v[0, 0].item(), 0.49 + 1e-4)


def test_kl_of_nearly_equal_normals_keeps_its_digits(backend):
    # The textbook form loses everything here in float32.
    q_v = torch.tensor([[1.0 + 2**-10]])
    t = 2**-10
    exact = 0.5 * (t - math.log1p(t))
    got = fn.kl_normal(torch.zeros(1, 1), q_v).item()
    assert got == pytest.approx(exact, rel=1e-5)


def test_extreme_heads_are_finite(backend):
    h = torch.tensor([[-1e4, -100.0, 0.0, 100.0, 1e4]], requires_grad=True)
    z, _, q_v, kl = fn.sample_and_kl(torch.zeros_like(h), h)
    (gradient,) = torch.autograd.grad(z.sum() + kl.sum(), [h])
    for t in (z, q_v, kl, gradient):
        assert torch.isfinite(t).all()


def test_kl_normal_gradients():
    leaves = heads()
    leaves[1] = (leaves[1].detach().exp() + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(fn.kl_normal, leaves)


def test_reparameterize_draws_like_normal():
    mean, var = torch.randn(4, 20), torch.rand(4, 20) + 0.1
    torch.manual_seed(1)
    got = fn.reparameterize(mean, var)
    torch.manual_seed(1)
    torch.testing.assert_close(got, Normal(mean, var.sqrt()).rsample())


@pytest.mark.parametrize("log1p", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (5, 33), (4, 257), (0, 3)], ids=str)
def test_count_linear(dtype, close, log1p, bias, shape):
    n, g = shape
    x = torch.poisson(torch.rand(n, g).double() * 2)
    weight = torch.randn(7, g, dtype=dtype, requires_grad=True)
    offset = torch.randn(7, dtype=dtype, requires_grad=True) if bias else None
    leaves = [weight, offset] if bias else [weight]
    upstream = torch.randn(n, 7, dtype=dtype)
    expected = (x.log1p() if log1p else x) @ weight.double().t() + (offset if bias else 0)
    want = torch.autograd.grad(expected, leaves, upstream.double())
    for layout in (x.to(dtype), x.to(dtype).to_sparse_csr(), x.long()):
        got = fn.count_linear(layout, weight, offset, log1p=log1p)
        close(got, expected)
        for a, b in zip(torch.autograd.grad(got, leaves, upstream), want, strict=True):
            close(a, b)


def test_log_library_size(backend):
    x = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.5, 0.0]])
    expected = torch.tensor([[math.log(3)], [0.0], [0.0]])
    for layout in (x, x.to_sparse_csr()):
        torch.testing.assert_close(fn.log_library_size(layout), expected)


def test_backends(monkeypatch):
    on_cpu = {"device": "cpu"}  # whatever the other tests run on

    def one():
        logits, library = torch.zeros(1, 2, **on_cpu), torch.zeros(1, 1, **on_cpu)
        return fn.poisson_nll(torch.ones(1, 2, **on_cpu), logits, library)

    def message(name):
        with fn.use_backend(name), pytest.raises(InputError) as caught:
            one()
        return str(caught.value)

    with pytest.raises(InputError, match="expected one of auto, triton, cpu, torch"):
        fn.use_backend("fast").__enter__()
    monkeypatch.setenv("FASTVAE_BACKEND", "triton")
    monkeypatch.setattr(_backend, "_imported", {"triton": "No module named 'triton'"})
    with pytest.raises(InputError, match="'triton' cannot be loaded: No module named 'triton'"):
        one()
    with fn.use_backend("torch"):  # the with block outranks the environment
        assert one().item() > 0
    monkeypatch.setenv("FASTVAE_BACKEND", "quick")
    with pytest.raises(InputError, match="FASTVAE_BACKEND is 'quick'"):
        one()
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "runs on CUDA tensors, one is on cpu" in message("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for name in ("triton", "cpu"):
        with fn.use_backend(name), pytest.raises(InputError, match="one tensor is float64"):
            fn.kl_normal(torch.ones(2, 3, **on_cpu).double(), torch.ones(2, 3, **on_cpu))


@pytest.mark.parametrize(
    ("arguments", "keywords", "message"),
    [
        ((torch.ones(2, 3), torch.ones(2, 4)), {}, "q_log_var has shape"),
        ((torch.ones(2, 3), torch.ones(2, 3)), {"latent_distribution": "log"}, "'normal', 'ln'"),
        ((torch.ones(2, 3), torch.ones(2, 3), torch.ones(5)), {}, "prior mean has shape"),
    ],
)
def test_bad_arguments(arguments, keywords, message):
    with pytest.raises(InputError, match=message):
        fn.sample_and_kl(*arguments, **keywords)
