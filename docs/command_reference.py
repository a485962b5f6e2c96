"""The ``fastvae-commands`` directive: every command, and an anchor for each of its options."""

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


def anchor(command: str, option: str) -> str:
    """Return the id of an option: ``fastvae-train-batch-key``."""
    return f"fastvae-{command}-{option.lstrip('-')}"


def _section(name: str, command: Any) -> nodes.section:
    section = nodes.section(ids=[f"fastvae-{name}"], names=[f"fastvae {name}"])
    section += nodes.title("", f"fastvae {name}")
    section += nodes.paragraph("", command.help)
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    usage = " ".join(["fastvae", name, *map(_argument, arguments), "[OPTIONS]"])
    text = "\n".join([usage, *([command.epilog] if command.epilog else [])])
    section += nodes.literal_block(text, text, language="none")
    section += _definitions(name, arguments)
    panels: dict[str, list[Any]] = {}
    for one in command.params:
        if one.param_type_name == "option" and not one.hidden:
            panels.setdefault(one.rich_help_panel or "Options", []).append(one)
    for title, options in panels.items():
        section += nodes.rubric("", title)
        section += _definitions(name, options)
    return section


def _argument(one: Any) -> str:
    text = one.name.upper() + ("..." if one.nargs == -1 else "")
    return text if one.required else f"[{text}]"


def _definitions(command: str, parameters: list[Any]) -> nodes.definition_list:
    found = nodes.definition_list()
    for one in parameters:
        option = one.param_type_name == "option"
        names = [*one.opts, *one.secondary_opts] if option else [one.name.upper()]
        here = anchor(command, next((n for n in names if n.startswith("--")), one.name))
        term = nodes.term(ids=[here])
        for position, name in enumerate(names):
            term += nodes.Text(", " if position else "")
            term += nodes.literal(name, name)
        if option and not one.is_flag:
            term += nodes.Text(f" {one.metavar or 'VALUE'}")
        term += nodes.reference("", "#", refuri=f"#{here}", classes=["headerlink"])
        text = f"{one.help or ''} {_default(one)}".strip()
        found += nodes.definition_list_item(
            "", term, nodes.definition("", nodes.paragraph("", text))
        )
    return found


def _default(one: Any) -> str:
    if one.required:
        return "Required."
    if isinstance(one.show_default, str):
        return f"Default: {one.show_default}."
    if one.default is None or one.default is False:
        return ""
    return f"Default: {one.default}."


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("fastvae-commands", Commands)
    return {"parallel_read_safe": True}
