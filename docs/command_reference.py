"""The ``fastvae-commands`` directive: the commands and their options, as they are."""

from __future__ import annotations

from typing import Any

import typer
from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

from fastvae.cli import app as command_line


class Commands(Directive):
    """A section for each command."""

    def run(self) -> list[nodes.Node]:
        """Build them."""
        group: Any = typer.main.get_command(command_line)
        return [_section(name, command) for name, command in group.commands.items()]


def _section(name: str, command: Any) -> nodes.section:
    section = nodes.section(ids=[f"fastvae-{name}"], names=[f"fastvae {name}"])
    section += nodes.title("", f"fastvae {name}")
    section += nodes.paragraph("", command.help or "")
    example = (command.epilog or "").split(":", 1)[-1].strip()
    if example:
        section += nodes.literal_block("", "\n".join(example.split("    ")), language="sh")
    section += _parameters(command.params)
    return section


def _parameters(parameters: list[Any]) -> nodes.definition_list:
    found = nodes.definition_list()
    for parameter in parameters:
        if parameter.name == "help":
            continue
        option = parameter.param_type_name == "option"
        names = [*parameter.opts, *parameter.secondary_opts] if option else [parameter.name.upper()]
        if option and not parameter.is_flag:
            names[0] += f" {parameter.metavar or parameter.type.name.upper()}"
        term = nodes.term("", "", nodes.literal("", ", ".join(names)))
        text = parameter.help or ""
        if option and not parameter.is_flag and parameter.default is not None:
            text += f" [default: {parameter.default}]"
        if option and parameter.required:
            text += " [required]"
        item = nodes.definition_list_item("", term)
        item += nodes.definition("", nodes.paragraph("", text))
        found += item
    return found


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("fastvae-commands", Commands)
    return {"parallel_read_safe": True}
