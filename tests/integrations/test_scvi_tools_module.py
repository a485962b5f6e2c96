"""The modules behind the scvi-tools door against scvi-tools' own: losses, gradients, state.

Same weights, same minibatch, same seed: every number must be theirs, with dense and with CSR
counts.
"""

import numpy as np
import pytest
import scipy.sparse as sp
import torch

scvi = pytest.importorskip("scvi")
from scvi import REGISTRY_KEYS as KEYS  # noqa: E402
from scvi import module as theirs  # noqa: E402
from scvi.nn import FCLayers  # noqa: E402

from fastvae.data.csr import csr_tensor  # noqa: E402
from fastvae.integrations.scvi_tools import _module as ours  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

N, G, B, L = 40, 60, 3, 4
# of a layer's largest gradient; in float64 what is left is the 1e-8 that theirs adds in logarithms
CLOSE = {torch.float32: 2e-5, torch.float64: 1e-6}

OPTIONS = {
    "defaults": {},
    "nb": {"gene_likelihood": "nb"},
    "poisson": {"gene_likelihood": "poisson"},
    "normal": {"gene_likelihood": "normal"},
    "gene-batch": {"dispersion": "gene-batch"},
    "gene-label": {"dispersion": "gene-label", "gene_likelihood": "nb"},
    "gene-cell": {"dispersion": "gene-cell"},
    "logistic-normal": {"latent_distribution": "ln"},
    "two layers, covariates": {
        "n_layers": 2,
        "encode_covariates": True,
        "n_continuous_cov": 2,
        "n_cats_per_cov": [2, 5],
    },
    "shallow covariates": {
        "n_layers": 2,
        "deeply_inject_covariates": False,
        "n_cats_per_cov": [2, 5],
        "n_continuous_cov": 2,
    },
    "embedding": {"batch_representation": "embedding", "encode_covariates": True},
    "embedding in the decoder": {"batch_representation": "embedding", "n_cats_per_cov": [2, 5]},
    "layer norm": {"use_batch_norm": "none", "use_layer_norm": "both"},
    "size factors": {"use_size_factor_key": True},
    "size factors, poisson": {"use_size_factor_key": True, "gene_likelihood": "poisson"},
    "learned library": {"use_observed_lib_size": False},
    "no logarithm": {"log_variational": False},
    "softplus variance": {"var_activation": torch.nn.functional.softplus},
    "no dropout": {"dropout_rate": 0.0},
}


def minibatch(kwargs, sparse=False, n=N, seed=0, dtype=torch.float32):
    """Tensors as scvi-tools' loader hands them out."""
    draw = np.random.default_rng(seed)
    counts = draw.poisson(draw.gamma(0.4, 3.0, size=(n, G))).astype(np.float32)
    counts[:, 0] += 1  # no cell is empty: theirs has a library of minus infinity then
    x = torch.from_numpy(counts)
    if sparse:
        m = sp.csr_matrix(counts)
        x = csr_tensor(m.indptr, m.indices, m.data, m.shape)
    tensors = {
        KEYS.X_KEY: x,
        KEYS.BATCH_KEY: torch.from_numpy(draw.integers(0, B, (n, 1))),
        KEYS.LABELS_KEY: torch.from_numpy(draw.integers(0, L, (n, 1))),
    }
    if kwargs.get("n_continuous_cov"):
        covariates = draw.normal(size=(n, kwargs["n_continuous_cov"])).astype(np.float32)
        tensors[KEYS.CONT_COVS_KEY] = torch.from_numpy(covariates)
    if kwargs.get("n_cats_per_cov"):
        columns = [draw.integers(0, k, n) for k in kwargs["n_cats_per_cov"]]
        tensors[KEYS.CAT_COVS_KEY] = torch.from_numpy(np.stack(columns, 1))
    if kwargs.get("use_size_factor_key"):
        factors = draw.uniform(0.5, 2.0, (n, 1)).astype(np.float32)
        tensors[KEYS.SIZE_FACTOR_KEY] = torch.from_numpy(factors)
    return {key: t.to(dtype) if t.is_floating_point() else t for key, t in tensors.items()}


