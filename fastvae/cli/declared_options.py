"""Options of a command that dataclasses declare, such as `TrainSettings` and `SlotOptions`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from types import NoneType
from typing import Annotated, Any, get_type_hints

import typer

from .._options import AUTO, Declared, declared_by
from .options import PANELS
from .user_errors import user_errors

Command = Callable[..., None]


def with_declared_options(command: str, **fixed: Any) -> Callable[[Command], Command]:
    """Give a command the options that dataclasses declare for it.

    A parameter that is annotated with such a class stands for all its options: the command line has
    them in its place, and the function receives one value of the class.

    Parameters
    ----------
    command
        The name by which the declarations know the command.
    **fixed
        Values of fields that are no options of the command; others have their defaults.
    """

    def decorate(function: Command) -> Command:
        hints = get_type_hints(function, include_extras=True)
        classes: dict[str, type] = {
            name: hint
            for name, hint in hints.items()
            if isinstance(hint, type) and is_dataclass(hint)
        }
        parameters: list[inspect.Parameter] = []
        for name, parameter in inspect.signature(function).parameters.items():
            if name in classes:
                parameters += options_of(classes[name], command)
            else:
                parameters.append(parameter.replace(annotation=hints[name]))
        parameters.sort(key=_place_in_help)

        @functools.wraps(function)
        def run(**given: Any) -> None:
            with user_errors():
                made = {name: _made(cls, {**given, **fixed}) for name, cls in classes.items()}
            own = {name: value for name, value in given.items() if name in hints}
            function(**own, **made)

        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in parameters}
        return run

    return decorate


def _place_in_help(parameter: inspect.Parameter) -> int:
    """Return the place of a parameter's panel among all; arguments come first."""
    for information in getattr(parameter.annotation, "__metadata__", ()):
        if getattr(information, "rich_help_panel", None) in PANELS:
            return 1 + PANELS.index(information.rich_help_panel)
    return 0


def _made(cls: type, values: Mapping[str, Any]) -> Any:
    known = [one.name for one in fields(cls) if one.name in values]
    return cls(**{name: values[name] for name in known})


def options_of(cls: type, command: str) -> list[inspect.Parameter]:
    """Return the options that a dataclass declares for a command, as typer takes them.

    Fields that are annotated with an option of typer's are options of every command.
    """
    if not any("option" in one.metadata for one in fields(cls)):
        hints = get_type_hints(cls, include_extras=True)
        return [
            inspect.Parameter(
                one.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=one.default,
                annotation=hints[one.name],
            )
            for one in fields(cls)
        ]
    return [
        inspect.Parameter(
            one.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=one.command_default,
            annotation=_annotation(one),
        )
        for one in declared_by(cls)
        if command in one.texts.commands
    ]


def _annotation(one: Declared) -> Any:
    """Return the type of an option, with the texts that typer shows."""
    texts = one.texts
    kind = next(kind for kind in one.kinds if kind in (bool, int, float, str))
    more: dict[str, Any] = {
        "help": texts.help,
        "metavar": texts.metavar,
        "rich_help_panel": texts.panel,
    }
    if texts.unset is not None:
        more["show_default"] = texts.unset
    if AUTO in one.kinds:
        return Annotated[Any, typer.Option(parser=_or_auto(kind), **more)]
    if kind is not bool:
        hint = kind | None if one.command_default is None else kind
        return Annotated[hint, typer.Option(**more)]
    if NoneType not in one.kinds:
        return Annotated[bool, typer.Option(one.flag, **more)]
    no = one.flag.replace("--", "--no-", 1)
    return Annotated[bool | None, typer.Option(f"{one.flag}/{no}", **more)]


def _or_auto(kind: type) -> Callable[[Any], Any]:
    what = {int: "a whole number", float: "a number"}[kind]

    def parse(text: Any) -> Any:
        try:
            return text if text == "auto" else kind(text)
        except ValueError:
            raise typer.BadParameter(f"give {what} or auto, not {text!r}") from None

    return parse
