"""Non-finite numbers: found where they begin, named, and undone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from small_models import PoisonedGradient, Toy, batches_of, small_store
from torch import Tensor

from fastvae.train import NonFiniteError, TrainSettings, new_history, train_vae
from fastvae.train.guard import first_non_finite

STORE = small_store()
TOTALS = np.asarray(STORE.counts.sum(1)).ravel()
BAD_CELL = int(TOTALS.argmax())  # known by its total, which is all that a network sees of it


def fit(module: torch.nn.Module, **settings: Any) -> dict[str, list[float]]:
    history = new_history()
    train_vae(
        module,
        batches_of(STORE),
        batches_of(STORE, shuffle=False),
        TrainSettings(**{"max_epochs": 3, "batch_size": 32, **settings}),
        history,
        seed=0,
        n_train=120,
        n_validation=120,
        progress=False,
    )
    return history


def steps_before_bad_cell(epoch: int) -> int:
    batches = batches_of(STORE)
    batches.set_epoch(epoch)
    return next(i for i, batch in enumerate(batches) if BAD_CELL in batch.cells)


def is_bad(x: Tensor) -> Tensor:
    return x.to_dense().sum(1) == float(TOTALS[BAD_CELL])


class NanLoss(Toy):
    """The loss of one cell is NaN from the second epoch (the fifth step) on."""

    part = 0

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor, *_: Any) -> tuple[Tensor, Tensor, float]:
        terms = list(super().forward(x)[:2])
        if self.training:
            self.steps += 1
            if self.steps > 4:
                terms[self.part] = terms[self.part].masked_fill(is_bad(x), torch.nan)
        return terms[0], terms[1], 0.0


class NanKl(NanLoss):
    part = 1


class NanGradient(NanLoss):
    def forward(self, x: Tensor, *_: Any) -> tuple[Tensor, Tensor, float]:
        reconstruction, kl, _ = Toy.forward(self, x)
        if self.training:
            self.steps += 1
            if self.steps > 4:
                reconstruction = PoisonedGradient.apply(reconstruction, is_bad(x))
        return reconstruction, kl, 0.0


def test_one_cell_only_is_bad() -> None:
    assert (TOTALS[BAD_CELL] == TOTALS).sum() == 1


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (NanLoss, r"the reconstruction loss \(nan\)"),
        (NanKl, r"the KL divergence \(nan\)"),
        (NanGradient, "the gradient of weight"),
    ],
)
@pytest.mark.parametrize("clip", [None, 5.0])
def test_first_failure_is_named_and_undone(kind: type[Toy], what: str, clip: float | None) -> None:
    torch.manual_seed(0)
    module = kind()
    step = steps_before_bad_cell(1)
    message = rf"training stopped in epoch 2, step {step + 1}: {what} is not finite.*it was 0\.001"
    with pytest.raises(NonFiniteError, match=message) as caught:
        fit(module, max_grad_norm=clip)
    assert caught.value.steps == 4 + step

    reference = Toy()
    optimizer = torch.optim.Adam(
        reference.parameters(), lr=1e-3, eps=0.01, weight_decay=1e-6, fused=True
    )
    batches = batches_of(STORE)
    todo = []
    for epoch in range(2):
        batches.set_epoch(epoch)
        todo += [(epoch, batch) for batch in batches]
    for epoch, batch in todo[: 4 + step]:
        optimizer.zero_grad()
        reconstruction, kl, _ = reference(batch.x)
        (reconstruction + epoch / 400 * kl).mean().backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(reference.parameters(), clip)
        optimizer.step()
    torch.testing.assert_close(module.weight, reference.weight, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(module.norm.running_mean, reference.norm.running_mean)
    assert not module.training


class Flat(Toy):
    """The loss stays finite while the weight runs away."""

    def forward(self, x: Tensor, *_: Any) -> tuple[Tensor, Tensor, float]:
        steady = (self.weight * 1e-18).sum().expand(x.shape[0])
        return steady, torch.zeros(x.shape[0]), 0.0


def test_weight_that_overflows_is_named() -> None:
    module = Flat()
    before = module.weight.detach().clone()
    with pytest.raises(NonFiniteError, match=r"epoch 3, step 3: weight after the optimiser's"):
        fit(module, learning_rate=3.3e37, eps=1e-38, weight_decay=0)
    assert torch.isfinite(module.weight).all()
    assert not torch.equal(module.weight, before)


class NanInEval(Toy):
    def forward(self, x: Tensor, *_: Any) -> tuple[Tensor, Tensor, float]:
        reconstruction, kl, _ = super().forward(x)
        return (reconstruction if self.training else reconstruction * torch.nan), kl, 0.0


def test_validation_loss_is_watched_too() -> None:
    module = NanInEval()
    before = module.weight.detach().clone()
    message = "in epoch 1: the validation loss is not finite"
    with pytest.raises(NonFiniteError, match=message) as caught:
        fit(module)
    assert caught.value.steps == 0
    assert torch.equal(module.weight, before)


def fit_without_validation(module: torch.nn.Module) -> None:
    train_vae(
        module,
        batches_of(STORE, size=16),
        None,
        TrainSettings(max_epochs=1, batch_size=16),
        new_history(),
        seed=0,
        n_train=120,
        progress=False,
    )


class OnceOnly(Toy):
    """Fails in its sixth call and never again, as no deterministic network does."""

    calls = 0

    def forward(self, x: Tensor, *_: Any) -> tuple[Tensor, Tensor, float]:
        self.calls += 1
        reconstruction, kl, _ = super().forward(x)
        return reconstruction * (torch.nan if self.calls == 6 else 1.0), kl, 0.0


def test_failure_that_does_not_come_back_costs_the_epoch() -> None:
    module = OnceOnly()
    with pytest.raises(NonFiniteError, match=r"in epoch 1: the loss is not finite.*that epoch"):
        fit_without_validation(module)
    assert torch.equal(module.weight, torch.linspace(0.1, 1.0, 30))


def test_first_non_finite_skips_integers_and_empty_tensors() -> None:
    tensors = {
        "count": torch.tensor([1, 2]),
        "empty": torch.zeros(3, 0),
        "fine": torch.tensor([1.0]),
        "bad": torch.tensor([0.0, torch.inf]),
        "worse": torch.tensor([torch.nan]),
    }
    assert first_non_finite(tensors.items()) == "bad"
    del tensors["bad"], tensors["worse"]
    assert first_non_finite(tensors.items()) is None
    assert first_non_finite([]) is None


@pytest.mark.parametrize("dense", [False, True])
def test_count_that_is_not_finite_is_named(dense: bool) -> None:
    store = small_store()
    entry = 200
    store.counts.data[entry] = np.nan  # behind the back of the reader's checks
    cell = int(np.searchsorted(store.counts.indptr, entry, side="right")) - 1
    gene = int(store.counts.indices[entry])
    batches = batches_of(store)
    if dense:
        gather = type(batches).__iter__

        class Dense(type(batches)):  # type: ignore[misc]
            def __iter__(self) -> Any:
                return (batch._replace(x=batch.x.to_dense()) for batch in gather(self))

        batches.__class__ = Dense
    settings = TrainSettings(max_epochs=1, batch_size=32)
    message = rf"the count of cell {cell} and gene {gene} \(rows and columns from 0\) is not finite"
    with pytest.raises(NonFiniteError, match=message) as caught:
        train_vae(
            Toy(), batches, None, settings, new_history(), seed=0, n_train=120, progress=False
        )
    assert "Correct that number in the data, or drop the cell" in str(caught.value)
    assert "learning_rate" not in str(caught.value)


def test_count_of_a_validation_cell_that_is_not_finite_is_named() -> None:
    spoilt = small_store()
    spoilt.counts.data[200] = np.nan
    gene = int(spoilt.counts.indices[200])
    message = rf"epoch 1: the count of cell \d+ and gene {gene} .*Correct that number in the data"
    with pytest.raises(NonFiniteError, match=message) as caught:
        train_vae(
            Toy(),
            batches_of(STORE),
            batches_of(spoilt, shuffle=False),
            TrainSettings(max_epochs=1, batch_size=32),
            new_history(),
            seed=0,
            n_train=120,
            n_validation=120,
            progress=False,
        )
    assert "learning_rate" not in str(caught.value)


def test_library_prior_that_is_not_finite_is_named() -> None:
    store = small_store()
    store.log_library_var[1] = np.inf
    first = next(iter(batches_of(store)))
    cell = first.cells[int(first.batch_index.ravel().argmax())]

    class Prior(Toy):
        def forward(self, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, float]:
            reconstruction, kl, _ = super().forward(x)
            return reconstruction + rest[1].ravel(), kl, 0.0

    settings = TrainSettings(max_epochs=1, batch_size=32)
    with pytest.raises(NonFiniteError, match=f"step 1: local_l_var of cell {cell} "):
        train_vae(
            Prior(),
            batches_of(store),
            None,
            settings,
            new_history(),
            seed=0,
            n_train=120,
            progress=False,
        )
