"""Every backend against the 50-digit grid: values, all gradients, and the extremes."""

import itertools

import numpy as np
import pytest
import torch
from oracle import grid
from tolerance import GRADIENT, ROW_SUM, VALUE, log_mu_rounding, share

from fastvae import functional as fn

PARAMETERS = {"poisson": [], "nb": ["log_theta"], "zinb": ["log_theta", "zi_logits"]}
NLL = {"poisson": fn.poisson_nll, "nb": fn.nb_nll, "zinb": fn.zinb_nll}
LOG_PROB = {"poisson": fn.poisson_log_prob, "nb": fn.nb_log_prob, "zinb": fn.zinb_log_prob}


def one_gene_cells(family, dtype, sparse=False, every=1):
    """The grid as cells of one gene: there log mu is the log library, exactly."""
    points, exact = ({k: v[::every] for k, v in columns.items()} for columns in grid(family))
    leaves = {
        name: torch.tensor(points[name][:, None], dtype=dtype, requires_grad=True)
        for name in ["log_mu", *PARAMETERS[family]]
    }
    x = torch.tensor(points["x"][:, None], dtype=dtype)
    return points, exact, x.to_sparse_csr() if sparse else x, leaves


@pytest.mark.parametrize("family", ["poisson", "nb", "zinb"])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_nll_meets_the_target(backend_and_dtype, family, dtype, sparse):
    # A program per cell is slow in the interpreter, which sees every point in log_prob below.
    every = {"poisson": 3, "nb": 37, "zinb": 197}[family] if slow(backend_and_dtype[0]) else 1
    points, exact, x, leaves = one_gene_cells(family, dtype, sparse, every)
    logits = torch.zeros(x.shape, dtype=dtype)
    nll = NLL[family](x, logits, leaves["log_mu"], *(leaves[n] for n in PARAMETERS[family]))
    grads = torch.autograd.grad(nll.sum(), list(leaves.values()))

    numpy_dtype = nll.detach().cpu().numpy().dtype
    rounding = log_mu_rounding(exact["log_mu"], points["log_mu"], numpy_dtype)
    of_value = share(-nll.detach().cpu().numpy(), exact["log_p"], VALUE[numpy_dtype], rounding)
    assert of_value.max() <= 1, worst(of_value, points)
    for name, gradient in zip(leaves, grads, strict=True):
        rounding = 0.0
        if name == "log_mu":
            rounding = log_mu_rounding(exact["curvature"], points["log_mu"], numpy_dtype)
        of_gradient = share(
            -gradient[:, 0].cpu().numpy(), exact[name], GRADIENT[numpy_dtype], rounding
        )
        assert of_gradient.max() <= 1, (name, worst(of_gradient, points))


def slow(backend):
    return backend == "triton" and torch.get_default_device().type == "cpu"


def worst(shares, points):
    at = int(np.nanargmax(shares))
    return float(shares[at]), {name: float(values[at]) for name, values in points.items()}


@pytest.mark.parametrize("family", ["poisson", "nb", "zinb"])
def test_log_prob_meets_the_target(backend, family):
    # mu and theta are rounded to float32 on the way in, which costs one more unit each.
    points, exact, x, leaves = one_gene_cells(family, torch.float32)
    mu = leaves["log_mu"].detach().exp().requires_grad_()
    rest = [leaves[name].detach() for name in PARAMETERS[family]]
    if rest:
        rest[0] = rest[0].exp().requires_grad_()
    value = LOG_PROB[family](x, mu, *rest, eps=0.0)
    rounding = log_mu_rounding(exact["log_mu"], points["log_mu"], np.float32)
    if rest:
        rounding = rounding + log_mu_rounding(exact["log_theta"], points["log_theta"], np.float32)
    of_value = share(
        value[:, 0].detach().cpu().numpy(), exact["log_p"], VALUE[np.dtype("f4")], rounding
    )
    assert of_value.max() <= 1, worst(of_value, points)

    leaf = [mu, *rest[:1]]
    grads = torch.autograd.grad(value.sum(), leaf)
    for name, t, gradient in zip(["log_mu", "log_theta"], leaf, grads, strict=False):
        by_log = (gradient * t).detach()[:, 0].cpu().numpy()
        rounding = 0.0
        if name == "log_mu":
            rounding = log_mu_rounding(exact["curvature"], points["log_mu"], np.float32)
        of_gradient = share(by_log, exact[name], GRADIENT[np.dtype("f4")], rounding)
        assert of_gradient.max() <= 1, (name, worst(of_gradient, points))


@pytest.mark.parametrize("family", ["poisson", "nb", "zinb"])
def test_extremes_are_finite(backend, family):
    counts = torch.tensor([0.0, 1, 2, 8, 9, 1e2, 1e5, 0.5, 1e5 + 0.5])
    cases = list(
        itertools.product(
            (0.0, 30.0, 1e4),  # size of the logits
            (-1e4, -50.0, 0.0, 11.0, 88.0, 1e4),  # log library
            (0.0,) if family == "poisson" else (-1000.0, -88.0, 0.0, 88.0, 1000.0),
            (-1e4, 0.0, 1e4) if family == "zinb" else (0.0,),
            (0.0, 1.0),  # a cell without counts, and one with
        )
    )
    cases = cases[:: 5 if slow(backend) else 1]
    size, library, r, pi, filled = (column[:, None] for column in torch.tensor(cases).t())
    genes = (len(cases), len(counts))
    leaves = [
        (torch.randn(genes) * size).clamp(-1e4, 1e4).requires_grad_(),
        library.clone().requires_grad_(),
        r.repeat(1, genes[1]).requires_grad_(),
        pi.repeat(1, genes[1]).requires_grad_(),
    ][: {"poisson": 2, "nb": 3, "zinb": 4}[family]]
    # The interpreter tells of infinite quotients and their products, which are never selected.
    with np.errstate(over="ignore", invalid="ignore"):
        nll = NLL[family](counts * filled, *leaves)
        grads = torch.autograd.grad(nll.sum(), leaves)
    for t in (nll, *grads):
        finite = torch.isfinite(t).reshape(len(cases), -1).all(dim=1)
        assert finite.all(), [case for case, ok in zip(cases, finite, strict=True) if not ok]


@pytest.mark.parametrize("family", ["poisson", "nb", "zinb"])
def test_long_rows_sum_like_float64(backend, family):
    genes = 60_000
    x = torch.poisson(torch.rand(2, genes).pow(8) * 20)
    logits, pi = torch.randn(2, genes), torch.randn(2, genes)
    library, r = torch.full((2, 1), 9.5), torch.randn(genes)
    rest = {"poisson": [], "nb": [r], "zinb": [r, pi]}[family]
    got = NLL[family](x, logits, library, *rest).double()
    with fn.use_backend("torch"):
        exact = NLL[family](x, logits.double(), library.double(), *(t.double() for t in rest))
    torch.testing.assert_close(got, exact, rtol=ROW_SUM, atol=0)
