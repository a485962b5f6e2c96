"""The torch ``Distribution`` objects: moments, samples, log_prob, arguments."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from fastvae import InputError
from fastvae import functional as fn
from fastvae.distributions import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial

MU, THETA, PI = torch.tensor([0.4, 3.0, 40.0]), torch.tensor([0.5, 2.0, 30.0]), torch.tensor(-0.7)


def make(kind, **keywords):
    if kind == "poisson":
        return Poisson(MU, **keywords)
    if kind == "nb":
        return NegativeBinomial(mu=MU, theta=THETA, **keywords)
    return ZeroInflatedNegativeBinomial(mu=MU, theta=THETA, zi_logits=PI, **keywords)


def exact_moments(kind):
    """Mean and variance from the probabilities themselves."""
    x = np.arange(3000.0)
    theta, mu = THETA.double().numpy()[:, None], MU.double().numpy()[:, None]
    p = scipy.stats.nbinom.pmf(x, theta, theta / (theta + mu))
    if kind == "poisson":
        p = scipy.stats.poisson.pmf(x, mu)
    if kind == "zinb":
        zero = 1 / (1 + math.exp(-PI.item()))
        p = (1 - zero) * p + zero * (x == 0)
    mean = (p * x).sum(1)
    return mean, (p * x**2).sum(1) - mean**2, p


@pytest.mark.parametrize("kind", ["poisson", "nb", "zinb"])
def test_moments_and_log_prob(kind):
    mean, variance, p = exact_moments(kind)
    d = make(kind)
    np.testing.assert_allclose(d.mean.numpy(), mean, rtol=1e-5)
    np.testing.assert_allclose(d.variance.numpy(), variance, rtol=1e-5)
    got = d.log_prob(torch.arange(50.0)[:, None]).numpy()
    np.testing.assert_allclose(got, np.log(p[:, :50].T), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["poisson", "nb", "zinb"])
def test_samples_follow_the_probabilities(kind):
    n = 100_000
    mean, variance, p = exact_moments(kind)
    draws = make(kind).sample((n,))
    assert draws.shape == (n, 3)
    assert (draws == draws.floor()).all()
    z = (draws.double().mean(0).numpy() - mean) / np.sqrt(variance / n)
    assert np.abs(z).max() < 5
    zeros = (draws == 0).double().mean(0).numpy()
    assert np.abs((zeros - p[:, 0]) / np.sqrt(p[:, 0] * (1 - p[:, 0]) / n)).max() < 5


def test_a_gene_vector_of_theta_broadcasts_over_cells_and_samples():
    mu, theta, pi = torch.rand(4, 5, 3) + 0.1, torch.rand(3) + 0.5, torch.randn(4, 5, 3)
    d = ZeroInflatedNegativeBinomial(mu=mu, theta=theta, zi_logits=pi)
    x = torch.poisson(mu)
    torch.testing.assert_close(d.log_prob(x), fn.zinb_log_prob(x, mu, theta, pi))
    assert d.batch_shape == (4, 5, 3)
    assert d.theta.shape == (4, 5, 3)
    wide = make("zinb").expand((7, 3))
    torch.testing.assert_close(
        wide.log_prob(torch.ones(3)), make("zinb").log_prob(torch.ones(3)).expand(7, 3)
    )


def test_gradients_reach_the_parameters():
    mu, theta, pi = (t.clone().requires_grad_() for t in (MU, THETA, PI))
    d = ZeroInflatedNegativeBinomial(mu=mu, theta=theta, zi_logits=pi)
    d.log_prob(torch.tensor([0.0, 2.0, 35.0])).sum().backward()
    a = [t.grad.clone() for t in (mu, theta, pi)]
    for t in (mu, theta, pi):
        t.grad = None
    fn.zinb_log_prob(torch.tensor([0.0, 2.0, 35.0]), mu, theta, pi).sum().backward()
    for got, t in zip(a, (mu, theta, pi), strict=True):
        torch.testing.assert_close(got, t.grad)


def test_total_count_parameterisation():
    logits = torch.tensor([-1.0, 0.3, 2.0])
    want = NegativeBinomial(mu=THETA * logits.exp(), theta=THETA)
    x = torch.tensor([0.0, 3.0, 9.0])
    for keywords in ({"logits": logits}, {"probs": torch.sigmoid(logits)}):
        got = NegativeBinomial(total_count=THETA, **keywords)
        torch.testing.assert_close(got.log_prob(x), want.log_prob(x))
        torch.testing.assert_close(got.mean, want.mean)


def test_zi_probs_and_scale():
    d = ZeroInflatedNegativeBinomial(mu=MU, theta=THETA, zi_logits=PI, scale=MU / MU.sum())
    torch.testing.assert_close(d.zi_probs, torch.sigmoid(PI).expand(3))
    torch.testing.assert_close(d.scale, MU / MU.sum())


@pytest.mark.parametrize(
    ("make_it", "error", "message"),
    [
        (lambda: NegativeBinomial(theta=THETA), InputError, "either mu and theta"),
        (lambda: NegativeBinomial(mu=MU), InputError, "theta is missing"),
        (lambda: NegativeBinomial(total_count=MU), InputError, "exactly one of probs and logits"),
        (lambda: ZeroInflatedNegativeBinomial(mu=MU, theta=THETA), InputError, "zi_logits is miss"),
        (lambda: NegativeBinomial(mu=-MU, theta=THETA), ValueError, "mu"),
        (lambda: NegativeBinomial(mu=MU * torch.nan, theta=THETA), ValueError, "mu"),
        (lambda: Poisson(-MU, validate_args=True), ValueError, "rate"),
    ],
)
def test_bad_arguments(make_it, error, message):
    with pytest.raises(error, match=message):
        make_it()


def test_values_outside_the_support_warn():
    for kind in ("nb", "zinb"):
        with pytest.warns(UserWarning, match="not whole counts"):
            make(kind).log_prob(torch.tensor([0.5, 1.0, 2.0]))
        make(kind, validate_args=False).log_prob(torch.tensor([0.5, 1.0, 2.0]))
    with pytest.raises(ValueError, match="support"):
        make("poisson", validate_args=True).log_prob(torch.tensor([0.5, 1.0, 2.0]))
