"""Distributions that stay logits: the parts of the scvi-tools door that need no scvi-tools."""

import copy
import sys

import pytest
import torch

from fastvae import distributions
from fastvae.integrations._counts_from_logits import LazyCounts
from fastvae.integrations._decoder_output import Logits, Undecoded, versions_of


class ZINB(LazyCounts, distributions.ZeroInflatedNegativeBinomial):
    parameters = ("mu", "theta", "zi_logits")


class NB(LazyCounts, distributions.NegativeBinomial):
    parameters = ("mu", "theta")


class Poisson(LazyCounts, distributions.Poisson):
    parameters = ("rate",)


KINDS = {"zinb": ZINB, "nb": NB, "poisson": Poisson}
PLAIN = {
    "zinb": distributions.ZeroInflatedNegativeBinomial,
    "nb": distributions.NegativeBinomial,
    "poisson": distributions.Poisson,
}
N, G, K, S = 7, 13, 3, 2


def problem(theta="gene", samples=None, softmax=True, zi=True, seed=0):
    """Counts, leaves that want gradients, and the logits made of them; all float64."""
    draw = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64).requires_grad_()

    lead = (N, G) if samples is None else (samples, N, G)
    shape = {"gene": (G,), "group": (K, G), "entry": lead}[theta]
    leaves = {"scale": randn(*lead), "log_theta": randn(*shape), "zi": randn(*lead)}
    leaves["log_library"] = (randn(*lead[:-1], 1).detach() + 3).requires_grad_()
    if not zi:
        del leaves["zi"]
    index = torch.randint(0, K, (N,), generator=draw) if theta == "group" else None
    x = torch.poisson(torch.full((N, G), 1.5), generator=draw).double()
    return x, leaves, Logits(**leaves, theta_index=index, softmax=softmax)


def materialised(kind, logits):
    """The same distribution by the textbook."""
    s = logits.scale
    scale = torch.softmax(s, -1) if logits.softmax else torch.nn.functional.softplus(s)
    rate = logits.log_library.exp() * scale
    if kind == "poisson":
        return PLAIN[kind](rate, scale=scale)
    theta = logits.log_theta.exp()
    if logits.theta_index is not None:
        theta = theta[logits.theta_index]
    extra = {"zi_logits": logits.zi} if kind == "zinb" else {}
    return PLAIN[kind](mu=rate, theta=theta, scale=scale, **extra)


def made(px, name):
    return name in px.__dict__


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("theta", ["gene", "group", "entry"])
@pytest.mark.parametrize("samples", [None, S])
@pytest.mark.parametrize("softmax", [True, False])
def test_nll_and_gradients_equal_the_materialised_ones(kind, theta, samples, softmax):
    x, leaves, logits = problem(theta, samples, softmax)
    upstream = torch.rand(logits.scale.shape[:-1], dtype=torch.float64) + 0.5
    nll = KINDS[kind].from_logits(logits).nll(x)
    expected = -materialised(kind, logits).log_prob(x).sum(-1)
    torch.testing.assert_close(nll, expected, rtol=1e-6, atol=1e-6)  # eps of 1e-8 on mu
    got = torch.autograd.grad((nll * upstream).sum(), list(leaves.values()), allow_unused=True)
    want = torch.autograd.grad(
        (expected * upstream).sum(), list(leaves.values()), allow_unused=True
    )
    for name, one, other in zip(leaves, got, want, strict=True):
        assert (one is None) == (other is None), name
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_csr_counts_give_the_same():
    x, _, logits = problem()
    px = ZINB.from_logits(logits)
    torch.testing.assert_close(px.nll(x.to_sparse_csr()), px.nll(x))
    torch.testing.assert_close(px.log_prob(x.to_sparse_csr()), px.log_prob(x))


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_are_made_when_touched(kind):
    x, _, logits = problem("group")
    px, expected = KINDS[kind].from_logits(logits), materialised(kind, logits)
    px.nll(x)
    mean = "rate" if kind == "poisson" else "mu"
    assert not made(px, "scale")
    torch.testing.assert_close(px.get_normalized("scale"), expected.scale)
    assert not made(px, mean)  # normalised expression alone needs no rate
    torch.testing.assert_close(px.get_normalized("mu"), getattr(expected, mean))
    for name in ("mean", "variance", *px.parameters):
        torch.testing.assert_close(getattr(px, name), getattr(expected, name), msg=name)
    if kind == "zinb":
        torch.testing.assert_close(px.zi_probs, expected.zi_probs)
    torch.testing.assert_close(px.log_prob(x), expected.log_prob(x))
    torch.testing.assert_close(px.nll(x), -px.log_prob(x).sum(-1), rtol=1e-6, atol=1e-6)
    assert px.batch_shape == expected.batch_shape


@pytest.mark.parametrize("kind", KINDS)
def test_draws_are_those_of_the_distribution_behind(kind):
    _, _, logits = problem()
    torch.manual_seed(1)
    drawn = KINDS[kind].from_logits(logits).sample()
    torch.manual_seed(1)
    torch.testing.assert_close(drawn, materialised(kind, logits).sample())


