"""The loss of a minibatch that brings its gradients, in Lightning's loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch

scvi = pytest.importorskip("scvi")
import lightning.pytorch as pl  # noqa: E402
from scvi_native import MODELS, adata, made, same_history, same_weights, train  # noqa: E402

from fastvae.integrations.scvi_tools import _training_plan as _plan  # noqa: E402
from fastvae.integrations.scvi_tools._minibatches import Source  # noqa: E402
from fastvae.integrations.scvi_tools._written_loss import WrittenLoss  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
__all__ = ["adata"]  # a fixture

OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "defaults": ({}, {}),
    "learned library": (MODELS["learned library"], {"gradient_clip_val": 0.05}),
    "labels": ({"setup": {"labels_key": "label"}, "dispersion": "gene-label"}, {}),
    "covariates": (MODELS["covariates"], {}),
    "size factors": (MODELS["size factors"], {}),
    "two at once": ({"n_layers": 2}, {"accumulate_grad_batches": 2}),
}


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each loss came with its gradients."""
    found: list[bool] = []
    whole = WrittenLoss.__call__

    def noted(self: Any, *args: Any) -> Any:
        result = whole(self, *args)
        found.append(result is not None)
        return result

    monkeypatch.setattr(WrittenLoss, "__call__", noted)
    return found


@pytest.mark.parametrize("name", OPTIONS)
def test_trains_as_autograd_does(
    adata: Any, monkeypatch: pytest.MonkeyPatch, written: list[bool], name: str
) -> None:
    model, training = OPTIONS[name]
    ours = train(made(adata, **model), "lightning", epochs=2, **training)
    assert written
    assert all(written)
    monkeypatch.setattr(_plan.Plan, "_may_be_written", lambda _: False)
    plain = train(made(adata.copy(), **model), "lightning", epochs=2, **training)
    same_history(ours, plain)
    same_weights(ours, plain, atol=1e-5)


class Changes(pl.Callback):
    """Changes the module before its fifth minibatch."""

    def __init__(self, change: Any) -> None:
        self.change = change

    def on_train_batch_start(self, trainer: Any, plan: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 4:
            self.change(plan.module)


def _watch(module: Any) -> None:
    module.decoder.register_forward_hook(lambda *_: None)


def _freeze(module: Any) -> None:
    module.decoder.requires_grad_(False)


def _evaluate(module: Any) -> None:
    module.z_encoder.eval()


@pytest.mark.parametrize("change", [_watch, _freeze, _evaluate])
def test_a_change_within_an_epoch_is_noticed(adata: Any, written: list[bool], change: Any) -> None:
    train(made(adata), "lightning", epochs=1, callbacks=[Changes(change)])
    assert written[:4] == [True] * 4
    assert not any(written[4:])


@pytest.mark.parametrize(
    ("model", "training"),
    [
        pytest.param(MODELS["linear"], {}, id="linear"),
        pytest.param({}, {"precision": "bf16-mixed"}, id="bf16"),
        pytest.param({}, {"plan_kwargs": {"update_only_decoder": True}}, id="decoder"),
    ],
)
def test_what_is_left_to_autograd(
    adata: Any, written: list[bool], model: dict[str, Any], training: dict[str, Any]
) -> None:
    train(made(adata, **model), "lightning", epochs=1, **training)
    assert not any(written)


def minibatch(data: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    model = made(data, n_hidden=128)
    source = Source.of(model.adata_manager)
    return model.module.train(), source.minibatch(torch.arange(40).numpy())


def test_a_loss_is_differentiated_once(adata: Any) -> None:
    module, batch = minibatch(adata)
    written, weight = WrittenLoss(), torch.tensor(1.0)
    found = written(module, batch, weight)
    assert found is not None
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(found.loss, list(module.parameters())[:1], create_graph=True)
    found = written(module, batch, weight)
    assert found is not None
    found.loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        found.loss.backward()


def test_gradients_add_up_and_stay_when_they_are_kept(adata: Any) -> None:
    module, batch = minibatch(adata)
    written, weight = WrittenLoss(), torch.tensor(1.0)
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    parameter = module.decoder.px_scale_decoder[0].weight
    total = torch.zeros_like(parameter)
    for _ in range(4):
        found = written(module, batch, weight)
        assert found is not None
        (one,) = torch.autograd.grad(found.loss * 0.5, parameter)
        kept.append((one, one.clone()))
    for one, copy in kept:
        assert torch.equal(one, copy)
    for seed in range(3):
        torch.manual_seed(seed)
        found = written(module, batch, weight)
        assert found is not None
        (found.loss / 4).backward()
        assert parameter.grad is not None
        torch.manual_seed(seed)
        again = written(module, batch, weight)
        assert again is not None
        total += torch.autograd.grad(again.loss, parameter)[0] / 4
        torch.testing.assert_close(parameter.grad, total)


def test_nothing_is_written_where_no_gradient_is_wanted(adata: Any) -> None:
    module, batch = minibatch(adata)
    with torch.no_grad():
        assert WrittenLoss()(module, batch, torch.tensor(1.0)) is None
