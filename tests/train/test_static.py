"""The step that a GPU replays as a CUDA graph, here launched piece by piece on the CPU."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from small_models import batches_of, small_data, small_store
from static_step import SETTINGS, WAITS, Watch, as_on_a_gpu, interpreted, vae

from fastvae import VAE, functional
from fastvae._torch import seeded
from fastvae.data import Minibatches
from fastvae.data.stores.device import DeviceStore
from fastvae.train import TrainSettings, new_history, train_vae
from fastvae.train import cuda_graph as static
from fastvae.train.processes import Group
from fastvae.train.run import Run
from fastvae.train.schedules import epoch_seed, kl_weight_at
from fastvae.train.step import apply_gradients, compute_gradients, write_gradients
from fastvae.vae.gradients import StockGradients

__all__ = ["as_on_a_gpu"]  # a fixture

CPU = torch.device("cpu")
STORE = DeviceStore.of(small_store(110), CPU)


def batches(store: Any = STORE) -> Minibatches:
    return Minibatches(store, batch_size=32, shuffle=True, seed=3)


def train(module: VAE, steps: list[Any] | None = None) -> dict[str, list[float]]:
    history = new_history()
    with pytest.MonkeyPatch.context() as patch:
        if steps is not None:
            whole = static.StaticStep.__call__

            def noted(self: Any, rows: torch.Tensor) -> None:
                steps.append(rows)
                whole(self, rows)

            patch.setattr(static.StaticStep, "__call__", noted)
        train_vae(module, batches(), None, SETTINGS, history, seed=1, n_train=110, progress=False)
    return {name: values for name, values in history.items() if "second" not in name}


def test_same_losses_as_the_plain_step_on_the_same_layout(as_on_a_gpu: None) -> None:
    """Bit for bit, beside a loop written out; the short last minibatch has a step of its own."""
    module, steps = vae(), []
    history = train(module, steps)
    assert [len(rows) for rows in steps] == [32, 32, 32, 14] * 3

    other = vae()
    optimizer = torch.optim.Adam(
        other.parameters(), lr=5e-3, eps=0.01, weight_decay=1e-6, fused=True
    )
    gradients, plain = StockGradients(other.train()), batches()
    for epoch in range(3):
        plain.set_epoch(epoch)
        torch.manual_seed(epoch_seed(1, epoch))
        sums = torch.zeros(2, dtype=torch.float64)
        weight = torch.tensor(kl_weight_at(SETTINGS, epoch, 0))
        for batch in plain:
            batch = batch._replace(x=batch.x.to_dense(), logs=None)
            write_gradients(gradients, batch, weight, sums)
            apply_gradients(other, optimizer, 20.0)
        found = history["train_reconstruction_loss"][epoch], history["train_kl_local"][epoch]
        np.testing.assert_allclose(found, (sums / 110).tolist(), rtol=1e-14)
    for name, value in module.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_same_losses_as_the_plain_run(as_on_a_gpu: None) -> None:
    """To rounding: one sums dense rows, the other the nonzeros of sparse ones."""
    found = train(vae())
    static.DEVICES.clear()
    steps: list[Any] = []
    plain = train(vae(), steps)
    assert not steps
    for name, values in plain.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4, err_msg=name)


@interpreted
def test_kernels_fill_the_same_memory(as_on_a_gpu: None) -> None:
    """Bit for bit: Triton's gather beside a dense minibatch made anew."""
    cells = np.random.default_rng(0).permutation(110)
    found = []
    with functional.use_backend("triton"):
        for fixed in (True, False):
            module = vae().train()
            optimizer = torch.optim.Adam(module.parameters(), lr=0.01, fused=True)
            step = _step({"optimizer": optimizer, "module": module, "weight": torch.ones(())})
            sums = step.sums
            torch.manual_seed(5)
            for start in (0, 16):
                rows = cells[start : start + 16]
                if fixed:
                    memory = step.memory.into.x.data_ptr()
                    step(torch.from_numpy(rows))
                    assert step.gather().x.data_ptr() == memory
                else:
                    fresh = static.MinibatchMemory.empty(STORE, 16, None, True)
                    batch = STORE.minibatch_into(torch.from_numpy(rows), *fresh)
                    compute_gradients(module, optimizer, batch, torch.ones(()), sums)
                    apply_gradients(module, optimizer, 20.0)
            found.append((sums, module.state_dict()))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-14, atol=0)
    for name, value in found[0][1].items():
        assert torch.equal(value, found[1][1][name]), name


