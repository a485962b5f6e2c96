"""Batch size and learning rate by rule, plateaus, precision, callbacks, TensorBoard."""

from __future__ import annotations

import math
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import batches_of, small_data, small_store
from torch import nn

from fastvae import VAE, InputError, Model
from fastvae.functional import likelihood as operations
from fastvae.functional import use_backend
from fastvae.train import Callback, TensorBoard, TrainSettings
from fastvae.train.schedules import Plateau, auto_batch_size, resolved
from fastvae.train.step import compute_gradients, matrix_precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
FIT: dict[str, Any] = {"seed": 0, "device": "cpu", "progress": False}


def fit(max_epochs: int = 2, **options: Any) -> Model:
    model = Model(small_data(), batch_key="batch", n_latent=3, n_hidden=16)
    return model.fit(max_epochs, **{**FIT, "batch_size": 16, **options})


@pytest.mark.parametrize(
    ("n_train", "size"),
    [(10, 128), (8192, 128), (16_383, 128), (16_384, 256), (10**5, 1024), (10**6, 4096)],
)
def test_batch_size_leaves_a_gpu_steps_enough(n_train: int, size: int) -> None:
    assert auto_batch_size(n_train, CUDA) == size
    assert auto_batch_size(n_train, CPU) == 128


@pytest.mark.parametrize(
    ("batch_size", "learning_rate", "device", "expected"),
    [
        (128, None, CPU, (128, 1e-3)),
        (512, None, CPU, (512, 1e-3)),
        (512, "auto", CPU, (512, 2e-3)),
        ("auto", None, CUDA, (2048, 4e-3)),
        ("auto", "auto", CUDA, (2048, 4e-3)),
        ("auto", 0.5, CUDA, (2048, 0.5)),
        ("auto", None, CPU, (128, 1e-3)),
    ],
)
def test_learning_rate_rule(
    batch_size: Any, learning_rate: Any, device: torch.device, expected: tuple[int, float]
) -> None:
    settings = TrainSettings(batch_size=batch_size, learning_rate=learning_rate)
    found = resolved(settings, 200_000, 180_000, device)
    assert (found.batch_size, found.learning_rate) == (expected[0], pytest.approx(expected[1]))
    assert found.max_epochs == 40
    assert resolved(found, 1, 1, CPU) == found


def test_rule_learns_more_than_the_unchanged_rate() -> None:
    def last(**options: Any) -> float:
        return fit(25, n_epochs_kl_warmup=None, **options).history["train_elbo"].iloc[-1]

    small, large = last(batch_size=8), last(batch_size=54)
    scaled = last(batch_size=54, learning_rate=1e-3 * math.sqrt(54 / 8))
    assert small < scaled < large
    assert scaled - small < 0.8 * (large - small)


def test_auto_is_written_down_as_numbers() -> None:
    settings = fit(batch_size="auto", learning_rate="auto").training["settings"]
    assert (settings["batch_size"], settings["learning_rate"]) == (128, 1e-3)


def test_plateau_waits_for_its_patience() -> None:
    plateau = Plateau(patience=1)
    losses = [5.0, 4.0, 4.0, 4.5, 4.2, 4.1, 3.0]
    told = [plateau.update(9.0, loss) for loss in losses]
    assert told == [False, False, False, True, False, True, False]
    assert plateau.best == 3.0


def test_rate_falls_on_a_plateau_down_to_its_floor() -> None:
    seen: list[float] = []

    class Worse(Callback):
        """Makes every validation worse than the one before."""

        def on_epoch_end(self, epoch: int, row: dict[str, float], module: nn.Module) -> None:
            with torch.no_grad():
                module.decoder.px_dropout_decoder.bias += 5.0
            seen.append(row["learning_rate"])

    options = {"reduce_lr_on_plateau": True, "lr_patience": 0, "lr_factor": 0.5, "lr_min": 2e-4}
    model = fit(6, learning_rate=1e-3, callbacks=[Worse()], **options)
    assert np.all(np.diff(model.history["validation_elbo"].tolist()[1:]) > 0)
    # The first epoch is the best; each after it halves the rate of the next.
    assert model.history["learning_rate"].tolist() == [1e-3, 1e-3, 5e-4, 2.5e-4, 2e-4, 2e-4]
    assert seen == model.history["learning_rate"].tolist()


@pytest.mark.parametrize(("precision", "inside"), [("float32", "highest"), ("tf32", "high")])
def test_matrix_precision_is_put_back(precision: str, inside: str) -> None:
    before = torch.get_float32_matmul_precision()

    def fail() -> None:
        with matrix_precision(precision, CUDA):
            assert torch.get_float32_matmul_precision() == inside
            raise RuntimeError("out")

    with pytest.raises(RuntimeError, match="out"):
        fail()
    assert torch.get_float32_matmul_precision() == before
    with matrix_precision("tf32", CPU):
        assert torch.get_float32_matmul_precision() == before


