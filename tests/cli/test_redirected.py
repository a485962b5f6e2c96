"""What commands write where nothing can move a cursor: files, pipes, cells of notebooks."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import run
from small_models import small_data

TRAIN = ["--max-epochs", 1, "--n-latent", 3, "--n-hidden", 8, "--batch-key", "batch", "--no-plots"]


def test_no_command_writes_control_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as notebooks and CI set it
    monkeypatch.setenv("TERM", "xterm-color")
    cells, folder, mapped = (tmp_path / name for name in ("cells.h5ad", "run", "mapped"))
    small_data().write_h5ad(cells)
    commands: list[list[object]] = [
        ["info", cells],
        ["train", cells, "-o", folder, *TRAIN],
        ["embed", folder, cells, "-o", tmp_path / "embedded.h5ad"],
        ["de", folder, cells, "--groupby", "cell_type", "-o", tmp_path / "de.csv"],
        ["expression", folder, cells, "-o", tmp_path / "expression.h5ad"],
        [
            "map",
            folder,
            cells,
            "-o",
            mapped,
            "--freeze",
            "decoder",
            "--max-epochs",
            1,
            "--no-plots",
        ],
        ["convert", cells, "-o", tmp_path / "cells.zarr"],
        ["report", folder, cells],
        ["plot", folder, cells],
    ]
    for command in commands:
        done = run(*command)
        for text in (done.stdout, done.stderr):
            assert "\x1b" not in text, command[0]
            assert "\r" not in text, command[0]


@pytest.mark.parametrize(
    ("names", "hint"),
    [
        (["my cells.h5ad"], "fastvae embed {run} '{0}' --write-into"),
        (["a.h5ad", "b.h5ad"], "fastvae embed {run} {0} {1} -o embedded.h5ad"),
    ],
)
def test_the_next_command_fits_the_input(tmp_path: Path, names: list[str], hint: str) -> None:
    paths = [tmp_path / name for name in names]
    for path in paths:
        small_data().write_h5ad(path)
    said = run("train", *paths, "-o", tmp_path / "run", *TRAIN, "--quiet").stdout
    assert hint.format(*paths, run=tmp_path / "run") in said.split("next:")[1]
