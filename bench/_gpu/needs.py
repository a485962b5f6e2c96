"""What the suite needs on a machine, and what it leaves out where something is missing."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Package:
    """A package that the suite imports.

    Attributes
    ----------
    module
        Name to import.
    name
        Name to install.
    without
        What is left out where it is missing; empty where nothing runs then.
    """

    module: str
    name: str
    without: str = ""


PACKAGES = (
    Package("fastvae", "fastvae-scvi"),
    Package("torch", "torch"),
    Package("numpy", "numpy"),
    Package("scipy", "scipy"),
    Package("anndata", "anndata"),
    Package("pandas", "pandas"),
    Package("h5py", "h5py"),
    Package("safetensors", "safetensors"),
    Package("rich", "rich"),
    Package("triton", "triton", "every fused kernel: all rows then time the torch backend"),
    Package("pytest", "pytest", "the part tests, but for the grid of 50 digits"),
    Package("mpmath", "mpmath", "the grid of 50 digits, and the tests that use it"),
    Package("hypothesis", "hypothesis", "the tests that draw their cases"),
)
PEER = Package("scvi", "scvi-tools", "rows scvi-tools and door of training, scvi-tools of kernels")
PYTEST_BENCH = (
    Package("pytest_benchmark", "pytest-benchmark", "`pytest bench/`"),
    Package("zarr", "zarr", "the zarr rows of `pytest bench/bench_loader.py`"),
)

FOLDERS = (
    "/usr/local/cuda*/bin",
    "/opt/nvidia/nsight-compute/*",
    "/usr/local/cuda*/compute-sanitizer",
)


def tool_path(name: str) -> str | None:
    """Where a tool of the CUDA toolkit is."""
    if path := shutil.which(name):
        return path
    places: Iterator[Path] = (
        place for folder in FOLDERS for place in sorted(Path("/").glob(f"{folder[1:]}/{name}"))
    )
    return next((str(place) for place in places if place.is_file()), None)


def installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def peer_installed(python: str) -> bool:
    """Whether the peer's interpreter, which may be this one, has scvi-tools."""
    if python == sys.executable:
        return installed(PEER.module)
    ask = f"import importlib.util, sys; sys.exit(importlib.util.find_spec('{PEER.module}') is None)"
    try:
        return subprocess.run([python, "-c", ask], timeout=60, check=False).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False


def device_problem(device: str) -> str | None:
    """Why nothing can run on the device, or None."""
    if device != "cuda" or not installed("torch"):
        return None
    ask = "import torch, sys; sys.exit(not torch.cuda.is_available())"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, check=False)
    return None if done.returncode == 0 else "torch sees no GPU"


def import_problem(modules: list[str]) -> str | None:
    """Why the modules cannot be imported together: one may be there and lack what it needs."""
    command = [sys.executable, "-c", f"import {', '.join(modules)}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else (done.stderr.splitlines() or ["no message"])[-1]


def problems(device: str) -> list[str]:
    """What nothing can run without."""
    found = [f"package {p.name}" for p in PACKAGES if not p.without and not installed(p.module)]
    if "package fastvae" not in found and not installed("fastvae.kernels"):
        found.append(
            "fastvae as an installed package: this one is the source folder, which has no kernels"
        )
    if not found and (reason := import_problem([p.module for p in PACKAGES if not p.without])):
        found.append(f"the packages that are needed cannot be imported: {reason}")
    if reason := device_problem(device):
        found.append(f"a device: {reason}")
    return found


def left_out(device: str, peer_python: str) -> list[str]:
    """What is missing, each with what is left out for it."""
    missing = [
        f"{p.name}: {p.without}"
        for p in (*PACKAGES, *PYTEST_BENCH)
        if p.without and not installed(p.module)
    ]
    if not peer_installed(peer_python):
        missing.append(f"{PEER.name} in {peer_python}: {PEER.without}")
    if device == "cuda":
        if not (shutil.which("gcc") or shutil.which("cc") or shutil.which("clang")):
            missing.append("a C compiler: every fused kernel (triton builds its launcher with it)")
        if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
            missing.append("Python.h: every fused kernel (triton builds its launcher with it)")
        for tool in ("ncu", "compute-sanitizer"):
            if tool_path(tool) is None:
                missing.append(f"{tool}: its row of the part inspectors")
    return missing


def report(device: str, peer_python: str) -> tuple[str, bool, list[str]]:
    """The text of ``--check``, whether the suite can start, and what it leaves out."""
    fatal, skipped = problems(device), left_out(device, peer_python)
    required = " ".join(p.name for p in PACKAGES if not p.without)
    optional = " ".join(p.name for p in (*PACKAGES, PEER, *PYTEST_BENCH) if p.without)
    lines = [f"needed: {required}", f"used where installed: {optional}", ""]
    lines += [f"missing, nothing can run: {text}" for text in fatal]
    lines += [f"missing, left out: {text}" for text in skipped]
    lines.append("cannot start" if fatal else "can start")
    return "\n".join(lines), not fatal, skipped
