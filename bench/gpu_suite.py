"""Everything that needs a GPU, in one run: checks and measurements, most important part first.

    python bench/gpu_suite.py --check            what is missing here, and what would be left out
    python bench/gpu_suite.py --out DIR [--minutes 9] [--parts smoke,bandwidth,...]
                              [--merged FILE] [--peer-python PYTHON] [--commit HASH]
    python bench/gpu_suite.py --out DIR --device cpu --tiny      a rehearsal, no measurement
    python bench/gpu_suite.py --table DIR        markdown tables of what DIR (or FILE) holds

Each part runs in a process of its own and writes DIR/PART.json after every row; a part that dies
is started again after the row that killed it, and one that fails stops no other. DIR/summary.json
says what ran, on what, for how long, and what the time did not allow. --merged keeps all of it in
one more file, rewritten every few seconds, for machines that hand back few files.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from _gpu import figures, needs, tables
from _kit import environment
from _kit.results import RESTART, Part, PoisonedDeviceError, read_json, short, write_json

# Weights, about seconds: a part may take its share of the time left to it and those after it.
PARTS = {
    "smoke": 35.0,
    "bandwidth": 12.0,
    "training": 165.0,
    "tests": 90.0,
    "kernels": 90.0,
    "operations": 40.0,
    "tiles": 25.0,
    "atlas": 60.0,
    "inspectors": 25.0,
}
MODULES = {"tests": "correctness"}  # of _gpu, where the part's name is not the module's
LEAST = 4.0  # a part with less time than this is left out
GRACE = 15.0  # a part keeps to its time between rows; this is for the row under way
LOOK_EVERY = 5.0  # seconds between two readings of the clocks, and writings of the merged file
RESTARTS = 3
TINY = "tiny sizes: a rehearsal, nothing in here is a measurement"
SUPPORT = Path(__file__).resolve().parent.parent / "tests" / "support"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder for the results")
    parser.add_argument("--merged", type=Path, metavar="FILE", help="one file with all of them")
    parser.add_argument("--check", action="store_true", help="say what is missing, and stop")
    parser.add_argument("--table", type=Path, metavar="DIR", help="print tables and stop")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, which measure nothing")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all parts together")
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated")
    parser.add_argument("--peer-python", default=sys.executable, help="has scvi-tools")
    parser.add_argument("--compile-seconds", type=float, help="for torch.compile, of all rows")
    parser.add_argument("--commit", help="where the copy of the tree has no .git")
    parser.add_argument("--run", choices=[*PARTS, "device"], help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=60.0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.parts = [name for name in args.parts.split(",") if name]
    unknown = sorted(set(args.parts) - set(PARTS))
    if unknown:
        parser.error(f"unknown parts: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if not (args.table or args.out or args.check):
        parser.error("give --out DIR for the results, --check, or --table DIR to print them")
    return args


def measure(args: argparse.Namespace, part: Part) -> None:
    """Run the part that was asked for; only its own module is imported."""
    import torch

    more: list[Any] = []
    if args.run == "training":
        more = [args.peer_python]
    elif args.run == "kernels":
        facts = (read_json(args.out / "bandwidth.json") or {}).get("facts", {})
        more = [facts.get("copy_gb_per_s"), args.compile_seconds]
    module = importlib.import_module(f"_gpu.{MODULES.get(args.run, args.run)}")
    module.run(part, torch.device(args.device), args.tiny, *more)


def run_part(args: argparse.Namespace) -> int:
    """The child's side: one part in this process."""
    if args.run == "device":
        write_json(args.out / ".device.json", environment.device_facts(args.device))
        return 0
    part = Part(args.out / f"{args.run}.json", args.seconds)
    try:
        measure(args, part)
    except PoisonedDeviceError:
        return RESTART
    except Exception as error:
        traceback.print_exc()
        part.facts["error"] = short(error)
        part.save("failed")
        return 1
    part.save("done")
    return 0


class Watch:
    """Reads the clocks and writes the merged file while parts run."""

    def __init__(self, args: argparse.Namespace, summary: dict[str, Any]) -> None:
        self._args, self._summary = args, summary
        self._clocks: list[dict[str, str]] = []

    def look(self) -> None:
        self._clocks += environment.nvidia_smi() or []
        self.merge()

    def merge(self) -> None:
        """Write everything so far into one file, where that was asked for."""
        if self._args.merged is None:
            return
        found = {name: read_json(self._args.out / f"{name}.json") for name in self._args.parts}
        parts = {name: content for name, content in found.items() if content is not None}
        write_json(self._args.merged, {"summary": self._summary, **parts})

    def clocks(self) -> dict[str, list[str]]:
        """Different readings since the last call, by what was read."""
        names = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu")
        found = {k: list(dict.fromkeys(read[k] for read in self._clocks)) for k in names}
        self._clocks = []
        return {k: values for k, values in found.items() if values}


