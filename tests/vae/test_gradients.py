"""The gradients written out are those of autograd; what is not a stock VAE is left to autograd."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from small_models import batches_of, small_data, small_store
from torch import nn
from torch.nn.utils import parametrizations

from fastvae import LDVAE, VAE, InputError, Model, functional
from fastvae.train import Callback, TrainSettings, new_history, train_vae
from fastvae.train import run as training
from fastvae.train.step import without_autograd
from fastvae.vae.gradients import StockGradients
from fastvae.vae.stock import stock_throughout

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR")
N, G = 17, 33
CONFIGURATIONS: list[dict[str, Any]] = [
    {},
    {"use_observed_lib_size": True},
    {"dispersion": "gene-batch", "n_layers": 2},
    {"dispersion": "gene-label", "use_observed_lib_size": True, "encode_covariates": True},
    {"dispersion": "gene-cell", "latent_distribution": "ln"},
    {"dispersion": "gene-cell", "reconstruction_loss": "poisson", "n_layers": 3},
    {"dispersion": "gene-batch", "reconstruction_loss": "poisson", "log_variational": False},
    {"reconstruction_loss": "nb", "encode_covariates": True, "n_layers": 2},
    {"reconstruction_loss": "nb", "dispersion": "gene-cell", "use_observed_lib_size": True},
    {"n_batch": 0, "dropout_rate": 0.0},
    {"n_batch": 1, "dispersion": "gene-batch", "encode_covariates": True},
    {"dropout_rate": 1.0, "use_observed_lib_size": True},
    {"n_cats_per_cov": [2, 1, 4], "n_continuous_cov": 2, "encode_covariates": True, "n_layers": 3},
    {
        "n_cats_per_cov": [2],
        "n_continuous_cov": 1,
        "encode_covariates": True,
        "deeply_inject_covariates": False,
        "n_layers": 2,
    },
    {"n_batch": 0, "n_continuous_cov": 3, "use_observed_lib_size": True, "n_layers": 2},
    {"use_size_factor_key": True, "n_continuous_cov": 1},
    {"use_size_factor_key": True, "reconstruction_loss": "nb", "dispersion": "gene-cell"},
    {"use_size_factor_key": True, "reconstruction_loss": "poisson", "n_layers": 2},
    {"use_size_factor_key": True, "dispersion": "gene-batch", "log_variational": False},
]


def vae(**options: Any) -> VAE:
    torch.manual_seed(1)
    fixed = {"n_batch": 3, "n_labels": 2, "n_hidden": 16, "n_latent": 4}
    return VAE(G, **{**fixed, **options}).train()


def minibatch(dtype: torch.dtype, sparse: bool) -> tuple[Any, ...]:
    torch.manual_seed(3)
    x = torch.poisson(torch.rand(N, G) * 6) * (torch.rand(N, G) < 0.4)
    x[2] = 0
    mean, var = torch.randn(N, 1) + 3, torch.rand(N, 1) + 0.1
    x, mean, var = (t.to(dtype) for t in (x, mean, var))
    codes = torch.arange(N)[:, None]
    return x.to_sparse_csr() if sparse else x, mean, var, codes % 3, codes % 2


def covariates_for(model: VAE, dtype: torch.dtype) -> dict[str, Any]:
    codes = torch.arange(N)[:, None] + torch.arange(len(model.n_cats_per_cov))
    limits = torch.tensor([*model.n_cats_per_cov], dtype=torch.int64)
    numbers = torch.randn(N, model.n_continuous_cov, generator=torch.Generator().manual_seed(4))
    given = {}
    if model.n_cats_per_cov:
        given["cat_covs"] = codes % limits
    if model.n_continuous_cov:
        given["cont_covs"] = numbers.to(dtype)
    if model.use_size_factor_key:
        given["size_factor"] = torch.linspace(0.3, 3.0, N).to(dtype)
    return given


def on_backend(name: str, dtype: torch.dtype, options: dict[str, Any], sparse: bool) -> Any:
    kind = "csr" if sparse else "dense"
    title = "-".join([name, str(dtype)[6:], kind, *map(str, options.values())])
    return pytest.param(name, dtype, options, sparse, id=title)


PRECISIONS = [("torch", torch.float64), ("torch", torch.float32), ("cpu", torch.float32)]
CASES = [
    on_backend(*precision, options, sparse)
    for precision in PRECISIONS
    for options in CONFIGURATIONS
    for sparse in (True, False)
]
if importlib.util.find_spec("triton"):  # its interpreter is slow
    few = CONFIGURATIONS[:3]
    CASES += [on_backend("triton", torch.float32, options, sparse=True) for options in few]


@pytest.mark.parametrize(("backend", "dtype", "options", "sparse"), CASES)
def test_same_as_autograd(
    backend: str, dtype: torch.dtype, close: Any, options: dict[str, Any], sparse: bool
) -> None:
    with functional.use_backend(backend):
        _same_as_autograd(dtype, close, options, sparse)


def _same_as_autograd(
    dtype: torch.dtype, close: Any, options: dict[str, Any], sparse: bool
) -> None:
    plain = vae(**options).to(dtype)
    module = copy.deepcopy(plain)
    x, mean, var, batch, y = minibatch(dtype, sparse)
    batch = batch % max(plain.n_batch, 1)
    more = covariates_for(plain, dtype)
    weight = torch.tensor(0.7)
    torch.manual_seed(2)
    first, kl, _ = plain(x, mean, var, batch, y, **more)
    ((first + weight * kl).mean() * 0.5).backward()
    torch.manual_seed(2)
    assert stock_throughout(module)
    gradients = StockGradients(module)
    for _ in range(2):  # the memory of the first call is written again by the second
        torch.manual_seed(2)
        got = gradients(x, mean, var, batch, y, weight, 0.5, **more)
    close(got[0], first.detach())
    close(got[1], kl.detach())
    for (name, want), have in zip(plain.named_parameters(), module.parameters(), strict=True):
        assert (want.grad is None) == (have.grad is None), name
        if want.grad is not None:
            close(have.grad, want.grad, name)
    torch.manual_seed(2)
    plain(x, mean, var, batch, y, **more)
    for (name, want), have in zip(plain.named_buffers(), module.buffers(), strict=True):
        close(have, want, name)


def test_bad_input_is_refused_as_by_forward() -> None:
    gradients, weight = StockGradients(vae()), torch.tensor(1.0)
    x, mean, var, batch, y = minibatch(torch.float32, sparse=False)
    for wrong, message in [
        ((-x, mean, var, batch, y), "contains -"),
        ((x[:, 1:], mean, var, batch, y), "shape"),
        ((x, None, var, batch, y), "local_l_mean is missing"),
        ((x, mean, -var, batch, y), "local_l_var must be > 0"),
        ((x, mean, var, batch + 1, y), "batch_index holds the code 3"),
        ((x[:1], mean[:1], var[:1], batch[:1], y[:1]), "one cell"),
    ]:
        with pytest.raises(InputError, match=message):
            gradients(*wrong, weight)


def _method(module: VAE) -> None:
    module.__dict__["inference"] = lambda *_: None


def _frozen(module: VAE) -> None:
    module.decoder.requires_grad_(False)


def _evaluated(module: VAE) -> None:
    module.z_encoder.encoder.eval()


def _activation(module: VAE) -> None:
    module.z_encoder.encoder.fc_layers[0][2] = nn.LeakyReLU()


def _no_norm(module: VAE) -> None:
    module.decoder.px_decoder.fc_layers[0][1] = None


def _parametrized(module: VAE) -> None:
    parametrizations.weight_norm(module.z_encoder.mean_encoder)


def _compiled(module: VAE) -> None:
    module.decoder.px_decoder.compiled = lambda *_: None


class _Quiet(nn.Linear):
    pass


def _subclass(module: VAE) -> None:
    module.decoder.px_dropout_decoder = _Quiet(16, G)


CHANGES: dict[str, Callable[[VAE], Any]] = {
    "a method": _method,
    "frozen": _frozen,
    "evaluated": _evaluated,
    "activation": _activation,
    "no normalisation": _no_norm,
    "parametrized": _parametrized,
    "compiled": _compiled,
    "a subclass": _subclass,
    "a hook": lambda m: m.decoder.px_decoder.fc_layers[0][1].register_forward_hook(lambda *_: None),
    "a hook before": lambda m: m.l_encoder.register_forward_pre_hook(lambda *_: None),
    "a hook of a gradient": lambda m: m.px_r.register_hook(lambda g: g),
    "one after it": lambda m: m.px_r.register_post_accumulate_grad_hook(lambda g: None),
    "a hook on the model": lambda m: m.register_full_backward_hook(lambda *_: None),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_noticed(change: str) -> None:
    module = vae()
    CHANGES[change](module)
    assert not stock_throughout(module)


def test_code_replaced_on_a_class_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    module = vae()
    monkeypatch.setattr(nn.BatchNorm1d, "forward", lambda self, x: x)
    assert not stock_throughout(module)


def test_other_models_are_left_to_autograd() -> None:
    assert not stock_throughout(LDVAE(G).train())
    assert not stock_throughout(nn.Linear(2, 2).train())
    settings = TrainSettings(max_epochs=1)
    assert without_autograd(vae(), settings) is not None
    assert without_autograd(vae(), TrainSettings(compile=True)) is None
    softplus = vae(use_size_factor_key=True)
    assert without_autograd(softplus, settings) is not None
    assert without_autograd(softplus, TrainSettings(precision="bf16")) is None


def test_bf16_rounds_the_heads_alone(backend: str) -> None:
    """The rest of the step is in float32, and so are sums and the likelihood."""
    x, mean, var, batch, y = minibatch(torch.float32, sparse=True)
    found = []
    for precision in ("float32", "bf16"):
        module = vae(use_observed_lib_size=True)
        gradients = without_autograd(module, TrainSettings(precision=precision))
        assert gradients is not None
        torch.manual_seed(2)
        nll, kl = gradients(x, mean, var, batch, y, torch.tensor(1.0))
        found.append((nll, kl, {name: p.grad for name, p in module.named_parameters()}))
    (exact, kl, exact_grads), (nll, kl_half, grads) = found
    assert torch.equal(kl, kl_half)
    assert nll.dtype == torch.float32
    assert not torch.equal(nll, exact)
    torch.testing.assert_close(nll, exact, rtol=0.01, atol=0.01)
    for name, want in exact_grads.items():
        if want is not None:
            error = (grads[name] - want).norm() / want.norm().clamp(min=1e-4)
            assert error < 0.03, (name, float(error))


def _curves(written: bool, epochs: int, **options: Any) -> list[list[float]]:
    torch.manual_seed(0)
    store = small_store(200)
    module = VAE(30, n_batch=2, n_hidden=32, n_latent=5, **options)
    history = new_history()
    used = []

    def counted(*given: Any) -> Any:
        used.append(without_autograd(*given))
        return used[-1] if written else None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "without_autograd", counted)
        cells = np.arange(150), np.arange(150, 200)
        settings = TrainSettings(max_epochs=epochs, batch_size=32, n_epochs_kl_warmup=10)
        train_vae(
            module,
            batches_of(store, cells[0]),
            batches_of(store, cells[1], shuffle=False),
            settings,
            history,
            seed=1,
            n_train=150,
            n_validation=50,
            progress=False,
        )
    assert len(used) == epochs + 1  # once before the capture that a GPU would make
    assert None not in used
    assert all(p.grad is None for p in module.parameters())
    return [history["train_elbo"], history["validation_elbo"]]


@pytest.mark.parametrize("options", [{"use_observed_lib_size": True}, {"n_layers": 2}])
def test_training_is_the_same(options: dict[str, Any]) -> None:
    with_autograd = _curves(False, 20, **options)
    np.testing.assert_allclose(_curves(True, 20, **options), with_autograd, rtol=1e-4)


def test_a_hook_set_between_epochs_is_heard() -> None:
    heard: list[int] = []

    class Listening(Callback):
        def on_epoch_end(self, epoch: int, row: Any, module: Any) -> None:
            if epoch == 1:
                module.z_encoder.register_forward_hook(lambda *_: heard.append(1))

    model = Model(small_data(), batch_key="batch", n_latent=3, n_hidden=16)
    model.fit(2, batch_size=32, progress=False, device="cpu", callbacks=[Listening()])
    assert heard
