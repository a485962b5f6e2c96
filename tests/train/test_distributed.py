"""Several processes train one model: as one would on their joined minibatches, and none hangs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from places import SUPPORT
from small_models import small_data, small_store

from fastvae import InputError, Model
from fastvae.data import Minibatches
from fastvae.train.processes import Group, launched
from fastvae.train.synced_batch_norm import SyncedBatchNorm1d, synced_batch_norm

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes are forked"),
    pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed"),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    environment = {**os.environ, "PYTHONPATH": str(SUPPORT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SUPPORT / "two_processes.py"), str(folder)]
    done = subprocess.run(
        command, timeout=300, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


def read(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / f"{name}.json").read_text())


def test_two_processes_equal_one_with_the_doubled_batch(results: Path) -> None:
    """BatchNorm is synchronised, and there is neither noise nor dropout to differ in."""
    alone, first, second = (read(results / "equal", name) for name in ("alone", "0", "1"))
    assert first["ending"] == "early stopping"  # decided alike, or one would wait for the other
    for name in ("weights", "best_epoch", "steps", "plain"):
        assert first[name] == second[name], name
    assert first["plain"] is True
    assert (first["best_epoch"], first["steps"]) == (alone["best_epoch"], alone["steps"])
    for column, values in alone["history"].items():
        if "second" not in column:
            np.testing.assert_array_equal(first["history"][column], second["history"][column])
            np.testing.assert_allclose(first["history"][column], values, rtol=2e-5, err_msg=column)
    assert alone["history"]["train_elbo"][-1] < 0.8 * alone["history"]["train_elbo"][0]
    for name, value in alone["weights"].items():
        found = np.array(first["weights"][name])
        np.testing.assert_allclose(found, value, rtol=1e-2, atol=2e-3, err_msg=name)


def test_processes_go_on_within_an_epoch_to_the_same_bits(results: Path) -> None:
    folder = results / "resume"
    first, second = (read(folder, f"part{rank}") for rank in range(2))
    assert first["ending"] == second["ending"] == "interrupted"
    assert first["steps"] == second["steps"] == 7
    for rank in range(2):
        whole, resumed = (read(folder, f"{name}{rank}") for name in ("whole", "resumed"))
        assert whole["weights"] == resumed["weights"]
        assert (whole["best_epoch"], whole["steps"]) == (resumed["best_epoch"], resumed["steps"])
        np.testing.assert_allclose(
            whole["history"]["train_elbo"], resumed["history"]["train_elbo"], rtol=1e-12
        )


def test_steps_of_fixed_memory_average_as_plain_ones_do(results: Path) -> None:
    """Three whole minibatches of each epoch; the last has fewer cells and is a plain step."""
    folder = results / "static"
    for rank in range(2):
        plain, asked, default = (
            read(folder, f"{name}{rank}") for name in ("plain", "asked", "default")
        )
        assert (plain["static_steps"], asked["static_steps"]) == (0, 15)
        assert default["static_steps"] == 0  # several processes want it asked for
        assert default["weights"] == plain["weights"]
        for column, values in plain["history"].items():
            if "second" not in column:
                np.testing.assert_allclose(asked["history"][column], values, rtol=1e-5)
        for name, value in plain["weights"].items():
            np.testing.assert_allclose(asked["weights"][name], value, rtol=1e-3, atol=1e-4)
    first, second = (read(folder, f"asked{rank}")["weights"] for rank in range(2))
    assert first == second


@pytest.mark.parametrize("mode", ["kill", "stop"])
def test_a_lost_process_ends_the_other_with_an_error(results: Path, mode: str) -> None:
    assert not (results / mode / "1.json").exists()
    found = read(results / mode, "0")
    assert found["type"] == "LostProcessError"
    assert "process 0 of 2 lost touch with another one" in found["error"]
    assert "go on from the last checkpoint with --resume" in found["error"]
    assert found["seconds"] < 120  # not the ten minutes that a silent process is waited for


def test_every_cell_is_seen_once_in_as_many_minibatches() -> None:
    store = small_store()
    for n_cells in range(20, 60):
        for size in (3, 8, 16):
            parts = [
                Minibatches(
                    store, np.arange(n_cells), batch_size=size, shuffle=True, rank=r, world_size=3
                )
                for r in range(3)
            ]
            assert len({len(part.sizes()) for part in parts}) == 1, (n_cells, size)
            cells = [batch.cells for part in parts for batch in part]
            np.testing.assert_array_equal(np.sort(np.concatenate(cells)), np.arange(n_cells))
            assert [len(c) for c in cells] == [n for part in parts for n in part.sizes()]
            assert min(map(len, cells)) >= 2


def test_batch_norm_is_put_back() -> None:
    norm = torch.nn.BatchNorm1d(2)
    module = torch.nn.Sequential(norm, torch.nn.Linear(2, 2), norm)
    state = module.state_dict(keep_vars=True)
    calls: list[Any] = []
    norm.register_forward_hook(lambda *_: calls.append(1))
    with synced_batch_norm(module):
        assert type(module[0]) is SyncedBatchNorm1d
        assert module[0] is module[2]
        found = module.state_dict(keep_vars=True)
        assert list(found) == list(state)
        assert all(found[name] is value for name, value in state.items())
        x = torch.randn(5, 2)
        module.eval()
        expected = torch.nn.functional.linear(x / (1 + 1e-5) ** 0.5, *module[1].parameters())
        torch.testing.assert_close(module(x), expected / (1 + 1e-5) ** 0.5)
        assert len(calls) == 2
        with torch.no_grad():
            module[0].running_mean += 1
    assert module[0] is module[2] is norm
    assert not norm.training
    torch.testing.assert_close(norm.running_mean, torch.ones(2))


def test_one_process_is_a_group_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    group = Group(torch.device("cpu"))
    module = torch.nn.Linear(1, 1)
    assert (group.alone, group.leads, group.wrap(module)) == (True, True, module)
    assert group.any(True, False) == [True, False]
    assert group.gather("x") == [group.share("x")] == ["x"]
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    with launched("auto") as device:
        assert device == "auto"
        assert not dist.is_initialized()


LEAVE = """
import os, torch
from fastvae.train.processes import Group, launched
with launched("cpu") as device:
    def train():
        wrapped = Group(torch.device(device)).wrap(torch.nn.Linear(2, 2))
        wrapped(torch.ones(3, 2)).sum().backward()
    train()
