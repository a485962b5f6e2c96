"""Run the notebooks of the documentation.

``python docs/run_notebooks.py [NAME ...]`` runs them as they stand and keeps their outputs, in
``notebooks/NAME.ipynb``, and the picture of the cell tagged ``thumbnail``, in
``images/notebooks/NAME.png``. With ``--small`` they run with the values of `SMALL` and nothing is
kept: a check that takes two minutes for all of them.

Needs the extras ``notebooks`` and ``stream``, and scvi-tools for one of them.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

DOCS = Path(__file__).resolve().parent
FOLDER = DOCS / "notebooks"
THUMBNAILS = DOCS / "images" / "notebooks"
SMALL: dict[str, dict[str, Any]] = {
    "from_scvi_tools": {"max_epochs": 1},
    "integration": {"n_cells": 1000, "max_epochs": 2},
    "million_cells": {"n_cells": 5000},
    "pbmc": {"max_epochs": 2},
    "query": {"max_epochs": 2, "query_epochs": 2},
    "samples": {"epochs": 2},
}
"""Values for a quick check of each notebook, in the place of those of its cell ``parameters``."""

THUMBNAIL_WIDTH = 480


def run(name: str, values: dict[str, Any] | None = None) -> nbformat.NotebookNode:
    """Run a notebook in a temporary folder and return it with its outputs.

    `values` replace those of the cell tagged ``parameters``.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        A cell raised an error.
    """
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    ran = notebook if values is None else _with_values(notebook, values)
    scripts = sysconfig.get_path("scripts")  # where the command fastvae is
    environment = {**os.environ, "PATH": os.pathsep.join([scripts, os.environ.get("PATH", "")])}
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            ran,
            timeout=3600,
            kernel_name="python3",
            resources={"metadata": {"path": folder}},
            record_timing=False,
            coalesce_streams=True,
        )
        client.execute(env=environment)
    return ran


def _with_values(notebook: nbformat.NotebookNode, values: dict[str, Any]) -> nbformat.NotebookNode:
    """Set `values` in a cell after the parameters."""
    (place,) = (i for i, cell in enumerate(notebook.cells) if has_tag(cell, "parameters"))
    lines = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(lines))
    return notebook


def has_tag(cell: nbformat.NotebookNode, tag: str) -> bool:
    """Return whether a cell has a tag."""
    return tag in cell.metadata.get("tags", [])


def keep(name: str, notebook: nbformat.NotebookNode) -> None:
    """Write a notebook that was run, and its thumbnail."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            _make_small(output)
            picture = output.get("data", {}).get("image/png")
            if picture and has_tag(cell, "thumbnail"):
                _write_thumbnail(picture, THUMBNAILS / f"{name}.png")
    language = notebook.metadata["language_info"]
    notebook.metadata["language_info"] = {
        key: language[key] for key in ("name", "pygments_lexer", "file_extension")
    }
    nbformat.write(notebook, FOLDER / f"{name}.ipynb")


def _make_small(output: nbformat.NotebookNode) -> None:
    """Give a picture few colours."""
    data = output.get("data", {})
    if "image/png" in data:
        picture = Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).convert("RGB")
        data["image/png"] = base64.b64encode(_png(picture)).decode("ascii")


def _png(picture: Image.Image) -> bytes:
    small = io.BytesIO()
    # 256 colours are a third of the size; this method keeps those of scales too.
    picture.quantize(256, Image.Quantize.MAXCOVERAGE).save(small, "png", optimize=True)
    return small.getvalue()


def _write_thumbnail(encoded: str, path: Path) -> None:
    picture = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")
    picture.thumbnail((THUMBNAIL_WIDTH, THUMBNAIL_WIDTH))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_png(picture))


def main(arguments: list[str]) -> None:
    """Run the notebooks that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="such as pbmc; all by default")
    parser.add_argument("--small", action="store_true", help="small data, and nothing is kept")
    chosen = parser.parse_args(arguments)
    for name in chosen.names or sorted(SMALL):
        begin = time.perf_counter()
        ran = run(name, SMALL[name] if chosen.small else None)
        if not chosen.small:
            keep(name, ran)
        print(f"{name}: {time.perf_counter() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
