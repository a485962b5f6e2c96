"""TensorBoard's own package reads what the callback writes."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_models import small_data

from fastvae import InputError, Model

pytest.importorskip("tensorboard")
FIT: dict[str, Any] = {"batch_size": 16, "seed": 0, "device": "cpu", "progress": False}


def fit(folder: Path, epochs: int = 3, model: Model | None = None, **options: Any) -> Model:
    model = model or Model(small_data(), n_latent=3, n_hidden=16)
    return model.fit(epochs, tensorboard=folder, **FIT, **options)


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    names = events.Tags()["scalars"]
    return {name: [(p.step, p.value) for p in events.Scalars(name)] for name in names}


def columns(model: Model) -> dict[str, list[tuple[int, float]]]:
    return {
        name: [(i, v) for i, v in enumerate(values, start=1) if not math.isnan(v)]
        for name, values in model.history.to_dict("list").items()
        if name != "epoch"
    }


def same(
    found: dict[str, list[tuple[int, float]]], want: dict[str, list[tuple[int, float]]]
) -> None:
    assert found.keys() == {name for name, points in want.items() if points}
    for name, points in found.items():
        np.testing.assert_allclose(points, want[name], rtol=1e-7, err_msg=name)  # kept as float32


def test_curves_are_the_history(tmp_path: Path) -> None:
    model = fit(tmp_path / "a" / "tb")
    found = curves(tmp_path / "a" / "tb")
    assert len(found["validation_elbo"]) == 3
    same(found, columns(model))


def test_no_validation_no_curve_of_it(tmp_path: Path) -> None:
    model = fit(tmp_path, train_size=1.0)
    found = curves(tmp_path)
    assert "train_elbo" in found
    assert not [name for name in found if name.startswith("validation_e")]
    same(found, columns(model))


def test_training_on_goes_on_with_the_curves(tmp_path: Path) -> None:
    model = fit(tmp_path / "tb", 2)
    fit(tmp_path / "tb", 2, model)
    found = curves(tmp_path / "tb")
    assert [step for step, _ in found["train_loss"]] == [1, 2, 3, 4]
    same(found, columns(model))


def test_resumed_run_goes_on_with_the_curves(tmp_path: Path) -> None:
    kept = {"checkpoint_dir": tmp_path / "points"}
    fit(tmp_path / "tb", 2, **kept)
    model = fit(tmp_path / "tb", 4, resume=True, **kept)
    same(curves(tmp_path / "tb"), columns(model))


def test_epochs_that_were_lost_and_trained_again_show_once(tmp_path: Path) -> None:
    """As after a kill -9: the curves have an epoch more than the newest checkpoint."""
    points, tensorboard = tmp_path / "points", tmp_path / "tb"
    fit(tensorboard, 2, checkpoint_dir=points)
    fit(tensorboard, 3, checkpoint_dir=tmp_path / "other")
    model = fit(tensorboard, 4, checkpoint_dir=points, resume=True)
    found = curves(tensorboard)
    want = columns(model)
    assert [step for step, _ in found["train_loss"]] == [1, 2, 3, 4]
    for name in ("train_loss", "validation_loss"):  # times are those of the run that came last
        np.testing.assert_allclose(found[name], want[name], rtol=1e-7)


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """Said before an epoch is trained."""
    (tmp_path / "file").write_text("not a folder")
    places = [tmp_path / "file", tmp_path / "file" / "tb"]
    if os.access("/proc", os.X_OK):
        places.append(Path("/proc/curves"))  # closed to root, too
    for folder in places:
        model = Model(small_data(), n_latent=3, n_hidden=16)
        with pytest.raises(InputError, match=r"cannot write curves for TensorBoard to .*choose"):
            fit(folder, model=model)
        assert model.history.empty
        model.fit(1, **FIT)