names = [open(f"/proc/self/task/{task}/comm").read() for task in os.listdir("/proc/self/task")]
left = sum("gloo" in name for name in names)
os.write(1, f"left: {left}\\n".encode())  # whole: the other process writes too
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are listed in /proc")
def test_the_threads_of_a_group_end_with_it(tmp_path: Path) -> None:
    """One that outlived it would ask for the interpreter as that shuts down, and abort."""
    script = tmp_path / "leave.py"
    script.write_text(LEAVE)
    assert launch("--nproc-per-node=2", script).count("left: 0") == 2


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "cells.h5ad"
    small_data(131).write_h5ad(path)
    return path


def launch(*words: Any, code: int = 0) -> str:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", *words]
    done = subprocess.run(
        [str(word) for word in command],
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def torchrun(data: Path, output: Path, *options: Any, code: int = 0) -> str:
    command = ["--nproc-per-node=2", "-m", "fastvae", "train", data, "-o", output]
    command += ["--batch-size", 16, "--n-hidden", 16, "--batch-key", "batch", "--device", "cpu"]
    return launch(*command, *options, code=code)


def test_torchrun(data: Path, tmp_path: Path) -> None:
    said = torchrun(data, tmp_path / "run", "--checkpoint-every", 1, "--max-epochs", 3)
    # The first process alone speaks and writes.
    assert said.count("epoch 3/3") == said.count("trained for 3 epochs (finished)") == 1
    assert "warning" not in said.lower()
    model = Model.load(tmp_path / "run", data, device="cpu")
    assert model.training["processes"] == 2
    assert model.history["train_elbo"].iloc[-1] < model.history["train_elbo"].iloc[0]
    assert model.get_elbo(cells=model.validation_cells) == pytest.approx(
        -model.history["validation_elbo"].iloc[-1], rel=0.02
    )
    checkpoints = {"checkpoint_dir": tmp_path / "run" / "checkpoints", "resume": True}
    with pytest.raises(InputError, match="number of processes = 2, and now it is 1"):
        Model(data, batch_key="batch", n_hidden=16).fit(
            4, 16, seed=0, device="cpu", progress=False, **checkpoints
        )
