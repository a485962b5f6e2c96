"""NaN and infinities in every input, and finite extremes in all of them, on every backend.

What comes out is compared with the torch backend; that one is held to the rule itself: NaN in a
cell gives a NaN cell, and no other cell changes.
"""

from __future__ import annotations

import math
import os

import numpy as np
import pytest
import torch
from likelihoods import FAMILIES
from small_models import small_data

import fastvae
from fastvae import functional as fn
from fastvae.functional.linear import dense_linear
from fastvae.train import NonFiniteError

GENES = 11
BAD = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
PARAMETERS = {
    "poisson": ["scale_logits", "log_library"],
    "nb": ["scale_logits", "log_library", "log_theta"],
    "zinb": ["scale_logits", "log_library", "log_theta", "zi_logits"],
}
LOG_PROB = {"poisson": ["mu"], "nb": ["mu", "theta"], "zinb": ["mu", "theta", "zi_logits"]}
LATENT = ["q_mean", "q_log_var", "prior_mean", "prior_var"]

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR")


@pytest.fixture(autouse=True)
def _the_interpreter_may_meet_infinities():
    with np.errstate(all="ignore"):
        yield


def counts(n):
    """Zeros, whole counts small and large, and fractional ones in every row."""
    x = torch.tensor([0.0, 1, 2, 7, 8, 9, 40, 1e4, 0.5, 0, 3]).repeat(n, 1)
    return torch.stack([row[torch.randperm(GENES)] for row in x])


def with_bad_rows(inputs):
    """Every input with every bad value, in one entry and in a whole row; a clean row at the end.

    Returns the inputs as they were, those with bad values, and what stands in each row.
    """
    places = [(name, bad, whole) for name in inputs for bad in BAD for whole in (False, True)]
    clean = {k: t.repeat(len(places) + 1, 1) for k, t in inputs.items()}
    poisoned = {k: t.clone() for k, t in clean.items()}
    for i, (name, bad, whole) in enumerate(places):
        width = poisoned[name].shape[1]
        at = slice(None) if whole else int(torch.randint(width, ()))
        poisoned[name][i, at] = BAD[bad]
    return clean, poisoned, places


def differentiate(call, inputs, upstream_seed=1):
    """Results and gradients by every floating input but x, with random upstream gradients."""
    leaves = {k: t.clone().requires_grad_(k != "x") for k, t in inputs.items()}
    results = call(**leaves)
    results = {"value": results} if isinstance(results, torch.Tensor) else results
    generator = torch.Generator().manual_seed(upstream_seed)
    upstream = [torch.randn(t.shape, generator=generator) for t in results.values()]
    wanted = {k: t for k, t in leaves.items() if k != "x"}
    grads = torch.autograd.grad(list(results.values()), list(wanted.values()), upstream)
    found = {k: t.detach() for k, t in results.items()}
    return found | {f"d_{k}": g for k, g in zip(wanted, grads, strict=True)}


def assert_same(got, expected, places=None):
    """NaN and infinities in the same places, and the same numbers elsewhere."""
    for name, a in got.items():
        b = expected[name]
        size = torch.where(b.isfinite(), b.abs(), 0).double()
        size = size.amax(dim=-1, keepdim=True) if b.dim() > 1 else size
        near = (a.double() - b.double()).abs() <= 1e-5 + 1e-4 * size
        same = near | (a == b) | (a.isnan() & b.isnan())
        if not same.all():
            i = tuple((~same).nonzero()[0].tolist())
            where = "" if places is None else f", of {[*places, 'the clean row'][i[0]]}"
            pytest.fail(f"{name}{list(i)} is {a[i]}, expected {b[i]}{where}")


def on_torch(call, inputs):
    with fn.use_backend("torch"):
        return differentiate(call, inputs)


def check_rows(call, inputs, values=("value",)):
    """Bad values in rows of their own: agreement with torch, NaN where NaN is, no other change."""
    clean, poisoned, places = with_bad_rows(inputs)
    got, untouched = differentiate(call, poisoned), differentiate(call, clean)
    assert_same(got, on_torch(call, poisoned), places)
    for name, t in got.items():
        assert untouched[name].isfinite().all()
        # the tail of a vector loop may round otherwise
        message = f"{name} of a clean cell changed"
        torch.testing.assert_close(t[-1], untouched[name][-1], msg=message)
    for name in values:
        for i, (_, bad, _) in enumerate(places):
            assert bad != "nan" or got[name][i].isnan().any(), (name, places[i])
    return got, places


