"""Annotations that come after the model: columns of obs, Series, arrays and names of cells."""

from __future__ import annotations

import copy
import gc
import pickle
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from small_models import small_data

from fastvae import InputError, Model

CLUSTERS = np.array(["0", "1", "2"])[np.arange(120) % 3]
FEW = {"n_samples_overall": 50}


@pytest.fixture
def adata() -> anndata.AnnData:
    return small_data()


@pytest.fixture
def model(adata: anndata.AnnData) -> Model:
    made = Model(adata, batch_key="batch", n_hidden=8, n_latent=3)
    return made.fit(1, seed=0, progress=False, device="cpu")


@pytest.fixture
def expected(model: Model) -> pd.DataFrame:
    return model.differential_expression(groupby=CLUSTERS, **FEW)


def test_a_column_added_after_the_model_was_made(
    adata: anndata.AnnData, model: Model, expected: pd.DataFrame, tmp_path: Path
) -> None:
    adata.obs["leiden"] = pd.Categorical(CLUSTERS)
    found = model.differential_expression(groupby="leiden", **FEW)
    pd.testing.assert_frame_equal(found, expected)
    first = model.differential_expression(idx1="leiden == '1'", **FEW)
    by_name = expected[expected["group1"] == "1"].drop(columns=["comparison", "group1", "group2"])
    pd.testing.assert_frame_equal(first, by_name)
    model.write_latent(tmp_path / "latent.h5ad")
    assert list(anndata.read_h5ad(tmp_path / "latent.h5ad").obs["leiden"]) == list(CLUSTERS)
    model.save(tmp_path / "run")
    loaded = Model.load(tmp_path / "run", adata)
    adata.obs["later"] = CLUSTERS
    pd.testing.assert_frame_equal(loaded.differential_expression(groupby="later", **FEW), expected)


def test_genes_chosen_by_number_keep_obs_live() -> None:
    adata = small_data()
    model = Model(adata, n_top_genes=10, n_hidden=8, n_latent=3)
    model.is_trained = True
    adata.obs["leiden"] = CLUSTERS
    assert len(model.differential_expression(groupby="leiden", **FEW)) == 3 * 10


def test_counts_stay_as_they_were(
    adata: anndata.AnnData, model: Model, expected: pd.DataFrame
) -> None:
    adata.X.data[:] = np.log1p(adata.X.data)
    adata.obs["leiden"] = CLUSTERS
    pd.testing.assert_frame_equal(model.differential_expression(groupby="leiden", **FEW), expected)


def test_cells_in_another_order_are_found_by_name(
    adata: anndata.AnnData, model: Model, expected: pd.DataFrame
) -> None:
    adata.obs["leiden"] = CLUSTERS
    adata._inplace_subset_obs(np.random.default_rng(0).permutation(adata.n_obs))
    assert list(adata.obs["leiden"]) != list(CLUSTERS)
    pd.testing.assert_frame_equal(model.differential_expression(groupby="leiden", **FEW), expected)


@pytest.mark.parametrize("change", ["subset", "renamed", "repeated"])
def test_cells_that_are_gone_are_refused_once(
    adata: anndata.AnnData, model: Model, change: str
) -> None:
    adata.obs["leiden"] = CLUSTERS
    if change == "subset":
        adata._inplace_subset_obs(np.arange(100))
    elif change == "renamed":
        adata.obs_names = ["new", *adata.obs_names[1:]]
    else:
        adata.obs_names = [adata.obs_names[1], *adata.obs_names[1:]]
    message = r"of the 120 cells .* no longer in its AnnData .*'cell_.*give data=adata"
    with pytest.raises(InputError, match=message):
        model.differential_expression(groupby="leiden", **FEW)
    if change != "repeated":
        assert len(model.differential_expression(adata, groupby="leiden", **FEW)) == 3 * 30
    assert model.get_latent_representation().shape == (120, 3)  # needs no annotation


def test_the_annotated_data_is_not_kept_in_memory() -> None:
    adata = small_data()
    model = Model(adata, n_hidden=8, n_latent=3)
    model.is_trained = True
    adata.obs["leiden"] = CLUSTERS
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.get_latent_representation().shape == (120, 3)
        assert len(other.differential_expression(groupby="cell_type", **FEW))
    del adata
    gc.collect()
    assert len(model.differential_expression(groupby="cell_type", **FEW)) == 3 * 30
    with pytest.raises(InputError, match=r"can be given itself \(adata.obs\['leiden'\]\)"):
        model.differential_expression(groupby="leiden", **FEW)


def series_forms(names: pd.Index) -> dict[str, Any]:
    series = pd.Series(CLUSTERS, index=names)
    more = pd.Series("9", index=["of another data set"])
    return {
        "array": CLUSTERS,
        "objects": CLUSTERS.astype(object),
        "categorical": pd.Categorical(CLUSTERS),
        "series": series,
        "reversed": series[::-1],
        "with others": pd.concat([more, series.astype("category")]),
        "without names": pd.Series(CLUSTERS),
        "numbers": pd.Series(CLUSTERS, index=names).astype(int)[::-1],
    }


@pytest.mark.parametrize("form", series_forms(pd.Index([f"cell_{i}" for i in range(120)])))
def test_groups_given_themselves(
    adata: anndata.AnnData, model: Model, expected: pd.DataFrame, form: str
) -> None:
    groups = series_forms(adata.obs_names)[form]
    pd.testing.assert_frame_equal(model.differential_expression(groupby=groups, **FEW), expected)


def test_groups_that_name_other_cells(adata: anndata.AnnData, model: Model) -> None:
    series = pd.Series(CLUSTERS, index=adata.obs_names)
    for wrong, message in (
        (series[5:], r"no value, or several, for 5 of 120 cells \('cell_0', .*to_numpy"),
        (pd.concat([series, series[:1]]), r"or several, for 1 of 120 cells \('cell_0'\)"),
        (CLUSTERS[:7], "groupby must have one value for each of the 120 cells"),
        (np.ones((120, 2)), "groupby must have one value for each of the 120 cells"),
    ):
        with pytest.raises(InputError, match=message):
            model.differential_expression(groupby=wrong, **FEW)


def test_cells_by_name_and_by_mask_with_names(adata: anndata.AnnData, model: Model) -> None:
    latent = model.get_latent_representation()
    rows = [7, 3, 7]
    for cells in (
        adata.obs_names[rows],
        list(adata.obs_names[rows]),
        adata.obs_names[rows].to_numpy(),
    ):
        found = model.get_latent_representation(cells=cells)
        np.testing.assert_allclose(found, latent[rows], rtol=1e-5, atol=1e-6)
    mask = pd.Series(CLUSTERS == "1", index=adata.obs_names)
    for given in (mask, mask[::-1], mask.to_numpy(), mask.astype("boolean"), [*mask]):
        found = model.get_latent_representation(cells=given)
        np.testing.assert_allclose(found, latent[1::3], rtol=1e-5, atol=1e-6)
    expected = model.differential_expression(idx1=mask.to_numpy(), **FEW)
    for given in (mask[::-1], list(adata.obs_names[1::3])):
        found = model.differential_expression(idx1=given, **FEW)
        pd.testing.assert_frame_equal(found, expected)
    with pytest.raises(InputError, match="cells has no value, or several, for 1 of 120 cells"):
        model.get_elbo(cells=mask[1:])
