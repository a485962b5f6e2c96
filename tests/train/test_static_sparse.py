"""The step of fixed memory with CSR counts, whose arrays are longer than their rows."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from small_models import small_store
from static_step import SETTINGS, WAITS, Watch, as_on_a_gpu, interpreted, vae
from torch import nn

from fastvae import VAE, functional
from fastvae.data import Minibatches
from fastvae.data.stores.device import DeviceStore
from fastvae.functional import dispatch
from fastvae.train import cuda_graph as static
from fastvae.train import new_history, train_vae
from fastvae.train.cuda_graph import capacity_of, csr_capacity
from fastvae.train.step import apply_gradients, compute_gradients, write_gradients
from fastvae.vae.gradients import StockGradients
from fastvae.vae.stock import sparse_first_layers

pytestmark = interpreted
__all__ = ["as_on_a_gpu"]

STORE = DeviceStore.of(small_store(70), torch.device("cpu"))


def batches(cells: np.ndarray | None = None, size: int = 32) -> Minibatches:
    return Minibatches(STORE, cells, batch_size=size, shuffle=True, seed=3)


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Before each gather its memory is filled with NaN and columns far outside; lengths so far."""
    filled: list[int] = []
    gather = static.StaticStep.gather

    def poison(step: Any) -> Any:
        step.memory.into.col.fill_(2**30)
        for values in (step.memory.into.values, step.memory.logs.log1p):
            values.fill_(torch.nan)
        batch = gather(step)
        filled.append(len(batch.x.values()) - int(batch.x.crow_indices()[-1]))
        return batch

    monkeypatch.setattr(static.StaticStep, "gather", poison)
    return filled


def train(module: VAE) -> dict[str, list[float]]:
    history, cells = new_history(), np.arange(30, 68)
    settings = dataclasses.replace(SETTINGS, max_epochs=2, batch_size=16)
    some = batches(cells, 16)
    with functional.use_backend("triton"):
        train_vae(module, some, None, settings, history, seed=1, n_train=38, progress=False)
    return {name: values for name, values in history.items() if "second" not in name}


@pytest.mark.parametrize(("from_nonzeros", "observed"), [(True, False), (False, True)])
def test_same_run_as_with_plain_steps(
    as_on_a_gpu: None,
    poisoned: list[int],
    monkeypatch: pytest.MonkeyPatch,
    from_nonzeros: bool,
    observed: bool,
) -> None:
    """Bit for bit, over whole epochs: the plain step has CSR counts without anything after them."""
    from fastvae.kernels.linear import gpu as linear

    monkeypatch.setattr(linear, "nonzeros_pay", lambda *_, **__: from_nonzeros)
    monkeypatch.setattr(static, "FORCED", "csr")
    found = []
    for devices in ({"cpu"}, set()):
        monkeypatch.setattr(static, "DEVICES", devices)
        module = vae(use_observed_lib_size=observed)
        found.append((train(module), module.state_dict()))
    assert len(poisoned) == 6  # three minibatches in each of two epochs
    assert min(poisoned) > 0
    assert found[0][0] == found[1][0]
    for name, value in found[0][1].items():
        assert torch.equal(value, found[1][1][name]), name


@pytest.mark.parametrize("loss", ["zinb", "nb", "poisson"])
@pytest.mark.parametrize(
    ("dispersion", "written"), [("gene-batch", True), ("gene-cell", True), ("gene-batch", False)]
)
def test_never_waits_and_allocates_alike(
    as_on_a_gpu: None, poisoned: list[int], loss: str, dispersion: str, written: bool
) -> None:
    """The gather too; what the kernels ask of torch while they run in the interpreter counts."""
    module = vae(reconstruction_loss=loss, dispersion=dispersion).train()
    optimizer = torch.optim.Adam(
        module.parameters(), lr=torch.tensor(1e-3), fused=True, capturable=True
    )
    weight = torch.ones(())

    with functional.use_backend("triton"):
        stock = StockGradients(module) if written else None

    def gradients(batch: Any, sums: torch.Tensor) -> None:
        if stock is not None:
            write_gradients(stock, batch, weight, sums)
        else:
            compute_gradients(module, optimizer, batch, weight, sums)

    def apply() -> None:
        apply_gradients(module, optimizer, 20.0)

    capacity = capacity_of(batches(size=16))
    memory = static.MinibatchMemory.empty(STORE, 19, capacity, True)  # of more rows than used
    sums = torch.zeros(2, dtype=torch.float64)
    step = static.StaticStep(STORE, 16, memory, sums, gradients, apply)
    logs, places = [], set()
    for start in (0, 16, 32):  # the first makes the optimiser's state
        step.rows.copy_(torch.arange(start, start + 16))
        with functional.use_backend("triton"):
            batch = step.gather()
            places.add((batch.x.values().data_ptr(), batch.x.crow_indices().data_ptr()))
            step.gather = lambda batch=batch: batch
            with Watch() as watch:
                step.step()
            del step.gather
        logs.append(watch.seen)
    assert len(places) == 1
    assert torch.isfinite(step.sums).all()
    assert len(logs[1]) > 20
    assert not [entry for entry in logs[1] if entry[0] in WAITS]
    assert logs[1] == logs[2]
    assert len({int(p) for p in poisoned}) > 1  # sizes that differ, of which nothing is noticed


