"""Pairs of gloo processes that train together; ``two_processes.py FOLDER``, run by the tests.

In FOLDER/equal they train a model, and one process alone trains it on the same minibatches joined;
in FOLDER/resume they train once without a break, and once with one within the second epoch, after
SIGTERM to the second process; in FOLDER/static by plain steps and by those of fixed memory; in
FOLDER/kill and FOLDER/stop the second process is lost in the
second epoch. What comes of it is written there, one JSON per process.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from small_models import small_store
from torch import nn

from fastvae import VAE, InputError, _covariates
from fastvae.data import Minibatch, Minibatches
from fastvae.data.stores.device import DeviceStore
from fastvae.train import Callback, TrainSettings, new_history, train_vae
from fastvae.train import cuda_graph as static
from fastvae.train import processes as group
from fastvae.train.checkpoints import Checkpoints, open_checkpoints
from fastvae.train.settings import CheckpointOptions
from fastvae.vae import arguments as inputs

STORE = small_store(131)
PLAIN: dict[str, Any] = {
    "sync_batch_norm": False,
    "early_stopping": False,
    "max_epochs": 5,
}
TRAIN, VALIDATION = np.arange(101), np.arange(101, 131)  # 51 and 50 cells, 15 and 15


class Joined:
    """The minibatches of two processes, each pair as one."""

    def __init__(self, parts: list[Minibatches]) -> None:
        self.parts = parts

    def load_state_dict(self, state: dict[str, int]) -> None:
        for part in self.parts:
            part.load_state_dict(state)

    def sizes(self) -> list[int]:
        return [sum(sizes) for sizes in zip(*(part.sizes() for part in self.parts), strict=True)]

    def __iter__(self) -> Iterator[Minibatch]:
        for pair in zip(*self.parts, strict=True):
            yield self.parts[0].gather(np.concatenate([batch.cells for batch in pair]))


def share(cells: np.ndarray, rank: int, shuffle: bool, store: Any = STORE) -> Minibatches:
    return Minibatches(
        store, cells, batch_size=16, shuffle=shuffle, seed=3, rank=rank, world_size=2
    )


class Count(Callback):
    """Notes each step of fixed memory."""

    def __init__(self, steps: list[int]) -> None:
        step = static.StaticStep.__call__

        def noted(self: Any, rows: torch.Tensor) -> None:
            steps.append(len(rows))
            step(self, rows)

        self.before, static.StaticStep.__call__ = step, noted

    def on_train_end(self, module: nn.Module) -> None:
        static.StaticStep.__call__ = self.before


class Leave(Callback):
    def __init__(self, how: signal.Signals) -> None:
        self.how = how

    def on_epoch_end(self, epoch: int, row: dict[str, float], module: nn.Module) -> None:
        if epoch == 1 and dist.get_rank() == 1:
            os.kill(os.getpid(), self.how)


def train(
    train_batches: Any,
    validation: Any,
    callbacks: list[Callback],
    checkpoints: Checkpoints | None = None,
    **options: Any,
) -> dict[str, Any]:
    torch.manual_seed(0)
    module = VAE(30, n_batch=2, n_latent=3, n_hidden=16, dropout_rate=0.0)
    module.use_observed_lib_size = True
    history = new_history()
    usual = {"max_epochs": 40, "early_stopping": True, "sync_batch_norm": True}
    settings = TrainSettings(
        batch_size=16,
        learning_rate=0.03,
        max_grad_norm=50.0,
        n_epochs_kl_warmup=4,
        early_stopping_patience=3,
        **{**usual, **options},
    )
    result = train_vae(
        module,
        train_batches,
        validation,
        settings,
        history,
        seed=0,
        n_train=101,
        n_validation=30,
        progress=False,
        callbacks=callbacks,
        checkpoints=checkpoints,
    )
    weights = {name: value.tolist() for name, value in module.state_dict().items()}
    plain = type(module.z_encoder.encoder.fc_layers[0][1]) is nn.BatchNorm1d
    ends = {"ending": result.ending, "best_epoch": result.best_epoch, "steps": result.steps}
    return {"history": history, "weights": weights, "plain": plain, **ends}


def member(folder: Path, rank: int, mode: str) -> None:
    method = f"file://{folder / 'meet'}"
    # Long enough for a busy machine to start both, short enough to wait for in a test.
    timeout = timedelta(seconds=5 if mode == "stop" else 600)
    dist.init_process_group("gloo", method, rank=rank, world_size=2, timeout=timeout)
    leave = {"kill": [Leave(signal.SIGKILL)], "stop": [Leave(signal.SIGSTOP)]}
    batches, validation = share(TRAIN, rank, True), share(VALIDATION, rank, False)
    began = time.perf_counter()
    if mode == "resume":
        group.AGREE_EVERY = 3  # an epoch has four steps
        for name, callbacks in ("whole", []), ("part", [Leave(signal.SIGTERM)]), ("resumed", []):
            options = CheckpointOptions(folder / "checkpoints", resume=name == "resumed")
            together = group.Group(torch.device("cpu"))
            checkpoints = open_checkpoints(options, together) if name != "whole" else None
            found = train(batches, validation, callbacks, checkpoints)
            (folder / f"{name}{rank}.json").write_text(json.dumps(found))
        return
    if mode == "static":
        device_store = DeviceStore.of(STORE, torch.device("cpu"))
        inputs.readable = _covariates.readable = lambda *_: False
        steps: list[int] = []
        for name, devices, some in (
            ("plain", set(), None),
            ("asked", {"cpu"}, True),
            ("default", {"cpu"}, None),
        ):
            static.DEVICES = devices
            batches = share(TRAIN, rank, True, device_store)
            found = train(batches, None, [Count(steps)], None, **PLAIN, cuda_graph=some)
            found["static_steps"] = len(steps)
            steps.clear()
            (folder / f"{name}{rank}.json").write_text(json.dumps(found))
        return
    try:
        found = train(batches, validation, list(leave.get(mode, [])))
    except InputError as error:
        found = {"error": str(error), "type": type(error).__name__}
    found["seconds"] = time.perf_counter() - began
    (folder / f"{rank}.json").write_text(json.dumps(found))


def pair(folder: Path, mode: str) -> None:
    folder.mkdir()
    if mode not in ("resume", "static"):
        torch.randn_like = torch.zeros_like  # else each process would draw its own noise
    children = [fork(lambda rank=rank: member(folder, rank, mode)) for rank in range(2)]
    if mode == "equal":
        joined = Joined([share(TRAIN, rank, True) for rank in range(2)])
        validation = Joined([share(VALIDATION, rank, False) for rank in range(2)])
        (folder / "alone.json").write_text(json.dumps(train(joined, validation, [])))
    failed = os.waitpid(children[0], 0)[1]
    if mode in ("kill", "stop"):
        os.kill(children[1], signal.SIGKILL)
        os.waitpid(children[1], 0)
    elif failed or os.waitpid(children[1], 0)[1]:
        raise SystemExit("a process failed")


def fork(work: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    return child


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    modes = ("equal", "resume", "static", "kill", "stop")
    children = [fork(lambda mode=mode: pair(folder / mode, mode)) for mode in modes]
    if any([os.waitpid(child, 0)[1] for child in children]):
        sys.exit("a pair failed")


if __name__ == "__main__":
    main()
