"""Everything that needs a GPU, in one run: tests, then measurements, most important part first.

    python bench/gpu_suite.py --out DIR [--quick] [--device cuda|cpu] [--minutes 9]
                              [--parts tests,bandwidth,...] [--peer-python PYTHON]
    python bench/gpu_suite.py --table DIR        markdown tables of what DIR holds

Each part runs in a process of its own and writes DIR/PART.json after every row; a part that dies
is started again after the row that killed it. DIR/summary.json says what ran, on what, for how
long, and what the time did not allow. --quick takes tiny sizes, to see that all of it works.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from _kit import environment
from _kit.results import RESTART, Part, PoisonedDeviceError, read_json, short, write_json

# Weights, about seconds: a part may take its share of the time left to it and those after it.
PARTS = {
    "tests": 130.0,
    "bandwidth": 25.0,
    "kernels": 200.0,
    "operations": 65.0,
    "training": 110.0,
    "tiles": 60.0,
}
LEAST = 4.0  # a part with less time than this is left out
RESTARTS = 3
SUPPORT = Path(__file__).resolve().parent.parent / "tests" / "support"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder for the results")
    parser.add_argument("--table", type=Path, metavar="DIR", help="print tables and stop")
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
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
    if not args.table and not args.out:
        parser.error("give --out DIR for the results, or --table DIR to print them")
    return args


def run_part(args: argparse.Namespace) -> int:
    """The child's side: one part in this process."""
    if args.run == "device":
        write_json(args.out / ".device.json", environment.device_facts())
        return 0
    import torch

    device = torch.device(args.device)
    part = Part(args.out / f"{args.run}.json", args.seconds)
    try:
        if args.run == "tests":
            from _gpu import correctness

            correctness.run(part, device, args.quick)
        elif args.run == "bandwidth":
            from _gpu import bandwidth

            bandwidth.run(part, device, args.quick)
        elif args.run == "kernels":
            from _gpu import kernels

            facts = (read_json(args.out / "bandwidth.json") or {}).get("facts", {})
            kernels.run(part, device, args.quick, facts.get("copy_gb_per_s"), args.compile_seconds)
        elif args.run == "operations":
            from _gpu import operations

            operations.run(part, device, args.quick)
        elif args.run == "training":
            from _gpu import training

            training.run(part, device, args.quick, args.peer_python)
        elif args.run == "tiles":
            from _gpu import tiles

            tiles.run(part, device, args.quick)
    except PoisonedDeviceError:
        return RESTART
    except Exception as error:
        traceback.print_exc()
        part.facts["error"] = short(error)
        part.save("failed")
        return 1
    part.save("done")
    return 0


def child(args: argparse.Namespace, name: str, seconds: float) -> int | None:
    """Run this script for one part; its exit status, None if it had to be stopped."""
    command = [sys.executable, str(Path(__file__).resolve()), f"--run={name}"]
    command += [f"--out={args.out}", f"--device={args.device}", f"--seconds={seconds}"]
    command += [f"--peer-python={args.peer_python}", *(["--quick"] if args.quick else [])]
    if args.compile_seconds is not None:
        command.append(f"--compile-seconds={args.compile_seconds}")
    variables = dict(os.environ)
    paths = [str(SUPPORT), variables.get("PYTHONPATH", "")]  # the tests' 50-digit oracle
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    if args.quick:
        variables["OMP_NUM_THREADS"] = "1"  # tiny sizes: threads would only wait for each other
    with subprocess.Popen(command, env=variables, start_new_session=True) as process:
        try:
            # A part keeps to its time between rows; the grace is for the row under way.
            return process.wait(timeout=seconds + 15)
        except subprocess.TimeoutExpired:
            return None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # also the part's own children


def supervise(args: argparse.Namespace, name: str, seconds: float) -> dict[str, Any]:
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
        status = child(args, name, left)
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
    }


def run_all(args: argparse.Namespace) -> int:
    started = time.monotonic()
    total = 60.0 * args.minutes
    args.out.mkdir(parents=True, exist_ok=True)
    summary: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "quick": args.quick,
        "asked_device": args.device,
        "minutes": args.minutes,
        **environment.describe(),
        **({"commit": args.commit} if args.commit else {}),
        "parts": {},
        "left_out": {},
    }
    path = args.out / "summary.json"
    write_json(path, summary)
    child(args, "device", 60)
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
        summary["parts"][name] = result = supervise(args, name, own)
        print(f"{name}: {json.dumps(result)}", flush=True)
        write_json(path, summary)
    summary["seconds"] = round(time.monotonic() - started, 1)
    summary["nvidia_smi_after"] = environment.nvidia_smi()
    write_json(path, summary)
    states = {result["state"] for result in summary["parts"].values()}
    return 0 if states <= {"done"} else 1


def main() -> int:
    args = arguments()
    if args.table:
        from _gpu import tables

        print(tables.render(args.table))
        return 0
    args.out = args.out.resolve()
    return run_part(args) if args.run else run_all(args)


if __name__ == "__main__":
    sys.exit(main())