def test_bf16_rounds_layers_but_neither_counts_nor_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    store = small_store()
    store.counts.data[:] = 257  # not a bfloat16 number
    batch = next(iter(batches_of(store)))
    likelihood = operations._nll
    seen: list[torch.dtype] = []

    def spy(x: torch.Tensor, scale_logits: torch.Tensor, *rest: Any) -> torch.Tensor:
        nll = likelihood(x, scale_logits, *rest)
        seen.extend((x.dtype, scale_logits.dtype, nll.dtype))
        assert (x.values() == 257).all()
        return nll

    monkeypatch.setattr(operations, "_nll", spy)
    found = {}
    for precision in ("float32", "bf16"):
        torch.manual_seed(0)
        module = VAE(30, n_batch=2, n_latent=3, n_hidden=16, dropout_rate=0.0)
        optimizer = torch.optim.SGD(module.parameters())
        sums = torch.zeros(2, dtype=torch.float64)
        with use_backend("torch"):  # others decode and take the likelihood in one operation
            compute_gradients(module, optimizer, batch, torch.ones(()), sums, precision)
        found[precision] = sums
        assert module.decoder.px_scale_decoder[0].weight.grad.dtype == torch.float32
    assert seen == [torch.float32] * 3 + [torch.float32, torch.bfloat16, torch.float32]
    torch.testing.assert_close(found["bf16"], found["float32"], rtol=0.02, atol=0.5)
    assert not torch.equal(found["bf16"], found["float32"])


def test_bf16_learns_as_float32_does() -> None:
    float32, bf16 = (
        fit(15, precision=p).history["validation_elbo"].tolist() for p in ("tf32", "bf16")
    )
    assert bf16[-1] < 0.99 * bf16[0]
    np.testing.assert_allclose(bf16, float32, rtol=0.01)
    assert bf16 != float32


class Recorder(Callback):
    def __init__(self, last: int | None = None) -> None:
        self.last = last
        self.calls: list[Any] = []

    def on_train_begin(self, module: nn.Module, settings: TrainSettings) -> None:
        self.calls.append(("begin", settings.max_epochs))

    def on_epoch_end(self, epoch: int, row: dict[str, float], module: nn.Module) -> bool | None:
        self.calls.append((epoch, row["validation_elbo"]))
        torch.rand(3)  # must not disturb the training
        return epoch == self.last

    def on_train_end(self, module: nn.Module) -> None:
        self.calls.append(("end", module.training))


def test_callbacks_are_told_and_can_end_it() -> None:
    told, ends = Recorder(), Recorder(last=2)
    model = fit(5, callbacks=[told, ends])
    assert model.training["ending"] == "callback"
    epochs = list(zip([1, 2], model.history["validation_elbo"].tolist(), strict=True))
    assert told.calls == ends.calls == [("begin", 5), *epochs, ("end", False)]
    assert fit(5).history["train_loss"].tolist()[:2] == model.history["train_loss"].tolist()


def test_callbacks_hear_of_the_end_also_after_a_failure() -> None:
    told = Recorder()
    with pytest.raises(InputError, match="is not finite"):
        fit(9, learning_rate=1e15, callbacks=[told])
    assert told.calls[-1] == ("end", False)


def test_tensorboard_gets_every_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points: list[tuple[str, float, int]] = []

    class Writer:
        def __init__(self, folder: str, purge_step: int) -> None:
            assert (folder, purge_step) == (str(tmp_path / "tb"), 1)

        def add_scalar(self, name: str, value: float, step: int) -> None:
            points.append((name, value, step))

        def flush(self) -> None:
            pass

        def close(self) -> None:
            points.append(("closed", 0, 0))

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(torch.utils, "tensorboard", module, raising=False)
    model = fit(2, tensorboard=tmp_path / "tb")
    columns = {
        name: values for name, values in model.history.to_dict("list").items() if name != "epoch"
    }
    expected = [(name, values[i], i + 1) for i in range(2) for name, values in columns.items()]
    assert points == [*expected, ("closed", 0, 0)]


def test_tensorboard_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.utils, "tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match=r"needs the tensorboard package; pip install"):
        TensorBoard("curves")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"precision": "fp8"},
            "precision='fp8' is not known; choose one of 'float32', 'tf32', 'bf16'",
        ),
        ({"lr_factor": 1.0}, "lr_factor must be below 1"),
        ({"lr_patience": -1}, "lr_patience must be"),
        ({"batch_size": "large"}, "batch_size must be a whole number of at least 1, not 'large'"),
        ({"learning_rate": "fast"}, "learning_rate must be a number greater than 0"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TrainSettings(**options)
