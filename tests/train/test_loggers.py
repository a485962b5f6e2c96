"""`Model.fit(logger=)`: Lightning's own logger, and objects that have what it has."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from small_models import small_data

from fastvae import InputError, Model


class Recorder:
    """A logger that has everything."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def log_hyperparams(self, params: dict[str, Any]) -> None:
        self.calls.append(("options", params))

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.calls.append(("row", step, metrics))

    def save(self) -> None:
        self.calls.append(("save",))

    def finalize(self, status: str) -> None:
        self.calls.append(("end", status))


class Least:
    """A logger that has what is needed and no more."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def log_hyperparams(self, params: dict[str, Any]) -> None:
        self.params = params

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.steps.append(step)


def fit(max_epochs: int = 2, **options: Any) -> Model:
    model = Model(small_data(), batch_key="batch", n_latent=3, n_hidden=16)
    options = {"batch_size": 16, "seed": 4, "device": "cpu", "progress": False, **options}
    return model.fit(max_epochs, **options)


def test_a_logger_gets_options_and_every_row() -> None:
    logger = Recorder()
    model = fit(logger=logger, train_size=1.0)  # nothing is validated
    (_, options), *rest = logger.calls
    assert {"n_latent": 3, "seed": 4, "batch_size": 16, "max_epochs": 2}.items() <= options.items()
    assert [call[0] for call in rest] == ["row", "save", "row", "save", "end"]
    assert rest[-1] == ("end", "success")
    for number, (_, step, row) in enumerate(rest[:-1:2]):
        measured = model.history.iloc[number].dropna().to_dict()
        assert measured.pop("epoch") == step == number + 1
        assert row == measured
        assert not any("validation" in name for name in row)


def test_several_loggers_count_epochs_through_calls_of_fit() -> None:
    both = [Least(), Least()]
    model = fit(1, logger=both)
    model.fit(2, logger=tuple(both), progress=False)
    assert [one.steps for one in both] == [[1, 2, 3]] * 2


def test_a_training_that_fails_is_said_to_have() -> None:
    logger = Recorder()
    with pytest.raises(InputError, match="is not finite"):
        fit(9, learning_rate=1e15, logger=logger)
    assert logger.calls[-1] == ("end", "failed")


@pytest.mark.parametrize("wrong", [True, "csv", Recorder, object(), [Least(), None]])
def test_what_is_no_logger_is_refused(wrong: Any) -> None:
    with pytest.raises(InputError, match="logger must be an object with log_hyperparams and log_"):
        fit(logger=wrong)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Lightning's, of other packages
def test_the_csv_logger_of_lightning(tmp_path: Path) -> None:
    loggers = pytest.importorskip("lightning.pytorch.loggers")
    model = fit(logger=loggers.CSVLogger(tmp_path, name="run", version=0))
    folder = tmp_path / "run" / "version_0"
    table = pd.read_csv(folder / "metrics.csv")
    assert table["step"].tolist() == [1, 2]
    for name in ("train_elbo", "validation_elbo"):
        for got, value in zip(table[name], model.history[name], strict=True):
            assert math.isclose(got, value, rel_tol=1e-12)
    assert "n_latent: 3" in (folder / "hparams.yaml").read_text()