def nll_inputs(family, n=1):
    drawn = {
        "x": counts(n),
        "scale_logits": torch.randn(n, GENES),
        "log_library": 3 + torch.randn(n, 1),
        "log_theta": torch.randn(n, GENES),
        "zi_logits": torch.randn(n, GENES),
    }
    return {k: drawn[k] for k in ("x", *PARAMETERS[family])}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
def test_likelihood_of_cells_with_bad_values(backend, family, sparse):
    def call(x, **parameters):
        return getattr(fn, f"{family}_nll")(x.to_sparse_csr() if sparse else x, **parameters)

    got, places = check_rows(call, nll_inputs(family))
    for i, (name, bad, _) in enumerate(places):
        bad_count = name == "x" and bad != "-inf"
        assert got["value"][i].isnan() == (bad == "nan" or bad_count or no_softmax(places[i]))
        if got["value"][i].isnan() and name != "zi_logits":  # genes share the softmax
            assert got["d_scale_logits"][i].isnan().all()
            assert got["d_log_library"][i].isnan().all()
    assert not got["value"].isinf().any()


def no_softmax(place):
    return place in {("scale_logits", "inf", False), *(("scale_logits", b, True) for b in BAD)}


@pytest.mark.parametrize("family", ["nb", "zinb"])
@pytest.mark.parametrize("layout", ["gene", "table"])
@pytest.mark.parametrize("bad", BAD)
def test_likelihood_with_a_dispersion_that_cells_share(backend, family, layout, bad):
    inputs = nll_inputs(family, 4)
    inputs["log_theta"] = torch.randn(*{"gene": (GENES,), "table": (2, GENES)}[layout])
    index = {} if layout == "gene" else {"theta_index": torch.tensor([0, 1, 1, 0])}

    def call(x, **parameters):
        return getattr(fn, f"{family}_nll")(x, **parameters, **index)

    for name in inputs:
        changed = {k: t.clone() for k, t in inputs.items()}
        changed[name][..., 2 if name != "log_library" else 0] = BAD[bad]
        if name != "log_theta":  # one cell
            changed[name][1:] = inputs[name][1:]
        elif layout == "table":  # one group
            changed[name][1] = inputs[name][1]
        got = differentiate(call, changed)
        assert_same(got, on_torch(call, changed))
        if bad == "nan":
            lost = {"log_theta": 4 if layout == "gene" else 2}.get(name, 1)
            assert got["value"].isnan().sum() == lost


