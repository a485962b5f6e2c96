"""Decoder heads with their likelihood, against layers and likelihood one after the other."""

import numpy as np
import pytest
import torch
from decoder_heads import (
    DISPERSIONS,
    counts,
    differentiated,
    in_one_operation,
    in_small_blocks,
    one_after_the_other,
    parameters,
    problem,
    through_the_door,
)
from fastvae.kernels.heads.parameters import HeadGradients, HeadNeeds
from likelihoods import textbook
from torch.nn import functional as F

from fastvae import InputError
from fastvae import functional as fn
from fastvae.functional import dispatch
from fastvae.functional import heads as heads_door

WAYS = ["door", "operation", "blocks"]
SHAPES = [
    *[("door", shape) for shape in [(1, 1), (19, 257)]],
    *[("operation", shape) for shape in [(1, 1), (7, 1), (1, 7), (3, 1025), (0, 4)]],
    *[("blocks", shape) for shape in [(19, 257), (16, 1), (0, 4)]],
]
CASES = [("poisson", "gene"), *[(f, d) for f in ("nb", "zinb") for d in DISPERSIONS]]
pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR")


def solve(way, family, x, leaves, index=None):
    if way == "door":
        return through_the_door(family, x, leaves, index)
    backend = dispatch.select(*leaves.values())
    if way == "blocks":
        backend = in_small_blocks(backend)
    return in_one_operation(x, leaves, index, backend=backend)


def thinned(cases, number):
    """All cases; in triton's interpreter, where one takes seconds, the one of this number."""
    cases = list(cases)
    tensor = torch.zeros(1)
    if dispatch.select(tensor).name == "triton" and not tensor.is_cuda:
        return [cases[number % len(cases)]]
    return cases


def exact(family, x, leaves, index, upstream):
    """Value and gradients of the textbook's formulas in float64."""
    double = {k: v.detach().double().requires_grad_() for k, v in leaves.items()}

    def head(name):
        return F.linear(double["hidden"], double[f"{name}_weight"], double.get(f"{name}_bias"))

    parts = [head("scale"), double["log_library"]]
    if family != "poisson":
        log_theta = head("theta") if "theta_weight" in double else double["log_theta"]
        parts.append(log_theta if index is None else log_theta[index])
    if family == "zinb":
        parts.append(head("zi"))
    return differentiated(textbook(family, x.double(), *parts), double, upstream)


@pytest.mark.parametrize(("way", "shape"), SHAPES, ids=str)
@pytest.mark.parametrize(("family", "dispersion"), CASES)
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
def test_value_and_gradients(dtype, close, family, dispersion, shape, sparse, way):
    x, leaves, index = problem(family, shape, dispersion, dtype, bias=not sparse)
    upstream = torch.randn(shape[0], dtype=torch.float64)
    nll = solve(way, family, x.to_sparse_csr() if sparse else x, leaves, index)
    got = differentiated(nll, leaves, upstream.to(dtype))
    want = exact(family, x, leaves, index, upstream)
    assert nll.shape == (shape[0],)
    for name, expected in want.items():
        assert got[name].dtype == dtype
        # sums over genes and cells, entry by entry as near as the others are
        size = expected.abs().amax().clamp(min=1) if expected.numel() else 1
        close(got[name] / size, expected / size, name)


@pytest.mark.parametrize("way", ["operation", "blocks"])
@pytest.mark.parametrize(("family", "dispersion"), CASES)
def test_gradcheck(family, dispersion, way):
    with fn.use_backend("torch"):
        x, leaves, index = problem(family, (10, 6), dispersion, hidden=3)
        x[0, :3] = torch.tensor([1.0, 40.0, 2.5])

        def f(*values):
            return solve(way, family, x, dict(zip(leaves, values, strict=True)), index)

        assert torch.autograd.gradcheck(f, list(leaves.values()))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dispersion", DISPERSIONS)
