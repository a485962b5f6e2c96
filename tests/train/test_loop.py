"""The loop: repeatable, the same as a loop written out by hand, and clean at its ends."""

from __future__ import annotations

import math
import os
import signal
from typing import Any

import numpy as np
import pytest
import torch
from small_models import Toy, batches_of, small_store

from fastvae import VAE
from fastvae.errors import InputError
from fastvae.train import TrainSettings, new_history, train_vae
from fastvae.train.schedules import epoch_seed
from fastvae.train.step import apply_gradients
from fastvae.train.stopping import EarlyStopping, interruptible

STORE = small_store()
TRAIN, VALIDATION = np.arange(0, 100), np.arange(100, 120)


def run(
    module: torch.nn.Module,
    seed: int = 1,
    *,
    validate: bool = True,
    history: dict[str, list[float]] | None = None,
    completed_steps: int = 0,
    train: np.ndarray = TRAIN,
    validate_every: int = 1,
    **settings: Any,
) -> tuple[Any, dict[str, list[float]]]:
    history = new_history() if history is None else history
    validation = batches_of(STORE, VALIDATION, shuffle=False) if validate else None
    result = train_vae(
        module,
        batches_of(STORE, train),
        validation,
        TrainSettings(batch_size=32, **settings),
        history,
        seed=seed,
        n_train=len(train),
        n_validation=len(VALIDATION),
        completed_steps=completed_steps,
        progress=False,
        validate_every=validate_every,
    )
    return result, history


def vae(**options: Any) -> VAE:
    torch.manual_seed(0)
    return VAE(30, n_batch=2, n_latent=3, n_hidden=16, use_observed_lib_size=True, **options)


def losses(history: dict[str, list[float]]) -> dict[str, list[float]]:
    return {name: values for name, values in history.items() if "second" not in name}


def test_same_seed_same_losses_other_seed_others() -> None:
    found = [losses(run(vae(), seed, max_epochs=3)[1]) for seed in (1, 1, 2)]
    assert found[0] == found[1]
    assert found[0]["train_loss"] != found[2]["train_loss"]


def test_random_numbers_outside_are_left_alone() -> None:
    module = vae()
    before = torch.get_rng_state()
    run(module, max_epochs=1)
    assert torch.equal(before, torch.get_rng_state())


def test_equals_a_loop_written_out() -> None:
    module = vae()
    _, history = run(module, 1, max_epochs=3, n_epochs_kl_warmup=2)

    other = vae()
    optimizer = torch.optim.Adam(other.parameters(), lr=1e-3, eps=0.01, weight_decay=1e-6)
    batches = batches_of(STORE, TRAIN)
    for epoch, weight in enumerate([0.0, 0.5, 1.0]):
        other.train()
        batches.set_epoch(epoch)
        torch.manual_seed(epoch_seed(1, epoch))
        total, reconstruction_sum = 0.0, 0.0
        for batch in batches:
            optimizer.zero_grad()
            reconstruction, kl, _ = other(
                batch.x, batch.local_l_mean, batch.local_l_var, batch.batch_index
            )
            loss = torch.mean(reconstruction + weight * kl)
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch.cells)
            reconstruction_sum += reconstruction.sum().item()
        assert history["kl_weight"][epoch] == weight
        assert history["train_loss"][epoch] == pytest.approx(total / 100, rel=1e-5)
        assert history["train_reconstruction_loss"][epoch] == pytest.approx(
            reconstruction_sum / 100, rel=1e-5
        )
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], rtol=1e-4, atol=1e-6)


def test_columns_agree_with_each_other() -> None:
    _, history = run(vae(), max_epochs=4, n_epochs_kl_warmup=3)
    columns = {name: np.array(values) for name, values in history.items()}
    for cells in ("train", "validation"):
        reconstruction = columns[f"{cells}_reconstruction_loss"]
        kl = columns[f"{cells}_kl_local"]
        np.testing.assert_allclose(columns[f"{cells}_elbo"], reconstruction + kl)
        np.testing.assert_allclose(
            columns[f"{cells}_loss"], reconstruction + columns["kl_weight"] * kl
        )
    np.testing.assert_array_equal(columns["epoch"], [1, 2, 3, 4])
    np.testing.assert_allclose(columns["kl_weight"], [0, 1 / 3, 2 / 3, 1])
    np.testing.assert_array_equal(columns["learning_rate"], [1e-3] * 4)
    assert columns["cells_per_second"] * columns["seconds"] == pytest.approx(100)


def test_loss_goes_down() -> None:
    _, history = run(vae(), max_epochs=30, learning_rate=5e-3)
    assert history["train_elbo"][-1] < 0.9 * history["train_elbo"][0]
    assert history["validation_elbo"][-1] < 0.95 * history["validation_elbo"][0]


def test_validation_does_not_disturb_training() -> None:
    with_it, without = (run(vae(), max_epochs=2, validate=flag)[1] for flag in (True, False))
    assert with_it["train_loss"] == without["train_loss"]
    assert all(math.isnan(value) for value in without["validation_elbo"])


def test_validation_after_every_second_epoch() -> None:
    every, history = (run(vae(), max_epochs=4, validate_every=n)[1] for n in (1, 2))
    assert history["train_loss"] == every["train_loss"]
    assert np.isnan(history["validation_elbo"]).tolist() == [True, False] * 2
    assert history["validation_elbo"][1::2] == every["validation_elbo"][1::2]
    module = vae()
    run(module, max_epochs=3, validate_every=2, history=(more := new_history()))
    run(module, max_epochs=2, validate_every=2, history=more)
    assert np.isnan(more["validation_elbo"]).tolist() == [True, False, True, True, False]
    for option in ("early_stopping", "reduce_lr_on_plateau"):
        with pytest.raises(InputError, match="validate_every=2"):
            run(vae(), max_epochs=1, validate_every=2, **{option: True})


