"""Heads and likelihood in one operation, where nobody looks at the logits; the same otherwise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from fastvae.kernels.heads import driver
from small_models import batches_of, small_store
from tiny import G, N, build, forward
from torch import nn

from fastvae import VAE
from fastvae.train import TrainSettings, new_history, train_vae
from fastvae.train import run as training
from fastvae.vae import steps
from fastvae.vae.stock import plain_heads

CASES = [
    ("zinb", "gene"),
    ("zinb", "gene-cell"),
    ("nb", "gene-batch"),
    ("nb", "gene-label"),
    ("poisson", "gene"),
    ("poisson", "gene-cell"),
]


@pytest.fixture
def x() -> torch.Tensor:
    return torch.poisson(torch.rand(N, G) * 4)


def apart(patch: pytest.MonkeyPatch) -> None:
    """Decode first, then take the likelihood of the logits, as before there was one operation."""
    patch.setattr(steps, "plain_heads", lambda *_: False)


def _functions(node: Any) -> str:
    """Names of the functions that made a loss, one after the other."""
    if node is None:
        return ""
    return " ".join([node.name(), *(_functions(before) for before, _ in node.next_functions)])


@pytest.mark.parametrize(("likelihood", "dispersion"), CASES)
def test_one_operation_and_logits_agree(
    likelihood: str, dispersion: str, x: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "WORTH", 0)  # for the smallest of problems
    results = []
    for together in (True, False):
        vae = build(reconstruction_loss=likelihood, dispersion=dispersion).train()
        if not together:
            apart(monkeypatch)
        losses = forward(vae, x)
        assert ("HeadsNLL" in _functions(losses.grad_fn)) == together
        (losses * torch.linspace(-1, 2, 2 * N).view(2, N)).sum().backward()
        results.append((losses, {name: p.grad for name, p in vae.named_parameters()}))
    (losses, grads), (want_losses, want) = results
    torch.testing.assert_close(losses, want_losses, rtol=1e-5, atol=1e-4)
    for name, grad in want.items():
        if grad is None:
            assert grads[name] is None, name
        else:
            torch.testing.assert_close(grads[name], grad, rtol=1e-5, atol=1e-4, msg=name)


class OwnLinear(nn.Linear):
    """A layer of another class."""


def _hook(layer: nn.Linear) -> None:
    layer.register_forward_hook(lambda *_: None)


def _instance(layer: nn.Linear) -> None:
    layer.forward = layer.forward  # type: ignore[method-assign]


def _class(layer: nn.Linear) -> None:
    layer.__class__ = OwnLinear


def _weight_norm(layer: nn.Linear) -> None:
    torch.nn.utils.parametrizations.weight_norm(layer)


@pytest.mark.parametrize("change", [_hook, _instance, _class, _weight_norm])
@pytest.mark.parametrize("head", ["px_scale_decoder", "px_dropout_decoder", "px_r_decoder"])
def test_a_changed_head_is_asked_for_its_logits(head: str, change: Any) -> None:
    decoder = build(dispersion="gene-cell").decoder
    assert plain_heads(decoder, True, True)
    part: Any = getattr(decoder, head)
    change(part[0] if head == "px_scale_decoder" else part)
    assert not plain_heads(decoder, True, True)
    assert plain_heads(decoder, False, True) == (head == "px_dropout_decoder")
    assert plain_heads(decoder, True, False) == (head == "px_r_decoder")


def test_a_hook_on_a_head_is_heard_and_logits_that_were_replaced_are_used(x: torch.Tensor) -> None:
    vae, heard = build(), []
    vae.decoder.px_dropout_decoder.register_forward_hook(lambda *given: heard.append(given[2]))
    forward(vae, x)
    assert [tuple(t.shape) for t in heard] == [(N, G)]
    vae = build()
    expected = forward(vae, x)
    logits = vae.decoder.logits
    vae.decoder.logits = lambda *a, **k: (logits(*a, **k)[0] * 0, *logits(*a, **k)[1:])
    assert not torch.allclose(forward(vae, x), expected)


def _curve(patch: pytest.MonkeyPatch, together: bool, **options: Any) -> list[list[float]]:
    if not together:
        apart(patch)
        patch.setattr(training, "without_autograd", lambda *_: None)
    torch.manual_seed(0)
    store, history = small_store(200), new_history()
    module = VAE(30, n_batch=2, n_hidden=32, n_latent=5, **options)
    cells = np.arange(150), np.arange(150, 200)
    train_vae(
        module,
        batches_of(store, cells[0]),
        batches_of(store, cells[1], shuffle=False),
        TrainSettings(max_epochs=20, batch_size=32, n_epochs_kl_warmup=10),
        history,
        seed=1,
        n_train=150,
        n_validation=50,
        progress=False,
    )
    return [history["train_elbo"], history["validation_elbo"]]


@pytest.mark.parametrize(
    ("likelihood", "dispersion"), [("zinb", "gene"), ("nb", "gene-batch"), ("zinb", "gene-cell")]
)
def test_twenty_epochs_are_the_same(likelihood: str, dispersion: str) -> None:
    found = []
    for together in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            options = {"reconstruction_loss": likelihood, "dispersion": dispersion}
            found.append(_curve(patch, together, **options))
    np.testing.assert_allclose(*found, rtol=1e-4)