def test_what_is_frozen_gets_no_gradient_and_changes_no_other(dtype, dispersion, way):
    x, leaves, index = problem("zinb", (19, 8), dispersion, dtype)
    upstream = torch.randn(19).to(dtype)
    full = differentiated(solve(way, "zinb", x, leaves, index), leaves, upstream)
    number = 3 * DISPERSIONS.index(dispersion) + WAYS.index(way)
    for frozen in thinned(leaves, number):
        some = {k: v.detach() if k == frozen else v for k, v in leaves.items()}
        free = {k: v for k, v in leaves.items() if k != frozen}
        found = differentiated(solve(way, "zinb", x, some, index), free, upstream)
        assert set(found) == set(full) - {frozen}
        for name, t in found.items():
            torch.testing.assert_close(t, full[name])
    for alone in thinned(leaves, number + 4):
        some = {k: v if k == alone else v.detach() for k, v in leaves.items()}
        found = differentiated(solve(way, "zinb", x, some, index), {alone: leaves[alone]}, upstream)
        torch.testing.assert_close(found[alone], full[alone])


@pytest.mark.parametrize("way", ["operation", "blocks"])
@pytest.mark.parametrize("dispersion", DISPERSIONS)
def test_only_what_is_needed_is_computed(backend, dispersion, way):
    x, leaves, index = problem("zinb", (19, 8), dispersion, torch.float32)
    chosen = dispatch.select(*leaves.values())
    if way == "blocks":
        chosen = in_small_blocks(chosen)
    for name in thinned(leaves, 2 * DISPERSIONS.index(dispersion) + (way == "blocks")):
        needs = HeadNeeds(*(field == name for field in HeadNeeds._fields))
        with torch.no_grad():
            _, found = chosen.heads_with_gradients(
                torch.ones(19), counts(x), parameters(leaves, index), needs
            )
        assert [k for k, t in found._asdict().items() if t is not None] == [name]


@pytest.mark.parametrize(("family", "dispersion"), CASES)
def test_without_autograd(dtype, family, dispersion):
    x, leaves, index = problem(family, (19, 30), dispersion, dtype)
    upstream = torch.randn(19).to(dtype)
    want = differentiated(solve("operation", family, x, leaves, index), leaves, upstream)
    heads = {
        f"{name}_head": (leaves[f"{name}_weight"], leaves[f"{name}_bias"])
        for name in ("scale", "zi")
        if f"{name}_weight" in leaves
    }
    log_theta = leaves.get("log_theta")
    if "theta_weight" in leaves:
        log_theta = leaves["theta_weight"], leaves["theta_bias"]
    given = {
        "x": x,
        "hidden": leaves["hidden"],
        "log_library": leaves["log_library"],
        "log_theta": log_theta,
        "theta_index": index,
        **heads,
    }
    memory = {k: torch.full_like(v, torch.nan).detach() for k, v in leaves.items()}
    for into in (None, HeadGradients(**memory)):
        nll, found = heads_door.heads_nll_and_gradients(upstream, **given, into=into)
        assert not nll.requires_grad
        torch.testing.assert_close(nll, want["nll"])
        for name in leaves:
            made = getattr(found, name)
            torch.testing.assert_close(made, want[name])
            assert into is None or made is memory[name]
    _, found = heads_door.heads_nll_and_gradients(
        upstream, **given, needs=HeadNeeds(*[False] * 9)._replace(hidden=True)
    )
    torch.testing.assert_close(found.hidden, want["hidden"])
    assert found.scale_weight is None


def test_a_second_backward_and_another_upstream_gradient(backend):
    x, leaves, index = problem("zinb", (19, 30), "gene", torch.float32)
    nll = solve("operation", "zinb", x, leaves, index)
    even, uneven = torch.full((19,), 0.3), torch.randn(19)
    late = differentiated(nll, leaves, even, retain_graph=True)
    other = differentiated(nll, leaves, uneven, retain_graph=True)
    again = differentiated(nll, leaves, even)
    early = differentiated(solve("operation", "zinb", x, leaves, index), leaves, even)
    for name in late:
        assert torch.equal(late[name], again[name])
        assert torch.equal(late[name], early[name])
    want = differentiated(one_after_the_other("zinb", x, leaves, index), leaves, uneven)
    for name, t in other.items():
        torch.testing.assert_close(t, want[name], rtol=2e-5, atol=1e-5)


