"""Dense layers by oneDNN, where torch carries it, against float64."""

import pytest
import torch
from fastvae.kernels.linear import dense, products

pytestmark = pytest.mark.skipif(not products.available(), reason="this torch has no oneDNN")

ROWS, WIDE, NARROW = 128, 1000, 128  # 16 million multiplications: above what is worth it


def leaves(dtype, bias=True, out=WIDE, width=NARROW):
    make = torch.Generator().manual_seed(7)
    x = torch.randn(ROWS, width, generator=make, dtype=torch.float64)
    weight = torch.randn(out, width, generator=make, dtype=torch.float64) / width**0.5
    offset = torch.randn(out, generator=make, dtype=torch.float64) if bias else None
    parts = (x, weight, offset)
    return [None if p is None else p.to(dtype).requires_grad_() for p in parts]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("out", "width"), [(WIDE, NARROW), (NARROW, WIDE), (517, 131)])
def test_values_and_gradients(bias, out, width):
    parts, exact = leaves(torch.float32, bias, out, width), leaves(torch.float64, bias, out, width)
    assert dense.pays(*parts[:2])
    upstream = torch.randn(ROWS, out, dtype=torch.float64)
    got, expected = dense.linear(*parts), torch.nn.functional.linear(*exact)
    assert got.grad_fn.name().startswith("DenseLinear")
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)
    got.backward(upstream.float())
    expected.backward(upstream)
    for a, b in zip(parts, exact, strict=True):
        if a is not None:
            scale = b.grad.abs().max().item()
            torch.testing.assert_close(a.grad.double(), b.grad, rtol=0, atol=3e-6 * scale)


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_what_is_frozen_gets_no_gradient(frozen):
    parts = leaves(torch.float32)
    parts[frozen].requires_grad_(False)
    dense.linear(*parts).sum().backward()
    assert [p.grad is None for p in parts] == [i == frozen for i in range(3)]


def test_second_derivatives():
    x, weight, bias = leaves(torch.float32)
    ex, eweight, ebias = leaves(torch.float64)
    for own in ((x, weight, bias), (ex, eweight, ebias)):
        out = (dense.linear if own[0] is x else torch.nn.functional.linear)(*own)
        (by_x,) = torch.autograd.grad((out**3).sum(), own[0], create_graph=True)
        (by_x**2).sum().backward()
    scale = eweight.grad.abs().max().item()
    torch.testing.assert_close(weight.grad.double(), eweight.grad, rtol=0, atol=1e-5 * scale)
    torch.testing.assert_close(
        x.grad.double(), ex.grad, rtol=0, atol=1e-5 * ex.grad.abs().max().item()
    )


def test_small_layers_and_other_types_are_left_to_torch():
    small = torch.zeros(4, 8, requires_grad=True)
    assert not dense.pays(small, torch.zeros(3, 8))
    x, weight, _ = leaves(torch.float64)
    assert not dense.pays(x, weight)
    x, weight, _ = leaves(torch.float32)
    assert not dense.pays(x.t().contiguous().t(), weight)
    assert "DenseLinear" not in dense.linear(x.t().contiguous().t(), weight, None).grad_fn.name()


@pytest.mark.parametrize("library", ["TORCH", "ONEDNN"])
@pytest.mark.parametrize("shape", [(0, 5, 3), (1, 1, 1), (3, 2001, 7), (ROWS, WIDE, NARROW)])
def test_the_three_products(library, shape):
    n, genes, hidden = shape
    make = torch.Generator().manual_seed(3)
    x, weight, bias, grad = (
        torch.randn(size, generator=make)
        for size in ((n, hidden), (genes, hidden), (genes,), (n, genes))
    )
    chosen = getattr(products, library)
    got = [
        chosen.layer(x, weight, bias),
        chosen.layer(x, weight, None),
        chosen.input_gradient(grad, weight),
        chosen.weight_gradient(grad, x),
    ]
    x, weight, bias, grad = (t.double() for t in (x, weight, bias, grad))
    expected = [x @ weight.t() + bias, x @ weight.t(), grad @ weight, grad.t() @ x]
    for a, b, length in zip(got, expected, (hidden, hidden, genes, n), strict=True):
        assert a.is_contiguous()
        torch.testing.assert_close(a.double(), b, rtol=0, atol=1e-6 * max(1, length) ** 0.5 * 10)
