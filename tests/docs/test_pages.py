"""What the documentation lists is all there is, and what it draws is what was counted."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re

import pytest
import typer
from places import DOCS, program

from fastvae import Model
from fastvae.train import COLUMNS

API = "\n".join(path.read_text() for path in sorted((DOCS / "api").glob("*.md")))
WHOLE = set(re.findall(r"automodule:: (\S+)\n   :members:", API))
PUBLIC = [
    "fastvae",
    "fastvae.data",
    "fastvae.datasets",
    "fastvae.distributions",
    "fastvae.functional",
    "fastvae.integrations.legacy",
    "fastvae.nn",
    "fastvae.plots",
    "fastvae.report",
    "fastvae.train",
]


def listed(name: str) -> bool:
    return re.search(rf"auto\w+:: {re.escape(name)}$", API, re.MULTILINE) is not None


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_name_is_in_the_reference(module: str) -> None:
    if module in WHOLE:
        return
    described = {"COLUMNS", "History"}  # in words
    names = set(importlib.import_module(module).__all__) - described
    missing = [
        name
        for name in names
        if not listed(f"{module}.{name}") and f"{module}.{name}" not in {*PUBLIC, *WHOLE}
    ]
    assert not missing


def test_every_method_of_the_model_is_in_the_reference() -> None:
    names = [name for name in dir(Model) if not name.startswith("_")]
    assert len(names) > 20
    assert not [name for name in names if not listed(f"fastvae.Model.{name}")]


def test_every_column_of_the_history_is_described() -> None:
    text = (DOCS / "api" / "training.md").read_text()
    assert not [name for name in COLUMNS if f"`{name}`" not in text]


def test_the_guides_say_which_extras_there_are() -> None:
    from importlib.metadata import metadata

    text = (DOCS / "guide" / "start.md").read_text()
    assert not [
        name
        for name in metadata("fastvae-scvi").get_all("Provides-Extra")
        if f"`{name}`" not in text
    ]


def test_passes_are_those_of_the_code() -> None:
    """The count behind the picture, repeated; scvi-tools' part where it is installed."""
    count = program("count_passes")
    recorded = json.loads((DOCS / "images" / "passes.json").read_text())
    assert count.summary(count.fastvae_rows()) == recorded["fastvae"]
    if importlib.util.find_spec("scvi"):
        theirs = {k: v for k, v in recorded["scvi-tools"].items() if k != "version"}
        assert count.summary(count.scvi_tools_rows()) == theirs


def test_pages_say_what_was_counted() -> None:
    recorded = json.loads((DOCS / "images" / "passes.json").read_text())
    text = " ".join((DOCS / "how_it_works.md").read_text().split())
    for name, start in (
        ("scvi-tools", "in {} operations, with"),
        ("fastvae", "fastvae in {}, with"),
    ):
        one = recorded[name]
        said = f"{start.format(one['operations'])} {one['reads']} reads and {one['writes']} writes"
        assert said in text
    kernels = program("count_passes").kernel_rows()
    both = (sum(row[what] for row in kernels) for what in ("reads", "writes"))
    assert "of which its likelihood kernel has {} and {}:".format(*both) in text


def test_pictures_are_up_to_date() -> None:
    digest = program("draw_figures").digest()
    pictures = sorted((DOCS / "images").glob("*.svg"))
    assert [path.stem for path in pictures] == ["likelihood", "passes", "zeros"]
    assert not [path.name for path in pictures if f"drawn from {digest}" not in path.read_text()]


def test_every_picture_of_the_gallery_is_shown() -> None:
    shown = re.findall(r"\]\(images/gallery/(\S+)\)", (DOCS / "gallery.md").read_text())
    there = sorted((DOCS / "images" / "gallery").iterdir())
    assert sorted(shown) == [path.name for path in there]
    for path in there:
        assert path.read_bytes()[:4] == b"\x89PNG"
    assert sum(path.stat().st_size for path in there) < 500_000


def test_every_option_has_an_anchor() -> None:
    nodes = pytest.importorskip("docutils.nodes")
    pytest.importorskip("sphinx")
    from fastvae.cli import app

    reference = program("command_reference")
    commands = typer.main.get_command(app).commands
    for name, command in commands.items():
        section = reference._section(name, command)
        anchors = [one for term in section.findall(nodes.term) for one in term["ids"]]
        assert len(anchors) == len(set(anchors))
        options = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
        assert {
            reference.anchor(name, next(o for o in p.opts if o[:2] == "--")) for p in options
        } <= {*anchors}
    assert (
        reference.anchor("train", "--batch-key") in (DOCS / "api" / "command_line.md").read_text()
    )
