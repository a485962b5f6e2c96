"""The step that a GPU replays as a CUDA graph, here launched piece by piece on the CPU."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import numpy as np
import pytest
import torch
from small_models import batches_of, small_data, small_store
from torch.utils._python_dispatch import TorchDispatchMode

from fastvae import VAE, _check, functional
from fastvae._vae import inputs
from fastvae.data import Minibatches
from fastvae.data.device import DeviceStore
from fastvae.train import TrainSettings, new_history, static, train_vae
from fastvae.train.group import Group
from fastvae.train.run import Run
from fastvae.train.schedules import epoch_seed, kl_weight_at
from fastvae.train.step import apply_gradients, compute_gradients

CPU = torch.device("cpu")
interpreted = pytest.mark.skipif(
    not importlib.util.find_spec("triton") or os.environ.get("TRITON_INTERPRET") != "1",
    reason="the kernels run in triton's interpreter",
)
STORE = DeviceStore.of(small_store(110), CPU)
SETTINGS = TrainSettings(
    max_epochs=3,
    batch_size=32,
    learning_rate=5e-3,
    max_grad_norm=20.0,
    n_epochs_kl_warmup=2,
)


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static, "DEVICES", {"cpu"})
    # On a GPU nobody looks at the numbers of a minibatch to check them.
    monkeypatch.setattr(inputs, "_readable", lambda *_: False)
    monkeypatch.setattr(_check, "index_range", lambda *_: None)


def vae(**options: Any) -> VAE:
    torch.manual_seed(0)
    options = {"n_batch": 2, "n_latent": 3, "n_hidden": 16, **options}
    return VAE(30, use_observed_lib_size=True, check_counts=False, **options)


def batches(store: Any = STORE) -> Minibatches:
    return Minibatches(store, batch_size=32, shuffle=True, seed=3)


def train(module: VAE, steps: list[Any] | None = None) -> dict[str, list[float]]:
    history = new_history()
    with pytest.MonkeyPatch.context() as patch:
        if steps is not None:
            whole = static.StaticStep.__call__

            def noted(self: Any, rows: torch.Tensor, sums: torch.Tensor) -> None:
                steps.append(rows)
                whole(self, rows, sums)

            patch.setattr(static.StaticStep, "__call__", noted)
        train_vae(module, batches(), None, SETTINGS, history, seed=1, n_train=110, progress=False)
    return {name: values for name, values in history.items() if "second" not in name}


def test_same_losses_as_the_plain_step_on_the_same_layout(as_on_a_gpu: None) -> None:
    """Bit for bit, beside a loop written out; the short last minibatch is a plain step."""
    module, steps = vae(), []
    history = train(module, steps)
    assert [len(rows) for rows in steps] == [32] * 9

    other = vae()
    optimizer = torch.optim.Adam(
        other.parameters(), lr=5e-3, eps=0.01, weight_decay=1e-6, fused=True
    )
    plain = batches()
    for epoch in range(3):
        other.train()
        plain.set_epoch(epoch)
        torch.manual_seed(epoch_seed(1, epoch))
        sums = torch.zeros(2, dtype=torch.float64)
        weight = torch.tensor(kl_weight_at(SETTINGS, epoch, 0))
        for batch in plain:
            if len(batch.cells) == 32:
                batch = batch._replace(x=batch.x.to_dense())
            compute_gradients(other, optimizer, batch, weight, sums)
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
            sums = torch.zeros(2, dtype=torch.float64)
            torch.manual_seed(5)
            for start in (0, 16):
                rows = cells[start : start + 16]
                if fixed:
                    memory = step._x.data_ptr()
                    step(torch.from_numpy(rows), sums)
                    assert step.gather().x.data_ptr() == memory
                else:
                    batch = batches().gather(rows)
                    batch = batch._replace(x=batch.x.to_dense())
                    compute_gradients(module, optimizer, batch, torch.ones(()), sums)
                    apply_gradients(module, optimizer, 20.0)
            found.append((sums, module.state_dict()))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-14, atol=0)
    for name, value in found[0][1].items():
        assert torch.equal(value, found[1][1][name]), name


def _step(run: dict[str, Any], size: int = 16) -> static.StaticStep:
    def gradients(batch: Any, sums: torch.Tensor) -> None:
        compute_gradients(run["module"], run["optimizer"], batch, run["weight"], sums)

    def apply() -> None:
        apply_gradients(run["module"], run["optimizer"], 20.0)

    return static.StaticStep(STORE, size, gradients, apply)


WAITS = {  # what makes the host wait for a GPU: a number read, or a size that depends on numbers
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "equal",
    "is_nonzero",
    "bincount",
    "unique_dim",
    "_unique2",
    "repeat_interleave",
    "_to_cpu",
}


class Watch(TorchDispatchMode):
    """Notes each operation with the shapes that it makes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = [out] if isinstance(out, torch.Tensor) else out
        shapes = [
            tuple(one.shape)
            for one in (made if isinstance(made, (list, tuple)) else [])
            if isinstance(one, torch.Tensor)
        ]
        masks = [
            one
            for one in (args[1] if func.overloadpacket.__name__ == "index" else [])
            if one is not None and one.dtype in (torch.bool, torch.uint8)
        ]
        name = "nonzero" if masks else func.overloadpacket.__name__
        self.seen.append((name, *shapes))
        return out


@interpreted
@pytest.mark.parametrize("loss", ["zinb", "nb", "poisson"])
@pytest.mark.parametrize("dispersion", ["gene", "gene-batch", "gene-cell"])
def test_step_never_waits_and_allocates_alike(
    as_on_a_gpu: None, monkeypatch: pytest.MonkeyPatch, loss: str, dispersion: str
) -> None:
    """All but the gather; the kernels, in triton's interpreter, and theirs have their own tests."""
    module = vae(reconstruction_loss=loss, dispersion=dispersion).train()
    optimizer = torch.optim.Adam(
        module.parameters(), lr=torch.tensor(1e-3), fused=True, capturable=True
    )
    step = _step({"optimizer": optimizer, "module": module, "weight": torch.ones(())})
    logs = []
    for start in (0, 16, 32):  # the first makes the optimiser's state
        step.rows.copy_(torch.arange(start, start + 16))
        batch = step.gather()
        with monkeypatch.context() as patch, functional.use_backend("triton"):
            patch.setattr(step, "gather", lambda batch=batch: batch)
            with Watch() as watch:
                step.step()
        logs.append(watch.seen)
    assert len(logs[1]) > 50
    assert not [entry for entry in logs[1] if entry[0] in WAITS]
    assert logs[1] == logs[2]


def test_watch_notices() -> None:
    with Watch() as watch:
        x = torch.arange(4.0)
        x[x > 1].sum().item()
    assert {"nonzero", "_local_scalar_dense"} <= {entry[0] for entry in watch.seen}


def test_reasons_to_stay_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    group = Group(CPU)
    assert static.why_not_static(batches(), group) == "training is on the CPU"
    monkeypatch.setattr(static, "DEVICES", {"cpu"})
    assert static.why_not_static(batches(), group) is None
    host = batches_of(small_store())
    assert static.why_not_static(host, group) == "the counts are not kept on the device"
    few = Minibatches(STORE, np.arange(20), batch_size=32, shuffle=True)
    assert "fewer cells" in (static.why_not_static(few, group) or "")
    group.size = 2
    assert static.why_not_static(batches(), group) == "several processes train together"
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
