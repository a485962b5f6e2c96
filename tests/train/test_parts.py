"""Settings, schedules, the split, the history file and the device."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fastvae.errors import InputError
from fastvae.train import (
    COLUMNS,
    TrainSettings,
    default_max_epochs,
    kl_weight_at,
    new_history,
    read_history,
    resolve_device,
    split_cells,
    write_history,
)


@pytest.mark.parametrize(
    ("n_cells", "epochs"),
    [(1, 400), (20_000, 400), (20_001, 400), (40_000, 200), (1_000_000, 8), (10**8, 1)],
)
def test_default_number_of_epochs(n_cells: int, epochs: int) -> None:
    assert default_max_epochs(n_cells) == epochs


def test_kl_weight_by_epoch_starts_at_zero_and_ends_at_one() -> None:
    settings = TrainSettings(n_epochs_kl_warmup=4)
    weights = [kl_weight_at(settings, epoch, step=1000) for epoch in range(6)]
    assert weights == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]


def test_kl_weight_by_step_goes_before_epochs() -> None:
    settings = TrainSettings(n_epochs_kl_warmup=4, n_steps_kl_warmup=10)
    assert [kl_weight_at(settings, 3, step) for step in (0, 5, 10, 11)] == [0.0, 0.5, 1.0, 1.0]


@pytest.mark.parametrize("length", [None, 0])
def test_no_warmup(length: int | None) -> None:
    assert kl_weight_at(TrainSettings(n_epochs_kl_warmup=length), 0, 0) == 1.0


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("max_epochs", 0, "max_epochs must be a whole number of at least 1, not 0"),
        ("max_epochs", 2.5, "max_epochs must be a whole number"),
        ("max_epochs", True, "max_epochs must be a whole number"),
        ("batch_size", 1, "BatchNorm needs two cells"),
        ("train_size", 0, "train_size must be a number greater than 0"),
        ("train_size", 1.01, "at most 1, not 1.01"),
        ("early_stopping_patience", 0, "early_stopping_patience must be"),
        ("early_stopping_min_delta", -1.0, "early_stopping_min_delta must be"),
        ("learning_rate", 0.0, "learning_rate must be a number greater than 0"),
        ("learning_rate", math.nan, "learning_rate must be a number"),
        ("learning_rate", "fast", "learning_rate must be a number"),
        ("eps", -1e-3, "eps must be"),
        ("weight_decay", -1e-6, "weight_decay must be"),
        ("n_epochs_kl_warmup", -1, "n_epochs_kl_warmup must be"),
        ("max_grad_norm", 0.0, "max_grad_norm must be"),
    ],
)
def test_settings_out_of_range(option: str, value: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TrainSettings(**{option: value})


def test_numpy_numbers_become_plain_ones() -> None:
    settings = TrainSettings(max_epochs=np.int64(3), learning_rate=np.float32(0.5))
    assert (type(settings.max_epochs), type(settings.learning_rate)) == (int, float)
    assert (settings.max_epochs, settings.learning_rate) == (3, 0.5)


@pytest.mark.parametrize(
    ("n_cells", "train_size", "n_train"),
    [(10, 0.9, 9), (11, 0.9, 10), (1200, 0.9, 1080), (7, 1, 7)],
)
def test_split_sizes(n_cells: int, train_size: float, n_train: int) -> None:
    train, validation = split_cells(n_cells, train_size, seed=5)
    assert len(train) == n_train
    np.testing.assert_array_equal(np.sort(np.r_[train, validation]), np.arange(n_cells))


def test_split_depends_on_the_seed_alone() -> None:
    first, again, other = (split_cells(100, 0.8, seed)[1] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert set(first) != set(other)


def test_split_needs_two_training_cells() -> None:
    with pytest.raises(InputError, match=r"needs at least 2 cells and has 1 \(of 5"):
        split_cells(5, 0.1, 0)


def test_history_file_keeps_every_bit(tmp_path) -> None:
    history = new_history()
    rng = np.random.default_rng(0)
    for epoch in range(1, 4):
        for name in COLUMNS:
            history[name].append(epoch if name == "epoch" else rng.normal() * 1e3)
    history["validation_elbo"][1] = math.nan
    path = tmp_path / "history.csv"
    write_history(history, path)
    found = read_history(path)
    assert path.read_text().splitlines()[0] == ",".join(COLUMNS)
    assert math.isnan(found["validation_elbo"].pop(1))
    history["validation_elbo"].pop(1)
    assert found == history


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "is not a training history"),
        (",".join(COLUMNS) + "\n" + ",".join(["x"] * len(COLUMNS)) + "\n", "is damaged"),
        (",".join(COLUMNS) + "\n1,2\n", "is damaged"),
    ],
)
def test_foreign_history_file(tmp_path, text: str, message: str) -> None:
    path = tmp_path / "history.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_history(path)


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_device("cpu") == resolve_device(torch.device("cpu", 0)) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")
    with pytest.raises(InputError, match="'cuda:1' is not available: torch sees no CUDA"):
        resolve_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert resolve_device("auto") == torch.device("cuda:0")
    assert resolve_device("cuda") == torch.device("cuda:1")
    with pytest.raises(InputError, match="has CUDA devices 0 to 1"):
        resolve_device("cuda:2")
    for unknown in ("gpu", "meta", "cuda:x", 3.5):
        with pytest.raises(InputError, match="unknown device"):
            resolve_device(unknown)
