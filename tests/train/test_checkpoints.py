"""Checkpoints: whole or not there, and training that goes on as if it had never stopped."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from places import SUPPORT
from small_models import small_data
from typer.testing import CliRunner

from fastvae import InputError, Model
from fastvae.cli import app
from fastvae.train.checkpoints import CheckpointFiles

SMALL = {"n_latent": 3, "n_hidden": 16}
FIT: dict[str, Any] = {"max_epochs": 4, "batch_size": 16, "device": "cpu", "progress": False}
OFTEN = {"checkpoint_minutes": 1e-9}  # after every step
TENSORS = {"a": torch.arange(6.0).reshape(2, 3).t(), "n": torch.tensor(3)}


def model(**options: Any) -> Model:
    return Model(small_data(), batch_key="batch", **{**SMALL, **options})


def weights(fitted: Model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in fitted.module.state_dict().items()}


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def losses(fitted: Model) -> dict[str, list[float]]:
    return {
        name: values
        for name, values in fitted.history.to_dict("list").items()
        if "second" not in name
    }


class StopAt:
    """Sends SIGTERM or Ctrl-C to the training after so many steps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step: int, number: int) -> None:
        from fastvae.train import run

        self.steps = 0
        original = run.apply_gradients

        def apply(*arguments: Any) -> None:
            original(*arguments)
            self.steps += 1
            if self.steps == step:
                signal.raise_signal(number)

        monkeypatch.setattr(run, "apply_gradients", apply)


def test_files_come_back_as_they_were(tmp_path: Path) -> None:
    files = CheckpointFiles(tmp_path / "c", keep=2)
    assert files.newest() is None
    for number in range(4):
        files.write({**TENSORS, "step": torch.tensor(number)}, {"step": number, "x": 0.1})
    assert files.numbers() == [3, 4]
    found = files.newest()
    assert found is not None
    assert found.state == {"step": 3, "x": 0.1}
    assert_same(found.tensors, {**TENSORS, "step": torch.tensor(3)})
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == [
        f"00000{n}.{kind}" for n in (3, 4) for kind in ("json", "safetensors")
    ]


@pytest.mark.parametrize("suffix", ["json", "safetensors"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "missing"])
def test_damaged_newest_falls_back_to_the_one_before(
    tmp_path: Path, suffix: str, damage: str
) -> None:
    files = CheckpointFiles(tmp_path, keep=3)
    for number in range(2):
        files.write(TENSORS, {"number": number, "values": [0.5] * 20})
    path = tmp_path / f"000002.{suffix}"
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        middle = content.index(b"0.5") if suffix == "json" else len(content) - 5
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else flipped)
    if damage == "missing" and suffix == "json":
        found = files.newest()
    else:
        with pytest.warns(UserWarning, match=r"000002\.json cannot be used .* checkpoint before"):
            found = files.newest()
    assert found is not None
    assert found.state["number"] == 0


def test_nothing_but_damaged_checkpoints_is_an_error(tmp_path: Path) -> None:
    files = CheckpointFiles(tmp_path)
    files.write(TENSORS, {})
    (tmp_path / "000001.json").write_text("{")
    with pytest.raises(InputError, match=r"nor any other checkpoint in .*start again without"):
        files.newest()


def test_leftovers_of_a_killed_write_are_swept(tmp_path: Path) -> None:
    files = CheckpointFiles(tmp_path)
    files.write(TENSORS, {})
    for name in (".000002-x8d.safetensors", "000002.safetensors", ".000002-_z.json", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    files.sweep()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["000001.json", "000001.safetensors", "notes.txt"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [1, 7, 14])  # seven steps per epoch
def test_resume_after_a_signal_gives_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, number: int
) -> None:
    options = {**FIT, "early_stopping": True, "early_stopping_patience": 2, "learning_rate": 0.05}
    options |= {"n_steps_kl_warmup": 20, "seed": 3, "reduce_lr_on_plateau": True, "lr_patience": 0}
    whole = model().fit(**options)
    with monkeypatch.context() as patch:
        StopAt(patch, step, number)
        part = model().fit(**options, checkpoint_dir=tmp_path)
    assert part.training["ending"] == "interrupted"
    resumed = model().fit(**{**options, "seed": None}, checkpoint_dir=tmp_path, resume=True)
    assert_same(weights(whole), weights(resumed))
    assert losses(whole) == losses(resumed)
    same = ("ending", "steps", "epochs", "best_epoch", "seed")
    assert [whole.training[k] for k in same] == [resumed.training[k] for k in same]