def test_capacity_is_that_of_the_longest_cells() -> None:
    lengths = STORE.lengths()
    for cells in (np.arange(70), np.arange(40), np.arange(10)):
        longest = sorted(lengths[cells].tolist())[-32:]
        assert capacity_of(batches(cells)) == sum(longest)
    fullest = np.argsort(lengths)[-32:]
    assert capacity_of(batches()) == lengths[fullest].sum()


def test_layout_goes_by_bytes_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastvae.kernels.backends.triton import BACKEND as fused

    asked: list[tuple[Any, ...]] = []

    def verdict(*sizes: int, **kinds: Any) -> bool:
        asked.append((*sizes, kinds))
        return pays

    judged = dataclasses.replace(fused, csr_pays=verdict)
    monkeypatch.setitem(dispatch._imported, "triton", judged)
    capacity, given = capacity_of(batches()), (vae(), [batches()], "float32")
    kinds = {"encoders": 1, "tf32": False}
    with functional.use_backend("triton"):
        pays = True
        assert csr_capacity(*given) == capacity
        assert asked.pop() == (32, 30, 16, capacity, kinds)
        pays = False
        assert csr_capacity(*given) is None
        monkeypatch.setattr(static, "_free_bytes", lambda _: 24 * 32 * 30 - 1)
        assert csr_capacity(*given) == capacity
        monkeypatch.setattr(static, "_free_bytes", lambda _: 24 * 32 * 30)
        assert csr_capacity(*given) is None
        learned = vae(use_observed_lib_size=False)
        csr_capacity(learned, [batches()], "tf32")
        assert asked.pop()[-1] == {**kinds, "encoders": 2, "tf32": True}
    for backend in ("torch", "cpu"):
        with functional.use_backend(backend):
            assert csr_capacity(*given) is None


class OwnForward(VAE):
    def forward(self, x: torch.Tensor, *rest: Any) -> Any:
        return super().forward(x, *rest)


class OwnEncoderLayer(nn.Linear):
    pass


def test_nobody_else_is_given_arrays_longer_than_their_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(static, "FORCED", "csr")
    with functional.use_backend("triton"):
        assert csr_capacity(vae(), [batches()], "tf32") is not None
        replaced = OwnForward(30, use_observed_lib_size=True, check_counts=False)
        checks, hooked, layer, inner = vae(), vae(), vae(), vae()
        checks.check_counts = True
        hooked.register_forward_pre_hook(lambda *_: None)
        layer.z_encoder.encoder.fc_layers[0][0] = OwnEncoderLayer(30, 16)
        inner.z_encoder.encoder.fc_layers[0][0].register_forward_hook(lambda *_: None)
        for module in (replaced, checks, hooked, layer, inner, nn.Linear(3, 3)):
            assert csr_capacity(module, [batches()], "tf32") is None
    learned = vae(use_observed_lib_size=False)
    first = [e.encoder.fc_layers[0][0] for e in (learned.z_encoder, learned.l_encoder)]
    assert sparse_first_layers(learned) == first


def test_counted_bytes() -> None:
    """Beside the passes written out one by one, for the model's defaults."""
    from fastvae.kernels.linear.cost import csr_pays

    def told(n: int, genes: int, density: float, **kinds: Any) -> bool:
        return csr_pays(n, genes, 128, int(density * n * genes), **kinds)

    assert not told(128, 2000, 0.1)
    assert told(4096, 30000, 0.02)
    assert not told(4096, 30000, 0.05)  # the first layer would be laid out densely as well
    assert told(4096, 30000, 0.05, tf32=False)
    # one hidden unit: the layer is cheap from nonzeros, and bytes alone decide
    n, genes = 4096, 8000
    x, entry = 4 * n * genes, 8
    dense = x + x + x + x + x  # gather, logarithms, layer, its gradient, likelihood
    fixed = 2 * 2 * x  # the gradient of the layer and the likelihood, written and read
    per_entry = entry + 4 + 3 * entry  # gather, logarithms, and each that reads them
    limit = (dense - fixed) / per_entry
    assert csr_pays(n, genes, 1, int(limit) - 1)
    assert not csr_pays(n, genes, 1, int(limit) + 1)
