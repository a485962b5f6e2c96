"""What the numbers were taken on: software, device, commit."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
DISTRIBUTIONS = {"fastvae": "fastvae-scvi"}  # where it has another name
PACKAGES = ("fastvae", "torch", "triton", "numpy", "scvi-tools", "annbatch")
QUERY = (
    "name,driver_version,memory.total,clocks.sm,clocks.max.sm,clocks.mem,power.limit,"
    "power.draw,temperature.gpu"
)


def output(*command: str) -> str | None:
    """What a command prints, None where it is missing or fails."""
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def nvidia_smi() -> list[dict[str, str]] | None:
    """Clocks, power and driver of each device, as they are now."""
    text = output("nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader")
    if not text:
        return None
    names = QUERY.split(",")
    return [
        dict(zip(names, map(str.strip, line.split(",")), strict=False))
        for line in text.splitlines()
    ]


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(DISTRIBUTIONS.get(package, package))
    except importlib.metadata.PackageNotFoundError:
        return None


def describe() -> dict[str, Any]:
    """Facts that touch no device."""
    status = output("git", "status", "--porcelain", "--untracked-files=no")
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.release(),
        "versions": {package: version(package) for package in PACKAGES},
        "commit": output("git", "rev-parse", "HEAD"),
        "dirty": None if status is None else bool(status),
        "nvidia_smi": nvidia_smi(),
    }


def devices() -> list[str]:
    """Where `pytest bench/` compares: on the GPU where there is one, else on the CPU."""
    import torch

    return ["cuda"] if torch.cuda.is_available() else ["cpu"]


def device_facts(kind: str = "cuda") -> dict[str, Any]:
    """Facts from torch about the GPU, or the CPU where there is none or `kind` says so.

    The suite asks in a process of its own, so that its own stays clean.
    """
    import torch

    facts: dict[str, Any] = {"torch_cuda": torch.version.cuda, "threads": torch.get_num_threads()}
    if kind == "cuda" and torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        facts.update(
            device=properties.name,
            capability=f"{properties.major}.{properties.minor}",
            multiprocessors=properties.multi_processor_count,
            memory_bytes=properties.total_memory,
            l2_bytes=getattr(properties, "L2_cache_size", None),
        )
    else:
        facts["device"] = f"CPU ({platform.processor() or platform.machine()})"
    facts["executable"] = Path(sys.executable).name
    return facts
