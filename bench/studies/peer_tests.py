"""scvi-tools' own tests, with its models and with fastvae's in their place.

    python bench peer_tests --sdist scvi_tools-1.4.2.tar.gz --out JSON [--files FILE ...]

Unpacks the source distribution's tests, runs the asked files twice with the same interpreter -
once as they are, once with ``scvi.model.SCVI`` and ``LinearSCVI`` and their modules replaced -
and lists the tests that pass with theirs and not with ours. Needs scvi-tools of the same version,
scanpy, pytest, and rich < 14.1 for scvi-tools' progress bar.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

from _kit.environment import describe
from _kit.results import write_json

FILES = [
    "model/test_scvi.py",
    "model/test_linear_scvi.py",
    "model/test_models_with_minified_data.py",
    "module/test_vae.py",
    "distributions",
]

PLUGIN = '''
"""Puts fastvae's models where scvi-tools keeps its own, before any test module is imported."""
import scvi
import scvi.model
import scvi.module

from fastvae.integrations.scvi_tools import SCVI, LinearSCVI
from fastvae.integrations.scvi_tools import _module

scvi.model.SCVI = SCVI
scvi.model.LinearSCVI = LinearSCVI
scvi.module.VAE = _module.VAE
scvi.module.LDVAE = _module.LDVAE
'''


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sdist", type=Path, required=True)
    parser.add_argument("--files", nargs="+", default=FILES, help="under tests/")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", choices=["theirs", "ours"])
    parser.add_argument("-k", help="as pytest's")
    return parser.parse_args()


def run(tests: Path, files: list[str], ours: bool, expression: str | None) -> dict[str, str]:
    """Return the outcome of each test."""
    report = tests.parent / f"report-{'ours' if ours else 'theirs'}.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += [
        f"--junitxml={report}",
        "--tb=short",
        "--durations=8",
        *[f"tests/{name}" for name in files],
    ]
    environment = dict(os.environ)
    if ours:
        (tests.parent / "fastvae_models.py").write_text(PLUGIN)
        command += ["-p", "fastvae_models"]
    if expression:
        command += ["-k", expression]
    paths = [str(tests.parent), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    started = time.monotonic()
    done = subprocess.run(
        command, cwd=tests.parent, env=environment, capture_output=True, text=True
    )
    print(f"{'ours' if ours else 'theirs'}: {time.monotonic() - started:.0f} s, ", end="")
    print(done.stdout.splitlines()[-1] if done.stdout else done.stderr[-2000:], flush=True)
    (tests.parent / f"log-{'ours' if ours else 'theirs'}.txt").write_text(done.stdout)
    outcomes = {}
    for case in ET.parse(report).iter("testcase"):
        kinds = {child.tag for child in case} & {"failure", "error", "skipped"}
        outcomes[f"{case.get('classname')}::{case.get('name')}"] = (
            "passed" if not kinds else "failed" if kinds & {"failure", "error"} else "skipped"
        )
    return outcomes


def main() -> None:
    args = arguments()
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(args.sdist) as archive:
            archive.extractall(folder, filter="data")
        tests = next(Path(folder).glob("*/tests"))
        (tests.parent / "src").rename(tests.parent / "not_imported")  # the installed one is tested
        found = {}
        for name in ("theirs", "ours"):
            if args.only in (None, name):
                found[name] = run(tests, args.files, name == "ours", args.k)
        if args.only:
            print((tests.parent / f"log-{args.only}.txt").read_text()[-12000:])
            return
        log = (tests.parent / "log-ours.txt").read_text()
    theirs, ours = found["theirs"], found["ours"]
    worse = sorted(
        test for test in theirs if theirs[test] == "passed" and ours.get(test) != "passed"
    )
    result = {
        "environment": describe(),
        "sdist": args.sdist.name,
        "files": args.files,
        "theirs": Counter(theirs.values()),
        "ours": Counter(ours.values()),
        "passes_with_theirs_only": worse,
        "passes_with_ours_only": sorted(
            test for test in theirs if theirs[test] != "passed" and ours.get(test) == "passed"
        ),
        "failed_with_both": sorted(
            test for test in theirs if theirs[test] == ours.get(test) == "failed"
        ),
    }
    if worse:
        print(log[-12000:])
    for name in ("theirs", "ours", "passes_with_theirs_only", "failed_with_both"):
        print(name, result[name])
    if args.out:
        write_json(args.out, result)
    sys.exit(bool(worse))


if __name__ == "__main__":
    main()
