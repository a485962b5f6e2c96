"""Groups within parts of the cells, groups that say "unknown", and progress."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from small_models import small_data

from fastvae import Model
from fastvae.errors import InputError

DRAWS = {"n_samples_overall": 200}


@pytest.fixture(scope="module")
def model() -> Model:
    adata = small_data()
    rng = np.random.default_rng(0)
    adata.obs["arm"] = rng.permutation(np.array(["ctrl", "stim", "other", "stim"] * 30))
    adata.obs["half"] = np.array(["a", "b"] * 60)
    labels = adata.obs["cell_type"].astype(str).to_numpy()
    labels[:15] = "Unknown"
    adata.obs["label"] = labels
    made = Model(adata, batch_key="batch", n_latent=3, n_hidden=16)
    return made.fit(10, batch_size=32, seed=0, progress=False, device="cpu", learning_rate=1e-2)


def obs_of(model: Model) -> pd.DataFrame:
    return model._frames.obs


def test_each_part_is_compared_as_its_cells_alone(model: Model) -> None:
    """The answer is that for the rows of the part, given one by one."""
    found = model.differential_expression(
        groupby="arm", group1="stim", group2="ctrl", within="cell_type", **DRAWS
    )
    obs = obs_of(model)
    parts = sorted(obs["cell_type"].unique())
    assert list(found["comparison"].unique()) == [f"{part}: stim vs ctrl" for part in parts]
    for part in parts:
        rows = {arm: ((obs["arm"] == arm) & (obs["cell_type"] == part)) for arm in ("stim", "ctrl")}
        alone = model.differential_expression(
            idx1=rows["stim"].to_numpy(), idx2=rows["ctrl"].to_numpy(), **DRAWS
        )
        of_part = found[found["within"] == part]
        assert set(of_part["group1"]) == {"stim"}
        assert set(of_part["group2"]) == {"ctrl"}
        pd.testing.assert_frame_equal(of_part[alone.columns], alone)


def test_the_rest_is_that_of_the_part(model: Model) -> None:
    found = model.differential_expression(
        groupby="arm", group1=["stim", "ctrl"], within="cell_type", **DRAWS
    )
    obs = obs_of(model)
    inside = (obs["cell_type"] == "type_1").to_numpy()
    stim = (obs["arm"] == "stim").to_numpy()
    alone = model.differential_expression(idx1=inside & stim, idx2=inside & ~stim, **DRAWS)
    of_part = found[found["comparison"] == "type_1: stim vs Rest"]
    pd.testing.assert_frame_equal(of_part[alone.columns], alone)
    assert len(found["comparison"].unique()) == 6


def test_parts_can_be_an_array_or_several_columns(model: Model) -> None:
    obs = obs_of(model)
    ask: dict[str, Any] = {"groupby": "arm", "group1": "stim", "group2": "ctrl", **DRAWS}
    by_name = model.differential_expression(within="cell_type", **ask)
    by_array = model.differential_expression(within=obs["cell_type"].to_numpy(), **ask)
    pd.testing.assert_frame_equal(by_name, by_array)
    both = model.differential_expression(within=["batch", "half"], **ask)
    assert list(both["within"].unique()) == [
        f"batch_{batch} | {half}" for batch in (0, 1) for half in ("a", "b")
    ]


def test_what_is_left_out_is_said(model: Model) -> None:
    ask: dict[str, Any] = {"groupby": "arm", "group1": "stim", "group2": "ctrl", **DRAWS}
    with pytest.warns(UserWarning, match=r"not compared within .*'Unknown'"):
        found = model.differential_expression(within="label", **ask)
    assert list(found["within"].unique()) == ["type_0", "type_1", "type_2"]
    obs = obs_of(model)
    few = np.where(np.arange(len(obs)) < 3, "few", obs["cell_type"])
    with pytest.warns(UserWarning, match=r"not compared within .*'few: stim vs ctrl'"):
        model.differential_expression(within=few, min_cells=4, **ask)
    with pytest.raises(InputError, match=r"no part of .* has min_cells=10000 cells"):
        model.differential_expression(within="cell_type", min_cells=10_000, **ask)


def test_cells_have_no_parts(model: Model) -> None:
    with pytest.raises(InputError, match="within divides groups by name"):
        model.differential_expression(idx1=[0, 1, 2], within="cell_type")
    with pytest.raises(InputError, match="within 'celltype' is not a column of obs"):
        model.differential_expression(groupby="arm", within="celltype")


def test_unknown_cells_are_a_group_only_where_asked_for(model: Model) -> None:
    with pytest.warns(UserWarning, match=r"'Unknown' of obs\['label'\] \(15 cells\) is not tested"):
        found = model.differential_expression(groupby="label", **DRAWS)
    assert list(found["group1"].unique()) == ["type_0", "type_1", "type_2"]
    asked = model.differential_expression(groupby="label", group1="Unknown", **DRAWS)
    assert list(asked["comparison"].unique()) == ["Unknown vs Rest"]
    # They stay among the rest, as other cells without a group do.
    inside = (obs_of(model)["label"] == "type_0").to_numpy()
    alone = model.differential_expression(idx1=inside, **DRAWS)
    pd.testing.assert_frame_equal(found[found["group1"] == "type_0"][alone.columns], alone)


def test_progress_names_the_comparison(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    model.differential_expression(groupby="cell_type", **DRAWS)
    assert capsys.readouterr().err == ""
    model.differential_expression(groupby="cell_type", progress=True, **DRAWS)
    assert capsys.readouterr().err == "comparison 1/3: type_0 vs Rest\n"
