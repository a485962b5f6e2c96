"""Fewer threads where other programs want the same processors: on a clock that the test moves."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch

from fastvae.train import thread_watch
from fastvae.train.thread_watch import FIRST_PAUSE, WINDOW_SECONDS, ThreadWatch


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


class Machine:
    """Steps take as long as `seconds` says for a number of threads; a share of it is waiting."""

    def __init__(self, seconds: Callable[[int], float], waiting: float = 0.5) -> None:
        self.seconds, self.waiting = seconds, waiting
        self.now = self.waited = 0.0
        self.said: list[str] = []
        self.watch = ThreadWatch(
            True, self.said.append, clock=lambda: self.now, waited=lambda: self.waited
        )

    def run(self, seconds: float) -> set[int]:
        """Train for so long; the numbers of threads seen."""
        end, seen = self.now + seconds, set()
        while self.now < end:
            seen.add(torch.get_num_threads())
            step = self.seconds(torch.get_num_threads())
            self.now += step
            self.waited += self.waiting * step
            self.watch.after_step()
        return seen


def collapse(threads: int) -> float:
    return {1: 0.01, 2: 0.05, 4: 0.2}[threads]


def speed_up(threads: int) -> float:
    return 0.04 / threads


def test_falls_to_what_is_fastest_and_says_it_once() -> None:
    machine = Machine(collapse)
    with machine.watch:
        machine.run(8 * WINDOW_SECONDS)
        assert torch.get_num_threads() == 1
        machine.run(60)
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 4, "leaving gives the number back"
    (said,) = machine.said
    assert "2 of 4 threads" in said
    assert "4.0 times as fast" in said


def test_crowded_but_more_threads_are_faster() -> None:
    machine = Machine(speed_up)
    with machine.watch:
        assert machine.run(4 * WINDOW_SECONDS) == {4, 2}, "they are tried"
        assert torch.get_num_threads() == 4
        assert machine.run(FIRST_PAUSE / 2) == {4}, "and then left alone for a while"
    assert machine.said == []


def test_a_slow_start_is_no_reason_for_fewer_threads() -> None:
    machine = Machine(speed_up)
    with machine.watch:
        machine.now = machine.waited = 30.0  # until the end of the first step
        machine.watch.after_step()
        assert machine.run(4 * WINDOW_SECONDS) == {4, 2}
        assert torch.get_num_threads() == 4
    assert machine.said == []


def test_alone_on_the_machine_nothing_is_tried() -> None:
    machine = Machine(collapse, waiting=0.01)
    with machine.watch:
        assert machine.run(100) == {4}


def test_all_threads_come_back_when_the_others_have_gone() -> None:
    machine = Machine(collapse)
    with machine.watch:
        machine.run(8 * WINDOW_SECONDS)
        machine.seconds, machine.waiting = speed_up, 0.0
        machine.run(3 * FIRST_PAUSE)
        assert torch.get_num_threads() == 4
    assert len(machine.said) == 1


def test_trials_become_rare() -> None:
    machine = Machine(collapse)
    trials = 0
    with machine.watch:
        machine.run(8 * WINDOW_SECONDS)
        for _ in range(400):
            before = torch.get_num_threads()
            machine.run(WINDOW_SECONDS)
            trials += before == 1 and torch.get_num_threads() == 4
    assert 2 <= trials <= 6, "200 s with pauses of 10, 20, 40, 80 s"


@pytest.mark.parametrize("why", ["off", "one thread", "no count"])
def test_no_watch(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if why == "one thread":
        torch.set_num_threads(1)
    machine = Machine(collapse)
    monkeypatch.setattr(thread_watch, "seconds_without_processor", lambda: None)
    waited: Callable[[], float | None] = (lambda: None) if why == "no count" else lambda: 0.0
    machine.watch = ThreadWatch(
        why != "off", machine.said.append, clock=lambda: machine.now, waited=waited
    )
    before = torch.get_num_threads()
    with machine.watch:
        assert machine.run(20) == {before}


@pytest.mark.skipif(sys.platform != "linux", reason="Linux counts the time without a processor")
def test_what_linux_says() -> None:
    first = thread_watch.seconds_without_processor()
    second = thread_watch.seconds_without_processor()
    assert first is not None
    assert second is not None
    assert 0 <= first <= second


@pytest.mark.parametrize("given", [None, "7"])
def test_waiting_threads_soon_sleep_unless_told_otherwise(given: str | None) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "GOMP_SPINCOUNT"}
    if given is not None:
        environment["GOMP_SPINCOUNT"] = given
    code = "import fastvae, os; print(os.environ['GOMP_SPINCOUNT'])"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == (given or "1000")