def test_second_derivatives_raise(dtype):
    x, leaves, _ = problem("zinb", (2, 3), "gene", dtype)
    nll = solve("operation", "zinb", x, leaves).sum()
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(nll, [leaves["hidden"]], create_graph=True)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dispersion", DISPERSIONS)
def test_autocast_multiplies_in_bfloat16_and_sums_in_float32(backend, dispersion, way):
    x, leaves, index = problem("zinb", (19, 60), dispersion, torch.float32)
    x[0, 0] = 257  # not a bfloat16 number: counts do not pass through it
    upstream = torch.randn(19)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        if way == "door":
            nll = solve(way, "zinb", x, leaves, index)
        else:
            backend = dispatch.select(*leaves.values())
            backend = in_small_blocks(backend) if way == "blocks" else backend
            nll = in_one_operation(x, leaves, index, backend=backend, dtype=torch.bfloat16)
        plain = one_after_the_other("zinb", x, leaves, index)
    assert nll.dtype == torch.float32
    torch.testing.assert_close(nll, plain, rtol=1e-6, atol=1e-5)
    got, want = (differentiated(t, leaves, upstream) for t in (nll, plain))
    for name, t in got.items():
        assert t.dtype == torch.float32
        # gradients by logits are rounded to 8 bits before they are multiplied
        size = want[name].abs().max().item()
        torch.testing.assert_close(t, want[name], rtol=0, atol=0.01 * size, msg=name)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("way", WAYS)
def test_half_precision_parameters(backend, half, way):
    x, leaves, _ = problem("zinb", (19, 33), "gene", half)
    upstream = torch.randn(19)
    got = differentiated(solve(way, "zinb", x.float(), leaves), leaves, upstream)
    rounded = {k: v.detach().float().requires_grad_() for k, v in leaves.items()}
    want = differentiated(solve(way, "zinb", x.float(), rounded), rounded, upstream)
    assert got["nll"].dtype == torch.float32
    for name, t in got.items():
        assert t.dtype == (torch.float32 if name == "nll" else half)
        size = want[name].abs().max().item()
        torch.testing.assert_close(t.float(), want[name], rtol=0, atol=0.03 * size, msg=name)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiles_as_one_graph(backend):
    x, leaves, _ = problem("zinb", (5, 12), "gene", torch.float32)

    def f(x, *values):
        return through_the_door("zinb", x, dict(zip(leaves, values, strict=True)))

    got = torch.compile(f, fullgraph=True, backend="aot_eager")(x, *leaves.values())
    a = differentiated(got, leaves, torch.ones(5))
    b = differentiated(f(x, *leaves.values()), leaves, torch.ones(5))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=2e-5, atol=1e-5)


BAD = [
    ({"x": torch.ones(3)}, "x has shape"),
    ({"x": torch.ones(3, 4, requires_grad=True)}, "x requires a gradient"),
    ({"hidden": torch.ones(2, 5)}, r"hidden has shape \(2, 5\); expected \(3, H\) to fit x"),
    ({"hidden": torch.ones(3, 6)}, r"weight of scale_head has shape \(4, 5\); expected \(4, 6\)"),
    ({"scale_head": (torch.ones(4, 5), torch.ones(3))}, "the bias of scale_head has shape"),
    ({"zi_head": (torch.ones(5, 5), None)}, "the weight of zi_head has shape"),
    ({"log_library": torch.ones(2, 1)}, "log_library has shape"),
    ({"log_theta": torch.ones(5)}, "log_theta has shape"),
    ({"log_theta": torch.ones(3, 4)}, "the weight and bias of a head"),
    ({"log_theta": (torch.ones(3, 4), None)}, "the weight of log_theta has shape"),
    ({"theta_index": torch.tensor([0, 0, 0])}, "expected a table"),
    (
        {"log_theta": (torch.ones(4, 5), None), "theta_index": torch.tensor([0, 0, 0])},
        "log_theta is a head",
    ),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[m for _, m in BAD])
def test_bad_arguments(change, message):
    good = {
        "x": torch.ones(3, 4),
        "hidden": torch.zeros(3, 5),
        "scale_head": (torch.zeros(4, 5), None),
        "log_library": torch.zeros(3, 1),
        "log_theta": torch.zeros(4),
        "zi_head": (torch.zeros(4, 5), torch.zeros(4)),
    }
    with pytest.raises(InputError, match=message):
        fn.zinb_heads_nll(**{**good, **change})