def child(args: argparse.Namespace, name: str, seconds: float, watch: Watch) -> int | None:
    """Run this script for one part; its exit status, None if it had to be stopped."""
    command = [sys.executable, str(Path(__file__).resolve()), f"--run={name}"]
    command += [f"--out={args.out}", f"--device={args.device}", f"--seconds={seconds}"]
    command += [f"--peer-python={args.peer_python}", *(["--tiny"] if args.tiny else [])]
    if args.compile_seconds is not None:
        command.append(f"--compile-seconds={args.compile_seconds}")
    variables = dict(os.environ)
    paths = [str(SUPPORT), variables.get("PYTHONPATH", "")]  # the tests' 50-digit oracle
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    if args.tiny:
        variables["OMP_NUM_THREADS"] = "1"  # tiny sizes: threads would only wait for each other
    end = time.monotonic() + seconds + GRACE
    with subprocess.Popen(command, env=variables, start_new_session=True) as process:
        try:
            while (left := end - time.monotonic()) > 0:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return process.wait(timeout=min(left, LOOK_EVERY))
                watch.look()
            return None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # also the part's own children


def supervise(args: argparse.Namespace, name: str, seconds: float, watch: Watch) -> dict[str, Any]:
    """Run a part, again after the row that ended its process, within its time."""
    started = time.monotonic()
    path = args.out / f"{name}.json"
    path.unlink(missing_ok=True)
    status: int | None = None
    starts = 0
    while starts <= RESTARTS:
        left = seconds - (time.monotonic() - started)
        if starts and left < LEAST:
            break
        starts += 1
        status = child(args, name, left, watch)
        content = read_json(path) or {}
        if status in (0, None) or content.get("state") == "failed" or not content:
            break
    content = read_json(path) or {"part": name, "facts": {}, "rows": []}
    if content.get("state") != "done":
        content["state"] = "out of time" if status is None else "failed"
        for row in content["rows"]:
            if row["state"] == "running":
                row.update(state=content["state"], error="the part ended in this row")
        content["facts"].setdefault("exit", status)
        write_json(path, content)
    states = [row["state"] for row in content["rows"]]
    return {
        "state": content["state"],
        "starts": starts,
        "seconds": round(time.monotonic() - started, 1),
        "rows": {state: states.count(state) for state in sorted(set(states))},
        "clocks": watch.clocks(),
    }


def begun(args: argparse.Namespace, missing: list[str]) -> dict[str, Any]:
    """What the summary says before anything has run."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "measurement": not args.tiny,
        **({"note": TINY} if args.tiny else {}),
        "asked_device": args.device,
        "minutes": args.minutes,
        **environment.describe(),
        **({"commit": args.commit} if args.commit else {}),
        "missing": missing,
        "parts": {},
        "left_out": {},
    }


def run_all(args: argparse.Namespace, missing: list[str]) -> int:
    """Run all parts, and say at the end what came of them."""
    started = time.monotonic()
    total = 60.0 * args.minutes
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "summary.json"
    summary = begun(args, missing)
    watch = Watch(args, summary)
    write_json(path, summary)
    child(args, "device", 60, watch)
    facts = args.out / ".device.json"
    summary.update(read_json(facts) or {"device": None})
    facts.unlink(missing_ok=True)
    for name in args.parts:
        left = total - (time.monotonic() - started)
        if left < LEAST:
            summary["left_out"][name] = "no time left"
            continue
        weights = [PARTS[other] for other in args.parts[args.parts.index(name) :]]
        own = left * weights[0] / sum(weights)
        summary["parts"][name] = result = supervise(args, name, own, watch)
        print(f"{name}: {json.dumps(result)}", flush=True)
        write_json(path, summary)
        watch.merge()
    summary["seconds"] = round(time.monotonic() - started, 1)
    summary["nvidia_smi_after"] = environment.nvidia_smi()
    summary["figures"] = figures.of_folder(args.out)
    write_json(path, summary)
    watch.merge()
    print(figures.text(summary), flush=True)
    states = {result["state"] for result in summary["parts"].values()}
    return 0 if states <= {"done"} else 1


def main() -> int:
    args = arguments()
    if args.table:
        print(tables.render(args.table))
        return 0
    if args.run:
        args.out = args.out.resolve()
        return run_part(args)
    text, fine, missing = needs.report(args.device, args.peer_python)
    print(text, flush=True)
    if args.check or not fine:
        return 0 if fine else 2
    if args.tiny:
        print(TINY, flush=True)
    args.out = args.out.resolve()
    return run_all(args, missing)


if __name__ == "__main__":
    sys.exit(main())
