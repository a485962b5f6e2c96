"""Value and gradients at once, for an upstream gradient that is given, on every backend."""

import numpy as np
import pytest
import torch
from fastvae.kernels.counts import Counts
from fastvae.kernels.parameters import Parameters
from likelihoods import FAMILIES, LAYOUTS, call, problem

from fastvae import functional as fn
from fastvae.functional import dispatch

SHAPES = [(0, 4), (7, 1), (3, 131)]
pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR")


def arguments(family, shape, layout, sparse=False):
    """Counts, parameters, and the same leaves as `call` takes them."""
    dense, leaves, keywords = problem(family, shape, layout, torch.float32)
    x = Counts(shape, dense)
    if sparse:
        csr = dense.to_sparse_csr()
        x = Counts(shape, None, csr.crow_indices(), csr.col_indices(), csr.values())
    values = {k: v.detach().clone() for k, v in leaves.items()}
    return x, Parameters(**values, **keywords), (dense, leaves, keywords)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("sparse", "where"), [(False, "new"), (True, "given"), (False, "in place"), (True, "in place")]
)
def test_as_autograd_has_it(backend, family, layout, shape, sparse, where):
    x, p, (dense, leaves, keywords) = arguments(family, shape, layout, sparse)
    upstream = torch.randn(shape[0])
    nll = call(family, dense, leaves, keywords)
    want = dict(zip(leaves, torch.autograd.grad(nll, list(leaves.values()), upstream), strict=True))

    logits = p.scale_logits, p.zi_logits
    out = {
        "new": (None, None),
        "given": tuple(None if t is None else torch.full_like(t, torch.nan) for t in logits),
        "in place": logits,
    }[where]
    needs = (True, True, p.log_theta is not None, p.zi_logits is not None)
    with np.errstate(all="ignore"):
        got, grads = dispatch.select(nll).nll_and_gradients(upstream, x, p, needs, out)
    torch.testing.assert_close(got, nll.detach())
    for name, grad in zip(p._fields[:4], grads, strict=True):
        assert (grad is None) == (name not in want)
        if grad is not None:
            torch.testing.assert_close(grad, want[name], rtol=2e-5, atol=1e-5)
    if where != "new":
        for given, grad in zip(out, (grads[0], grads[3]), strict=True):
            assert given is None or given is grad


def test_only_what_is_needed(backend):
    x, p, _ = arguments("zinb", (4, 9), "gene")
    everything = None
    for needs in [(True,) * 4, *((i == 0, i == 1, i == 2, i == 3) for i in range(4))]:
        nll, grads = dispatch.select(p.scale_logits).nll_and_gradients(torch.ones(4), x, p, needs)
        everything = everything or (nll, grads)
        torch.testing.assert_close(nll, everything[0])
        for need, grad, full in zip(needs, grads, everything[1], strict=True):
            assert (grad is None) == (not need)
            if need:
                torch.testing.assert_close(grad, full)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_upstream_gradient_is_expected_again(family):
    gpu = pytest.importorskip("fastvae.kernels.likelihood.gpu")
    gpu._expected.clear()
    _, p, (dense, leaves, keywords) = arguments(family, (5, 40), "table")
    x = Counts((5, 40), dense)
    needs = (True, True, p.log_theta is not None, p.zi_logits is not None)
    same, other = torch.full((5,), 0.25), torch.randn(5)
    with fn.use_backend("triton"), np.errstate(all="ignore"):
        for upstream, then in [(same, 0.25), (same, 0.25), (other, 0.25), (same, 0.25)]:
            nll = call(family, dense, leaves, keywords)
            got = torch.autograd.grad(nll, list(leaves.values()), upstream)
            assert [e.item() for e in gpu._expected.values()] == [then]
            value, want = gpu.nll_and_gradients(upstream, x, p, needs)
            # never by what ran before: the same numbers bit by bit
            assert torch.equal(nll.detach(), value)
            for a, b in zip(got, [g for g in want if g is not None], strict=True):
                assert torch.equal(a, b)


def test_gradients_are_not_computed_twice_where_the_expected_one_came(monkeypatch):
    gpu = pytest.importorskip("fastvae.kernels.likelihood.gpu")
    _, _, (dense, leaves, keywords) = arguments("zinb", (3, 9), "gene")
    gpu._expected.clear()
    launch, redone = gpu._launch, []

    def watched(x, p, memory, grad, redo=None):
        if redo is not None:
            redone.append(redo.item())
        launch(x, p, memory, grad, redo)

    monkeypatch.setattr(gpu, "_launch", watched)
    with fn.use_backend("triton"), np.errstate(all="ignore"):
        for upstream in (1.0, 0.5, 0.5):
            nll = call("zinb", dense, leaves, keywords)
            torch.autograd.grad(nll, list(leaves.values()), torch.full((3,), upstream))
    assert redone == [0, 1, 0]
