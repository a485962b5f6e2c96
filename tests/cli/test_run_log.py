"""`log.txt` in the folder of a run."""

from __future__ import annotations

import logging
import re
import warnings
from pathlib import Path

import pytest
import typer
from command_line import run
from small_models import small_data
from torch import nn

from fastvae.cli.run_log import RunLog
from fastvae.cli.user_errors import user_errors
from fastvae.train import TrainSettings

OPTIONS = ["--batch-size", 32, "--n-latent", 3, "--n-hidden", 8, "--no-plots", "--quiet"]
LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d{4}  (.*)")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    small_data().write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


def lines_of(path: Path) -> list[str]:
    found = [LINE.fullmatch(line) for line in path.read_text().splitlines()]
    assert all(found)
    return [one[1] for one in found if one]


def test_a_run_and_its_resumption_are_written_down(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = ["train", data, "-o", folder, *OPTIONS, "--checkpoint-every", 1]
    run(*options, "--max-epochs", 2)
    first = lines_of(folder / "log.txt")
    assert first[0].startswith("fastvae 0.")
    assert first[1].startswith("training on cpu: {'max_epochs': 2,")
    assert [line.split("  ")[0] for line in first[2:4]] == ["epoch 1", "epoch 2"]
    assert first[4].startswith("trained for 2 epochs (finished)")
    run(*options, "--max-epochs", 3, "--resume")
    both = lines_of(folder / "log.txt")
    assert both[: len(first)] == first
    assert [line.split()[1] for line in both if line.startswith("epoch ")] == ["1", "2", "3"]
    run(*options, "--max-epochs", 1, "--overwrite")
    assert len(lines_of(folder / "log.txt")) == 4


def test_what_was_refused_leaves_the_log_of_the_run_alone(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run("train", data, "-o", folder, *OPTIONS, "--max-epochs", 1)
    before = (folder / "log.txt").read_text()
    run("train", data, "-o", folder, *OPTIONS, "--overwrite", "--device", "cuda:99", code=2)
    assert (folder / "log.txt").read_text() == before


def test_a_training_that_came_to_nothing_leaves_no_folder(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastvae.train import run as training

    def fail(*_: object) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(training, "apply_gradients", fail)
    run("train", data, "-o", tmp_path / "run", *OPTIONS, code=2)
    assert not (tmp_path / "run").exists()


def started(path: Path, **options: bool) -> RunLog:
    log = RunLog(path, **options)
    log.on_train_begin(nn.Linear(1, 1), TrainSettings())
    return log


def test_what_is_logged_is_in_it_and_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, logger = started(tmp_path / "log.txt"), logging.getLogger("fastvae")
    with user_errors(), log.recording():
        logger.warning("no batch_key='a b' was given")
    assert capsys.readouterr().err == "warning: no --batch-key 'a b' was given\n"
    assert lines_of(tmp_path / "log.txt")[1:] == ["warning: no batch_key='a b' was given"]
    assert logger.handlers == []


def test_warnings_and_errors_are_in_it(tmp_path: Path) -> None:
    log = started(tmp_path / "log.txt")
    with warnings.catch_warnings(record=True) as seen, log.recording():
        warnings.simplefilter("always")
        warnings.warn("odd", UserWarning, stacklevel=1)
    assert [str(one.message) for one in seen] == ["odd"]
    with pytest.raises(RuntimeError, match="broken"), log.recording():
        raise RuntimeError("broken")
    assert lines_of(tmp_path / "log.txt")[1:] == ["warning: odd", "error: broken"]
    with pytest.raises(typer.Exit), log.recording():
        raise typer.Exit(130)
    assert len(lines_of(tmp_path / "log.txt")) == 3


def test_a_disk_that_refuses_does_not_end_the_training(tmp_path: Path) -> None:
    log = started(tmp_path / "nowhere" / "log.txt")
    log.write("lost")
    (tmp_path / "nowhere").mkdir()
    log.write("lost too")
    assert list((tmp_path / "nowhere").iterdir()) == []
