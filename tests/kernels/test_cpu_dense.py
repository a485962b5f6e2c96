"""Dense layers and their products by libfastvae_cpu, against float64."""

import pytest
import torch
from fastvae.kernels import native, products
from fastvae.kernels.linear import dense

if torch.get_default_device().type != "cpu":
    pytest.skip("the library computes on the CPU", allow_module_level=True)

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


FASTEST = native.instruction_set()
INSTRUCTION_SETS = [
    name for name in ("v2", "v3", "v4", "native", "baseline") if native.use_instruction_set(name)
]
native.use_instruction_set(FASTEST)
SHAPES = [
    (0, 5, 3),
    (1, 1, 1),
    (3, 2001, 7),
    (13, 65, 130),
    (300, 517, 257),
    (70, 9000, 64),
    (300, 1013, 130),
]


@pytest.fixture
def _restored():
    yield
    native.use_instruction_set(FASTEST)
    torch.set_num_threads(1)


def drawn(n, genes, hidden):
    make = torch.Generator().manual_seed(3)
    sizes = (n, hidden), (genes, hidden), (genes,), (n, genes)
    return [torch.randn(size, generator=make) for size in sizes]


def made(chosen, n, genes, hidden):
    """Every product of one library, on its own and added to what was there."""
    x, weight, bias, grad = drawn(n, genes, hidden)
    found = [torch.full((n, genes), torch.nan) for _ in range(2)]
    chosen.layer(x, weight, bias, found[0])
    chosen.layer(x, weight, None, found[1])
    for add in (False, True):
        start = torch.ones if add else torch.empty
        by_x, by_weight, by_bias = start(n, hidden), start(genes, hidden), start(genes)
        chosen.input_gradient(grad, weight, by_x, add)
        chosen.weight_gradient(grad, x, by_weight, by_bias, add)
        found += [t - 1 if add else t for t in (by_x, by_weight, by_bias)]
    return found


def exact(n, genes, hidden):
    x, weight, bias, grad = (t.double() for t in drawn(n, genes, hidden))
    by = [grad @ weight, grad.t() @ x, grad.sum(dim=0)]
    return [x @ weight.t() + bias, x @ weight.t(), *by, *by]


@pytest.mark.usefixtures("_restored")
@pytest.mark.parametrize("instructions", ["torch", *INSTRUCTION_SETS])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_three_products(instructions, shape):
    if instructions != "torch":
        native.use_instruction_set(instructions)
    chosen = products.TORCH if instructions == "torch" else dense.LIBRARY
    n, genes, hidden = shape
    lengths = [hidden, hidden, *[genes, n, n] * 2]
    for a, b, length in zip(made(chosen, *shape), exact(*shape), lengths, strict=True):
        # each step rounds a sum that grows as the root of their number
        torch.testing.assert_close(a.double(), b, rtol=0, atol=3e-7 * max(8, length))


def made_in_bfloat16(chosen, n, genes, hidden):
    """As `made`, from float32 factors beside (N, G) matrices of bfloat16."""
    x, weight, bias, grad = drawn(n, genes, hidden)
    factors = [chosen.factor(t, torch.bfloat16) for t in (x, weight, bias)]
    out = torch.full((n, genes), torch.nan, dtype=torch.bfloat16)
    chosen.layer(*factors, out)
    found = [out]
    for add in (False, True):
        start = torch.ones if add else torch.empty
        by_x, by_weight, by_bias = start(n, hidden), start(genes, hidden), start(genes)
        chosen.input_gradient(grad.bfloat16(), factors[1], by_x, add)
        chosen.weight_gradient(grad.bfloat16(), factors[0], by_weight, by_bias, add)
        found += [t - 1 if add else t for t in (by_x, by_weight, by_bias)]
    return found


@pytest.mark.usefixtures("_restored")
@pytest.mark.parametrize("instructions", ["torch", *INSTRUCTION_SETS])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_three_products_in_bfloat16(instructions, shape):
    if instructions != "torch":
        native.use_instruction_set(instructions)
    chosen = products.TORCH if instructions == "torch" else dense.LIBRARY
    n, genes, hidden = shape
    x, weight, bias, grad = (t.bfloat16().double() for t in drawn(*shape))
    by = [grad @ weight, grad.t() @ x, grad.sum(dim=0)]
    out, *gradients = made_in_bfloat16(chosen, *shape)
    want = x @ weight.t() + bias
    torch.testing.assert_close(out.double(), want, rtol=2**-8, atol=3e-7 * max(8, hidden))
    # torch's products are of bfloat16; the library's gradients are sums in float32
    rtol = 0 if chosen.rounds(torch.bfloat16) else 2**-8
    for a, b, length in zip(gradients, [*by, *by], [genes, n, n] * 2, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=rtol, atol=3e-7 * max(8, length))


@pytest.mark.usefixtures("_restored")
def test_bfloat16_is_left_to_torch_by_processors_without_it():
    for name in INSTRUCTION_SETS:
        native.use_instruction_set(name)
        rounds = dense.LIBRARY.rounds(torch.bfloat16)
        assert not rounds or name in ("v4", "native")
        weight = torch.ones(3, 2)
        assert (dense.LIBRARY.factor(weight, torch.bfloat16) is weight) == rounds
    assert not dense.LIBRARY.rounds(torch.float16)


def test_a_nan_stays_in_its_cell_where_genes_are_taken_in_pairs():
    n, genes, hidden = 4, 5, 3
    grad = torch.ones(n, genes, dtype=torch.bfloat16)
    grad[1, 0] = torch.nan  # follows the last gene of the first cell in memory
    weight, out = torch.ones(genes, hidden), torch.empty(n, hidden)
    dense.LIBRARY.input_gradient(grad, weight, out, False)
    assert out.isnan().any(dim=1).tolist() == [False, True, False, False]
    by_weight, by_bias = torch.empty(genes, hidden), torch.empty(genes)
    dense.LIBRARY.weight_gradient(grad, torch.ones(n, hidden), by_weight, by_bias, False)
    assert by_weight.isnan().any(dim=1).tolist() == [True, *[False] * 4]
    assert by_bias.isnan().tolist() == [True, *[False] * 4]


@pytest.mark.usefixtures("_restored")
def test_threads_change_no_bit_of_a_product(monkeypatch):
    monkeypatch.setattr(native, "GRAIN", 1)
    shape = (150, 9000, 70)
    for make in (made, made_in_bfloat16):
        torch.set_num_threads(1)
        one = make(dense.LIBRARY, *shape)
        for threads in (2, 3, 4):
            torch.set_num_threads(threads)
            assert all(map(torch.equal, one, make(dense.LIBRARY, *shape)))


def test_matrices_with_gaps_and_of_other_types_are_multiplied_by_torch():
    x, weight, bias, grad = drawn(20, 30, 8)
    for cast in (torch.Tensor.double, lambda t: t.repeat_interleave(2, dim=-1)[..., ::2]):
        parts = [cast(t) for t in (x, weight, bias, grad)]
        out = parts[0].new_empty(20, 30)
        dense.LIBRARY.layer(*parts[:3], out)
        torch.testing.assert_close(out.float(), x @ weight.t() + bias)
        by_weight, by_bias = parts[0].new_empty(30, 8), parts[0].new_empty(30)
        dense.LIBRARY.weight_gradient(parts[3], parts[0], by_weight, by_bias, False)
        torch.testing.assert_close(by_weight.float(), grad.t() @ x)
        torch.testing.assert_close(by_bias.float(), grad.sum(dim=0))
