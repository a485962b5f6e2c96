"""Commits checked out beside this one, each built into a folder of its own; gone in the end."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from _report.inputs import ROOT, git


def resolve(name: str, root: Path = ROOT) -> str:
    """The full hash of a commit, branch or tag."""
    done = git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}", root=root)
    if done.returncode:
        raise SystemExit(f"{name!r} is no commit of {root.name}; name a commit, branch or tag")
    return done.stdout.strip()


@contextmanager
def checked_out(commits: list[str], root: Path = ROOT) -> Iterator[list[Path]]:
    """Worktrees of the commits; they are removed again whatever happens."""
    folder = Path(tempfile.mkdtemp(prefix="fastvae-compare-"))
    trees = [folder / f"{number}-{commit[:10]}" for number, commit in enumerate(commits)]
    try:
        for commit, tree in zip(commits, trees, strict=True):
            done = git("worktree", "add", "--detach", str(tree), commit, root=root)
            if done.returncode:
                raise SystemExit(f"cannot check out {commit}: {done.stderr.strip()}")
        yield trees
    finally:
        for tree in trees:
            git("worktree", "remove", "--force", str(tree), root=root)
        shutil.rmtree(folder, ignore_errors=True)
        git("worktree", "prune", root=root)


def build(tree: Path) -> Path:
    """Install the checkout, C++ library and all, under itself; nothing outside is touched."""
    target = tree / ".compare"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
    offline = ["--no-build-isolation", "--no-index"] if has_builder() else []
    command = [*pip, *offline, f"--target={target}", str(tree)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{tree.name} does not build:\n{done.stderr[-3000:]}")
    return target


def has_builder() -> bool:
    """Whether this environment can build by itself, without fetching the build's requirements."""
    from importlib.util import find_spec

    return find_spec("scikit_build_core") is not None