def pair(kwargs, name="VAE"):
    """Their module and ours with the same weights."""
    kwargs = {"n_input": G, "n_batch": B, "n_labels": L, "n_hidden": 16, "n_latent": 5, **kwargs}
    if not kwargs.get("use_observed_lib_size", name != "LDVAE"):
        kwargs["library_log_means"] = np.full((1, B), 4.0)
        kwargs["library_log_vars"] = np.linspace(0.2, 0.6, B)[None]
    torch.manual_seed(3)
    reference = getattr(theirs, name)(**kwargs)
    torch.manual_seed(3)
    module = getattr(ours, name)(**kwargs)
    state, own = reference.state_dict(), module.state_dict()
    assert list(state) == list(own)
    for key in state:
        torch.testing.assert_close(own[key], state[key], rtol=0, atol=0, msg=key)
    return reference, module


def losses(module, tensors, kl_weight=0.7, **inference):
    """Loss output and gradients of a training step."""
    module.train()
    torch.manual_seed(11)
    loss_kwargs = {"kl_weight": kl_weight}
    _, _, found = module(tensors, inference_kwargs=inference, loss_kwargs=loss_kwargs)
    module.zero_grad()
    found.loss.backward()
    return found, {name: p.grad for name, p in module.named_parameters()}


def biases_before_norm(module):
    """Names of parameters whose gradient a batch norm makes zero."""
    return {
        f"{name}.{block}.0.bias"
        for name, part in module.named_modules()
        if name.endswith("fc_layers")
        for block, layers in part.named_children()
        if any(isinstance(layer, torch.nn.BatchNorm1d) for layer in layers)
    }


def compare(module, reference, kwargs, sparse, **inference):
    dtype = next(module.parameters()).dtype
    expected, their_grads = losses(reference, minibatch(kwargs, dtype=dtype), **inference)
    found, grads = losses(module, minibatch(kwargs, sparse, dtype=dtype), **inference)
    for name in ("loss", "reconstruction_loss_sum", "kl_local_sum"):
        torch.testing.assert_close(
            getattr(found, name), getattr(expected, name), rtol=1e-5, atol=1e-5
        )
    assert found.n_obs_minibatch == expected.n_obs_minibatch
    assert found.kl_local.keys() == expected.kl_local.keys()
    for key, value in expected.kl_local.items():
        torch.testing.assert_close(found.kl_local[key], value, rtol=1e-5, atol=1e-5)
    dtype = expected.loss.dtype
    largest = max(float(grad.abs().max()) for grad in their_grads.values() if grad is not None)
    moved = 0
    for name, grad in their_grads.items():
        if grad is None or not grad.any():
            assert grads[name] is None or not grads[name].any(), name
            continue
        off = float((grads[name] - grad).abs().max())
        if name in biases_before_norm(module):  # nothing but rounding
            assert float(grad.abs().max()) < 1e-5 * largest
            assert off < 1e-5 * largest, name
            continue
        moved += 1
        assert off < CLOSE[dtype] * float(grad.abs().max()), (name, off)
    assert moved > 8


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
@pytest.mark.parametrize("name", OPTIONS)
def test_loss_and_every_gradient_are_theirs(name, sparse):
    reference, module = pair(OPTIONS[name])
    compare(module, reference, OPTIONS[name], sparse)
    fused = name not in ("normal",)
    assert module.fused_likelihood is fused
    assert module.fused_encoders is (name != "softplus variance")


FLOAT32_ONLY = {"gene-batch", "gene-label", "learned library"}  # theirs makes float32 indicators


@pytest.mark.parametrize("name", sorted(OPTIONS.keys() - FLOAT32_ONLY))
def test_in_float64_they_are_theirs_to_six_digits(name):
    reference, module = pair(OPTIONS[name])
    compare(module.double(), reference.double(), OPTIONS[name], sparse=True)


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson"])
@pytest.mark.parametrize("bias", [False, True])
def test_the_linear_decoder_is_theirs(likelihood, bias):
    kwargs = {"gene_likelihood": likelihood, "bias": bias, "use_batch_norm": not bias}
    reference, module = pair(kwargs, "LDVAE")
    compare(module, reference, {}, sparse=True)
    np.testing.assert_array_equal(
        pair(kwargs, "LDVAE")[0].get_loadings(), pair(kwargs, "LDVAE")[1].get_loadings()
    )


@pytest.mark.parametrize("name", ["defaults", "gene-cell", "learned library", "gene-batch"])
def test_several_samples_of_each_cell(name):
    reference, module = pair(OPTIONS[name])
    compare(module, reference, OPTIONS[name], sparse=True, n_samples=3)


