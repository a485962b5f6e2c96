"""The results a report may quote, and why another may not.

A file is quoted if it says at which commit it was measured, if that commit belongs to this history,
and if nobody in it disagreed. What it lacks is never filled in here: a file from before results
said their commit carries it as `commit` with `commit_source`, written into the file once.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = Path("bench") / "results"  # of a checkout
Content = dict[str, Any]
BAD_STATES = {"disagreement", "failed"}


class RefusedError(Exception):
    """A result that must not be quoted."""


@dataclass(frozen=True)
class Result:
    """One file of results."""

    path: Path
    content: Content

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def environment(self) -> Content:
        return dict(self.content.get("environment") or {})

    @property
    def commit(self) -> str:
        return str(self.content.get("commit") or self.environment.get("commit") or "")

    def fact(self, name: str) -> Any:
        """What the file says under `name`, itself or in its environment."""
        value = self.content.get(name)
        return self.environment.get(name) if value is None else value

    def versions(self) -> dict[str, str]:
        """Every version that the file mentions, by package."""
        found = {k: v for k, v in (self.environment.get("versions") or {}).items() if v}
        for key, value in (self.content.get("versions") or {}).items():
            package, _, version = str(value).rpartition(" ")
            found[package or key] = version
        for package in ("fastvae", "torch", "triton"):
            if str(self.content.get(package, ""))[:1].isdigit():
                found[package] = self.content[package]
        peer = self.content.get("scvi-tools")
        if isinstance(peer, dict):
            found["scvi-tools"] = peer.get("scvi-tools", "")
        for name, curve in (self.content.get("curves") or {}).items():
            found[name.split(",")[0]] = curve["version"]
        return found


def git(*command: str, root: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *command], cwd=root, capture_output=True, text=True, check=False)


def objections(content: Content, root: Path = ROOT) -> Iterator[str]:
    """Why these results may not be quoted, in words."""
    commit = Result(Path(), content).commit
    if not commit:
        yield "it does not say at which commit it was measured (`commit`)"
    elif git("merge-base", "--is-ancestor", commit, "HEAD", root=root).returncode:
        yield f"commit {commit[:12]} is not in the history of this checkout"
    if content.get("quick"):
        yield "it was measured with --quick, which only tells whether all is well"
    yield from disagreements(content)


def disagreements(content: Any, where: str = "") -> Iterator[str]:
    """Every place where a check of agreement failed, however deep."""
    if isinstance(content, dict):
        if content.get("agrees") is False:
            yield f"{where or 'it'} disagrees with what it was checked against"
        if content.get("state") in BAD_STATES:
            reason = content.get("error", "no reason given")
            yield f"{content.get('key', where)}: {content['state']} ({reason})"
        for key, value in content.items():
            yield from disagreements(value, f"{where}.{key}".lstrip("."))
    elif isinstance(content, list):
        for number, value in enumerate(content):
            yield from disagreements(value, f"{where}[{number}]")


def load(root: Path = ROOT) -> dict[str, Result]:
    """All committed results of a checkout by the stem of their file's name.

    Raises
    ------
    RefusedError
        Naming every file that may not be quoted, with the reasons.
    """
    if git("rev-parse", "HEAD", root=root).returncode:
        raise RefusedError(f"{root} is no git checkout: the results' commits cannot be checked")
    if git("rev-parse", "--is-shallow-repository", root=root).stdout.strip() == "true":
        raise RefusedError("the history is cut short here; `git fetch --unshallow` brings the rest")
    committed = set(git("ls-files", "--", str(RESULTS), root=root).stdout.splitlines())
    found, refused = {}, []
    for path in sorted((root / RESULTS).glob("*.json")):
        if str(path.resolve().relative_to(root.resolve())) not in committed:
            continue
        content = json.loads(path.read_text())
        reasons = list(objections(content, root))
        refused += [f"{path.name}: {reason}" for reason in reasons]
        found[path.stem] = Result(path, content)
    if refused:
        hint = "measure again, or take the file away"
        raise RefusedError("\n".join(["refused:", *refused, hint]))
    return found


def gpu_runs(root: Path = ROOT) -> list[Path]:
    """Folders that bench/gpu_suite.py wrote on a GPU."""
    runs = []
    for path in sorted((root / RESULTS).glob("*/summary.json")):
        content = json.loads(path.read_text())
        if content.get("asked_device") != "cuda":
            continue
        # a contender that disagrees stays in the suite's own tables, by name, without a time
        reasons = [r for r in objections(content, root) if "commit" in r]
        if reasons:
            raise RefusedError(f"refused: {path.parent.name}: {reasons[0]}")
        runs.append(path.parent)
    return runs
