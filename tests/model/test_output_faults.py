"""A full disk or a kill at every step of writing: the old output or the new one, and a message."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import RUNNER, run
from output_faults import Outputs, failing, full_disk
from places import SUPPORT

import fastvae
from fastvae import InputError, Model
from fastvae.cli import app

PYTHON_PATH = os.pathsep.join([str(SUPPORT), str(Path(fastvae.__file__).parent.parent)])
CHILD = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": PYTHON_PATH}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Outputs:
    return Outputs(tmp_path_factory.mktemp("faults"))


def _hidden(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob(".*")}


def _at_every_step(act: Callable[[], Any], check: Callable[[int], None], **options: Any) -> int:
    """Run `act` on a disk that is full at step 1, 2, ... until none is left; return how many."""
    for at in range(1, 200):
        with failing(at, full_disk, **options) as steps:
            act()
        if not steps.reached:
            return at - 1
        check(at)
    raise AssertionError("no end")


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("name", ["embed", "convert"])
def test_a_full_disk_at_every_step_of_a_command(
    outputs: Outputs, name: str, exchange: bool
) -> None:
    path, words = outputs.commands()[name]
    run(*words(0))
    results: list[Any] = []
    before = _hidden(outputs.folder)

    def act() -> None:

        results.append(RUNNER.invoke(app, [str(word) for word in words(1)]))

    def check(at: int) -> None:
        result = results[-1]
        text = " ".join(result.output.split())
        assert outputs.which(path) in (0, 1), at
        if result.exit_code == 0:  # the folder could not be synced: all is in place
            assert outputs.which(path) == 1
            run(*words(0))
            return
        assert result.exit_code == 2, (at, result.exception)
        assert "cannot be written: the disk is full (" in text, (at, text)
        assert path.name in text
        assert "make room and run the same command again" in text
        assert text.count("error:") == 1
        left = _hidden(outputs.folder) - before
        assert left <= {f".{path.name}.partial"} | _hidden(path.with_name(f".{path.name}.partial"))
        if outputs.which(path) == 1:  # the exchange was over
            run(*words(0))

    assert _at_every_step(act, check, exchange=exchange) >= 4
    assert results[-1].exit_code == 0
    assert outputs.which(path) == 1


def test_a_full_disk_at_every_step_of_a_save(outputs: Outputs) -> None:
    folder = outputs.folder / "saved"
    outputs.save(0)
    messages: list[str | None] = []

    def act() -> None:
        messages.append(None)
        try:
            outputs.save(1)
        except InputError as error:
            messages[-1] = str(error)

    def check(at: int) -> None:
        text = messages[-1]
        assert outputs.which(folder) == (1 if text is None else 0), (at, text)
        if text is not None:
            assert "cannot be written: the disk is full (" in text
            names = ("model.safetensors", "history.csv", "README.md", "config.json")
            assert any(name in text for name in names)
            assert "What was there before is untouched; make room" in text
            assert not _hidden(folder)
        outputs.save(0)

    assert _at_every_step(act, check) >= 10
    assert outputs.which(folder) == 1


@pytest.mark.filterwarnings("default:this checkpoint is missing")
def test_a_full_disk_at_the_end_of_training_loses_nothing(outputs: Outputs) -> None:
    folder = outputs.folder / "run"
    words = [
        "train",
        outputs.data,
        "-o",
        folder,
        "--max-epochs",
        1,
        "--n-latent",
        2,
        "--n-hidden",
        4,
    ]
    words += ["--quiet", "--device", "cpu"]

    for at in (1, 6, 11, 14, 20, 24, 29, 33):
        with failing(at, full_disk) as steps:
            result = RUNNER.invoke(app, [*map(str, words), "--overwrite"])
        text = " ".join(result.output.split())
        if not steps.reached:
            break
        assert result.exit_code in (0, 2), (at, result.exception)
        assert "Traceback" not in text
        if result.exit_code == 0:  # a checkpoint is missing, or a folder could not be synced
            assert Model.load(folder).is_trained
            continue
        assert "cannot be written: the disk is full (" in text, (at, text)
        if (folder / "config.json").exists():
            assert Model.load(folder).is_trained
        if "with room, only this is written again by" in text:
            run(*words, "--resume")
            assert (folder / "latent.h5ad").exists()
            assert (folder / "loss.png").exists()
        elif not (folder / "config.json").exists():
            raise AssertionError(f"step {at}: the training is lost: {text}")


def test_a_table_and_a_picture_on_a_full_disk(outputs: Outputs) -> None:
    table = outputs.folder / "markers.csv"
    words = ["de", outputs.folder / "model0", outputs.data, "--groupby", "cell_type", "-o", table]
    words += ["--n-samples", 20, "--overwrite"]
    run(*words)
    before = {path: path.read_bytes() for path in (table, table.with_suffix(".png"))}

    for at in (1, 2, 3, 5, 6, 7):
        with failing(at, full_disk) as steps:
            result = RUNNER.invoke(app, [str(word) for word in words])
        assert steps.reached
        text = " ".join(result.output.split())
        assert result.exit_code in (0, 2), (at, result.exception)
        assert result.exit_code == 0 or "markers" in text.split("cannot be written")[0]
        assert table.read_bytes() == before[table]
        assert table.with_suffix(".png").exists()


def test_a_kill_at_every_step_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    command = [sys.executable, str(SUPPORT / "output_faults.py"), str(tmp_path)]
    done = subprocess.run(command, env=CHILD, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert not found["wrong"]
    assert min(found["counts"].values()) >= 4, found["counts"]


def _killed(step: int, words: list[Any]) -> bool:
    """Whether a command came to a step, at which its process ends."""
    command = [sys.executable, str(SUPPORT / "output_faults.py"), str(step), *map(str, words)]
    done = subprocess.run(command, env=CHILD, capture_output=True, text=True, timeout=120)
    assert done.returncode in (0, 99), done.stderr[-2000:]
    return done.returncode == 99


# Each step takes a process of its own: some in every run, all with FASTVAE_FUZZ.
KILLED_AT = range(1, 60) if "FASTVAE_FUZZ" in os.environ else (1, 2, 4, 7, 11)


def test_a_kill_in_convert_leaves_the_old_store_or_the_new(outputs: Outputs) -> None:
    path, words = outputs.commands()["convert"]
    killed = 0
    for step in KILLED_AT:
        run(*words(0))
        if not _killed(step, words(1)):
            break
        killed += 1
        if path.exists():
            assert outputs.which(path) in (0, 1), step
        else:  # between two renames, where the system cannot exchange folders in one step
            assert _hidden(path.parent), step
        run(*words(1))  # the same command again
        assert outputs.which(path) == 1, step
    assert killed >= 3


def test_a_kill_in_training_leaves_the_old_run_or_the_new(outputs: Outputs) -> None:
    folder, other = outputs.folder / "run", outputs.folder / "other"

    def words(seed: int, into: Path) -> list[Any]:
        options = ["--overwrite", "--max-epochs", "1", "--device", "cpu", "--seed", seed]
        return ["train", outputs.data, "--batch-key", "batch", "-o", into, *options]

    run(*words(1, other))
    run(*words(0, folder))
    old, new = (Model.load(at, outputs.data).get_elbo() for at in (folder, other))
    assert old != new
    killed = 0
    for step in KILLED_AT:
        run(*words(0, folder))
        if not _killed(step, words(1, folder)):
            break
        killed += 1
        assert Model.load(folder, outputs.data).get_elbo() in (old, new), step
        run(*words(1, folder))
        assert Model.load(folder, outputs.data).get_elbo() == new, step
    assert killed >= 3


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no limit of the size of files")
@pytest.mark.parametrize("kilobytes", [1, 4, 16])
def test_a_limit_of_the_system_is_named(outputs: Outputs, kilobytes: int) -> None:
    path, words = outputs.commands()["embed"]
    run(*words(0))
    code = (
        "import resource, sys; from fastvae.cli import main; "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({kilobytes} * 1024,) * 2); "
        f"sys.argv[1:] = {[str(word) for word in words(1)]!r}; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=CHILD, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    text = " ".join(done.stderr.split())
    assert f"{path} cannot be written: it is larger than the system allows" in text
    assert outputs.which(path) == 0
