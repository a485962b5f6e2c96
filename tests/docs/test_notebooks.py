"""The notebooks of the documentation: run to the end, with outputs, tidy."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

import pytest
from places import DOCS, ROOT, program

FOLDER = DOCS / "notebooks"
NOTEBOOKS = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.ipynb"))}
NEEDS = {"from_scvi_tools": "scvi", "million_cells": "zarr"}


def code_cells(name: str) -> list[dict[str, Any]]:
    return [cell for cell in NOTEBOOKS[name]["cells"] if cell["cell_type"] == "code"]


def outputs(name: str) -> list[dict[str, Any]]:
    return [output for cell in code_cells(name) for output in cell["outputs"]]


def tags(cell: dict[str, Any]) -> list[str]:
    return list(cell["metadata"].get("tags", []))


def test_there_are_notebooks() -> None:
    assert len(NOTEBOOKS) >= 5


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_cell_was_run_in_order(name: str) -> None:
    counts = [cell["execution_count"] for cell in code_cells(name)]
    assert counts == list(range(1, len(counts) + 1))
    assert not [output for output in outputs(name) if output["output_type"] == "error"]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_outputs_are_small_and_say_nothing_of_the_machine(name: str) -> None:
    text = (FOLDER / f"{name}.ipynb").read_text()
    assert len(text) < 400_000
    said = json.dumps([o.get("text", o.get("data", {}).get("text/plain")) for o in outputs(name)])
    assert not re.search(r"/tmp/|/home/|/work/|/root/|site-packages|Warning:", said)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_is_shown_with_its_picture(name: str) -> None:
    index = (FOLDER / "index.md").read_text()
    assert f"\n{name}\n" in index
    (card,) = re.findall(rf":link: {name}\n:link-type: doc\n:img-top: (\S+)\n", index)
    assert 0 < (FOLDER / card).stat().st_size < 100_000


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_no_line_is_cut_off(name: str) -> None:
    lines = [line for cell in code_cells(name) for line in "".join(cell["source"]).splitlines()]
    assert not [line for line in lines if len(line) > 80]


def parameters(name: str) -> set[str]:
    found = [cell for cell in code_cells(name) if "parameters" in tags(cell)]
    assert len(found) == 1
    tree = ast.parse("".join(found[0]["source"]))
    return {node.targets[0].id for node in tree.body}  # type: ignore[attr-defined]


def test_small_values_are_of_parameters() -> None:
    pytest.importorskip("nbclient")
    small = program("run_notebooks").SMALL
    assert set(small) == set(NOTEBOOKS)
    for name, values in small.items():
        assert set(values) <= parameters(name)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_runs(name: str) -> None:
    """`.ci/run` has what they need, in an environment of their own."""
    for package in ("nbclient", "ipykernel", "scanpy", "igraph", NEEDS.get(name, "scanpy")):
        pytest.importorskip(package)
    runner = program("run_notebooks")
    runner.run(name, runner.SMALL[name])


def test_the_continuous_check_runs_them() -> None:
    assert "docs/run_notebooks.py --small" in (ROOT / ".ci" / "run").read_text()
