"""The operations against float64 textbook formulas under autograd, on odd shapes and layouts."""

import numpy as np
import pytest
import scipy.stats
import torch
from likelihoods import FAMILIES, LAYOUTS, call, problem, textbook

from fastvae import InputError
from fastvae import functional as fn
from fastvae.functional import dispatch as _backend

SHAPES = [(1, 1), (7, 1), (1, 7), (5, 257), (3, 2001), (0, 4)]
pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
def test_nll_and_gradients(dtype, close, family, layout, shape, sparse):
    x, leaves, keywords = problem(family, shape, layout, dtype)
    nll = call(family, x.to_sparse_csr() if sparse else x, leaves, keywords)
    exact = {k: v.detach().double().requires_grad_() for k, v in leaves.items()}
    rows = dict(exact)
    if keywords:
        rows["log_theta"] = exact["log_theta"][keywords["theta_index"]]
    expected = textbook(family, x.double(), *rows.values())
    upstream = torch.randn(shape[0], dtype=torch.float64)
    got = torch.autograd.grad(nll, list(leaves.values()), upstream.to(dtype))
    want = torch.autograd.grad(expected, list(exact.values()), upstream)

    assert nll.shape == (shape[0],)
    assert nll.dtype == dtype
    close(nll, expected)
    for name, a, b in zip(leaves, got, want, strict=True):
        assert a.dtype == dtype
        close(a, b, name)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradcheck(family, layout):
    x, leaves, keywords = problem(family, (4, 6), layout)
    x[0, :3] = torch.tensor([1.0, 40.0, 2.5])

    def f(*values):
        return call(family, x, dict(zip(leaves, values, strict=True)), keywords)

    assert torch.autograd.gradcheck(f, list(leaves.values()))


@pytest.mark.parametrize("family", FAMILIES)
def test_values_against_scipy(dtype, close, family):
    x = np.arange(60.0)
    mu, theta, pi = 7.3, 2.4, -0.6
    nb = scipy.stats.nbinom.logpmf(x, theta, theta / (theta + mu))
    zero = 1 / (1 + np.exp(-pi))
    expected = {
        "poisson": scipy.stats.poisson.logpmf(x, mu),
        "nb": nb,
        "zinb": np.log((x == 0) * zero + (1 - zero) * np.exp(nb)),
    }[family]
    parameters = {"poisson": [mu], "nb": [mu, theta], "zinb": [mu, theta, pi]}[family]
    tensors = [torch.tensor(v, dtype=dtype) for v in parameters]
    log_prob = getattr(fn, f"{family}_log_prob")
    close(log_prob(torch.tensor(x), *tensors, eps=0.0), torch.tensor(expected))
    # The probabilities of all counts sum to one.
    many = log_prob(torch.arange(0.0, 2000.0), *tensors).double()
    assert many.exp().sum().item() == pytest.approx(
        1, abs=1e-6 if dtype == torch.float32 else 1e-12
    )


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_parameters(backend, half):
    x, leaves, keywords = problem("zinb", (4, 33), dtype=half)
    x[0, 0] = 257  # not a bfloat16 number: counts must not pass through the parameters' dtype
    x = x.float()
    x[0, 0] = 257
    got = call("zinb", x, leaves, keywords)
    upstream = torch.randn(4)
    exact = {k: v.detach().float().requires_grad_() for k, v in leaves.items()}
    want = call("zinb", x, exact, keywords)
    torch.testing.assert_close(got, want)
    grads = torch.autograd.grad(got, list(leaves.values()), upstream)
    for a, b in zip(grads, torch.autograd.grad(want, list(exact.values()), upstream), strict=True):
        assert a.dtype == half
        torch.testing.assert_close(a, b.to(half))


@pytest.mark.parametrize("family", FAMILIES)
def test_layouts_of_the_input_do_not_matter(dtype, family):
    x, leaves, keywords = problem(family, (6, 10), dtype=dtype)
    want = call(family, x, leaves, keywords)
    strided = {k: v.detach().repeat_interleave(2, dim=-1)[..., ::2] for k, v in leaves.items()}
    strided["log_library"] = strided["log_library"][:, 0]  # (N,) is taken as (N, 1)
    torch.testing.assert_close(call(family, x.t().contiguous().t(), strided, keywords), want)
    torch.testing.assert_close(call(family, x.to(torch.int16), leaves, keywords), want)
    csr = x.to_sparse_csr()
    with_zeros = torch.sparse_csr_tensor(  # explicit zeros stored
        torch.arange(0, 61, 10),
        torch.arange(10).repeat(6),
        x.flatten(),
        x.shape,
        check_invariants=True,
    )
    torch.testing.assert_close(call(family, csr, leaves, keywords), want)
    torch.testing.assert_close(call(family, with_zeros, leaves, keywords), want)


def test_only_needed_gradients_are_made(dtype):
    x, leaves, keywords = problem("zinb", (5, 8), dtype=dtype)
    full = torch.autograd.grad(call("zinb", x, leaves, keywords).sum(), list(leaves.values()))
    for wanted, expected in zip(leaves, full, strict=True):
        some = {k: v if k == wanted else v.detach() for k, v in leaves.items()}
        call("zinb", x, some, keywords).sum().backward()
        torch.testing.assert_close(leaves[wanted].grad, expected)


def test_second_derivatives_raise(dtype):
    x, leaves, keywords = problem("zinb", (2, 3), dtype=dtype)
    nll = call("zinb", x, leaves, keywords).sum()
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(nll, [leaves["scale_logits"]], create_graph=True)