def _step(run: dict[str, Any], size: int = 16) -> static.StaticStep:
    def gradients(batch: Any, sums: torch.Tensor) -> None:
        if "stock" in run:
            write_gradients(run["stock"], batch, run["weight"], sums)
        else:
            compute_gradients(run["module"], run["optimizer"], batch, run["weight"], sums)

    def apply() -> None:
        apply_gradients(run["module"], run["optimizer"], 20.0)

    memory = static.MinibatchMemory.empty(STORE, size + 3, None, True)  # more than is used
    sums = torch.zeros(2, dtype=torch.float64)
    return static.StaticStep(STORE, size, memory, sums, gradients, apply)


LAUNCH_NOTHING = {
    *("empty", "empty_like", "new_empty", "view", "reshape", "alias", "t", "slice", "select"),
    *("detach", "unbind", "split", "promote_types"),
    *("_record_function_enter_new", "_record_function_exit"),
}


@interpreted
@pytest.mark.parametrize(
    ("products", "number"),
    [(None, 43), (torch.bfloat16, 53 + 6)],  # a CPU sums columns of bfloat16 in more pieces
    ids=["float32", "bf16"],
)
def test_number_of_graph_nodes(
    as_on_a_gpu: None,
    monkeypatch: pytest.MonkeyPatch,
    products: torch.dtype | None,
    number: int,
) -> None:
    """Operations of torch, and kernels, which do not run here; `gpu_model` has the numbers."""
    from triton.runtime.interpreter import InterpretedFunction

    nodes: list[str] = []
    monkeypatch.setattr(
        InterpretedFunction, "run", lambda self, *_, **__: nodes.append(self.fn.__name__)
    )
    module = vae().train()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01, fused=True)
    with functional.use_backend("triton"):
        stock, weight = StockGradients(module, products), torch.ones(())
        step = _step({"stock": stock, "module": module, "optimizer": optimizer, "weight": weight})
        step.step()  # makes what later ones use again
        nodes.clear()
        with Watch() as watch:
            write_gradients(stock, step.gather(), weight, step.sums)
            apply_gradients(module, optimizer, None)
    nodes += [seen[0] for seen in watch.seen if seen[0] not in LAUNCH_NOTHING]
    assert len(nodes) == number, nodes


@interpreted
@pytest.mark.parametrize("loss", ["zinb", "nb", "poisson"])
@pytest.mark.parametrize("dispersion", ["gene", "gene-batch", "gene-cell"])
@pytest.mark.parametrize("written", [True, False], ids=["stock", "autograd"])
def test_step_never_waits_and_allocates_alike(
    as_on_a_gpu: None, monkeypatch: pytest.MonkeyPatch, loss: str, dispersion: str, written: bool
) -> None:
    """All but the gather; the kernels, in triton's interpreter, and theirs have their own tests."""
    module = vae(reconstruction_loss=loss, dispersion=dispersion).train()
    optimizer = torch.optim.Adam(
        module.parameters(), lr=torch.tensor(1e-3), fused=True, capturable=True
    )
    run = {"optimizer": optimizer, "module": module, "weight": torch.ones(())}
    if written:
        with functional.use_backend("triton"):
            run["stock"] = StockGradients(module)
    step = _step(run)
    logs = []
    for start in (0, 16, 32):  # the first makes the optimiser's state
        step.rows.copy_(torch.arange(start, start + 16))
        batch = step.gather()
        with monkeypatch.context() as patch, functional.use_backend("triton"):
            patch.setattr(step, "gather", lambda batch=batch: batch)
            with Watch() as watch:
                step.step()
        logs.append(watch.seen)
    assert len(logs[1]) > 20
    assert not [entry for entry in logs[1] if entry[0] in WAITS]
    assert logs[1] == logs[2]


def test_watch_notices() -> None:
    with Watch() as watch:
        x = torch.arange(4.0)
        x[x > 1].sum().item()
    assert {"nonzero", "_local_scalar_dense"} <= {entry[0] for entry in watch.seen}


def test_reasons_to_stay_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    group = Group(CPU)

    def why(some: Minibatches, **options: Any) -> str | None:
        return static.why_not_static(some, group, dataclasses.replace(SETTINGS, **options))

    assert why(batches()) == "training is on the CPU"
    monkeypatch.setattr(static, "DEVICES", {"cpu"})
    assert why(batches()) is None
    assert why(batches_of(small_store())) == "the counts are not kept on the device"
    few = Minibatches(STORE, np.arange(20), batch_size=32, shuffle=True)
    assert "fewer cells" in (why(few) or "")
    group.size = 2
    assert "several processes train together" in (why(batches()) or "")
    assert why(batches(), cuda_graph=True) is None
    synced = why(batches(), cuda_graph=True, sync_batch_norm=True)
    assert synced == "several processes normalise together"
    off = TrainSettings(max_epochs=1, batch_size=32, learning_rate=1e-3, cuda_graph=False)
    run = Run(vae(), batches(), off, new_history(), 0, 0, 110, None)
    assert run.prepare() == "cuda_graph is off"