@pytest.mark.parametrize("name", ["mu", "theta", "zi_logits"])
def test_a_parameter_that_was_set_counts(name):
    x, _, logits = problem()
    px, other = ZINB.from_logits(logits), materialised("zinb", logits)
    value = getattr(other, name).detach() * 2 + 0.1
    setattr(px, name, value)
    given = {key: getattr(other, key) for key in px.parameters} | {name: value}
    expected = PLAIN["zinb"](**given).log_prob(x)
    torch.testing.assert_close(px.log_prob(x), expected)
    torch.testing.assert_close(px.nll(x), -expected.sum(-1))


def test_the_constructor_makes_an_ordinary_one():
    x, _, logits = problem()
    other = materialised("zinb", logits)
    names = (*ZINB.parameters, "scale")
    px = ZINB(**{name: getattr(other, name) for name in names})
    torch.testing.assert_close(px.nll(x), -other.log_prob(x).sum(-1))
    px.mu = px.mu * 2
    assert not torch.allclose(px.nll(x), -other.log_prob(x).sum(-1))


def test_copies_and_unknown_names():
    _, leaves, logits = problem()
    detached = logits._replace(**{name: leaf.detach() for name, leaf in leaves.items()})
    px = copy.deepcopy(ZINB.from_logits(detached))
    torch.testing.assert_close(px.mu, materialised("zinb", detached).mu)
    for one in (px, ZINB.from_logits(detached), NB(mu=px.mu, theta=px.theta)):
        with pytest.raises(AttributeError, match="rates"):
            _ = one.rates
    with pytest.raises(ValueError, match="'mu' or 'scale'"):
        px.get_normalized("theta")
    assert "from logits" in repr(px)


def test_extreme_size_factor_logits_stay_finite():
    x, leaves, logits = problem(softmax=False)
    with torch.no_grad():
        leaves["scale"][:, ::2] = -1e4
        leaves["scale"][:, 1::4] = 1e4
    nll = NB.from_logits(logits._replace(zi=None)).nll(x)
    gradients = torch.autograd.grad(nll.sum(), [leaves["scale"], leaves["log_library"]])
    assert all(torch.isfinite(value).all() for value in (nll, *gradients))


def test_without_scvi_tools_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "scvi", None)
    for name in list(sys.modules):
        if name.startswith("fastvae.integrations.scvi_tools"):
            monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match=r"pip install 'fastvae-scvi\[scvi\]'"):
        import fastvae.integrations.scvi_tools  # noqa: F401


def undecoded(kind, theta="gene"):
    """Hidden units with heads, and their logits."""
    torch.manual_seed(4)
    scale, zi, of_cell = (torch.nn.Linear(5, G).double() for _ in range(3))
    hidden = torch.randn(N, 5, dtype=torch.float64).requires_grad_()
    given = {
        "log_library": torch.full((N, 1), 3.0, dtype=torch.float64),
        "log_theta": of_cell if theta == "cell" else torch.randn(G, dtype=torch.float64),
        "zi": zi if kind == "zinb" else None,
    }
    lazy = Undecoded(hidden, scale=scale, **given)
    lazy = lazy._replace(versions=versions_of(scale, lazy.zi, lazy.log_theta))
    return lazy, [hidden, scale.weight, scale.bias]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("theta", ["gene", "cell"])
def test_heads_are_decoded_when_a_parameter_is_read_and_not_before(kind, theta):
    x = torch.poisson(torch.full((N, G), 1.5, dtype=torch.float64))
    lazy, leaves = undecoded(kind, theta)
    px = KINDS[kind].from_logits(lazy)
    assert f"(from logits: ({N}, {G}))" in repr(px)
    nll = px.nll(x)
    got = torch.autograd.grad(nll.sum(), leaves)
    assert px.__dict__["_logits"] is lazy  # nothing has been decoded
    expected = materialised(kind, lazy.logits())
    want = torch.autograd.grad(-expected.log_prob(x).sum(), leaves)
    torch.testing.assert_close(nll, -expected.log_prob(x).sum(-1), rtol=1e-6, atol=1e-6)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(px.scale, expected.scale)
    for name in KINDS[kind].parameters:
        torch.testing.assert_close(getattr(px, name), getattr(expected, name))
    torch.testing.assert_close(px.nll(x), nll)


def test_heads_that_changed_meanwhile_are_not_decoded():
    lazy, _ = undecoded("zinb")
    early, late = ZINB.from_logits(lazy), ZINB.from_logits(lazy)
    scale = early.scale
    with torch.no_grad():
        lazy.scale.weight.add_(1.0)  # as an optimiser's step does
    torch.testing.assert_close(early.mu, lazy.log_library.exp() * scale)
    with pytest.raises(RuntimeError, match="read the distribution's parameters before"):
        _ = late.scale