def test_nan_counts_are_not_taken_for_zeros(dtype):
    x, leaves, keywords = problem("zinb", (3, 4), dtype=dtype)
    x[1, 2] = torch.nan
    assert call("zinb", x, leaves, keywords).isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("genes", [9, 40])
def test_log_prob_broadcasts_and_agrees_with_nll(dtype, close, family, genes):
    x, leaves, keywords = problem(family, (4, genes), dtype=dtype)
    mu = (leaves["log_library"] + leaves["scale_logits"].log_softmax(1)).exp()
    rest = [v.exp() if k == "log_theta" else v for k, v in list(leaves.items())[2:]]
    many = getattr(fn, f"{family}_log_prob")(x, mu.expand(2, 3, 4, genes), *rest, eps=0.0)
    assert many.shape == (2, 3, 4, genes)
    nll = call(family, x, leaves, keywords)
    close(-many.sum(-1), nll.expand(2, 3, 4))
    grads = torch.autograd.grad(many.sum(), list(leaves.values()))
    want = torch.autograd.grad(-6 * nll.sum(), list(leaves.values()))
    for a, b in zip(grads, want, strict=True):
        close(a, b)


def test_log_prob_keeps_the_legacy_eps(dtype):
    # A mean of zero stays finite, as the textbook form with eps inside each logarithm.
    mu, theta = torch.tensor(0.0, dtype=dtype), torch.tensor(2.0, dtype=dtype)
    got = fn.nb_log_prob(torch.tensor([0.0, 3.0]), mu, theta)
    eps = 1e-8
    a, b = np.log(2 + eps), np.log(2 + eps)
    at_3 = 2 * (a - b) + 3 * (np.log(eps) - b) + np.log(2 * 3 * 4) - np.log(6)
    relative = 2e-7 if dtype == torch.float32 else 1e-9
    np.testing.assert_allclose(got.cpu().numpy(), [0.0, at_3], atol=2e-8, rtol=relative)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiles_as_one_graph(backend):
    x, leaves, keywords = problem("zinb", (5, 12), dtype=torch.float32)
    x[0, 0] = 30.0
    compiled = torch.compile(fn.zinb_nll, fullgraph=True, backend="aot_eager")
    got = compiled(x, *leaves.values())
    want = call("zinb", x, leaves, keywords)
    torch.testing.assert_close(got, want)
    a = torch.autograd.grad(got.sum(), list(leaves.values()))
    b = torch.autograd.grad(want.sum(), list(leaves.values()))
    for one, other in zip(a, b, strict=True):
        torch.testing.assert_close(one, other)


def test_autocast_leaves_the_likelihood_in_float32(backend):
    x, leaves, keywords = problem("zinb", (5, 12), dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = call("zinb", x, leaves, keywords)
    torch.testing.assert_close(got, call("zinb", x, leaves, keywords), rtol=0, atol=0)


BAD = [
    ({"x": torch.ones(3)}, "x has shape"),
    ({"x": torch.ones(3, 4, dtype=torch.bool)}, "x has dtype"),
    ({"x": torch.ones(3, 4).to_sparse_coo()}, "to_sparse_csr"),
    ({"x": [[1, 2]]}, "x is a list"),
    ({"x": torch.ones(3, 4, requires_grad=True)}, "x requires a gradient"),
    ({"scale_logits": torch.ones(3, 5)}, r"scale_logits has shape \(3, 5\); expected \(3, 4\)"),
    ({"log_library": torch.ones(2, 1)}, "log_library has shape"),
    ({"log_theta": torch.ones(5)}, "log_theta has shape"),
    ({"log_theta": torch.ones(2, 4)}, "give theta_index"),
    ({"log_theta": torch.ones(2, 4), "theta_index": torch.tensor([0, 1, 2])}, "from 0 to 2"),
    ({"log_theta": torch.ones(2, 4), "theta_index": torch.tensor([0.0, 1, 1])}, "integers"),
    ({"theta_index": torch.tensor([0, 0, 0])}, "expected a table"),
    ({"zi_logits": torch.ones(4)}, "zi_logits has shape"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[m for _, m in BAD])
def test_bad_arguments(change, message):
    good = {
        "x": torch.ones(3, 4),
        "scale_logits": torch.zeros(3, 4),
        "log_library": torch.zeros(3, 1),
        "log_theta": torch.zeros(4),
        "zi_logits": torch.zeros(3, 4),
    }
    if message == "from 0 to 2" and good["x"].is_cuda:
        pytest.skip("on a GPU nobody looks at the index, which would be read out of bounds")
    with pytest.raises(InputError, match=message):
        fn.zinb_nll(**{**good, **change})


def test_index_may_be_a_column_of_a_table(backend):
    """The kernels read it as one array."""
    x, index = torch.ones(3, 4), torch.tensor([[1, 0], [0, 7], [1, 7]])
    given = x, torch.zeros(3, 4), torch.zeros(3, 1), torch.randn(2, 4)
    for column in (index[:, 0], index[:, :1]):
        got = fn.nb_nll(*given, theta_index=column)
        assert torch.equal(got, fn.nb_nll(*given, theta_index=column.clone().flatten()))


def test_log_prob_of_shapes_that_do_not_fit():
    with pytest.raises(InputError, match="do not broadcast"):
        fn.nb_log_prob(torch.ones(3), torch.ones(4), torch.ones(1))


def test_what_computes_is_said_in_words():
    here = torch.device("cpu")
    with fn.use_backend("torch"):
        assert _backend.describe(here) == "torch operations"
    if not isinstance(_backend._backend("cpu"), str):
        with fn.use_backend("auto"):
            assert _backend.describe(here) == "compiled CPU kernels"
