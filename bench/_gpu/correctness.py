"""The operations' tests on this device, one process per file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from _kit.results import Part, Row

from . import accuracy

ROOT = Path(__file__).resolve().parent.parent.parent
PATTERNS = [  # whose tensors are on the device that FASTVAE_TEST_DEVICE names
    "tests/functional/test_*.py",
    "tests/kernels/test_sparse*.py",
    "tests/kernels/test_special.py",
]
CAPTURE = "tests/train/test_capture.py"  # chooses its device itself
TINY_FILES = ["tests/vae/test_nn.py"]
KEPT = 5  # failures whose text is kept, per file


def files(tiny: bool) -> list[str]:
    """The tests of the operations and of the kernels that a device runs."""
    if tiny:
        return TINY_FILES
    found = [str(p.relative_to(ROOT)) for pattern in PATTERNS for p in sorted(ROOT.glob(pattern))]
    return [*found, CAPTURE]


def variables(name: str, device: torch.device) -> dict[str, str]:
    """Where a file's tests run; the kernels are compiled, never interpreted, on a GPU."""
    interpreted = {"TRITON_INTERPRET": "0"} if device.type == "cuda" else {}
    return interpreted | ({} if name == CAPTURE else {"FASTVAE_TEST_DEVICE": device.type})


def summarise(log: Path) -> dict[str, Any]:
    """Outcomes of the tests that have ended, also of a run that was cut off."""
    lines = log.read_text().splitlines() if log.exists() else []
    reports = [json.loads(line) for line in lines]
    failures = [r for r in reports if r["outcome"] == "failed"]
    return {
        **{o: sum(r["outcome"] == o for r in reports) for o in ("passed", "failed", "skipped")},
        "failures": [{"test": r["test"], "text": r["text"]} for r in failures[:KEPT]],
        "failed_tests": [r["test"] for r in failures],
    }


def run(part: Part, device: torch.device, tiny: bool) -> None:
    """All files at once: compiling kernels takes the host's time, not the device's."""
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")])
    )
    part.facts["FASTVAE_TEST_DEVICE"] = device.type
    with tempfile.TemporaryDirectory() as folder:
        running: dict[str, tuple[subprocess.Popen[bytes], Path]] = {}
        for name in files(tiny):
            log, output = (Path(folder) / f"{Path(name).stem}.{end}" for end in ("jsonl", "txt"))
            # -P: the package that is installed, not the source folder beside the tests
            command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "pytest_log", name]
            command += ["-p", "no:cacheprovider", "--maxfail=40"]
            with output.open("wb") as stream:
                running[name] = (
                    subprocess.Popen(
                        command,
                        cwd=ROOT,
                        env={
                            **environment,
                            **variables(name, device),
                            "FASTVAE_TEST_LOG": str(log),
                        },
                        stdout=stream,
                        stderr=subprocess.STDOUT,
                    ),
                    log,
                )
        accuracy.run(part, device, tiny)  # while the tests compile their kernels
        for name, (process, log) in running.items():

            def fill(row: Row, process: subprocess.Popen[bytes] = process, log: Path = log) -> None:
                try:
                    row["exit"] = process.wait(timeout=max(0.1, part.left()))
                except subprocess.TimeoutExpired:
                    process.kill()
                    row.update(state="out of time")
                row.update(summarise(log))
                if row.get("exit") not in (0, None):
                    row["state"] = "failed"
                    row["output"] = log.with_suffix(".txt").read_text(errors="replace")[-1500:]

            part.row(name, fill, limit=part.left() + 60, needs=-1e9)
    part.facts["totals"] = {
        outcome: sum(row.get(outcome, 0) for row in part.rows)
        for outcome in ("passed", "failed", "skipped")
    }
