"""Lets contenders that were timed in turn appear one by one in pytest-benchmark's table."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from .contest import Case, Outcome, hold
from .environment import describe, device_facts
from .results import write_json


class Clock:
    """A timer that runs through times taken before: pytest-benchmark cannot interleave itself."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._samples: list[float] = []

    def now(self) -> float:
        return self._seconds

    def load(self, milliseconds: list[float]) -> None:
        self._samples = [ms / 1e3 for ms in reversed(milliseconds)]

    def run(self) -> None:
        """What is "benchmarked": let the next time pass."""
        if self._samples:  # none are left where pytest-benchmark is disabled and calls once more
            self._seconds += self._samples.pop()


CLOCK = Clock()


class Turns:
    """The contests of a session, among the contenders that were selected."""

    def __init__(self, quick: bool, selected: Mapping[Case, Collection[str]]) -> None:
        self.quick = quick
        self._selected = selected
        self.outcomes: dict[Case, Outcome] = {}
        self.modules: dict[str, dict[Case, None]] = {}

    def show(self, benchmark: Any, case: Case, provider: str, module: str) -> None:
        """Hold the contest if this is its first contender, and report this contender.

        Skips, with the reason, who is not installed or left out; fails who disagrees.
        """
        if case not in self.outcomes:
            self.modules.setdefault(module.rpartition(".")[2], {})[case] = None
            self.outcomes[case] = hold(case, self._selected[case])
        outcome = self.outcomes[case]
        if provider in outcome.left_out:
            pytest.skip(outcome.left_out[provider])
        found = outcome.agreement[provider]
        assert found["agrees"], f"{provider} disagrees: {found}"
        benchmark.group = str(case)
        benchmark.extra_info.update(case.labels, provider=provider)
        times = outcome.milliseconds[provider]
        CLOCK.load(times)
        benchmark.pedantic(CLOCK.run, rounds=len(times))

    def write(self, folder: Path) -> None:
        """One file per module of cases."""
        for module, cases in self.modules.items():
            rows = [self.outcomes[case].row(case) for case in cases if case in self.outcomes]
            content = {
                "environment": {**describe(), **device_facts()},
                "threads": torch.get_num_threads(),
                "cores": os.cpu_count(),
                "quick": self.quick,
                "unit": "milliseconds, medians of runs in turn; ratios over `baseline`",
                "rows": rows,
            }
            write_json(folder / f"{module.removeprefix('bench_')}.json", content)
