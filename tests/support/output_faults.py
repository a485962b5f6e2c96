"""Faults at every step of writing: a full disk, or the death of the process.

``python output_faults.py FOLDER`` kills a command at each of its steps in turn, each time in a
process of its own, and prints what is wrong with what it leaves, as JSON. ``python output_faults.py
STEP WORD ...`` runs one ``fastvae`` command that dies at its step number STEP, with status 99.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import anndata
import numpy as np
from count_data import annotated, dense_counts
from matplotlib.figure import Figure

from fastvae import Model, _files

STEPS: list[tuple[Any, str]] = [
    (tempfile, "mkstemp"),
    (os, "fsync"),
    (os, "replace"),
    (os, "rename"),
    (Path, "write_bytes"),
    (Path, "write_text"),
    (anndata.AnnData, "write_h5ad"),
    (Figure, "savefig"),
]


class Steps:
    """Counts the steps of writing, and lets one of them fail."""

    def __init__(self, at: int, fail: Callable[[], Any]) -> None:
        self.at, self.fail, self.done = at, fail, 0

    def wrap(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.done += 1
            if self.done == self.at:
                self.fail()
            return step(*args, **kwargs)

        return counted

    @property
    def reached(self) -> bool:
        return self.done >= self.at


def full_disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def die() -> None:
    os._exit(99)


@contextmanager
def failing(at: int, fail: Callable[[], Any], *, exchange: bool = True) -> Iterator[Steps]:
    """Let the step number `at` (from 1) fail; without `exchange` as on other systems than Linux."""
    steps = Steps(at, fail)
    with mock.patch.object(_files, "_exchanged", steps.wrap(_files._exchanged)):
        if not exchange:
            _files._exchanged = lambda *_: False
        for owner, name in STEPS:
            mock.patch.object(owner, name, steps.wrap(getattr(owner, name))).start()
        try:
            yield steps
        finally:
            mock.patch.stopall()


class Outputs:
    """Small data, two trained models, and commands whose output is one or the other's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "cells.h5ad"
        annotated(dense_counts(60, 8)).write_h5ad(self.data)
        self.models = []
        for seed in (0, 1):
            model = Model(self.data, batch_key="batch", n_latent=2, n_hidden=4)
            self.models.append(model.fit(1 + seed, seed=seed, progress=False, device="cpu"))
            model.save(folder / f"model{seed}")
        self.latents = [model.get_latent_representation() for model in self.models]

    def which(self, path: Path) -> int | None:
        """Return whose output is whole at `path`: that of model 0 or 1; None for neither."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if path.suffix == ".h5ad":
                found = anndata.read_h5ad(path).obsm["X_fastvae"]
            elif path.suffix == ".zarr":
                order = [int(name[4:-2]) for name in anndata.read_zarr(path).obs_names]
                return int(order != sorted(order))
            else:
                model = Model.load(path, self.data)
                found = model.get_latent_representation()
                if len(model.history) != model.training["epochs"]:
                    return None
        same = [np.array_equal(found, latent) for latent in self.latents]
        return same.index(True) if any(same) else None

    def commands(self) -> dict[str, tuple[Path, Callable[[int], list[Any]]]]:
        """Return the output of each command, and its words for model 0 or 1."""
        folder = self.folder
        embedded, atlas = folder / "embedded.h5ad", folder / "atlas.zarr"
        return {
            "embed": (
                embedded,
                lambda i: ["embed", folder / f"model{i}", self.data, "-o", embedded, "--overwrite"],
            ),
            "convert": (
                atlas,
                lambda i: (
                    ["convert", self.data, "-o", atlas, "--overwrite", "-q"]
                    + ([] if i else ["--keep-order"])
                ),
            ),
        }

    def save(self, number: int) -> None:
        self.models[number].save(self.folder / "saved", overwrite=True)


def killed_everywhere(folder: Path) -> dict[str, Any]:
    """Kill each command at each step; return how many times, and what was wrong after it."""
    from command_line import run

    outputs = Outputs(folder)
    actions: dict[str, tuple[Path, Callable[[int], Any]]] = {
        "save": (folder / "saved", outputs.save)
    }
    # Not convert: zarr's threads do not live on in a forked process.
    path, words = outputs.commands()["embed"]
    actions["embed"] = (path, lambda i: run(*words(i)))
    wrong, counts = [], {}
    for name, (path, act) in actions.items():
        at, code = 0, 99
        while code == 99:
            at += 1
            act(0)
            child = os.fork()
            if child == 0:
                with failing(at, die):
                    act(1)
                os._exit(0)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            try:
                found = outputs.which(path)
            except Exception as error:
                found = f"{type(error).__name__}: {error}"
            if code not in (0, 99) or found not in (0, 1):
                wrong.append(f"{name}, step {at}: {code}, {found}")
            act(1)  # the same command again
            if outputs.which(path) != 1:
                wrong.append(f"{name}, again after step {at}: {outputs.which(path)}")
        counts[name] = at - 1
    return {"wrong": wrong, "counts": counts}


def die_at(step: int, *words: str) -> None:
    """Run a command whose process ends at the step."""
    from command_line import run

    with failing(step, die):
        run(*words)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        die_at(int(sys.argv[1]), *sys.argv[2:])
    else:
        print(json.dumps(killed_everywhere(Path(sys.argv[1]))))
