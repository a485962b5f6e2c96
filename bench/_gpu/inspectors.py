"""Nsight Compute's counters of each kernel, and compute-sanitizer over each, where installed."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import torch
from _kit.results import Part, Row

from .needs import tool_path

SCRIPT = Path(__file__).with_name("each_kernel.py")
METRICS = (
    "gpu__time_duration.sum",
    "dram__bytes_read.sum",
    "dram__bytes_write.sum",
    "smsp__inst_executed.sum",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "launch__registers_per_thread",
)
SANITIZED_EXIT = 9


def counters(text: str) -> list[dict[str, str]]:
    """One entry for each kernel of what ``ncu --csv`` prints: its name, grid and metrics."""
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    kernels: dict[str, dict[str, str]] = {}
    for line in csv.DictReader(lines[start:]):
        if not (line.get("Metric Name") and line.get("Kernel Name")):
            continue
        entry = kernels.setdefault(
            line["ID"], {"kernel": line["Kernel Name"][:80], "grid": line.get("Grid Size") or ""}
        )
        value = f"{line['Metric Value']} {line['Metric Unit'] or ''}".strip()
        entry[line["Metric Name"]] = value
    return list(kernels.values())


def profiled(row: Row, size: list[str], device: torch.device, seconds: float) -> None:
    """Counters of our kernels; clocks are left as they are."""
    tool = tool_path("ncu")
    if tool is None:
        row.update(state="left out", error="ncu is not installed")
        return
    command = [tool, "--csv", "--clock-control=none", "--kernel-name=regex:_kernel$"]
    command += ["--metrics", ",".join(METRICS), sys.executable, str(SCRIPT), *size, device.type]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    row["kernels"] = counters(done.stdout)
    if done.returncode or not row["kernels"]:
        text = " ".join((done.stdout + done.stderr).split())
        raise RuntimeError(text[-350:] or f"exit {done.returncode}")


def sanitized(row: Row, size: list[str], device: torch.device, seconds: float) -> None:
    """Every operation under memcheck."""
    tool = tool_path("compute-sanitizer")
    if tool is None:
        row.update(state="left out", error="compute-sanitizer is not installed")
        return
    command = [tool, "--tool=memcheck", f"--error-exitcode={SANITIZED_EXIT}", sys.executable]
    command += [str(SCRIPT), *size, device.type]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    output = (done.stdout + done.stderr).splitlines()
    row["summary"] = next((line for line in output if "ERROR SUMMARY" in line), "")
    row["exit"] = done.returncode
    if done.returncode:
        row["output"] = "\n".join(output[:60])
        raise RuntimeError(row["summary"] or " ".join(output)[-350:] or f"exit {done.returncode}")


def run(part: Part, device: torch.device, tiny: bool) -> None:
    """Both once, on sizes that a tool can bear; then nothing is left to measure."""
    wide, odd = (["8", "40"], ["7", "33"]) if tiny else (["4096", "2000"], ["33", "2001"])
    for key, measure, size in (
        ("compute-sanitizer memcheck", sanitized, odd),
        ("ncu", profiled, wide),
    ):
        part.row(
            key,
            lambda row, measure=measure, size=size: measure(
                row, size, device, max(5.0, part.left() - 2)
            ),
            limit=200,
            needs=5,
            size=size,
        )
