"""Is one commit slower than another? Both measured in turn on this machine.

    python bench/compare.py BASE HEAD [--tolerance 0.1] [--processes 7] [--cases likelihood loader]

Each commit is checked out and built, C++ library included, in a temporary folder, and measured in a
process of its own; the two take turns of a fraction of a second, so that a drifting clock is fair
to both. Where a process's memory happens to lie can make it twice as slow for its life: therefore
several pairs of processes, each with a ratio, the median over its rounds of HEAD's time over
BASE's. The table has the median of these ratios with the least and the most.

Exit status 1: some case is slower by more than the tolerance - at the median, and slower at all in
three of four pairs - or gives another result.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from types import TracebackType
from typing import Any

from _compare import worker
from _compare.checkouts import build, checked_out, resolve
from _kit.markdown import number, table

RESULT_LIMIT = 1e-3


class Worker:
    """A process with one of the commits, which waits while the other measures."""

    def __init__(self, target: Path, threads: int) -> None:
        command = [sys.executable, "-P", worker.__file__, str(target), str(threads)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=target
        )

    def ask(self, case: str, seconds: float) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"case": case, "seconds": seconds}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            return {"error": f"the process ended with status {self.process.wait()}"}
        return dict(json.loads(line))

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.communicate()


@dataclass(frozen=True)
class Row:
    """One case on both commits; `ratios` of head over base."""

    case: str
    base_ms: float = 0.0
    head_ms: float = 0.0
    ratios: tuple[float, ...] = ()
    note: str = ""
    wrong: bool = False

    def verdict(self, tolerance: float) -> str:
        """What is to be said of it; empty where all is well."""
        if self.note:
            return self.note
        if len(self.ratios) == 1:
            return "measured once: nothing can be said"
        low, middle, high = quantiles(self.ratios, n=4, method="inclusive")
        if middle > 1 + tolerance:
            return "slower" if low > 1 else "too noisy to say"
        return "faster" if middle < 1 / (1 + tolerance) and high < 1 else ""

    def fails(self, tolerance: float) -> bool:
        return self.wrong or self.verdict(tolerance) == "slower"


def measure(base: Worker, head: Worker, case: str, rounds: int, seconds: float) -> Row:
    """Rounds in turn; who begins alternates."""
    times: dict[Worker, list[float]] = {base: [], head: []}
    values: dict[Worker, float] = {}
    for turn in range(rounds):
        for one in (base, head) if turn % 2 == 0 else (head, base):
            answer = one.ask(case, seconds)
            if "error" in answer:
                which = "BASE" if one is base else "HEAD"
                # what an old commit does not have is no fault; what the new one lost is
                return Row(case, note=f"{which}: {answer['error'][:200]}", wrong=one is head)
            values.setdefault(one, answer.get("value", 0.0))
            times[one].append(median(answer["milliseconds"]))
    old, new = values[base], values[head]
    if not abs(new - old) <= RESULT_LIMIT * max(abs(old), 1e-12):
        return Row(case, note=f"other result: {old:.6g}, then {new:.6g}", wrong=True)
    ratios = tuple(b / a for a, b in zip(times[base], times[head], strict=True))
    return Row(case, median(times[base]), median(times[head]), ratios)


def together(rows: list[Row]) -> Row:
    """One row of a case from those of several pairs of processes, with a ratio of each."""
    for row in rows:
        if row.note:
            return row
    base, head = (median(getattr(row, name) for row in rows) for name in ("base_ms", "head_ms"))
    return Row(rows[0].case, base, head, tuple(median(row.ratios) for row in rows))


def as_table(rows: list[Row], tolerance: float) -> str:
    lines = [
        [
            row.case,
            number(row.base_ms) if row.ratios else "-",
            number(row.head_ms) if row.ratios else "-",
            f"{median(row.ratios):.3f}" if row.ratios else "-",
            f"{min(row.ratios):.3f} to {max(row.ratios):.3f}" if row.ratios else "-",
            row.verdict(tolerance),
        ]
        for row in rows
    ]
    return table(["case", "BASE ms", "HEAD ms", "HEAD / BASE", "pairs", ""], lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", metavar="BASE", help="commit, branch or tag")
    parser.add_argument("head", metavar="HEAD", nargs="?", default="HEAD")
    parser.add_argument("--tolerance", type=float, default=0.1, help="0.1: a tenth slower is fine")
    parser.add_argument("--processes", type=int, default=7, help="pairs of them")
    parser.add_argument("--rounds", type=int, default=5, help="of each pair")
    parser.add_argument("--seconds", type=float, default=0.2, help="of a turn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--cases", nargs="*", default=[], help="those whose names have one of these"
    )
    return parser.parse_args()


def main() -> int:
    args = arguments()
    names = [n for n in worker.CASES if not args.cases or any(part in n for part in args.cases)]
    if not names:
        raise SystemExit(f"no case has {args.cases} in its name; there are {list(worker.CASES)}")
    commits = [resolve(args.base), resolve(args.head)]
    with checked_out(commits) as trees:
        targets = [build(tree) for tree in trees]
        found: dict[str, list[Row]] = {name: [] for name in names}
        for _ in range(args.processes):
            with Worker(targets[0], args.threads) as base, Worker(targets[1], args.threads) as head:
                for name, of in found.items():
                    of.append(measure(base, head, name, args.rounds, args.seconds))
        rows = [together(of) for of in found.values()]
    print(f"BASE {commits[0][:10]}, HEAD {commits[1][:10]}, {args.threads} threads\n")
    print(as_table(rows, args.tolerance))
    return int(any(row.fails(args.tolerance) for row in rows))


if __name__ == "__main__":
    sys.exit(main())
