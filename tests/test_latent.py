"""Sampling, KL, the first layer on counts and the choice of a backend."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from fastvae import InputError
from fastvae import functional as fn

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR")


def heads(n=5, latent=3, dtype=torch.float64):
    q_mean, q_log_var, p_mean = (torch.randn(n, latent, dtype=dtype) for _ in range(3))
    p_var = torch.rand(n, latent, dtype=dtype) + 0.2
    return [t.requires_grad_() for t in (q_mean, q_log_var, p_mean, p_var)]


@pytest.mark.parametrize("latent_distribution", ["normal", "ln"])
@pytest.mark.parametrize("prior", [False, True], ids=["standard", "given"])
@pytest.mark.parametrize("n", [0, 1, 5])
def test_sample_and_kl(backend, latent_distribution, prior, n):
    leaves = heads(n)[: 4 if prior else 2]
    upstream = [torch.randn(n, 3), torch.randn(n, 3), torch.randn(n, 3), torch.randn(n)]
    torch.manual_seed(3)
    got = fn.sample_and_kl(*leaves, latent_distribution=latent_distribution)
    total = sum((g * u).sum() for g, u in zip(got, upstream, strict=True))

    torch.manual_seed(3)
    q_mean, q_var = leaves[0], leaves[1].exp() + 1e-4
    z = Normal(q_mean, q_var.sqrt()).rsample()
    z = z.softmax(-1) if latent_distribution == "ln" else z
    p = Normal(leaves[2], leaves[3].sqrt()) if prior else Normal(*torch.tensor([0.0, 1]).double())
    expected = z, q_mean, q_var, kl_divergence(Normal(q_mean, q_var.sqrt()), p).sum(-1)
    reference = sum((g * u).sum() for g, u in zip(expected, upstream, strict=True))

    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)
    grads = torch.autograd.grad(total, leaves), torch.autograd.grad(reference, leaves)
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_the_library_prior_broadcasts(backend):
    mean, log_var = torch.randn(6, 1), torch.randn(6, 1)
    _, _, _, one = fn.sample_and_kl(mean, log_var, torch.tensor(0.3), torch.tensor(2.0))
    _, _, _, many = fn.sample_and_kl(
        mean, log_var, torch.full((6, 1), 0.3), torch.full((6, 1), 2.0)
    )
    torch.testing.assert_close(one, many)


def test_samples_have_the_mean_and_variance_asked_for(backend):
    n = 200_000
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


def test_kl_normal_gradients(backend):
    leaves = heads()
    leaves[1] = (leaves[1].detach().exp() + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(fn.kl_normal, leaves)


def test_reparameterize_draws_like_normal(backend):
    mean, var = torch.randn(4, 20), torch.rand(4, 20) + 0.1
    torch.manual_seed(1)
    got = fn.reparameterize(mean, var)
    torch.manual_seed(1)
    torch.testing.assert_close(got, Normal(mean, var.sqrt()).rsample())


@pytest.mark.parametrize("log1p", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (5, 33), (4, 257), (0, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_count_linear(backend, log1p, bias, shape, dtype):
    n, g = shape
    x = torch.poisson(torch.rand(n, g).double() * 2)
    weight = torch.randn(7, g, dtype=dtype, requires_grad=True)
    offset = torch.randn(7, dtype=dtype, requires_grad=True) if bias else None
    leaves = [weight, offset] if bias else [weight]
    upstream = torch.randn(n, 7, dtype=dtype)
    expected = (x.log1p() if log1p else x) @ weight.double().t() + (offset if bias else 0)
    want = torch.autograd.grad(expected, leaves, upstream.double())
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {}
    for layout in (x.to(dtype), x.to(dtype).to_sparse_csr(), x.long()):
        got = fn.count_linear(layout, weight, offset, log1p=log1p)
        torch.testing.assert_close(got.double(), expected, **tolerance)
        for a, b in zip(torch.autograd.grad(got, leaves, upstream), want, strict=True):
            torch.testing.assert_close(a, b, **tolerance)


def test_log_library_size(backend):
    x = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.5, 0.0]])
    expected = torch.tensor([[math.log(3)], [0.0], [0.0]])
    for layout in (x, x.to_sparse_csr()):
        torch.testing.assert_close(fn.log_library_size(layout), expected)


def test_backends(monkeypatch):
    def one():
        return fn.poisson_nll(torch.ones(1, 2), torch.zeros(1, 2), torch.zeros(1, 1))

    with pytest.raises(InputError, match="expected one of auto, triton, cpu, torch"):
        fn.use_backend("fast").__enter__()
    with fn.use_backend("triton"), pytest.raises(InputError, match="not part of this version"):
        one()
    monkeypatch.setenv("FASTVAE_BACKEND", "triton")
    with pytest.raises(InputError, match="not part of this version"):
        one()
    with fn.use_backend("torch"):  # the with block outranks the environment
        assert one().item() > 0
    monkeypatch.setenv("FASTVAE_BACKEND", "quick")
    with pytest.raises(InputError, match="FASTVAE_BACKEND is 'quick'"):
        one()


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
