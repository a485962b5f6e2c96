"""The help of every command shows every word of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer
from command_line import RUNNER, run

from fastvae.cli import app
from fastvae.cli.options import PANELS

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands


def words(text: str) -> str:
    """The words of a help page, without the frames and line breaks that rich puts between them."""
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_word_is_shown(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rich takes a text in square brackets for markup and leaves it out."""
    monkeypatch.setenv("COLUMNS", "400")
    shown = words(run(name, "--help").output)
    for parameter in COMMANDS[name].params:
        if text := getattr(parameter, "help", None):
            assert words(text) in shown, parameter.name
        if isinstance(parameter.show_default, str):
            assert f"[default: ({parameter.show_default})]" in shown, parameter.name


def test_the_common_options_of_train_fit_a_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = run("train", "--help").output.splitlines()
    titles = {line.split()[1]: n for n, line in enumerate(lines, 1) if line.startswith("╭─ ")}
    assert list(titles) == ["Arguments", "Options", *PANELS]
    assert titles["Expert"] <= 60


@pytest.mark.parametrize("name", ["train", "map"])
def test_every_default_is_shown(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    shown = words(run(name, "--help").output)
    for parameter in COMMANDS[name].params:
        if parameter.param_type_name != "option" or parameter.required:
            continue
        if parameter.is_flag and parameter.default is False:
            continue  # a switch, off by default
        default = parameter.show_default
        text = f"({default})" if isinstance(default, str) else str(parameter.default)
        assert parameter.default is not None or isinstance(default, str), parameter.name
        assert f"[default: {text}]" in shown, parameter.name


def test_shell_completion_is_offered_and_writes_nothing_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "--install-completion" in words(run("--help").output)
    monkeypatch.setenv("_FASTVAE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "fastvae tr")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert RUNNER.invoke(app, [], prog_name="fastvae").output.split() == ["train"]
    assert list(tmp_path.iterdir()) == []


def test_defaults_that_depend_on_the_data_are_in_words() -> None:
    shown = words(run("train", "--help").output)
    assert "[default: (by the number of cells)]" in shown