BAD_VALUES = {"nan": torch.nan, "inf": torch.inf, "-inf": -torch.inf}


def nearly(got, want):
    """NaN and infinities in the same places, and the same numbers elsewhere."""
    size = torch.where(want.isfinite(), want.abs(), 0).amax() if want.numel() else 1
    near = (got.double() - want.double()).abs() <= 1e-5 + 1e-4 * size
    return bool((near | (got == want) | (got.isnan() & want.isnan())).all())


@pytest.mark.parametrize("way", ["operation", "blocks"])
@pytest.mark.parametrize("dispersion", ["gene", "cell"])
@pytest.mark.parametrize("bad", BAD_VALUES)
def test_bad_values_in_every_input(backend, dispersion, bad, way):
    with np.errstate(all="ignore"):  # the interpreter may meet infinities
        x, clean, _ = problem("zinb", (10, 11), dispersion, torch.float32, hidden=3)
        x[0, :6] = torch.tensor([0.0, 1, 8, 40, 1e4, 0.5])
        upstream = torch.randn(10)
        untouched = solve(way, "zinb", x, clean).detach()
        number = 4 * list(BAD_VALUES).index(bad) + 2 * (dispersion == "cell") + (way == "blocks")
        for name in thinned(["x", *clean], number):
            inputs = {"x": x, **clean}
            inputs = {k: v.detach().clone() for k, v in inputs.items()}
            inputs[name].view(-1)[inputs[name].numel() // 2] = BAD_VALUES[bad]
            counts_, leaves = inputs.pop("x"), inputs
            leaves = {k: v.requires_grad_() for k, v in leaves.items()}
            got = differentiated(solve(way, "zinb", counts_, leaves), leaves, upstream)
            with fn.use_backend("torch"):
                plain = one_after_the_other("zinb", counts_, leaves)
                want = differentiated(plain, leaves, upstream)
            for key, t in got.items():
                expected = want[key]
                if backend == "triton" and (name, key) == ("theta_weight", "hidden"):
                    # the derivative by a theta at its bound is 1e-26 of rounding: times infinity it
                    # is NaN where it was 0, else infinite, and torch and Triton round otherwise
                    assert torch.equal(t.isfinite(), expected.isfinite())
                    t, expected = (v.where(v.isfinite(), 0) for v in (t, expected))
                assert nearly(t, expected), f"{key} with {bad} in {name}"
            if name in ("x", "hidden", "log_library"):  # of one cell: no other's value changes
                row, others = 5, torch.arange(10) != 5
                torch.testing.assert_close(got["nll"][others], untouched[others])
                assert bad != "nan" or got["nll"][row].isnan()


@pytest.mark.parametrize("way", ["operation", "blocks"])
@pytest.mark.parametrize(("family", "dispersion"), CASES)
def test_finite_extremes_give_finite_results(backend, family, dispersion, way):
    sizes = [0.0, 1e-38, 1e-20, 1.0, 88.0, 1e4, 1e10, 1e20, 1e30, 3e38]
    genes = 2 * len(sizes)
    x, leaves, index = problem(family, (16, genes), dispersion, torch.float32, hidden=3)
    for case in thinned(range(6), CASES.index((family, dispersion))):
        make = torch.Generator().manual_seed(case)
        for name, t in leaves.items():
            with torch.no_grad():
                if name.endswith("weight"):  # products overflow as torch's do: logits are biases
                    t.zero_()
                elif name != "hidden":
                    values = torch.tensor(sizes + [-size for size in sizes])
                    drawn = torch.randint(genes, t.shape, generator=make)
                    t.copy_(values[drawn])
        counts_ = torch.tensor(sizes * 2)[torch.randint(genes, x.shape, generator=make)].round()
        with np.errstate(all="ignore"):
            nll = solve(way, family, counts_, leaves, index)
            found = differentiated(nll, leaves, torch.rand(16, generator=make) / 16)
            plain = one_after_the_other(family, counts_, leaves, index)
        torch.testing.assert_close(found["nll"], plain.detach(), rtol=1e-5, atol=1e-5)
        for name, t in found.items():
            assert t.isfinite().all(), name