def test_model_resumes_with_it(as_on_a_gpu: None, tmp_path: Any) -> None:
    from fastvae import Model

    def fit(epochs: int, **options: Any) -> Model:
        model = Model(small_data(), n_latent=3, n_hidden=16)
        fixed = {"seed": 0, "device": "cpu", "residence": "device", "progress": False}
        return model.fit(epochs, 16, **fixed, **options)

    whole = fit(4)
    fit(2, checkpoint_dir=tmp_path)
    resumed = fit(4, checkpoint_dir=tmp_path, resume=True)
    assert whole.training["residence"] == "device"
    for name, value in whole.module.state_dict().items():
        assert torch.equal(value, resumed.module.state_dict()[name]), name


def test_validation_has_steps_of_its_own(as_on_a_gpu: None) -> None:
    """In evaluation mode, without gradients, with the noise of the plain way; to rounding."""
    cells, held_out = np.arange(90), np.arange(90, 110)
    seen: list[tuple[int, bool, bool]] = []
    whole = static.StaticStep.__call__

    def noted(self: Any, rows: torch.Tensor) -> None:
        seen.append((len(rows), torch.is_grad_enabled(), module.training))
        whole(self, rows)

    histories = []
    for devices in ({"cpu"}, set()):
        module = vae()
        given = (
            Minibatches(STORE, cells, batch_size=32, shuffle=True, seed=3),
            Minibatches(STORE, held_out, batch_size=16),
        )
        history = new_history()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(static, "DEVICES", devices)
            patch.setattr(static.StaticStep, "__call__", noted)
            train_vae(
                module, *given, SETTINGS, history,
                seed=1, n_train=90, n_validation=20, progress=False,
            )  # fmt: skip
        histories.append({k: v for k, v in history.items() if "second" not in k})
    training = [(32, True, True), (32, True, True), (26, True, True)]
    assert seen == [*training, (16, False, False), (4, False, False)] * 3
    for name, values in histories[0].items():
        np.testing.assert_allclose(values, histories[1][name], rtol=1e-4, err_msg=name)


def test_the_order_of_the_next_epoch_is_made_before_the_host_waits(
    as_on_a_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once each, and none after the last epoch; validation cells have one order."""
    told: list[Any] = []
    order, call, finite = Minibatches.order, static.StaticStep.__call__, Run._finite

    def noted_order(self: Minibatches, epoch: int) -> np.ndarray:
        told.append(("order", self.shuffle, epoch))
        return order(self, epoch)

    def noted_call(self: static.StaticStep, rows: torch.Tensor) -> None:
        told.append("step" if torch.is_grad_enabled() else "evaluation")
        call(self, rows)

    def noted_wait(self: Run) -> bool:
        told.append("wait")
        return finite(self)

    monkeypatch.setattr(Minibatches, "order", noted_order)
    monkeypatch.setattr(static.StaticStep, "__call__", noted_call)
    monkeypatch.setattr(Run, "_finite", noted_wait)
    given = (
        Minibatches(STORE, np.arange(64), batch_size=32, shuffle=True, seed=3),
        Minibatches(STORE, np.arange(64, 96), batch_size=32),
    )
    train_vae(
        vae(), *given, SETTINGS, new_history(), seed=1, n_train=64, n_validation=32, progress=False
    )
    assert told == [
        ("order", True, 0), "step", "step", ("order", True, 1), "wait",
        ("order", False, 0), "evaluation",
        "step", "step", ("order", True, 2), "wait", "evaluation",
        "step", "step", "wait", "evaluation",
    ]  # fmt: skip


def test_seeding_asks_no_other_device(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(7)
    want, module = torch.rand(5), vae()

    def asked(seed: int) -> None:
        raise AssertionError(seed)

    monkeypatch.setattr(torch.xpu, "manual_seed_all", asked)
    with seeded(CPU, 7):
        assert torch.equal(torch.rand(5), want)
    train_vae(module, batches(), None, SETTINGS, new_history(), seed=1, n_train=110, progress=False)