@pytest.mark.parametrize("name", OPTIONS)
def test_outputs_are_theirs(name):
    reference, module = pair(OPTIONS[name])
    tensors = minibatch(OPTIONS[name])
    outputs = []
    for one in (reference, module):
        one.eval()
        torch.manual_seed(5)
        with torch.no_grad():
            outputs.append(
                one(tensors, compute_loss=False, generative_kwargs={"transform_batch": 1})
            )
    (inferred, generated), (own_inferred, own_generated) = outputs
    for key in ("z", "library"):
        torch.testing.assert_close(own_inferred[key], inferred[key], rtol=1e-5, atol=1e-6)
    for part in ("loc", "scale"):
        mine, other = (getattr(out["qz"], part) for out in (own_inferred, inferred))
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
    px, own = generated["px"], own_generated["px"]
    assert set(own.arg_constraints) == set(px.arg_constraints)
    assert isinstance(own, type(px))
    names = [*px.arg_constraints, "mean", "variance"]
    for part in names:
        torch.testing.assert_close(
            getattr(own, part), getattr(px, part), rtol=2e-5, atol=1e-6, msg=part
        )
    for key in ("mu", "scale"):
        torch.testing.assert_close(
            own.get_normalized(key), px.get_normalized(key), rtol=2e-5, atol=1e-6
        )
    torch.testing.assert_close(
        own.log_prob(tensors[KEYS.X_KEY]), px.log_prob(tensors[KEYS.X_KEY]), rtol=1e-4, atol=1e-4
    )
    draws = []
    for one in (px, own):
        torch.manual_seed(9)
        draws.append(one.sample())
    # a draw may flip at a rounding
    assert float(((draws[0] - draws[1]).abs() > 1e-3).float().mean()) < 0.01


def test_marginal_likelihood_and_samples_are_theirs():
    reference, module = pair({})
    tensors = minibatch({})
    found = []
    for one in (reference, module):
        one.eval()
        torch.manual_seed(2)
        ll = one.marginal_ll(tensors, n_mc_samples=6, n_mc_samples_per_pass=3)
        found.append((ll, one.sample(tensors, n_samples=2)))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-5, atol=1e-4)
    assert found[0][1].shape == found[1][1].shape == (N, G, 2)


def test_a_network_that_somebody_changed_is_called():
    reference, module = pair({})
    seen = []
    for one in (reference, module):
        one.decoder.px_scale_decoder[1] = torch.nn.Softplus()
        one.z_encoder.register_forward_hook(lambda *_: seen.append(1))
    compare(module, reference, {}, sparse=True)
    assert not module.fused_encoders
    assert len(seen) == 2

    class Decoder(type(module.decoder)):
        def forward(self, *args):
            scale, r, rate, dropout = super().forward(*args)
            return scale, r, rate * 2, dropout

    for one in pair({}):
        one.decoder.__class__ = Decoder
    reference, module = pair({})
    reference.decoder.__class__ = module.decoder.__class__ = Decoder
    compare(module, reference, {}, sparse=True)
    assert not module.fused_likelihood


STEPS = [
    name
    for name in ("_apply_layer", "_apply_batch_norm", "_is_linear_layer")
    if hasattr(FCLayers, name)
]


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("network", ["encoder", "decoder"])
def test_layers_that_somebody_changed_in_part_are_called(name, network):
    """scvi-tools 1.5 divides ``FCLayers.forward`` into methods, for subclasses to replace."""
    calls = []

    def replaced(self, *args):
        calls.append(name)
        return getattr(FCLayers, name)(self, *args)

    changed = type("Changed", (FCLayers,), {name: replaced})
    reference, module = pair({})
    for one in (reference, module):
        part = one.z_encoder.encoder if network == "encoder" else one.decoder.px_decoder
        part.__class__ = changed
    compare(module, reference, {}, sparse=True)
    assert module.fused_encoders == (network == "decoder")
    assert module.fused_likelihood == (network == "encoder")
    theirs = len(calls)
    losses(module, minibatch({}))
    assert len(calls) - theirs == theirs / 2


def test_cells_without_counts_stay_finite():
    _, module = pair({})
    tensors = minibatch({})
    tensors[KEYS.X_KEY][3] = 0
    found, grads = losses(module, tensors)
    assert torch.isfinite(found.loss)
    assert all(torch.isfinite(grad).all() for grad in grads.values() if grad is not None)
    assert float(found.reconstruction_loss["reconstruction_loss"][3].detach()) < 1e-3
