"""Options that are declared once: each is a field of a dataclass with its bounds and its texts.

The checks, the parameters in docstrings, the options of commands and the table in the documentation
are made from the fields.
"""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_type_hints

from .errors import file_path, one_of, real_number, true_or_false, whole_number

AUTO = Literal["auto"]
"""In the type of an option whose value may be left to fastvae."""

Options = TypeVar("Options")
Documented = TypeVar("Documented")


@dataclass(frozen=True)
class Texts:
    """What a field says of its option beyond type and default.

    Attributes
    ----------
    help
        What the option does, for the command line and for tables.
    doc
        The same for docstrings, where there is more to say in Python.
    bounds
        Keyword arguments of the check: of `whole_number`, `real_number` or `one_of`.
    commands
        The commands that have it.
    unset
        What a command does without it, where the default does not say so.
    metavar
        What stands for its value in the help of a command.
    command_default
        The default of the commands, where it is another.
    panel
        The part of a command's help that has it.
    """

    help: str
    doc: str
    bounds: Mapping[str, Any]
    commands: tuple[str, ...]
    unset: str | None
    metavar: str | None
    command_default: Any
    panel: str


def option(
    default: Any,
    help: str,
    *,
    doc: str | None = None,
    commands: Iterable[str] = ("train", "map"),
    unset: str | None = None,
    metavar: str | None = None,
    command_default: Any = None,
    panel: str = "Training",
    **bounds: Any,
) -> Any:
    """Declare an option as a field of a dataclass; see `Texts`."""
    texts = Texts(
        help, doc or help, bounds, tuple(commands), unset, metavar, command_default, panel
    )
    return field(default=default, metadata={"option": texts})


@dataclass(frozen=True)
class Declared:
    """An option as it was declared.

    Attributes
    ----------
    kinds
        The members of its type: ``(int, NoneType)`` of ``int | None``.
    """

    name: str
    kinds: tuple[Any, ...]
    default: Any
    texts: Texts

    @property
    def flag(self) -> str:
        """Its name on the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def command_default(self) -> Any:
        """The default on the command line."""
        other = self.texts.command_default
        return self.default if other is None else other

    def checked(self, value: Any) -> Any:
        """Return `value` in its plain type.

        Raises
        ------
        InputError
            It is of another type or out of bounds.
        """
        if value is None and NoneType in self.kinds:
            return None
        if isinstance(value, str) and value == "auto" and AUTO in self.kinds:
            return value
        return self._check()(self.name, value, **self.texts.bounds)

    def _check(self) -> Callable[..., Any]:
        if os.PathLike[str] in self.kinds:
            return file_path
        checks: dict[type, Callable[..., Any]] = {
            bool: true_or_false,
            int: whole_number,
            float: real_number,
            str: one_of,
        }
        return next(checks[kind] for kind in self.kinds if kind in checks)


def declared_by(cls: type) -> tuple[Declared, ...]:
    """Return the options that a dataclass declares, in their order."""
    hints = get_type_hints(cls)
    return tuple(
        Declared(
            one.name,
            get_args(hints[one.name]) or (hints[one.name],),
            one.default,
            one.metadata["option"],
        )
        for one in fields(cls)
    )


def check_options(options: Any) -> None:
    """Check each value of a frozen dataclass of options, and keep it in its plain type.

    Raises
    ------
    InputError
        A value out of its bounds.
    """
    for one in declared_by(type(options)):
        object.__setattr__(options, one.name, one.checked(getattr(options, one.name)))


def picked(cls: type[Options], arguments: Mapping[str, Any]) -> Options:
    """Make a dataclass of the arguments of a function that have the names of its fields."""
    return cls(**{one.name: arguments[one.name] for one in fields(cls)})  # type: ignore[arg-type]


def parameters_text(cls: type) -> str:
    """Return the options of a dataclass as they stand under ``Parameters`` in a docstring."""
    return "\n".join(
        one.name + "\n" + textwrap.indent(textwrap.fill(one.texts.doc, 84), "    ")
        for one in declared_by(cls)
    )


def documented(*declaring: type) -> Callable[[Documented], Documented]:
    """Fill in a docstring: the options of a class replace its name in braces.

    Without a class, what is decorated declares the options itself.
    """

    def fill_in(target: Documented) -> Documented:
        for cls in declaring or (target,):
            assert isinstance(cls, type)
            text = parameters_text(cls)
            target.__doc__ = re.sub(
                rf"^( *)\{{{cls.__name__}\}}$",
                lambda found, text=text: textwrap.indent(text, found[1]),  # type: ignore[misc]
                target.__doc__ or "",  # none under python -OO
                flags=re.MULTILINE,
            )
        return target

    return fill_in
