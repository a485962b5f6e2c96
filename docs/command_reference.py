"""The ``fastvae-commands`` directive: the help of every command, as the command line prints it."""

from __future__ import annotations

from typing import Any

import typer
from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx
from typer.testing import CliRunner

from fastvae.cli import app as command_line


class Commands(Directive):
    """A section for each command."""

    def run(self) -> list[nodes.Node]:
        """Build them."""
        plain: Any = command_line
        before, plain.rich_markup_mode = plain.rich_markup_mode, None  # no boxes
        try:
            names = typer.main.get_command(plain).commands  # type: ignore[attr-defined]
            return [_section(name) for name in names]
        finally:
            plain.rich_markup_mode = before


def _section(name: str) -> nodes.section:
    result = CliRunner().invoke(
        command_line, [name, "--help"], prog_name="fastvae", env={"TERMINAL_WIDTH": "92"}
    )
    if result.exit_code != 0:
        raise RuntimeError(f"fastvae {name} --help: {result.output}")
    section = nodes.section(ids=[f"fastvae-{name}"], names=[f"fastvae {name}"])
    section += nodes.title("", f"fastvae {name}")
    section += nodes.literal_block(result.output, result.output.strip(), language="none")
    return section


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("fastvae-commands", Commands)
    return {"parallel_read_safe": True}
