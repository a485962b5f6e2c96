"""Each training option is declared once; what follows from that agrees with it."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from types import ModuleType
from typing import Any

import pytest
import typer
from places import DOCS
from typer.testing import CliRunner

from fastvae import InputError, Model
from fastvae._options import declared_by, documented, option, parameters_text
from fastvae.cli import app
from fastvae.cli.declared_options import with_declared_options
from fastvae.train.settings import CheckpointOptions, TrainSettings

DECLARED = (TrainSettings, CheckpointOptions)
COMMANDS = ("train", "map")


@dataclass(frozen=True)
class More(TrainSettings):
    """With an option that nothing else knows."""

    new_option: int | None = option(3, "A new one.", minimum=2)


def page_program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("options_table", DOCS / "options_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def missing_in_fit(fit: Callable[..., Any], *classes: type) -> list[str]:
    """Say which options the signature or the docstring of `fit` lacks or has otherwise."""
    parameters = inspect.signature(fit).parameters
    found = []
    for cls in classes:
        types = {one.name: one.type for one in fields(cls)}
        for one in declared_by(cls):
            if one.name not in parameters:
                found.append(f"{one.name} is no parameter of fit")
                continue
            if parameters[one.name].default != one.default:
                found.append(f"{one.name} has another default in fit")
            if parameters[one.name].annotation != types[one.name]:
                found.append(f"{one.name} has another type in fit")
        text = " ".join(parameters_text(cls).split())
        if text not in " ".join((fit.__doc__ or "").split()):
            found.append(f"the docstring of fit lacks the options of {cls.__name__}")
    return found


def missing_in_command(application: typer.Typer, name: str, *classes: type) -> list[str]:
    """Say which options a command lacks, has too many, or has otherwise."""
    group: Any = typer.main.get_command(application)
    has = {one.name: one for one in group.commands[name].params}
    found = []
    for one in (one for cls in classes for one in declared_by(cls)):
        there = has.get(one.name)
        if (name in one.texts.commands) != (there is not None):
            found.append(f"fastvae {name} {'has' if there else 'lacks'} {one.flag}")
        elif there is not None:
            if one.flag not in there.opts:
                found.append(f"{one.flag} has another name")
            if there.default != one.command_default:
                found.append(f"{one.flag} has another default")
            if not (there.help or "").startswith(one.texts.help):
                found.append(f"{one.flag} has another help")
    return found


def test_fit_has_every_option_as_it_is_declared() -> None:
    assert missing_in_fit(Model.fit, *DECLARED) == []


def test_options_come_in_the_order_of_their_positions() -> None:
    positional = [
        name
        for name, parameter in inspect.signature(Model.fit).parameters.items()
        if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    ]
    assert positional == ["self", "max_epochs", "batch_size", "train_size"]


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_have_the_options_that_are_declared_for_them(name: str) -> None:
    assert missing_in_command(app, name, *DECLARED) == []


def test_the_guide_has_every_option() -> None:
    text = page_program().PAGE.read_text()
    lacking = [
        one.name for cls in DECLARED for one in declared_by(cls) if f"| `{one.name}` |" not in text
    ]
    assert not lacking, f"run python docs/options_table.py for {lacking}"
    assert text == page_program().written_into(text), "run python docs/options_table.py"


def test_a_new_option_is_missed_where_it_is_not() -> None:
    assert "new_option is no parameter of fit" in missing_in_fit(Model.fit, More)
    for name in COMMANDS:
        assert missing_in_command(app, name, More) == [f"fastvae {name} lacks --new-option"]


def test_a_new_option_comes_by_itself_into_commands_docstrings_and_the_table() -> None:
    given = []
    application = typer.Typer()

    @application.command()
    @with_declared_options("train", eps=0.5)
    def train(data: str, *, settings: More, seed: int = 0) -> None:
        given.append((data, settings, seed))

    @application.command("map")
    @with_declared_options("map")
    def map_command(*, settings: More) -> None:
        """Take the settings alone."""

    @documented(More)
    def function() -> None:
        """Do it.

        Parameters
        ----------
        {More}
        """

    for name in COMMANDS:
        assert missing_in_command(application, name, More) == []
    words = ["train", "x", "--new-option", "7", "--seed", "4", "--batch-size", "auto"]
    assert CliRunner().invoke(application, words).exit_code == 0
    assert given == [("x", More(new_option=7, batch_size="auto", eps=0.5), 4)]
    assert "new_option\n    A new one." in str(inspect.getdoc(function))
    assert "| `new_option` | `3` | `--new-option` | `--new-option` | A new one. |" in (
        page_program().table([More])
    )


def test_checks_follow_from_type_and_bounds() -> None:
    assert More(new_option=None).new_option is None
    with pytest.raises(InputError, match="new_option must be a whole number of at least 2, not 1"):
        More(new_option=1)
    with pytest.raises(InputError, match="new_option must be a whole number"):
        More(new_option="auto")  # type: ignore[arg-type]


def test_an_option_out_of_bounds_is_one_line_on_the_command_line() -> None:
    done = CliRunner().invoke(app, ["train", "nowhere.h5ad", "--keep-checkpoints", "0"])
    assert done.exit_code == 2
    assert done.stderr == (
        "error: --keep-checkpoints must be a whole number of at least 1, not 0\n"
    )
