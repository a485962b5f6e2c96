"""Differential expression: the same answer by every way of asking for it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from small_models import small_data

from fastvae import Model
from fastvae.errors import InputError
from fastvae.model.differential.outliers import without_outliers
from fastvae.model.posterior import decode

DATA = small_data()
TYPES = DATA.obs["cell_type"].astype(str).to_numpy()


@pytest.fixture(scope="module")
def model() -> Model:
    made = Model(DATA, batch_key="batch", n_latent=3, n_hidden=16)
    return made.fit(25, batch_size=32, seed=0, progress=False, learning_rate=1e-2, device="cpu")


def close_tables(one: pd.DataFrame, two: pd.DataFrame) -> None:
    """Equal but for rounding, which can move a draw or two across a threshold."""
    keys = ["comparison"]
    one, two = (t.set_index(keys, append=True).sort_index() for t in (one, two))
    assert list(one.index) == list(two.index)
    for name in one.columns:
        if name.startswith("proba"):
            np.testing.assert_allclose(one[name], two[name], atol=2.5 / 800)
        elif one[name].dtype.kind == "f" and name != "bayes_factor":
            np.testing.assert_allclose(one[name], two[name], rtol=2e-3, atol=2e-5, err_msg=name)


def test_same_on_disk_in_other_minibatches_and_alone(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(of: Model, **more: Any) -> pd.DataFrame:
        return of.differential_expression(groupby="cell_type", n_samples_overall=800, **more)

    expected = ask(model)
    assert list(expected["comparison"].unique()) == [f"type_{k} vs Rest" for k in range(3)]
    pd.testing.assert_frame_equal(ask(model), expected)
    close_tables(ask(model, batch_size=17), expected)
    alone = ask(model, group1="type_1")
    close_tables(alone, expected[expected["group1"] == "type_1"])
    DATA.write_h5ad(tmp_path / "cells.h5ad")
    model.save(tmp_path / "run")
    disk = Model.load(
        tmp_path / "run",
        tmp_path / "cells.h5ad",
        residence="disk",
        memory_limit="1GB",
        device="cpu",
    )
    assert disk._store.residence == "disk"
    close_tables(ask(disk), expected)
    close_tables(ask(model, data=tmp_path / "cells.h5ad"), expected)
    monkeypatch.setattr(decode, "CHUNK_VALUES", 7 * 800)  # seven genes at a time
    close_tables(ask(model), expected)


def test_seed(model: Model) -> None:
    def ask(seed: int | None) -> pd.DataFrame:
        return model.differential_expression(
            groupby="cell_type", group1="type_0", n_samples_overall=100, seed=seed
        )

    state = torch.get_rng_state()
    first, other = ask(0), ask(1)
    assert torch.equal(state, torch.get_rng_state())
    assert not np.array_equal(first["lfc_mean"], other["lfc_mean"].loc[first.index])
    torch.manual_seed(3)
    drawn = ask(None)
    torch.manual_seed(3)
    pd.testing.assert_frame_equal(drawn, ask(None))


def test_counts_are_described_exactly(model: Model) -> None:
    data = DATA.copy()
    counts = data.X.toarray()
    empty = np.flatnonzero(TYPES == "type_1")[:2]
    counts[empty] = 0
    data.X = type(data.X)(counts)
    found = model.differential_expression(data, groupby="cell_type", n_samples_overall=50)
    total = counts.astype(np.float64).sum(1, keepdims=True)
    normalised = np.divide(1e4 * counts, total, out=np.zeros(counts.shape), where=total > 0)
    for name in ("type_0", "type_1", "type_2"):
        table = found[found["group1"] == name].loc[data.var_names]
        for number, cells in ((1, name == TYPES), (2, name != TYPES)):
            np.testing.assert_allclose(table[f"raw_mean{number}"], counts[cells].mean(0))
            np.testing.assert_allclose(
                table[f"non_zeros_proportion{number}"], (counts[cells] > 0).mean(0)
            )
            np.testing.assert_allclose(
                table[f"raw_normalized_mean{number}"], normalised[cells].mean(0), rtol=1e-6
            )
    bare = model.differential_expression(
        data, groupby="cell_type", n_samples_overall=50, all_stats=False
    )
    assert [name for name in found.columns if name not in bare.columns] == [
        f"{name}{number}"
        for name in ("raw_mean", "non_zeros_proportion", "raw_normalized_mean")
        for number in (1, 2)
    ]
    pd.testing.assert_series_equal(bare["lfc_mean"], found["lfc_mean"])


def test_cells_instead_of_groups(model: Model) -> None:
    few = {"n_samples_overall": 300}
    mask = (TYPES == "type_0") & (DATA.obs["batch"] == "batch_0").to_numpy()
    condition = "cell_type == 'type_0' and batch == 'batch_0'"
    expected = model.differential_expression(idx1=mask, **few)
    for same in (np.flatnonzero(mask), list(np.flatnonzero(mask)), condition):
        pd.testing.assert_frame_equal(model.differential_expression(idx1=same, **few), expected)
    rest = model.differential_expression(idx1=condition, idx2=~mask, **few)
    pd.testing.assert_frame_equal(rest, expected)
    assert "comparison" not in expected
    groups = model.differential_expression(groupby="cell_type", group1="type_0", **few)
    cells = model.differential_expression(idx1=TYPES == "type_0", **few)
    columns = ["comparison", "group1", "group2"]
    pd.testing.assert_frame_equal(groups.drop(columns=columns), cells)


def test_cells_without_a_group_are_in_the_rest(model: Model) -> None:
    data = DATA.copy()
    labels = data.obs["cell_type"].astype(object)
    labels[TYPES == "type_2"] = None
    data.obs["partly"] = labels
    few = {"n_samples_overall": 60}
    found = model.differential_expression(data, groupby="partly", **few)
    assert list(found["group1"].unique()) == ["type_0", "type_1"]
    expected = model.differential_expression(data, groupby="cell_type", group1="type_1", **few)
    pd.testing.assert_frame_equal(found[found["group1"] == "type_1"], expected)


def test_custom_functions(model: Model) -> None:
    def question(**more: Any) -> pd.DataFrame:
        table = model.differential_expression(
            groupby="cell_type",
            group1="type_0",
            pseudocounts=1e-4,
            n_samples_overall=200,
            **more,
        )
        return table.loc[DATA.var_names]

    own = question(delta=0.3)
    same = question(
        delta=0.3,
        change_fn=lambda a, b, c: np.log2(a + c) - np.log2(b + c),
        m1_domain_fn=lambda r: (r >= 0.3, r < -0.3),
    )
    np.testing.assert_allclose(same["proba_de"], own["proba_de"], atol=0.006)
    np.testing.assert_allclose(same["lfc_median"], own["lfc_median"], rtol=1e-4, atol=1e-6)
    with pytest.raises(InputError, match="change_fn made"):
        question(change_fn=lambda a, b, c: a.mean(0))
    with pytest.raises(InputError, match="m1_domain_fn must return two"):
        question(m1_domain_fn=lambda r: r > 0)


def test_permuted_pairs_have_the_same_distribution(model: Model) -> None:
    def question(**more: Any) -> pd.DataFrame:
        table = model.differential_expression(
            groupby="cell_type",
            group1="type_0",
            group2="type_1",
            pseudocounts=1e-4,
            batch_correction=True,
            **more,
        )
        return table.loc[DATA.var_names]

    straight = question(n_samples_overall=30_000)
    mixed = question(n_samples_overall=20_000, use_permutation=True, m_permutation=50_000)
    np.testing.assert_allclose(mixed["proba_de"], straight["proba_de"], atol=0.02)
    np.testing.assert_allclose(mixed["lfc_std"], straight["lfc_std"], rtol=0.04)


def test_batches_in_common(model: Model) -> None:
    def question(one: Any, two: Any) -> pd.DataFrame:
        return model.differential_expression(
            groupby="cell_type",
            batch_correction=True,
            batchid1=one,
            batchid2=two,
            n_samples_overall=50,
        )

    with pytest.warns(UserWarning, match="have batches in common"):
        question(["batch_0"], ["batch_1", "batch_0"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        switched = question(["batch_1", "batch_0"], ["batch_0", "batch_1"])
    pd.testing.assert_frame_equal(switched, question(None, None))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "nothing to compare: give groupby"),
        ({"groupby": "celltype"}, r"groupby 'celltype' is not a column.*did you mean 'cell_type'"),
        ({"groupby": "cell_type", "group1": "type_7"}, r"group1 'type_7' is not in.*'type_0', 'ty"),
        ({"groupby": "cell_type", "group1": []}, "group1 is empty"),
        ({"groupby": "cell_type", "group2": ["type_0", "type_1"]}, "group2 must be one group"),
        ({"groupby": "cell_type", "group1": "type_0", "group2": "type_0"}, "are both 'type_0'"),
        ({"groupby": "one"}, r"obs\['one'\] has 1 group \('a'\)"),
        ({"groupby": "library"}, r"obs\['library'\] has 600 different values"),
        ({"groupby": "cell_type", "min_cells": 9999}, r"no group .* has 9999 cells"),
        (
            {"groupby": "cell_type", "group1": "type_0", "min_cells": 999},
            "fewer than min_cells=999",
        ),
        ({"idx1": [0, 1], "group1": "type_0"}, r"give groups .* or cells .*, not both"),
        ({"idx2": [0, 1]}, "idx2 is given without idx1"),
        ({"idx1": [0, 1, 2], "idx2": [2, 3]}, "have 1 cell in common"),
        ({"idx1": [0, 600]}, "idx1 has row 600; there are rows 0 to 599"),
        ({"idx1": [0.5, 1.5]}, "idx1 must be row numbers or a boolean mask, not float64"),
        ({"idx1": np.ones(5, bool)}, r"idx1 is a mask of shape \(5,\); expected \(600,\)"),
        ({"idx1": np.ones(600, bool)}, "idx2 .all other cells. has 0 cells"),
        ({"idx1": [4]}, "idx1 has 1 cell, fewer than min_cells=2"),
        ({"idx1": "cell_typ == 'a'"}, r"cannot be evaluated on obs .*'cell_type'"),
        ({"idx1": "library + 1"}, "is not a condition"),
        ({"groupby": "cell_type", "mode": "changes"}, "mode must be 'change' or 'vanilla'"),
        ({"groupby": "cell_type", "delta": -1}, "delta must be a number of at least 0"),
        ({"groupby": "cell_type", "test_mode": "one"}, "test_mode must be 'two' or 'three'"),
        ({"groupby": "cell_type", "cred_interval_lvls": [95]}, "must be shares between 0 and 1"),
        ({"groupby": "cell_type", "n_samples_overall": 0}, "n_samples_overall must be"),
        ({"groupby": "cell_type", "batchid1": "batch_0"}, "give batch_correction=True"),
        (
            {"groupby": "cell_type", "batch_correction": True, "batchid2": "b"},
            "batchid2 'b' is not a category of 'batch'",
        ),
    ],
)
def test_bad_questions(many: Model, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        many.differential_expression(**options)


@pytest.fixture(scope="module")
def many() -> Model:
    data = small_data(600, 5)
    data.obs["one"] = "a"
    made = Model(data, batch_key="batch", n_latent=2, n_hidden=4)
    made.is_trained = True
    return made


def test_small_groups_are_left_out_and_named(many: Model) -> None:
    data = small_data(60, 5)
    data.obs["type"] = ["rare"] + ["a", "b"] * 29 + ["a"]
    few = {"groupby": "type", "n_samples_overall": 20}
    with pytest.warns(UserWarning, match="fewer than 2 cells are not compared: 'rare'"):
        found = many.differential_expression(data, **few)
    assert list(found["group1"].unique()) == ["a", "b"]
    with pytest.raises(InputError, match=r"group 'rare' of obs\['type'\] has 1 cell, fewer"):
        many.differential_expression(data, group1="rare", **few)
    with_rare = many.differential_expression(data, min_cells=1, **few)
    assert list(with_rare["group1"].unique()) == ["a", "b", "rare"]


def test_model_without_batches_cannot_be_corrected() -> None:
    made = Model(small_data(60, 5), n_latent=2, n_hidden=4)
    made.is_trained = True
    with pytest.raises(InputError, match="batch_correction needs a model with batches"):
        made.differential_expression(groupby="cell_type", batch_correction=True)


def test_question_before_training() -> None:
    made = Model(small_data(60, 5), n_latent=2, n_hidden=4)
    with pytest.raises(InputError, match="has not been trained yet"):
        made.differential_expression(groupby="cell_type")


@pytest.mark.parametrize("seed", range(6))
def test_a_cell_on_the_threshold_is_no_outlier(seed: int) -> None:
    """Of 31 cells the tenth farthest out ends exactly at a cell, whatever float32 rounds to."""
    latent = np.random.default_rng(seed).normal(size=(31, 2)).astype(np.float32)
    assert len(without_outliers(np.arange(31), latent, 0)) == 28
