"""What is said during training."""

from __future__ import annotations

import math
import re
import sys
import types

import pytest
import rich.console

from fastvae._status import print_status
from fastvae.train import progress as module
from fastvae.train.progress import Bar, Lines, LiveLine, Progress, make_progress, tracked


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(module.time, "perf_counter", lambda: self.now)


def test_status_has_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    progress = Progress(first_epoch=3, last_epoch=12, n_cells=1000)
    clock.now += 2.0
    # 2500 of 10,000 cells in 2 seconds.
    assert progress.status(5, 500, 512.345) == "-ELBO 512.35  1,250 cells/s  ETA 0:00:06"
    progress.validation = 520.0
    clock.now += 5000.0
    assert progress.status(5, 500, 1.0).endswith("validation 520.00  0 cells/s  ETA 4:10:06")


def test_lines_come_at_even_steps(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    clock = Clock(monkeypatch)
    progress = Lines(1, 100, 1000)
    for epoch in range(1, 101):
        clock.now += 0.5
        progress.after_epoch(epoch, 500.0 - epoch, math.nan)
    out, err = capsys.readouterr()
    shown = [int(found) for found in re.findall(r"^epoch (\d+)/100  -ELBO", err, re.M)]
    assert shown == [1, *range(10, 101, 10)]
    assert "epoch 50/100  -ELBO 450.00  2,000 cells/s  ETA 0:00:25" in err
    assert out == ""


def test_a_long_epoch_is_not_silent(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    clock = Clock(monkeypatch)
    progress = Lines(1, 2, 1_000_000)
    for second in range(1, 101):
        clock.now += 1.0
        progress.within_epoch(1, 1000 * second, 300.0)
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 3  # after 30, 60 and 90 seconds
    assert err[0] == "epoch 1/2  -ELBO 300.00  1,000 cells/s  ETA 0:32:50"


def test_bar_moves_and_ends(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    bar = Bar(1, 4, 50)
    task = bar._rich.tasks[0]
    bar.within_epoch(2, 25, 400.0)
    assert (task.completed, task.total, task.description) == (75, 200, "epoch 2/4")
    bar.after_epoch(4, 390.0, 395.0)
    bar.close()
    assert task.completed == 200
    assert task.fields["status"].startswith("-ELBO 390.00  validation 395.00")
    assert "epoch 4/4" in capsys.readouterr().err


@pytest.mark.parametrize(("jupyter", "stream"), [(False, "err"), (True, "out")])
def test_a_notebook_has_the_status_outside_of_the_red_box(
    jupyter: bool, stream: str, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(rich.console, "_is_jupyter", lambda: jupyter)
    print_status("training")
    shown = capsys.readouterr()
    assert getattr(shown, stream) == "training\n"
    assert shown.out + shown.err == "training\n"


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What a notebook shows below a cell: each place with all texts that it has had."""
    places: list[list[str]] = []

    class Handle:
        def __init__(self, texts: list[str]) -> None:
            self.texts = texts

        def update(self, data: dict[str, str], *, raw: bool) -> None:
            assert raw
            self.texts.append(data["text/plain"])

    def display(data: dict[str, str], *, raw: bool, display_id: bool) -> Handle:
        assert raw
        assert display_id
        places.append([data["text/plain"]])
        return Handle(places[-1])

    ipython = types.ModuleType("IPython.display")
    ipython.display = display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", ipython)
    monkeypatch.setattr(rich.console, "_is_jupyter", lambda: True)
    return places


def test_a_notebook_has_one_line_that_changes(
    cell: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    clock = Clock(monkeypatch)
    progress = make_progress(True, 1, 100, 1000)
    assert type(progress) is LiveLine
    for epoch in range(1, 101):
        clock.now += 0.25
        progress.after_epoch(epoch, 500.0 - epoch, math.nan)
    (texts,) = cell
    assert texts[0] == "epoch 1/100"
    assert len(texts) == 26  # one a second
    assert texts[1].startswith("epoch 4/100  -ELBO 496.00")
    assert texts[-1].startswith("epoch 100/100  -ELBO 400.00")
    progress.say("fewer threads")
    assert capsys.readouterr() == ("fewer threads\n", "")


def test_groups_in_a_notebook_are_one_line(cell: list[list[str]], capsys) -> None:
    assert list(tracked([1, 2], ["B", "T"], "comparison", show=True)) == [1, 2]
    assert cell == [["", "comparison 1/2: B", "comparison 2/2: T"]]
    assert capsys.readouterr() == ("", "")


def test_kind_fits_where_it_goes(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    assert type(make_progress(False, 1, 2, 3)) is Progress
    assert type(make_progress(True, 1, 2, 3)) is Lines
    monkeypatch.setenv("FORCE_COLOR", "1")  # as notebooks set it for the commands that they run
    assert type(make_progress(True, 1, 2, 3)) is Lines
    assert list(tracked([1, 2], ["B", "T"], "comparison", show=True)) == [1, 2]
    assert "\x1b" not in capsys.readouterr().err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    bar = make_progress(True, 1, 2, 3)
    bar.close()
    assert type(bar) is Bar
    monkeypatch.setenv("TERM", "dumb")
    assert type(make_progress(True, 1, 2, 3)) is Lines
    silent = make_progress(False, 1, 2, 3)
    capsys.readouterr()
    silent.within_epoch(1, 2, 3.0)
    silent.after_epoch(1, 2.0, 3.0)
    silent.close()
    assert capsys.readouterr() == ("", "")
