"""Value and gradients at once, for an upstream gradient that is given, on every backend."""

import numpy as np
import pytest
import torch
from fastvae.kernels.counts import Counts
from fastvae.kernels.parameters import Parameters
from likelihoods import FAMILIES, LAYOUTS, call, problem

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
