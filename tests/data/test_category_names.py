"""One name for a category, whatever type its values have and wherever they are given."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from count_data import annotated
from typer.testing import CliRunner

from fastvae import Model
from fastvae.cli import app
from fastvae.errors import InputError

SMALL: dict[str, Any] = {"n_latent": 2, "n_hidden": 4}
CODES = np.arange(40) % 3

# Columns that all say the same: batches 0, 1 and 2.
WHOLE: dict[str, Callable[[], Any]] = {
    "float64": lambda: CODES.astype(float),
    "float32": lambda: CODES.astype(np.float32),
    "int64": lambda: CODES.astype(np.int64),
    "uint8": lambda: CODES.astype(np.uint8),
    "Int64": lambda: pd.array(CODES, dtype="Int64"),
    "Float64": lambda: pd.array(CODES.astype(float), dtype="Float64"),
    "text": lambda: CODES.astype(str).astype(object),
    "string": lambda: pd.array(CODES.astype(str), dtype="string"),
    "objects": lambda: np.array([int(c) if c else 0.0 for c in CODES], dtype=object),
    "categorical floats": lambda: pd.Categorical(CODES.astype(float)),
    "categorical ints": lambda: pd.Categorical(CODES),
    "categorical text": lambda: pd.Categorical(CODES.astype(str)),
}
TRUTH: dict[str, Callable[[], Any]] = {
    "bool": lambda: CODES > 0,
    "boolean": lambda: pd.array(CODES > 0, dtype="boolean"),
    "text": lambda: (CODES > 0).astype(str).astype(object),
    "objects": lambda: (CODES > 0).astype(object),
    "categorical": lambda: pd.Categorical(CODES > 0),
}


def _cells(values: Any) -> AnnData:
    adata = annotated()
    adata.obs["batch"] = values
    return adata


def _trained(values: Any, key: str = "batch_key") -> Model:
    return Model(_cells(values), **{key: "batch"}, **SMALL).fit(1, seed=0, progress=False)


@pytest.mark.parametrize("kind", WHOLE)
def test_whole_numbers_have_one_name(kind: str) -> None:
    model = _trained(WHOLE[kind]())
    assert model.batch_categories == ["0", "1", "2"]
    expected = model.get_normalized_expression(transform_batch="1")
    for value in (1, 1.0, np.int8(1), np.float32(1), "1", "1.0", [1.0], np.array([1])):
        pd.testing.assert_frame_equal(
            model.get_normalized_expression(transform_batch=value), expected
        )
    latent = model.get_latent_representation()
    for other in WHOLE.values():
        found = model.get_latent_representation(_cells(other()))
        np.testing.assert_array_equal(found, latent)
    with pytest.raises(InputError, match=r"transform_batch '3' is not a category.*'0', '1', '2'"):
        model.get_normalized_expression(transform_batch=3.0)


@pytest.mark.parametrize("kind", TRUTH)
def test_truth_values_have_one_name(kind: str) -> None:
    model = _trained(TRUTH[kind]())
    assert model.batch_categories == ["False", "True"]
    expected = model.get_normalized_expression(transform_batch="True")
    for value in (True, np.bool_(True), [True]):
        pd.testing.assert_frame_equal(
            model.get_normalized_expression(transform_batch=value), expected
        )
    for other in TRUTH.values():
        model.get_latent_representation(_cells(other()))


@pytest.mark.parametrize("kind", WHOLE)
def test_groups_have_the_same_names(kind: str) -> None:
    model = _trained(WHOLE[kind]())
    options: dict[str, Any] = {"groupby": "batch", "n_samples_overall": 50}
    table = model.differential_expression(**options)
    assert set(table["group1"]) == {"0", "1", "2"}
    expected = model.differential_expression(**options, group1="1", group2="2")
    for one, two in ((1, 2), (1.0, 2.0), (np.int8(1), np.float32(2)), ([1.0], "2.0")):
        found = model.differential_expression(**options, group1=one, group2=two)
        pd.testing.assert_frame_equal(found, expected)
    told: dict[str, Any] = {"groupby": "cell_type", "n_samples_overall": 50}
    for first, second in ((1, 2), (1.0, [2.0]), ("1", "2")):
        model.differential_expression(
            **told, batch_correction=True, batchid1=first, batchid2=second
        )


def test_labels_have_the_same_names() -> None:
    adata = _cells(WHOLE["float64"]())
    model = Model(adata, labels_key="batch", dispersion="gene-label", **SMALL)
    model.fit(1, seed=0, progress=False)
    latent = model.get_latent_representation()
    for other in WHOLE.values():
        np.testing.assert_array_equal(model.get_latent_representation(_cells(other())), latent)


def test_a_model_that_was_saved_with_another_spelling(tmp_path: Path) -> None:
    model = _trained(WHOLE["text"]())
    expected = model.get_normalized_expression(transform_batch="1")
    latent = model.get_latent_representation()
    model.save(tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["data"]["batch_categories"] = ["0.0", "1.0", "2.0"]
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    for values in WHOLE.values():
        cells = _cells(values())
        loaded = Model.load(tmp_path / "run", cells)
        np.testing.assert_array_equal(loaded.get_latent_representation(), latent)
        for value in (1, 1.0, "1", "1.0"):
            found = loaded.get_normalized_expression(transform_batch=value)
            pd.testing.assert_frame_equal(found, expected)
        mapped = Model.load_query(cells, tmp_path / "run", freeze="decoder")
        assert mapped.batch_categories == ["0.0", "1.0", "2.0"]


def test_two_names_are_never_taken_for_one() -> None:
    names = np.array(["1", "1.0", "2"], dtype=object)[CODES]
    model = _trained(names)
    assert model.batch_categories == ["1", "1.0", "2"]
    both = [model.get_normalized_expression(transform_batch=name) for name in ("1", "1.0")]
    assert not both[0].equals(both[1])
    one = _trained(np.array(["1", "2"], dtype=object)[CODES % 2])
    with pytest.raises(InputError, match=r"not trained with: '1\.0'"):
        one.get_elbo(_cells(names))


@pytest.mark.parametrize("kind", ["floats", "objects", "categorical"])
def test_fractional_numbers_name_groups_but_no_batches(kind: str) -> None:
    values: Any = np.array([0.5, 1.5, 2.0])[CODES]
    values = {"floats": values, "objects": values.astype(object)}.get(kind, pd.Categorical(values))
    with pytest.raises(InputError, match=r"fractional numbers such as 0\.5; expected categories"):
        Model(_cells(values), batch_key="batch")
    model = Model(_cells(values), **SMALL).fit(1, seed=0, progress=False)
    table = model.differential_expression(groupby="batch", n_samples_overall=50)
    assert set(table["group1"]) == {"0.5", "1.5", "2"}
    table = model.differential_expression(groupby="batch", group1=0.5, n_samples_overall=50)
    assert set(table["group1"]) == {"0.5"}


def test_several_files_the_command_line_and_what_it_writes(tmp_path: Path) -> None:
    kinds = ("float64", "int64", "categorical text")
    paths = []
    for number, kind in enumerate(kinds):
        cells = _cells(WHOLE[kind]())
        cells.obs_names = [f"{number}-{name}" for name in cells.obs_names]
        if kind == "int64":
            cells.obs = cells.obs.rename(columns={"batch": "sample"})
        paths.append(str(tmp_path / f"{number}.h5ad"))
        cells.write_h5ad(paths[-1])
    options = ["--batch-key", "batch", "--batch-key-of", "1.h5ad=sample", "--max-epochs", "1"]
    run = str(tmp_path / "run")

    def fastvae(*arguments: str) -> str:
        result = CliRunner().invoke(app, [*arguments])
        assert result.exit_code == 0, result.output
        return result.output

    fastvae("train", *paths, "-o", run, *options, "--n-hidden", "4")
    assert Model.load(run).batch_categories == ["0", "1", "2"]
    fastvae("embed", run, paths[0], "-o", str(tmp_path / "a.h5ad"))
    table = str(tmp_path / "de.csv")
    groups = ["--groupby", "batch", "--group1", "1.0", "--group2", "2"]
    fastvae("de", run, paths[0], "-o", table, *groups, "--n-samples", "50")
    assert set(pd.read_csv(table)["group1"].astype(str)) == {"1"}
    fastvae("convert", paths[0], paths[2], "-o", str(tmp_path / "all.zarr"))
    fastvae("embed", run, str(tmp_path / "all.zarr"), "-o", str(tmp_path / "b.h5ad"))
    assert "3 different whole numbers (0, 1, 2); can be a --batch-key" in fastvae("info", paths[0])
