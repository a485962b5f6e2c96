"""One case of the suite: who takes part, does everybody agree, how long does each take."""

from __future__ import annotations

import gc
import statistics
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from . import timing
from .memory import peak_megabytes
from .results import short

Step = Callable[[], Any]


@dataclass
class Contest:
    """What the contenders of a case run.

    Parameters
    ----------
    make
        By name: a function that builds the contender's step. An ``ImportError`` means that it is
        not installed; an error of one that is compiled, that it does not compile here.
    check
        Agreement of a contender, given its name and step: a dict with ``agrees``.
    """

    make: dict[str, Callable[[], Step]]
    check: Callable[[str, Step], dict[str, Any]]
    missing: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Case:
    """A contest not yet begun.

    Parameters
    ----------
    labels
        ``operation``, sizes, ``device``; they name the case and go into its row.
    providers
        Everybody whom the table has a line for, missing or not.
    prepare
        Sets the contest up.
    seconds, rounds, warm_up, runs
        For `timing.samples`.
    """

    labels: dict[str, Any]
    providers: tuple[str, ...]
    prepare: Callable[[], Contest]
    seconds: float = 4.0
    rounds: int = timing.MIN_ROUNDS
    warm_up: int = timing.WARM_UP
    runs: int = 5
    memory: bool = False

    def __str__(self) -> str:
        return " ".join(map(str, self.labels.values()))

    @property
    def device(self) -> torch.device:
        return torch.device(self.labels.get("device", "cpu"))


@dataclass
class Outcome:
    """What came of a case; `milliseconds` has every run of each who agreed."""

    milliseconds: dict[str, list[float]]
    agreement: dict[str, Any]
    left_out: dict[str, str]
    peak_mb: dict[str, float | None]

    def row(self, case: Case) -> dict[str, Any]:
        """The case for the JSON file; ratios are over the first provider that took part."""
        found = {name: timing.summarise(ms) for name, ms in self.milliseconds.items()}
        baseline = next((name for name in case.providers if name in found), None)
        medians = {name: entry["median_ms"] for name, entry in found.items()}
        return {
            **case.labels,
            "baseline": baseline,
            "milliseconds": medians,
            "quartiles": {k: [entry["q25_ms"], entry["q75_ms"]] for k, entry in found.items()},
            "repeats": {k: entry["repeats"] for k, entry in found.items()},
            "ratios": {name: ms / medians[str(baseline)] for name, ms in medians.items()},
            "left_out": self.left_out,
            "agreement": self.agreement,
            **({"peak_mb": self.peak_mb} if self.peak_mb else {}),
            **self._cold(case),
        }

    def _cold(self, case: Case) -> dict[str, Any]:
        """Medians of the first run of each turn: the caches hold what somebody else used."""
        if case.runs < 2 or case.device.type != "cpu":
            return {}
        times = self.milliseconds.items()
        return {"cold_milliseconds": {k: statistics.median(ms[:: case.runs]) for k, ms in times}}


def worst(found: dict[str, Any]) -> str:
    """The largest of the errors that were compared, in words."""
    errors = {k: max(e.values()) if isinstance(e, dict) else e for k, e in found["errors"].items()}
    name = max(errors, key=lambda k: (errors[k] != errors[k], errors[k]))
    return f"{name} by {errors[name]:.1e}"


@contextmanager
def quiet() -> Iterator[None]:
    """Other libraries warn on import and while they compile; that is not what is tested here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def hold(case: Case, wanted: Collection[str]) -> Outcome:
    """Check everybody who is `wanted`, then time those who agree in turn.

    Somebody else's disagreement is a reason to leave them out; ours is a failure.
    """
    with quiet():
        contest = case.prepare()
        outcome = Outcome({}, {}, dict(contest.missing), {})
        steps: dict[str, Step] = {}
        for name in case.providers:
            if name in contest.missing:
                continue
            if name not in wanted:
                outcome.left_out[name] = "not selected (-k)"
                continue
            try:
                step = contest.make[name]()
                found = contest.check(name, step)
            except ImportError as error:
                outcome.left_out[name] = f"not installed: {error}"
                continue
            except Exception as error:
                if not name.endswith("compiled"):
                    raise
                outcome.left_out[name] = f"does not compile here: {short(error)[:200]}"
                continue
            if not found["agrees"] and not name.startswith("fastvae"):
                outcome.left_out[name] = f"disagrees: {worst(found)}"
                continue
            outcome.agreement[name] = found
            if found["agrees"]:
                steps[name] = step
        gc.collect()
        outcome.milliseconds = timing.samples(
            steps, case.device, case.seconds, case.runs, case.warm_up, case.rounds
        )
        if case.memory:
            outcome.peak_mb = {k: peak_megabytes(step, case.device) for k, step in steps.items()}
    return outcome