def test_writing_checkpoints_changes_nothing(tmp_path: Path) -> None:
    plain = model().fit(**FIT, seed=0)
    often = model().fit(**FIT, seed=0, checkpoint_dir=tmp_path, **OFTEN, keep_checkpoints=3)
    assert_same(weights(plain), weights(often))
    assert losses(plain) == losses(often)
    # 28 steps, 4 ends of epochs
    assert CheckpointFiles(tmp_path).numbers() == [30, 31, 32]


def test_checkpoints_by_epochs(tmp_path: Path) -> None:
    model().fit(
        **{**FIT, "max_epochs": 5}, checkpoint_dir=tmp_path, checkpoint_every=2, keep_checkpoints=9
    )
    epochs = []
    for number in CheckpointFiles(tmp_path).numbers():
        entry = json.loads((tmp_path / f"{number:06d}.json").read_text())
        epochs.append(len(entry["state"]["history"]["epoch"]))
    assert epochs == [2, 4, 5]


def test_more_epochs_after_the_end(tmp_path: Path) -> None:
    whole = model().fit(**FIT, seed=0)
    model().fit(**{**FIT, "max_epochs": 2}, seed=0, checkpoint_dir=tmp_path)
    resumed = model().fit(**FIT, seed=0, checkpoint_dir=tmp_path, resume=True)
    assert_same(weights(whole), weights(resumed))
    again = model().fit(**FIT, seed=0, checkpoint_dir=tmp_path, resume=True)
    assert_same(weights(whole), weights(again))
    assert (again.training["ending"], again.training["steps"]) == ("finished", 28)


def test_an_early_stop_stays_one(tmp_path: Path) -> None:
    options = {**FIT, "max_epochs": 60, "seed": 0, "learning_rate": 0.1, "early_stopping": True}
    options |= {"early_stopping_patience": 2, "checkpoint_dir": tmp_path}
    first = model().fit(**options)
    assert first.training["ending"] == "early stopping"
    second = model().fit(**options, resume=True)
    assert second.training == {**first.training, "seconds": second.training["seconds"]}
    assert_same(weights(first), weights(second))


