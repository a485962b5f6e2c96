"""scvi-tools' own tests, with its models and with fastvae's in their place.

    python bench peer_tests --sdist scvi_tools-1.5.1 --out JSON [--files FILE ...] [pytest options]

Takes the tests from the source distribution (the archive, or the folder that it holds), since the
wheel has none: ``pip download --no-deps --no-binary :all: scvi-tools==1.5.1``. Runs the files twice
with the same interpreter - once as they are, once with ``scvi.model.SCVI``, ``LinearSCVI`` and
``SCANVI`` and their modules replaced - prints both counts, and lists the tests that pass with
theirs and not with ours; its status is 1 where there are such. Needs scvi-tools of the same
version, scanpy and pytest. The tests of annbatch are ``--files dataloaders/test_annbatch.py
--custom-dataloader-tests``.
"""

from __future__ import annotations

import argparse
import os
import shutil
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
    "model/test_scanvi.py",
    "model/test_models_with_minified_data.py",
    "model/test_differential.py",
    "model/test_differential_abundance.py",
    "module/test_vae.py",
    "module/test_scanvae.py",
    "train",
]

PLUGIN = '''
"""Puts fastvae's models where scvi-tools keeps its own, before any test module is imported."""
import scvi
import scvi.model
import scvi.module

from fastvae.integrations import scvi_tools as door
from fastvae.integrations.scvi_tools import _module

for name in ("SCVI", "LinearSCVI", "SCANVI"):
    setattr(scvi.model, name, getattr(door, name))
for name in ("VAE", "LDVAE", "SCANVAE"):
    setattr(scvi.module, name, getattr(_module, name))
'''


def arguments() -> tuple[argparse.Namespace, list[str]]:
    """Our options, and pytest's."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sdist", type=Path, required=True, help="archive or folder")
    parser.add_argument("--files", nargs="+", default=FILES, help="under tests/")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", choices=["theirs", "ours"])
    return parser.parse_known_args()


def take_tests(sdist: Path, folder: Path) -> Path:
    """Copy the tests out of the distribution, without the package that is beside them."""
    if sdist.is_file():
        with tarfile.open(sdist) as archive:
            archive.extractall(folder / "sdist", filter="data")
        (sdist,) = (folder / "sdist").iterdir()
    where = folder / "suite"
    where.mkdir()
    for name in ("tests", "conftest.py", "pyproject.toml"):
        if (sdist / name).is_dir():
            shutil.copytree(sdist / name, where / name)
        elif (sdist / name).exists():
            shutil.copy(sdist / name, where / name)
    return where / "tests"


def run(tests: Path, files: list[str], ours: bool, options: list[str]) -> dict[str, str]:
    """Return the outcome of each test."""
    report = tests.parent / f"report-{'ours' if ours else 'theirs'}.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += [
        f"--junitxml={report}",
        "--tb=short",
        "--durations=8",
        *[f"tests/{name}" for name in files if (tests / name).exists()],
        *options,
    ]
    environment = dict(os.environ)
    if ours:
        (tests.parent / "fastvae_models.py").write_text(PLUGIN)
        command += ["-p", "fastvae_models"]
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
    args, options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        tests = take_tests(args.sdist, Path(folder))
        found = {}
        for name in ("theirs", "ours"):
            if args.only in (None, name):
                found[name] = run(tests, args.files, name == "ours", options)
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
