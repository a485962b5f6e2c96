"""Code blocks of Markdown pages, and how each kind of them is run.

A page is run from top to bottom in one namespace and one folder. What a reader does not need to
see stands in HTML comments:

    <!-- test:
    x = ...          Python, run at this point: to make the names that the next block uses, or to
    -->              check what the block before it did
    <!-- needs: scvi-tools -->            the next block runs only where that is installed
    <!-- test, needs scvi-tools:          the same for a comment

Trainings are cut to `MOST_EPOCHS`; see `Shortened`.
"""

from __future__ import annotations

import glob
import importlib.util
import re
import shlex
import sys
import tomllib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
MOST_EPOCHS = 2
LANGUAGES = ("python", "sh", "text", "toml")
MODULE_OF = {"scvi-tools": "scvi", "scanpy": "scanpy", "umap": "umap"}

_FENCE = re.compile(r"^(```+)\s*(\{[\w-]+\}.*|\S*)\s*$")
_HIDDEN = re.compile(r"^<!-- test(?:, needs (\S+))?:$")
_ASSIGNMENT = re.compile(r"^[A-Z_]+=")


@dataclass(frozen=True)
class Block:
    """Some code of a page: `kind` is the language, or "hidden" for a test comment."""

    page: str
    line: int
    kind: str
    text: str
    needs: str | None = None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """README.md and everything in docs/, in a fixed order."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks_of(path: Path) -> list[Block]:
    """Return the code of a page in the order in which it stands there.

    Raises
    ------
    ValueError
        A fence is not closed, has no language or one that is not known, or a marker leads nowhere.
    """
    name = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name
    lines = iter(enumerate(path.read_text().splitlines(), start=1))
    found: list[Block] = []
    needs: str | None = None
    for number, line in lines:
        if line.startswith("<!-- needs:"):
            needs = line.removeprefix("<!-- needs:").removesuffix("-->").strip()
        elif hidden := _HIDDEN.match(line):
            text = _until("-->", lines, name, number)
            found.append(Block(name, number + 1, "hidden", text, hidden[1]))
        elif match := _FENCE.match(line):
            fence, language = match.groups()
            text = _until(fence, lines, name, number)
            if language.startswith("{"):  # a directive of the documentation builder
                continue
            if language not in LANGUAGES:
                raise ValueError(f"{name}:{number}: say the language, one of {LANGUAGES}")
            found.append(Block(name, number + 1, language, text, needs))
            needs = None
    if needs is not None:
        raise ValueError(f"{name}: a block must follow <!-- needs: {needs} -->")
    return found


def _until(end: str, lines: Iterator[tuple[int, str]], name: str, start: int) -> str:
    kept: list[str] = []
    for _, line in lines:
        if line.rstrip() == end:
            return "\n".join(kept)
        kept.append(line)
    raise ValueError(f"{name}:{start}: {end} is missing")


def lacking(block: Block) -> str | None:
    """Return what the block needs and this environment does not have."""
    if block.needs is None:
        return None
    module = MODULE_OF[block.needs]
    return None if importlib.util.find_spec(module) else block.needs


class Page:
    """A page being run: its names, and how far it has come."""

    def __init__(self, path: Path, folder: Path) -> None:
        self.blocks = blocks_of(path)
        self.folder = folder
        self.names: dict[str, Any] = {"__name__": "__main__"}
        self._next = 0

    def run_through(self, block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
        """Run all blocks up to this one that have not been run yet."""
        monkeypatch.chdir(self.folder)
        last = self.blocks.index(block)
        if last + 1 < len(self.blocks) and self.blocks[last + 1].kind == "hidden":
            last += 1  # its check
        while self._next <= last:
            now = self.blocks[self._next]
            self._next += 1
            if lacking(now) is None:
                with warnings.catch_warnings():
                    if now.needs:  # other packages warn as they like
                        warnings.simplefilter("ignore")
                    self._run(now, monkeypatch)

    def _run(self, block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
        if block.kind in ("python", "hidden"):
            # empty lines before it, so that a traceback has the line of the page
            source = "\n" * (block.line - 1) + block.text
            exec(compile(source, str(ROOT / block.page), "exec"), self.names)
        elif block.kind == "sh":
            for command in commands_in(block.text):
                with monkeypatch.context() as patch:
                    run_command(command, patch)


def commands_in(text: str) -> list[list[str]]:
    """Split shell lines into the words of each command."""
    joined = text.replace("\\\n", " ")
    found: list[list[str]] = []
    for line in joined.splitlines():
        words = shlex.split(line, comments=True)
        while "&&" in words:
            here = words.index("&&")
            found.append(words[:here])
            words = words[here + 1 :]
        if words:
            found.append(words)
    return found


def run_command(words: list[str], patch: pytest.MonkeyPatch) -> None:
    """Run a command of fastvae in this process; look at any other."""
    while words and _ASSIGNMENT.match(words[0]):
        patch.setenv(*words.pop(0).split("=", 1))
    program, arguments = words[0], words[1:]
    if program not in _PROGRAMS:
        raise AssertionError(f"the documentation must not use {program!r} without a test for it")
    _PROGRAMS[program](arguments, patch)


def _fastvae(arguments: list[str], patch: pytest.MonkeyPatch) -> None:
    (command,) = entry_points(group="console_scripts", name="fastvae")
    expanded = [
        name for word in arguments for name in (sorted(glob.glob(word)) if "*" in word else [word])
    ]
    patch.setattr(sys, "argv", ["fastvae", *expanded])
    with pytest.raises(SystemExit) as end:
        command.load()()
    assert end.value.code in (0, None), f"fastvae {shlex.join(expanded)} ended with an error"


def _torchrun(arguments: list[str], patch: pytest.MonkeyPatch) -> None:
    """Let torchrun read its own options, and run the rest in this one process.

    ``test_train_distributed.py`` starts several.
    """
    from torch.distributed.run import get_args_parser

    options = get_args_parser().parse_args(arguments)
    assert options.module
    assert options.training_script == "fastvae"
    _fastvae(options.training_script_args, patch)


def _pip(arguments: list[str], patch: pytest.MonkeyPatch) -> None:
    """Look at what would be installed: files, extras and packages must be the project's own."""
    if arguments[0] == "uninstall":
        assert set(arguments[1:]) <= {"-y", "fastvae", "fastvae-scvi"}
        return
    assert arguments[0] == "install"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    known = {
        re.split(r"[><=;\s\[]", each)[0]
        for group in (project["dependencies"], *extras.values())
        for each in group
    }
    words = iter(arguments[1:])
    for word in words:
        if word == "-c":
            assert (ROOT / next(words)).is_file()
        elif match := re.fullmatch(r"(\.|fastvae-scvi)(?:\[([\w,]+)\])?", word):
            unknown = set((match[2] or "").split(",")) - {"", *extras}
            assert not unknown, f"pyproject.toml has no extra {unknown}"
        elif not word.startswith("-"):
            assert word in known, f"{word} is no dependency in pyproject.toml"


def _pytest(arguments: list[str], patch: pytest.MonkeyPatch) -> None:
    """Being run by it, look only whether the paths exist."""
    _exist([word for word in arguments if not word.startswith("-")])


def _python(arguments: list[str], patch: pytest.MonkeyPatch) -> None:
    if arguments[:2] == ["-m", "fastvae"]:
        _fastvae(arguments[2:], patch)
    else:
        _exist(arguments[:1])


def _exist(paths: list[str]) -> None:
    missing = [path for path in paths if not (ROOT / path).exists()]
    assert not missing, f"not in the repository: {missing}"


_PROGRAMS: dict[str, Callable[[list[str], pytest.MonkeyPatch], None]] = {
    "fastvae": _fastvae,
    "pip": _pip,
    "pytest": _pytest,
    "python": _python,
    "torchrun": _torchrun,
}
