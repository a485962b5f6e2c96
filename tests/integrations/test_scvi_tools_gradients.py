"""Gradients of scvi-tools' module without autograd, and which modules are left to autograd."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

scvi = pytest.importorskip("scvi")
from scvi_native import MODELS, adata, made, train  # noqa: E402

from fastvae.data import Minibatches  # noqa: E402
from fastvae.integrations.scvi_tools import _gradients, _loop_module  # noqa: E402
from fastvae.integrations.scvi_tools._minibatches import Source  # noqa: E402
from fastvae.train.step import written_gradients  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
__all__ = ["adata"]  # a fixture

WRITTEN: dict[str, dict[str, Any]] = {
    "defaults": {},
    "two layers": {"n_layers": 2, "encode_covariates": True, "dropout_rate": 0.2},
    "labels": {"setup": {"labels_key": "label"}, "dispersion": "gene-label"},
    "cells": {"dispersion": "gene-cell", "use_observed_lib_size": False},
    "no batches": {"setup": {"batch_key": None}, "dropout_rate": 0.0},
    "shallow": {**MODELS["covariates"], "deeply_inject_covariates": False},
    "size factors of cells": {
        "setup": {"size_factor_key": "size", "continuous_covariate_keys": ["age"]},
        "dispersion": "gene-cell",
        "gene_likelihood": "nb",
    },
    "size factors, poisson": {**MODELS["size factors"], "gene_likelihood": "poisson"},
    "covariates of the decoder": {"setup": MODELS["covariates"]["setup"]},
    **{name: MODELS[name] for name in ("nb", "poisson", "learned library", "batches")},
    **{name: MODELS[name] for name in ("covariates", "size factors")},
}


def by_row(data: Any, options: dict[str, Any]) -> tuple[Any, tuple[Any, ...]]:
    """A module behind the loop's signature, and a minibatch for it."""
    model = made(data, **options)
    source = Source.of(model.adata_manager)
    store = _loop_module.store_of(source, np.arange(source.counts.shape[0]))
    batch = next(iter(Minibatches(store, batch_size=40, shuffle=True, seed=0)))
    module = _loop_module.ByRow(model.module, source.columns, warmup_steps=7).train()
    return module, (batch.x, batch.local_l_mean, batch.local_l_var, batch.batch_index, batch.y)


@pytest.mark.parametrize("name", WRITTEN)
def test_same_as_autograd(adata: Any, name: str) -> None:
    plain, given = by_row(adata, WRITTEN[name])
    module, _ = by_row(adata.copy(), WRITTEN[name])
    weight = torch.tensor(0.3)
    torch.manual_seed(2)
    first, kl, _ = plain(*given)
    ((first + weight * kl).mean() * 0.5).backward()
    gradients = written_gradients(module)
    assert gradients is not None
    torch.manual_seed(2)
    got = gradients(*given, weight, 0.5)
    torch.testing.assert_close(got, (first.detach(), kl.detach()), rtol=2e-5, atol=1e-5)
    assert plain.read(True) == pytest.approx(module.read(True))
    own = dict(module.named_parameters())
    for key, want in plain.named_parameters():
        assert (want.grad is None) == (own[key].grad is None), key
        if want.grad is not None:
            torch.testing.assert_close(own[key].grad, want.grad, rtol=2e-5, atol=1e-5, msg=key)
    torch.testing.assert_close(module.state_dict(), plain.state_dict())


def _frozen(module: Any) -> None:
    module.decoder.requires_grad_(False)


def _hook(module: Any) -> None:
    module.z_encoder.encoder.fc_layers[0][0].weight.register_hook(lambda grad: grad * 0)


def _replaced(module: Any) -> None:
    module.loss = lambda *_: None


CHANGES = {"frozen": _frozen, "a hook": _hook, "a method": _replaced}
LEFT: dict[str, dict[str, Any]] = {
    "layer norm": {"use_layer_norm": "both", "use_batch_norm": "none"},
    **{name: MODELS[name] for name in ("embedding, labels", "linear")},
}


@pytest.mark.parametrize("name", [*CHANGES, *LEFT])
def test_what_is_left_to_autograd(adata: Any, name: str) -> None:
    module, _ = by_row(adata, LEFT.get(name, {}))
    if name in CHANGES:
        assert _gradients.why_autograd(module.module, module.columns) is None
        CHANGES[name](module.module)
    assert _gradients.why_autograd(module.module, module.columns)
    assert written_gradients(module) is None


def test_the_loop_uses_them(adata: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    whole = _gradients.RowGradients.__call__

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(_gradients.RowGradients, "__call__", counted)
    train(made(adata), epochs=1)
    assert calls