@pytest.mark.parametrize("family", FAMILIES)
def test_log_prob_of_cells_with_bad_values(backend, family):
    drawn = {
        "mu": torch.rand(1, GENES) * 20,
        "theta": torch.rand(1, GENES) * 5,
        "zi_logits": torch.randn(1, GENES),
    }
    inputs = {"x": counts(1), **{k: drawn[k] for k in LOG_PROB[family]}}
    call = getattr(fn, f"{family}_log_prob")
    got, places = check_rows(lambda x, **rest: call(x, **rest), inputs)
    for i, (_, bad, whole) in enumerate(places):
        if bad == "nan":
            assert got["value"][i].isnan().sum() == (GENES if whole else 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_log_prob_outside_its_domain_is_nan(backend, family):
    rest = {"theta": torch.ones(3), "zi_logits": torch.zeros(3)}
    rest = {k: rest[k] for k in LOG_PROB[family][1:]}
    call = getattr(fn, f"{family}_log_prob")
    x = torch.tensor([0.0, 2.0, 20.0])
    assert call(x, mu=torch.full((3,), -0.5), **rest).isnan().all()
    if family != "poisson":
        rest["theta"] = -rest["theta"]
        assert call(x, mu=torch.ones(3), **rest).isnan().all()


@pytest.mark.parametrize("latent_distribution", ["normal", "ln"])
def test_sample_and_kl_with_bad_values(backend, monkeypatch, latent_distribution):
    inputs = {k: torch.randn(1, 3) for k in LATENT[:3]} | {"prior_var": torch.rand(1, 3) + 0.5}

    def call(**heads):
        torch.manual_seed(3)
        z, _, q_var, kl = fn.sample_and_kl(**heads, latent_distribution=latent_distribution)
        return {"z": z, "q_var": q_var, "kl": kl}

    clean, poisoned, places = with_bad_rows(inputs)
    torch.manual_seed(3)
    shape = clean["q_mean"].shape
    noise = fn.sample_and_kl(torch.zeros(shape), torch.zeros(shape), var_eps=0.0)[0]
    got, untouched = differentiate(call, poisoned), differentiate(call, clean)
    monkeypatch.setattr(torch, "randn_like", lambda t: noise)  # torch's draws are the backend's
    assert_same(got, on_torch(call, poisoned), places)
    for name, t in got.items():
        assert torch.equal(t[-1], untouched[name][-1]), f"{name} of a clean cell changed"
    for i, (_, bad, _) in enumerate(places):
        assert got["kl"][i].isnan() == (bad == "nan" or places[i][:2] == ("prior_var", "-inf"))


def test_kl_normal_with_bad_values(backend):
    inputs = {"q_m": torch.randn(1, 3), "q_v": torch.rand(1, 3) + 0.5}
    inputs |= {"p_m": torch.randn(1, 3), "p_v": torch.rand(1, 3) + 0.5}
    check_rows(lambda **rest: fn.kl_normal(**rest), inputs)
    nothing = torch.zeros(1, 3)
    assert fn.kl_normal(nothing, -torch.ones(1, 3)).isnan().all()
    assert fn.kl_normal(nothing, torch.ones(1, 3), p_v=-torch.ones(1, 3)).isnan().all()


def test_reparameterize_with_bad_values():
    inputs = {"q_m": torch.randn(1, 3), "q_v": torch.rand(1, 3) + 0.5}

    def call(**rest):
        torch.manual_seed(3)
        return fn.reparameterize(**rest)

    check_rows(call, inputs)
    assert fn.reparameterize(torch.zeros(3), -torch.ones(3)).isnan().all()


@pytest.mark.parametrize("log1p", [False, True])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
def test_first_layer_of_cells_with_bad_values(backend, log1p, sparse):
    weight, bias = torch.randn(3, GENES), torch.randn(3)

    def layer(x, weight, bias):
        return fn.count_linear(x.to_sparse_csr() if sparse else x, weight, bias, log1p=log1p)

    clean, poisoned, places = with_bad_rows({"x": counts(1)})
    rest = {"weight": weight, "bias": bias}
    got = differentiate(layer, {"x": poisoned["x"], **rest})
    assert_same(got, on_torch(layer, {"x": poisoned["x"], **rest}))
    untouched = layer(clean["x"], weight, bias)
    torch.testing.assert_close(got["value"][-1], untouched[-1])
    for i, (_, bad, _) in enumerate(places):
        assert not got["value"][i].isfinite().all()
        assert bad != "nan" or got["value"][i].isnan().all()
    for bad in BAD.values():  # a parameter reaches every cell that has the gene
        changed = weight.clone()
        changed[1, 1] = bad
        value = layer(clean["x"], changed, bias)
        has_gene = clean["x"][:, 1] > 0
        assert has_gene.any()
        assert not value[has_gene, 1].isfinite().any()
        torch.testing.assert_close(value[:, [0, 2]], untouched[:, [0, 2]])


@pytest.mark.parametrize("bad", BAD)
def test_dense_layer_with_bad_values(backend, bad):
    inputs = {"h": torch.randn(3, 5), "weight": torch.randn(4, 5), "bias": torch.randn(4)}
    for name in inputs:
        changed = {k: t.clone() for k, t in inputs.items()}
        changed[name][..., 1] = BAD[bad]
        got = differentiate(lambda h, weight, bias: dense_linear(h, weight, bias), changed)
        assert not got["value"].isfinite().all()
        assert_same(got, on_torch(lambda h, weight, bias: dense_linear(h, weight, bias), changed))


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
def test_library_size_of_cells_with_bad_values(backend, sparse):
    clean, poisoned, places = with_bad_rows({"x": counts(1)})

    def size(x):
        return fn.log_library_size(x.to_sparse_csr() if sparse else x)

    got = size(poisoned["x"])
    with fn.use_backend("torch"):
        torch.testing.assert_close(got, size(poisoned["x"]), equal_nan=True)
    torch.testing.assert_close(got[-1], size(clean["x"])[-1])
    assert [bool(t.isnan()) for t in got[:-1]] == [bad == "nan" for _, bad, _ in places]


# -- finite extremes ------------------------------------------------------------------------------

LARGEST = torch.finfo(torch.float32).max
SIZES = (10.0, 1e2, 1e4, 1e20, LARGEST)  # a cell's inputs lie below one of them each
ROWS = {"triton": 30}  # the interpreter is slow
SEEDS = range(int(os.environ.get("FASTVAE_TEST_EXTREMES", "1")))  # more on request


def extremes(shape, generator, sign=True):
    """Numbers of every magnitude below a bound drawn for each row, the bound itself among them."""
    bound = torch.tensor(SIZES)[torch.randint(len(SIZES), (shape[0], 1), generator=generator)]
    exponent = torch.rand(shape, generator=generator).double() ** 2
    size = bound.double() * 10.0 ** (-exponent * (45 + bound.double().log10()))
    size[torch.rand(shape, generator=generator) < 0.1] = 0.0
    size = torch.where(torch.rand(shape, generator=generator) < 0.1, bound.double(), size)
    negative = torch.rand(shape, generator=generator) < 0.5 if sign else torch.tensor(False)
    return torch.where(negative, -size, size).float()


def extreme_counts(shape, generator):
    x = extremes(shape, generator, sign=False)
    kind = torch.randint(4, shape, generator=generator)
    few = torch.randint(0, 12, shape, generator=generator).float()
    return torch.stack([torch.zeros(shape), few, x.round(), x]).gather(0, kind[None])[0]


def assert_finite(found, inputs):
    for name, t in found.items():
        bad = ~t.isfinite()
        if bad.any():
            row = int(bad.nonzero()[0][0])
            at = {k: v[row].tolist() for k, v in inputs.items() if v.shape[0] == t.shape[0]}
            pytest.fail(f"{name} is {t[row].tolist()} for {at}")


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", ["gene", "full"])
def test_likelihood_of_finite_extremes(backend, family, layout, seed):
    generator = torch.Generator().manual_seed(seed)
    n = ROWS.get(backend, 1000)
    shape = (n, GENES)
    inputs = {"x": extreme_counts(shape, generator)}
    for name in PARAMETERS[family]:
        inputs[name] = extremes((n, 1) if name == "log_library" else shape, generator)
    if layout == "gene" and family != "poisson":
        inputs["log_theta"] = extremes((1, GENES), generator)[0]

    def call(x, **parameters):
        return getattr(fn, f"{family}_nll")(x, **parameters)

    found = differentiate(call, inputs)
    assert_finite(found, inputs)
    with fn.use_backend("torch"):
        exact = call(**{k: t.double() for k, t in inputs.items()})
    # What lies near 1e30 or beyond overflows on the way, entry by entry; and where large logits
    # and a large library cancel, the exact value says little of float32.
    inner = (exact < 1e28) & (inputs["log_library"][:, 0].abs() <= 100)
    assert inner.sum() > n / 5
    torch.testing.assert_close(found["value"][inner].double(), exact[inner], rtol=1e-3, atol=1e-3)
    assert (found["value"][exact > 1e29] > 1e27).all()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("eps", [1e-8, 0.0])
def test_log_prob_of_finite_extremes(backend, family, eps, seed):
    generator = torch.Generator().manual_seed(seed)
    shape = (ROWS.get(backend, 1000), GENES)
    x = extreme_counts(shape, generator)
    inputs = {k: extremes(shape, generator, sign=k == "zi_logits") for k in LOG_PROB[family]}
    call = getattr(fn, f"{family}_log_prob")
    found = differentiate(lambda x, **rest: call(x, **rest, eps=eps), {"x": x, **inputs})
    impossible = (x > 0) & (inputs["mu"] + eps == 0)  # the exact value is -inf
    assert torch.equal(found["value"] == -math.inf, impossible)
    found["value"] = found["value"].masked_fill(impossible, 0)
    assert_finite(found, {"x": x, **inputs})


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("latent_distribution", ["normal", "ln"])
@pytest.mark.parametrize("var_eps", [1e-4, 0.0])
def test_latents_of_finite_extremes(backend, latent_distribution, var_eps, seed):
    generator = torch.Generator().manual_seed(seed)
    shape = (ROWS.get(backend, 1000), 3)
    inputs = {k: extremes(shape, generator, sign=k != "prior_var") for k in LATENT}

    def sample(**heads):
        z, _, q_var, kl = fn.sample_and_kl(
            **heads, latent_distribution=latent_distribution, var_eps=var_eps
        )
        return {"z": z, "q_var": q_var, "kl": kl}

    found = differentiate(sample, inputs)
    assert_finite(found, inputs)
    assert (found["kl"] >= -1e-4).all()
    q_v = inputs["q_log_var"].abs()
    inputs = {"q_m": inputs["q_mean"], "q_v": q_v, "p_m": inputs["prior_mean"]} | {
        "p_v": inputs["prior_var"]
    }
    assert_finite(differentiate(lambda **rest: fn.kl_normal(**rest), inputs), inputs)
    drawn = {"q_m": inputs["q_m"], "q_v": q_v}
    assert_finite(differentiate(lambda **rest: fn.reparameterize(**rest), drawn), drawn)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
def test_library_size_of_finite_extremes(backend, sparse):
    x = extreme_counts((200, GENES), torch.Generator().manual_seed(0))
    x[0] = LARGEST
    found = fn.log_library_size(x.to_sparse_csr() if sparse else x)
    exact = x.double().sum(dim=1, keepdim=True).clamp(1, LARGEST).log()
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_sums_over_many_genes_stay_finite(backend, family):
    genes = 8192
    inputs = {"x": torch.zeros(2, genes), "scale_logits": torch.zeros(2, genes)}
    inputs["log_library"] = torch.full((2, 1), LARGEST)
    inputs |= {k: torch.full((2, genes), LARGEST) for k in PARAMETERS[family][2:]}
    inputs["x"][0] = LARGEST
    found = differentiate(
        lambda x, **parameters: getattr(fn, f"{family}_nll")(x, **parameters), inputs
    )
    assert_finite(found, inputs)


# -- training -------------------------------------------------------------------------------------

SMALL = {"n_latent": 3, "n_hidden": 16}
WEIGHTS = [
    "px_r",  # log theta of one gene
    "decoder.px_scale_decoder.0.bias",
    "decoder.px_dropout_decoder.bias",
    "z_encoder.var_encoder.bias",
    "l_encoder.mean_encoder.bias",
]


@pytest.mark.parametrize("weight", WEIGHTS)
def test_loss_of_a_model_with_a_nan_weight_is_nan(backend, weight):
    model = fastvae.Model(small_data(12), batch_key="batch", use_observed_lib_size=False, **SMALL)
    module = model.module.train()
    with torch.no_grad():
        module.get_parameter(weight).view(-1)[0] = math.nan
    x = torch.tensor(small_data(12).X.toarray(), dtype=torch.float32)
    batch = torch.zeros(len(x), 1, dtype=torch.long)
    reconstruction, kl, _ = module(x, torch.zeros(len(x), 1), torch.ones(len(x), 1), batch)
    assert (reconstruction + kl).isnan().any()
    assert (reconstruction + kl).mean().isnan()


@pytest.mark.parametrize("name", ["torch", "cpu"])
@pytest.mark.parametrize("weight", WEIGHTS)
def test_training_stops_at_a_nan(name, weight):
    model = fastvae.Model(small_data(60), batch_key="batch", use_observed_lib_size=False, **SMALL)
    with torch.no_grad():
        model.module.get_parameter(weight).view(-1)[0] = math.nan
    message = "training stopped in epoch 1, step 1"
    with fn.use_backend(name), pytest.raises(NonFiniteError, match=message):
        model.fit(3, batch_size=32, seed=0, progress=False, device="cpu")
