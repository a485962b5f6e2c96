"""Training goes on with fewer threads while other programs want the same processors."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple

import torch

WINDOW_SECONDS = 0.5
"""How long a speed is measured."""

CROWDED = 0.15
"""Share of the time without a processor from which fewer threads are tried."""

WORTH = 1.1
"""How many times as fast another number of threads must be to be kept."""

FIRST_PAUSE, LONGEST_PAUSE = 10.0, 600.0
"""Seconds between two trials; each that changes nothing doubles them."""


class Window(NamedTuple):
    """A stretch of training.

    Attributes
    ----------
    speed
        Steps per second.
    waiting
        Share of the time in which the thread was ready to run and had no processor.
    """

    speed: float
    waiting: float


def seconds_without_processor() -> float | None:
    """Return how long this thread has been ready to run and not running; None if unknown.

    Linux counts it for each thread.
    """
    try:
        with open("/proc/thread-self/schedstat", encoding="ascii") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return None


class ThreadWatch:
    """Chooses how many of torch's threads train, between all and one.

    OpenMP's threads wait for each other at the end of every operation, and they wait spinning. On
    processors that other programs use too, most of the time then goes into waiting for a thread
    that is not running, and one thread alone can be ten times as fast as two. So where this thread
    is often kept off the processors, half as many threads are tried for a moment, and kept if they
    are faster; later all of them are tried again.

    Parameters
    ----------
    active
        Whether to watch: training on a CPU.
    say
        Tells the user, the first time that the number falls.
    clock, waited
        Seconds gone by, and those of them without a processor.

    Notes
    -----
    Leaving the context sets the number of threads that there was before.
    """

    def __init__(
        self,
        active: bool,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.perf_counter,
        waited: Callable[[], float | None] = seconds_without_processor,
    ) -> None:
        self._say, self._clock, self._waited = say, clock, waited
        self.most = self.threads = torch.get_num_threads()
        self._active = active and self.most > 1 and waited() is not None
        self._before: Window | None = None  # while a trial runs: the window before it
        self._pause, self._next_trial = FIRST_PAUSE, clock()
        self._said = False
        self._began: float | None = None

    def __enter__(self) -> ThreadWatch:
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        torch.set_num_threads(self.most)

    def after_step(self) -> None:
        """Count a step; now and then, look at the speed and choose."""
        if not self._active:
            return
        if self._began is None:  # the first step is slow, and so is what comes before it
            self._begin()
            return
        self._steps += 1
        now = self._clock()
        if now - self._began < WINDOW_SECONDS:
            return
        seconds, waited = now - self._began, (self._waited() or 0.0) - self._waited_before
        window = Window(self._steps / seconds, waited / seconds)
        if self._before is None:
            self._look(window, now)
        else:
            self._decide(self._before, window, now)
        self._begin()

    def _begin(self) -> None:
        self._began, self._steps = self._clock(), 0
        self._waited_before = self._waited() or 0.0

    def _look(self, window: Window, now: float) -> None:
        """Start a trial if it is time for one and there is reason to."""
        if now < self._next_trial:
            return
        crowded = window.waiting >= CROWDED
        if crowded and self.threads > 1:
            self._try(window, max(1, self.threads // 2))
        elif self.threads < self.most:
            self._try(window, self.most)

    def _try(self, window: Window, threads: int) -> None:
        self._before, self._threads_before = window, self.threads
        self.threads = threads
        torch.set_num_threads(threads)

    def _decide(self, before: Window, window: Window, now: float) -> None:
        """Keep the number that was tried if it is faster, or go back."""
        self._before = None
        fewer, gain = self.threads < self._threads_before, window.speed / before.speed
        if gain < WORTH:
            self.threads = self._threads_before
            torch.set_num_threads(self.threads)
            self._next_trial = now + self._pause
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
            return
        self._pause = FIRST_PAUSE
        # from fewer threads, fewer still may be better at once; back to all, only after a while
        self._next_trial = now if fewer and self.threads > 1 else now + self._pause
        if fewer and not self._said:
            self._said = True
            self._say(
                f"other programs use the processors: training goes on with {self.threads} of "
                f"{self.most} threads, {gain:.1f} times as fast"
            )
