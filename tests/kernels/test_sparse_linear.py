"""The first layer from CSR counts: both of its forms, and which one is taken."""

import pytest
import torch

pytest.importorskip("triton")

from fastvae.kernels.counts import Counts
from fastvae.kernels.linear import gpu as linear
from fastvae.kernels.linear.cost import nonzeros_pay

FORMS = [linear.linear_from_nonzeros, linear.linear_from_dense]


def problem(n, genes, hidden, density=0.4):
    """Counts with an empty row, in both layouts, and a layer."""
    x = torch.poisson(torch.rand(n, genes) * 4) * (torch.rand(n, genes) < density)
    x[: n // 3] = 0
    row, col = x.nonzero(as_tuple=True)
    crow = torch.zeros(n + 1, dtype=torch.int64)
    crow[1:] = torch.bincount(row, minlength=n).cumsum(0)
    csr = Counts((n, genes), None, crow, col, x[row, col])
    return x, csr, torch.randn(hidden, genes) / genes**0.5, torch.randn(hidden)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("log1p", [False, True])
@pytest.mark.parametrize(
    ("n", "genes", "hidden"),
    [(1, 1, 1), (5, 33, 7), (4, 257, 128), (3, 70, 130), (3, 90, 300), (2, 5000, 10), (0, 3, 4)],
)
def test_both_forms(form, log1p, n, genes, hidden):
    x, csr, weight, bias = problem(n, genes, hidden)
    product = (x.double().log1p() if log1p else x.double()) @ weight.double().t()
    for offset in (None, bias):
        want = product if offset is None else product + offset.double()
        got = form(csr, weight, offset, log1p)
        torch.testing.assert_close(got.double(), want, rtol=2e-5, atol=1e-5)


def test_weights_in_half_precision_leave_the_counts_alone(monkeypatch):
    monkeypatch.setattr(linear, "nonzeros_pay", lambda *args, tf32: False)
    parts = torch.tensor([0, 2]), torch.tensor([0, 1]), torch.tensor([257.0, 256.0])
    weight = torch.tensor([[1.0, -1.0]], dtype=torch.bfloat16)
    got = linear.linear_forward(Counts((1, 2), None, *parts), weight, None, False)
    assert got.tolist() == [[1.0]]  # 257 is not a bfloat16 number, and would have become 256


@pytest.mark.parametrize("form", FORMS)
def test_autocast_leaves_the_layer_in_float32(form):
    _, csr, weight, bias = problem(3, 40, 8)
    with torch.autocast(weight.device.type, dtype=torch.bfloat16):
        got = form(csr, weight, bias, True)
    torch.testing.assert_close(got, form(csr, weight, bias, True), rtol=0, atol=0)


@pytest.mark.parametrize("pays", [True, False])
def test_the_form_that_pays_is_taken(monkeypatch, pays):
    x, csr, weight, bias = problem(5, 40, 8)
    asked, made = [], []

    def verdict(*args, tf32):
        asked.append((*args, tf32))
        return pays

    for form in FORMS:

        def noted(*args, form=form):
            made.append(form)
            return form(*args)

        monkeypatch.setattr(linear, form.__name__, noted)
    monkeypatch.setattr(linear, "nonzeros_pay", verdict)
    got = linear.linear_forward(csr, weight, bias, True)
    tf32 = torch.get_float32_matmul_precision() != "highest"
    assert asked == [(5, 40, 8, int((x != 0).sum()), tf32)]
    assert made == [FORMS[0] if pays else FORMS[1]]
    want = x.double().log1p() @ weight.double().t() + bias
    torch.testing.assert_close(got.double(), want, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "tf32", "limit"),
    # density up to which the nonzeros are estimated to pay; 0: never in the sizes of a minibatch
    [
        ((128, 2000, 128), True, 0.0),
        ((128, 30000, 128), True, 0.0),
        ((1024, 8000, 128), True, 0.028),
        ((4096, 8000, 128), True, 0.032),
        ((4096, 8000, 128), False, 0.074),
        ((4096, 30000, 128), True, 0.032),
        ((4096, 30000, 16), True, 0.207),
    ],
)
def test_density_from_which_a_dense_product_pays(size, tf32, limit):
    n, genes, hidden = size
    densities = [i / 1000 for i in range(5, 1001)]
    pays = [nonzeros_pay(n, genes, hidden, int(d * n * genes), tf32=tf32) for d in densities]
    assert pays == sorted(pays, reverse=True)  # one crossing
    found = max((d for d, p in zip(densities, pays, strict=True) if p), default=0.0)
    assert found == pytest.approx(limit, abs=0.005)


def test_no_counts_need_no_dense_matrix():
    assert nonzeros_pay(0, 2000, 128, 0)
    assert nonzeros_pay(128, 2000, 128, 0)