def test_resuming_after_divergence_with_a_lower_rate(tmp_path: Path) -> None:
    options = {**FIT, "seed": 0, "checkpoint_dir": tmp_path, "checkpoint_every": 1}
    model().fit(**{**options, "max_epochs": 2})
    before = CheckpointFiles(tmp_path).numbers()
    with pytest.raises(InputError, match=r"training stopped in epoch .* last good checkpoint in"):
        model().fit(**options, learning_rate=1e15, resume=True)
    files = CheckpointFiles(tmp_path)
    assert files.numbers() == before
    for number in files.numbers():
        assert all(value.isfinite().all() for value in files._read(number).tensors.values())
    resumed = model().fit(**options, learning_rate=1e-4, resume=True)
    assert resumed.history["learning_rate"].tolist() == [1e-3, 1e-3, 1e-4, 1e-4]
    assert np.isfinite(resumed.history["train_loss"].tolist()).all()


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ({}, {"batch_size": 32}, r"written with batch_size = 16, and now it is 32; resume with"),
        ({}, {"seed": 1}, "written with seed = 0, and now it is 1"),
        ({"n_latent": 4}, {}, "written with n_latent = 3, and now it is 4"),
        ({"data": small_data(seed=1)}, {}, "written with the cells"),
    ],
)
def test_checkpoints_of_something_else_are_refused(
    tmp_path: Path, data: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    fit = {**FIT, "max_epochs": 1, "seed": 0, "checkpoint_dir": tmp_path}
    model().fit(**fit)
    source = data.pop("data", small_data())
    other = Model(source, batch_key="batch", **{**SMALL, **data})
    with pytest.raises(InputError, match=message):
        other.fit(**{**fit, **options}, resume=True)


def test_a_new_run_does_not_take_over_a_folder(tmp_path: Path) -> None:
    fit = {**FIT, "max_epochs": 1, "seed": 0, "checkpoint_dir": tmp_path}
    model().fit(**fit)
    with pytest.raises(InputError, match="has checkpoints of another run; go on from them with"):
        model().fit(**fit)


def test_command_line_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_data().write_h5ad(tmp_path / "cells.h5ad")
    words = ["train", str(tmp_path / "cells.h5ad"), "-o", str(tmp_path / "run"), "--quiet"]
    words += ["--max-epochs", "3", "--batch-size", "16", "--n-hidden", "16", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["fastvae", *words, "--overwrite"])

    def invoke(*more: str, code: int = 0) -> str:
        result = CliRunner().invoke(app, [*words, *more])
        assert result.exit_code == code, result.output
        return result.output

    with monkeypatch.context() as patch:
        StopAt(patch, 9, signal.SIGTERM)
        output = invoke("--overwrite", code=143)
    assert f"go on with:\n  fastvae {' '.join(words)} --resume\n" in output
    assert "error: --resume goes on and --overwrite starts" in invoke(
        "--resume", "--overwrite", code=2
    )
    (tmp_path / "run" / ".model-ab_1.safetensors").write_bytes(b"half")
    invoke("--resume")
    assert not list((tmp_path / "run").glob(".*"))
    whole = Model(tmp_path / "cells.h5ad", n_hidden=16)
    whole.fit(3, batch_size=16, seed=0, device="cpu", progress=False)
    assert_same(weights(whole), weights(Model.load(tmp_path / "run", device="cpu")))

    # A run that ended by itself keeps its checkpoints only where they were asked for; a new run
    # removes those of the old one.
    assert not (tmp_path / "run" / "checkpoints").exists()
    invoke("--overwrite", "--checkpoint-every", "1")
    assert CheckpointFiles(tmp_path / "run" / "checkpoints").numbers() == [2, 3]
    invoke("--overwrite", "--checkpoint-every", "2", "--keep-checkpoints", "9")
    assert CheckpointFiles(tmp_path / "run" / "checkpoints").numbers() == [1, 2]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    words[3] = str(tmp_path / "other")
    assert "has no checkpoints to resume from" in invoke("--resume", code=2)


FORKING = """
import os, sys, warnings
import torch
torch.set_num_threads(1)
from fastvae import Model
from small_models import small_data
data = small_data(400, 60)

def train(folder, **options):
    model = Model(data, batch_key="batch", n_hidden=32)
    model.fit(3, batch_size=32, seed=0, device="cpu", progress=False, early_stopping=True,
              checkpoint_dir=folder, checkpoint_every=1, checkpoint_minutes=2e-4, **options)
    model.save(folder + "-done", overwrite=True)

warnings.simplefilter("error")
train(sys.argv[1])  # also imports what a child would otherwise import each time
print("ready", flush=True)
for line in sys.stdin:  # a child for each: forking is much quicker than importing torch again
    folder, resume = line.split()
    child = os.fork()
    if child == 0:
        train(folder, resume=resume == "resume")
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
KILLS = 20


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9 on this system")
def test_killed_at_random_moments(tmp_path: Path) -> None:
    support = str(SUPPORT)
    script = f"import sys; sys.path.insert(0, {support!r})\n{FORKING}"
    rng = np.random.default_rng(0)
    with subprocess.Popen(
        [sys.executable, "-c", script, tmp_path / "whole"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        stdin, stdout = parent.stdin, parent.stdout
        assert stdout.readline() == "ready\n"

        def start(folder: Path, mode: str) -> int:
            stdin.write(f"{folder} {mode}\n")
            stdin.flush()
            return int(stdout.readline())

        began = time.perf_counter()
        start(tmp_path / "again", "new")
        assert stdout.readline() == "0\n"
        lasts = time.perf_counter() - began
        expected = weights(Model.load(tmp_path / "whole-done", device="cpu"))

        kills, places = 0, set()
        for attempt in itertools.count():
            if kills == KILLS:
                break
            assert attempt < 4 * KILLS, f"only {kills} runs were still there to be killed"
            folder = tmp_path / f"run{attempt}"
            child = start(folder, "new")
            time.sleep(rng.uniform(0, lasts))
            subprocess.run(["kill", "-9", str(child)], check=False, capture_output=True)
            if int(stdout.readline()) == 0:  # it was done: the machine is quicker now
                lasts *= 0.9
                continue
            kills += 1
            files = CheckpointFiles(folder)
            for number in files.numbers():
                found = files._read(number)  # raises for a damaged one
            if files.numbers():
                places.add((len(found.state["history"]["epoch"]), found.state["steps"]))
            start(folder, "resume")
            assert stdout.readline() == "0\n"
            assert_same(expected, weights(Model.load(f"{folder}-done", device="cpu")))
        stdin.close()
    assert any(steps for _, steps in places), "no kill within an epoch"
