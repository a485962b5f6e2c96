"""Columns that look like batches and labels, and the warning where none was chosen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command_line import run
from small_models import small_data

from fastvae import Model
from fastvae.data.likely_columns import likely_columns, missing_batch_key

N = 100
SEVERAL = pd.Categorical(np.resize(["a", "b", "c"], N))


def obs_with(name: str, values: object = SEVERAL) -> pd.DataFrame:
    return pd.DataFrame({name: values})


@pytest.mark.parametrize(
    "name",
    ["batch", "donor", "Sample", "sample_id", "patientID", "orig.ident", "10x chemistry", "batch2"],
)
def test_names_of_batches(name: str) -> None:
    assert likely_columns(obs_with(name)) == ([name], [])


@pytest.mark.parametrize(
    "name", ["cell_type", "celltype", "Cell.Type", "cellType", "leiden", "louvain_r1", "labels"]
)
def test_names_of_labels(name: str) -> None:
    assert likely_columns(obs_with(name)) == ([], [name])


@pytest.mark.parametrize("name", ["n_counts_sample", "pct_mt", "phase", "sampled", "disease"])
def test_names_of_neither(name: str) -> None:
    assert likely_columns(obs_with(name)) == ([], [])


@pytest.mark.parametrize(
    "values",
    [
        np.linspace(0, 1, N),
        np.arange(N),
        ["only"] * N,
        [None, *SEVERAL[1:]],
    ],
    ids=["fractions", "one for each cell", "a single one", "some missing"],
)
def test_values_that_name_no_batch(values: object) -> None:
    assert likely_columns(obs_with("batch", values)) == ([], [])


def test_whole_numbers_name_batches() -> None:
    assert likely_columns(obs_with("run", np.arange(N) % 4)).batches == ["run"]
    assert likely_columns(obs_with("run", np.arange(N) % 4 + 0.0)).batches == ["run"]


def test_the_warning_names_the_first_and_the_others() -> None:
    text = missing_batch_key(pd.DataFrame({"donor": SEVERAL, "lane": SEVERAL}))
    assert text is not None
    assert "obs['donor'] with 3 values looks like batches (so does lane)" in text
    assert missing_batch_key(obs_with("phase")) is None


def hints(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "fastvae"]


def test_a_model_without_a_batch_key_hints_once(caplog: pytest.LogCaptureFixture) -> None:
    Model(small_data(), batch_key="batch")
    Model(small_data().X)
    assert hints(caplog) == []
    for _ in range(2):
        Model(small_data())
    (said,) = hints(caplog)
    assert said == (
        "no batch_key= was given, so nothing is corrected for; obs['batch'] with 2 values looks "
        "like batches. batch_key='batch' corrects for it"
    )


def test_training_without_a_batch_key_warns_once(tmp_path: Path) -> None:
    data = tmp_path / "cells.h5ad"
    small_data().write_h5ad(data)
    options = ["--max-epochs", 1, "--no-plots", "--quiet"]
    said = run("train", data, "-o", tmp_path / "one", *options).stderr
    assert said.count("\n") == 1
    assert said.startswith("warning: no --batch-key was given, so nothing is corrected for;")
    assert "--batch-key batch corrects for it" in said
    for number, more in enumerate((["--batch-key", "batch"], ["--batch-per-file", "file"])):
        assert run("train", data, "-o", tmp_path / str(number), *options, *more).stderr == ""
