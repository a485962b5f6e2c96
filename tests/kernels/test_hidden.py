"""Batch normalisation, ReLU and dropout as one operation, against torch's modules and autograd."""

import pytest
import torch
from fastvae.kernels.hidden.reference import BatchNorm
from torch import nn

from fastvae.functional.dispatch import select

SIZES = [(2, 1), (3, 5), (5, 16), (65, 33), (128, 128), (300, 20), (1500, 9)]


def problem(n, h, dtype, rate):
    """A layer's product, a normalisation that has seen others, and which units are kept."""
    z = torch.randn(n, h, dtype=dtype) * 3 + 1
    norm = nn.BatchNorm1d(h, momentum=0.01, eps=0.001, dtype=dtype)
    with torch.no_grad():
        for value in norm.parameters():
            value.copy_(torch.randn(h))
        norm.running_mean.copy_(torch.randn(h))
        norm.running_var.copy_(torch.rand(h) + 0.1)
    keep = torch.empty_like(z).bernoulli_(1 - rate) if rate else None
    return z, norm, keep


def plain(norm):
    statistics = norm.running_mean.clone(), norm.running_var.clone()
    weights = norm.weight.detach().clone(), norm.bias.detach().clone()
    return BatchNorm(*weights, *statistics, norm.momentum, norm.eps)


def run(z, norm, keep, scale, upstream):
    """Everything that the two functions give, statistics of the running kind included."""
    backend = select(z)
    found = backend.hidden_forward(z, norm, keep, scale)
    grads = backend.hidden_backward(upstream, z, norm, found, scale)
    return [found.out, *grads, norm.running_mean, norm.running_var]


@pytest.mark.parametrize(("n", "h"), SIZES)
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.7])
def test_is_what_the_modules_give(backend_and_dtype, close, n, h, rate):
    z, norm, keep = problem(n, h, backend_and_dtype[1], rate)
    upstream = torch.randn(n, h, dtype=z.dtype)
    scale = 1 / (1 - rate)
    got = run(z, plain(norm), keep, scale, upstream)
    exact_z, exact = z.double().requires_grad_(), norm.double()
    out = torch.relu(exact(exact_z))
    if keep is not None:
        out = out * keep.double() * scale
    leaves = [exact_z, exact.weight, exact.bias]
    want = [out.detach(), *torch.autograd.grad(out, leaves, upstream.double())]
    want += [exact.running_mean, exact.running_var]
    size = 1 + float(upstream.double().abs().sum(0).max()) / 10  # of the sums over cells
    for number, (a, b) in enumerate(zip(got, want, strict=True)):
        close(a / size, b / size, f"result {number}")


def test_lent_memory_is_written(backend):
    z, norm, keep = problem(40, 21, torch.float32, 0.1)
    upstream, of = torch.randn(40, 42)[:, ::2], plain(norm)
    chosen = select(z)
    found = chosen.hidden_forward(z, of, keep, 1 / 0.9)
    want = chosen.hidden_backward(upstream.contiguous(), z, of, found, 1 / 0.9)
    out = torch.full((21,), torch.nan), torch.full((21,), torch.nan)
    got = chosen.hidden_backward(upstream, z, of, found, 1 / 0.9, out)
    assert [t.data_ptr() for t in got[1:]] == [t.data_ptr() for t in out]
    assert all(map(torch.equal, got, want))


def test_gradients_by_finite_differences():
    z, norm, keep = problem(7, 4, torch.float64, 0.4)
    upstream = torch.randn(7, 4, dtype=torch.float64)
    fixed = plain(norm)
    _, d_z, d_weight, d_bias, _, _ = run(z, fixed, keep, 1 / 0.6, upstream)

    def value(z, weight, bias):
        with_them = fixed._replace(weight=weight, bias=bias)
        return (select(z).hidden_forward(z, with_them, keep, 1 / 0.6).out * upstream).sum()

    at = [z, fixed.weight, fixed.bias]
    step = 1e-6
    for which, gradient in enumerate((d_z, d_weight, d_bias)):
        for i in range(gradient.numel()):
            moved = torch.zeros(gradient.numel(), dtype=z.dtype)
            moved[i] = step
            moved = moved.view_as(gradient)
            up = value(*(t + moved if k == which else t for k, t in enumerate(at)))
            down = value(*(t - moved if k == which else t for k, t in enumerate(at)))
            found = (up - down) / (2 * step)
            torch.testing.assert_close(gradient.flatten()[i], found, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # triton's interpreter
@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["z", "weight", "bias", "upstream"])
def test_what_is_not_finite_stays_in_its_column(backend, odd, where):
    z, norm, keep = problem(40, 21, torch.float32, 0.1)
    upstream = torch.randn(40, 21)
    keep[3, 17] = 1
    clean = plain(norm)._replace(bias=torch.full((21,), 30.0))  # all units are on
    given = clean._replace(**{t: getattr(clean, t).clone() for t in clean._fields[:4]})
    {"z": z[3], "weight": given.weight, "bias": given.bias, "upstream": upstream[3]}[where][17] = (
        odd
    )
    got = run(z, given, keep, 1 / 0.9, upstream)
    harmed = range(1) if where in ("weight", "bias") else range(0)
    touched = {"z": [0, 1, 2, 4, 5], "weight": [0], "bias": [0], "upstream": [1, 2, 3]}[where]
    for number, result in enumerate(got):
        rows = result if result.dim() == 2 else result[None]
        others = torch.cat([rows[:, :17], rows[:, 18:]], dim=1)
        assert others.isfinite().all(), number
        if number in touched or number in harmed:
            assert not rows[:, 17].isfinite().all(), number


def test_no_unit_is_nan_where_all_cells_are_alike(backend):
    z, norm, _ = problem(6, 18, torch.float32, 0.0)
    z = z[:1].expand(6, 18).contiguous()
    got = run(z, plain(norm), None, 1.0, torch.randn(6, 18))
    assert all(result.isfinite().all() for result in got)


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_and_gaps_in_memory_change_no_bit(monkeypatch, threads):
    from fastvae.kernels import native

    monkeypatch.setattr(native, "GRAIN", 1)
    z, norm, keep = problem(130, 100, torch.float32, 0.1)
    upstream = torch.randn(130, 100)
    one = run(z, plain(norm), keep, 1 / 0.9, upstream)
    torch.set_num_threads(threads)
    try:
        apart = torch.zeros(130, 120)
        apart[:, 7:107] = z
        again = run(apart[:, 7:107], plain(norm), keep, 1 / 0.9, upstream)
    finally:
        torch.set_num_threads(1)
    assert all(map(torch.equal, one, again))