def test_history_and_warmup_go_on_in_a_second_run() -> None:
    module = vae()
    first, history = run(module, max_epochs=2, n_steps_kl_warmup=16)
    second, _ = run(
        module, max_epochs=2, n_steps_kl_warmup=16, history=history, completed_steps=first.steps
    )
    assert (first.steps, second.steps, second.epochs) == (8, 8, 2)
    assert history["epoch"] == [1, 2, 3, 4]
    # The weight of the last of four minibatches in each epoch.
    assert history["kl_weight"] == [3 / 16, 7 / 16, 11 / 16, 15 / 16]


def test_last_minibatch_of_one_cell_is_never_alone() -> None:
    sizes: list[int] = []
    module = vae()
    module.z_encoder.register_forward_hook(lambda *call: None)  # takes the unfused way as well
    module.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[0]))
    _, history = run(module, max_epochs=1, validate=False, train=np.arange(65))
    assert sorted(sizes) == [32, 33]
    assert math.isfinite(history["train_loss"][0])


def test_early_stopping_waits_for_its_patience() -> None:
    stopper, module = EarlyStopping(patience=2, min_delta=0.5), Toy()
    weights, stops = [], []
    for epoch, value in enumerate([5.0, 4.0, 3.7, 3.4, 3.6, 3.5, 3.4], start=1):
        with torch.no_grad():
            module.weight.fill_(epoch)
        weights.append(epoch)
        stops.append(stopper.update(module, epoch, value))
    # 3.7 improves on 4.0 by less than min_delta; 3.4 by more.
    assert stops == [False, False, False, False, False, True, True]
    assert (stopper.best_epoch, stopper.best) == (4, 3.4)
    stopper.restore(module)
    assert torch.equal(module.weight, torch.full((30,), 4.0))


def test_early_stopping_restores_the_best_weights() -> None:
    module = vae()
    states: list[dict[str, torch.Tensor]] = []

    class Spy(EarlyStopping):
        def update(self, module: torch.nn.Module, epoch: int, value: float) -> bool:
            states.append({name: v.clone() for name, v in module.state_dict().items()})
            return super().update(module, epoch, value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastvae.train.run.EarlyStopping", Spy)
        result, history = run(
            module, max_epochs=60, early_stopping=True, early_stopping_patience=3, learning_rate=0.1
        )
    validation = history["validation_elbo"]
    assert result.ending == "early stopping"
    assert result.best_epoch == int(np.argmin(validation)) + 1
    assert len(validation) == result.best_epoch + 3
    for name, value in module.state_dict().items():
        assert torch.equal(value, states[result.best_epoch - 1][name])
    assert any(
        not torch.equal(value, states[-1][name]) for name, value in module.state_dict().items()
    )


def test_early_stopping_needs_validation() -> None:
    with pytest.raises(InputError, match="early_stopping needs validation cells"):
        run(vae(), max_epochs=1, validate=False, early_stopping=True)


def test_clipping_bounds_the_whole_gradient() -> None:
    module = Toy()
    before = [p.detach().clone() for p in module.parameters()]
    gradients = [torch.randn_like(p) * 100 for p in module.parameters()]
    for parameter, gradient in zip(module.parameters(), gradients, strict=True):
        parameter.grad = gradient.clone()
    apply_gradients(module, torch.optim.SGD(module.parameters(), lr=1.0), 0.25)
    norm = torch.sqrt(sum((g**2).sum() for g in gradients))
    for parameter, old, gradient in zip(module.parameters(), before, gradients, strict=True):
        torch.testing.assert_close(old - parameter, gradient * 0.25 / norm, rtol=1e-4, atol=1e-6)


class Interrupting(Toy):
    """Presses Ctrl-C in the given forward pass."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.calls, self.at = 0, at

    def forward(self, x: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor, float]:
        self.calls += 1
        if self.calls == self.at:
            os.kill(os.getpid(), signal.SIGINT)
        return super().forward(x, *rest)


def test_interrupt_keeps_whole_steps() -> None:
    before = signal.getsignal(signal.SIGINT)
    module = Interrupting(at=6)
    result, history = run(module, max_epochs=5, validate=False)
    assert (result.ending, result.epochs, result.steps) == ("interrupted", 1, 6)
    assert history["epoch"] == [1]
    assert signal.getsignal(signal.SIGINT) is before

    reference = Toy()
    optimizer = torch.optim.Adam(
        reference.parameters(), lr=1e-3, eps=0.01, weight_decay=1e-6, fused=True
    )
    batches = batches_of(STORE, TRAIN)
    for step in range(6):
        batches.set_epoch(step // 4)
        batch = list(batches)[step % 4]
        optimizer.zero_grad()
        reconstruction, kl, _ = reference(batch.x)
        (reconstruction + (step // 4) / 400 * kl).mean().backward()
        optimizer.step()
    torch.testing.assert_close(module.weight, reference.weight, rtol=1e-6, atol=0)


def test_second_interrupt_is_not_swallowed() -> None:
    def press_twice() -> None:
        with interruptible() as interrupt:
            os.kill(os.getpid(), signal.SIGINT)
            assert interrupt.pressed
            os.kill(os.getpid(), signal.SIGINT)

    # In the background of a shell, tests are started with the signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            press_twice()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_interrupt_with_early_stopping_has_the_best_weights() -> None:
    module = Interrupting(at=13)  # five passes per epoch, the last of them validation
    result, history = run(module, max_epochs=5, early_stopping=True)
    assert result.ending == "interrupted"
    assert result.best_epoch == int(np.argmin(history["validation_elbo"])) + 1 == 2
