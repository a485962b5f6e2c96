"""Batches, labels and groups that are combinations of several columns of obs."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from command_line import run
from count_data import annotated

from fastvae import Model
from fastvae.errors import InputError

FIT: dict[str, Any] = {"max_epochs": 1, "seed": 0, "progress": False, "device": "cpu"}
SMALL: dict[str, Any] = {"n_latent": 2, "n_hidden": 4}
KEYS = ["donor", "kit"]
EXPECTED = ["d2 | 1", "d2 | 2", "d1 | 1"]  # "d1 | 2" does not occur; d2 is the first category


def cells() -> anndata.AnnData:
    adata = annotated()
    number = np.arange(adata.n_obs) % 3
    donors = np.array(["d1", "d2", "d2"])[number]
    adata.obs["donor"] = pd.Categorical(donors, categories=["d2", "d1", "unused"])
    adata.obs["kit"] = np.array([1.0, 1.0, 2.0])[number]
    adata.obs["joined"] = [f"{a} | {int(b)}" for a, b in zip(donors, adata.obs["kit"], strict=True)]
    return adata


def combined(**options: Any) -> Model:
    return Model(cells(), batch_key=KEYS, **SMALL, **options).fit(**FIT)


@pytest.fixture(name="model", scope="module")
def fixture_model() -> Model:
    return combined()


def test_each_combination_is_a_batch(model: Model, tmp_path: Path) -> None:
    assert model.batch_categories == EXPECTED
    single = cells()
    single.obs["joined"] = pd.Categorical(single.obs["joined"], categories=EXPECTED)
    same = Model(single, batch_key="joined", **SMALL).fit(**FIT)
    assert model.get_elbo() == same.get_elbo()
    assert "3 batches in obs[['donor', 'kit']]" in repr(model)

    model.save(tmp_path / "run")
    again = Model.load(tmp_path / "run")
    assert again.get_elbo(cells()) == model.get_elbo()
    assert "3 in obs[['donor', 'kit']]: d2 | 1, d2 | 2, d1 | 1" in run(
        "info", tmp_path / "run"
    ).output.replace("  ", " ")
    for name in EXPECTED:
        got = again.get_normalized_expression(cells(), transform_batch=name, return_numpy=True)
        want = same.get_normalized_expression(transform_batch=name, return_numpy=True)
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("residence", ["host", "disk"])
@pytest.mark.parametrize("n_files", [1, 2])
def test_combinations_from_files(
    model: Model, tmp_path: Path, residence: str, n_files: int
) -> None:
    data = [tmp_path / f"{number}.h5ad" for number in range(n_files)]
    for number, path in enumerate(data):
        cells()[number::n_files].copy().write_h5ad(path)
    made = Model(data, batch_key=KEYS, residence=residence, **SMALL)
    assert set(made.batch_categories) == set(EXPECTED)
    made.fit(**FIT)
    model.save(tmp_path / "run")
    loaded = Model.load(tmp_path / "run", data, residence=residence)
    order = np.concatenate([np.arange(40)[number::n_files] for number in range(n_files)])
    np.testing.assert_array_equal(loaded._store.batch_codes, np.array([2, 0, 1] * 14)[:40][order])
    assert loaded.get_elbo() == pytest.approx(model.get_elbo(), rel=0.05)  # draws go by position


def test_labels_of_several_columns() -> None:
    keys = ["cell_type", "kit"]
    model = Model(cells(), labels_key=keys, dispersion="gene-label", **SMALL).fit(**FIT)
    single = cells()
    single.obs["both"] = [
        f"{a} | {int(b)}" for a, b in zip(*map(single.obs.get, keys), strict=True)
    ]
    same = Model(single, labels_key="both", dispersion="gene-label", **SMALL).fit(**FIT)
    assert model.get_elbo() == same.get_elbo()
    assert model.get_elbo(cells()) == model.get_elbo()


def test_groups_of_several_columns(model: Model) -> None:
    options = {"n_samples_overall": 30}
    data = cells()
    want = model.differential_expression(data, groupby="joined", **options)
    got = model.differential_expression(data, groupby=KEYS, **options)
    assert set(got["group1"]) == set(EXPECTED)
    for name in EXPECTED:
        one, other = (table[table["group1"] == name].sort_index() for table in (want, got))
        pd.testing.assert_frame_equal(one, other)
    pair = model.differential_expression(
        data, groupby=KEYS, group1="d2 | 1", group2="d1 | 1", **options
    )
    assert set(pair["comparison"]) == {"d2 | 1 vs d1 | 1"}
    assert list(model.differential_expression(data, groupby=["joined"], **options)["group1"]) == (
        list(want["group1"])
    )
    # Cells that lack one of the values are in no group.
    data.obs["kit"] = data.obs["kit"].where(data.obs["kit"] != 2)
    some = model.differential_expression(cells(), groupby=KEYS, **options)
    assert "d2 | 2" in set(some["group1"])
    fewer = combined().differential_expression(
        data=None, groupby=KEYS, group1="d2 | 2", group2="d2 | 1", **options
    )
    assert len(fewer) == 13
    with pytest.raises(InputError, match=r"obs\[\['donor', 'kit'\]\] \(batch_key\) is missing for"):
        model.get_elbo(data)
    model_without = Model(data, batch_key="donor", **SMALL).fit(**FIT)
    table = model_without.differential_expression(groupby=KEYS, **options)
    assert set(table["group1"]) == {"d2 | 1", "d1 | 1"}


def test_queries_find_the_columns_again(model: Model) -> None:
    query = cells()
    query.obs["donor"] = query.obs["donor"].astype(str).replace({"d1": "d3"})
    mapped = model.map_query(query, **FIT)
    assert mapped.batch_categories == [*EXPECTED, "d3 | 1"]
    assert np.isfinite(mapped.get_elbo(query))
    with pytest.raises(InputError, match=r"obs\[\['donor', 'kit'\]\] has batch.*: 'd3 \| 1'; it"):
        model.get_elbo(query)


REFUSED: dict[str, tuple[Any, str]] = {
    "none": ([], r"batch_key must be the name of a column of obs, or a list of names, not \[\]"),
    "numbers": (["donor", 3], r"batch_key must be the name .* not \['donor', 3\]"),
    "a number": (3, "batch_key must be the name of a column of obs, or a list of names, not 3"),
    "twice": (["kit", "kit"], r"batch_key names a column twice: \['kit', 'kit'\]"),
    "unknown": (["donor", "kitt"], r"obs has no column 'kitt' \(batch_key\).*did you mean 'kit'"),
    "fractions": (["donor", "depth"], r"obs\['depth'\] \(batch_key\) holds fractional numbers"),
    "one name": (["first", "second"], "has different combinations of one name"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_keys_that_cannot_be_used(model: Model, name: str) -> None:
    key, said = REFUSED[name]
    data = cells()
    data.obs["depth"] = np.arange(40) + 0.5
    data.obs["first"] = ["a | b", "a"] * 20
    data.obs["second"] = ["c", "b | c"] * 20
    with pytest.raises(InputError, match=said):
        Model(data, batch_key=key, **SMALL)
    with pytest.raises(InputError, match=said.replace("batch_key", "labels_key")):
        Model(data, labels_key=key, **SMALL)
    if name != "fractions":  # numbers can be groups
        said = "groupby 'kitt' is not a column.*did you mean 'kit'" if name == "unknown" else said
        with pytest.raises(InputError, match=said.replace("batch_key", "groupby")):
            model.differential_expression(data, groupby=key)


def test_another_column_of_one_file_is_one_column(tmp_path: Path) -> None:
    paths = [tmp_path / "a.h5ad", tmp_path / "b.h5ad"]
    for path in paths:
        cells().write_h5ad(path)
    with pytest.raises(InputError, match="batch_key_of names one column for a file"):
        Model(paths, batch_key=KEYS, batch_key_of={"b.h5ad": "joined"}, **SMALL)


@pytest.mark.filterwarnings("default")
def test_commands_take_the_option_several_times(tmp_path: Path) -> None:
    data, model = tmp_path / "cells.h5ad", tmp_path / "run"
    cells().write_h5ad(data)
    small = ["--n-hidden", 4, "--max-epochs", 1, "--quiet"]
    twice = ["--batch-key", "donor", "--batch-key", "kit"]
    run("train", data, "-o", model, *twice, "--labels-key", "joined", *small)
    assert Model.load(model).batch_categories == EXPECTED
    run("embed", model, data, "-o", tmp_path / "latent.h5ad")
    groups = ["--groupby", "donor", "--groupby", "kit", "--n-samples", 20]
    run("de", model, data, "-o", tmp_path / "a.csv", *groups)
    assert set(pd.read_csv(tmp_path / "a.csv")["group1"]) == set(EXPECTED)
    query = cells()
    query.obs["kit"] = 3
    query.write_h5ad(tmp_path / "query.h5ad")
    mapped = ["--max-epochs", 1, "--quiet"]
    run("map", model, tmp_path / "query.h5ad", "-o", tmp_path / "mapped", *mapped)
    assert Model.load(tmp_path / "mapped").batch_categories[3:] == ["d2 | 3", "d1 | 3"]
    wrong = ["--batch-key", "donor", "--batch-key", "kitt"]
    shown = run("train", data, "-o", tmp_path / "b", *wrong, *small, code=2).stderr
    assert "obs has no column 'kitt' (--batch-key)" in shown


def test_scvi_tools_gets_one_column(model: Model) -> None:
    pytest.importorskip("scvi")
    from fastvae.integrations.convert import from_scvi_tools, to_scvi_tools

    data = cells()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        converted = to_scvi_tools(model, data)
    assert list(data.obs["donor | kit"].cat.categories) == EXPECTED
    back = from_scvi_tools(converted)
    assert back.batch_categories == EXPECTED
    np.testing.assert_array_equal(
        back.get_latent_representation(), model.get_latent_representation()
    )
