"""Labels of query cells by their nearest reference cells, and both together in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from sklearn.neighbors import KNeighborsClassifier
from small_models import small_data

from fastvae import InputError, Model
from fastvae.model import label_transfer
from fastvae.model.label_transfer import transferred_labels
from fastvae.plots.projection import umap_of

SMALL = {"n_hidden": 8, "n_latent": 3, "batch_key": "batch"}


def query_cells() -> Any:
    adata = small_data(seed=7)[:50].copy()
    adata.obs["batch"] = "new"
    adata.obs_names = [f"q{number}" for number in range(adata.n_obs)]
    return adata


@pytest.fixture(scope="module")
def reference() -> Model:
    adata = small_data()
    model = Model(adata, **SMALL).fit(3, seed=0, progress=False)
    model.kept = adata  # obs is read from the AnnData
    return model


@pytest.fixture(scope="module")
def mapped(reference: Model) -> Model:
    return reference.map_query(query_cells(), max_epochs=1, seed=0, progress=False)


def gaussian(distances: np.ndarray) -> np.ndarray:
    return np.exp(-0.5 * distances**2 / (distances**2).mean(axis=1, keepdims=True))


@pytest.mark.parametrize("k", [1, 2, 15, 200])
@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_votes_are_those_of_scikit_learn(
    k: int, shift: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_transfer, "BLOCK_VALUES", 900)  # several blocks
    rng = np.random.default_rng(k)
    known, query = (rng.normal(size=(n, 4)) + shift for n in (173, 61))
    codes = rng.integers(0, 5, 173)
    weights = gaussian if k > 1 else "uniform"
    oracle = KNeighborsClassifier(min(k, 173), weights=weights, algorithm="brute")
    shares = oracle.fit(known, codes).predict_proba(query)
    vote = transferred_labels(known, codes, query, k)
    np.testing.assert_array_equal(vote.code, shares.argmax(axis=1))
    np.testing.assert_allclose(vote.uncertainty, 1 - shares.max(axis=1), rtol=0, atol=1e-6)


def test_cells_without_a_label_have_no_vote() -> None:
    known = np.array([[0.0], [0.1], [5.0], [6.0]])
    vote = transferred_labels(known, np.array([-1, -1, 1, 0]), np.array([[0.0], [9.0]]), 1)
    assert vote.code.tolist() == [1, 0]


def test_cells_at_one_place_have_equal_weights() -> None:
    known = np.ones((4, 2))
    vote = transferred_labels(known, np.array([2, 0, 2, 2]), np.ones((1, 2)), 4)
    assert (vote.code[0], vote.uncertainty[0]) == (2, 0.25)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("which", [0, 1])
def test_positions_that_are_not_finite_are_refused(bad: float, which: int) -> None:
    spaces = [np.zeros((5, 2)), np.zeros((4, 2))]
    spaces[which][3, 1] = bad
    with pytest.raises(InputError, match=f"cell 3 of the {['reference', 'query'][which]} is not"):
        transferred_labels(spaces[0], np.zeros(5, dtype=np.int64), spaces[1], 2)


def test_a_reference_without_labels_and_other_dimensions_are_refused() -> None:
    with pytest.raises(InputError, match="no cell of the reference has a label"):
        transferred_labels(np.zeros((3, 2)), np.full(3, -1), np.zeros((3, 2)), 2)
    with pytest.raises(InputError, match="2 latent dimensions and the query in 3"):
        transferred_labels(np.zeros((3, 2)), np.zeros(3, dtype=np.int64), np.zeros((3, 3)), 2)


def test_every_kind_of_reference_gives_the_same_labels(
    reference: Model, mapped: Model, tmp_path: Path
) -> None:
    table = mapped.transfer_labels("cell_type", reference)
    assert list(table.columns) == ["label", "uncertainty"]
    assert list(table.index) == [f"q{number}" for number in range(50)]
    assert set(table["label"]) <= set(small_data().obs["cell_type"].astype(str))
    assert 0 < table["uncertainty"].max() <= 1
    reference.save(tmp_path / "run")
    reference.write_latent(tmp_path / "run" / "latent.h5ad")
    pd.testing.assert_frame_equal(mapped.transfer_labels("cell_type", tmp_path / "run"), table)
    adata = small_data()
    adata.obsm["X_fastvae"] = reference.get_latent_representation()
    pd.testing.assert_frame_equal(mapped.transfer_labels("cell_type", adata), table)
    values = adata.obs["cell_type"]
    for labels in (values.to_numpy(), values[::-1], values.astype(object)):
        pd.testing.assert_frame_equal(mapped.transfer_labels(labels, adata), table)
    # new batches do not move the encoder, so the reference itself says the same of these cells
    pd.testing.assert_frame_equal(
        reference.transfer_labels("cell_type", data=query_cells()), table, rtol=1e-4
    )
    some = mapped.transfer_labels("cell_type", reference, cells=[7, 3])
    pd.testing.assert_frame_equal(some, table.iloc[[7, 3]], rtol=1e-4)


def test_uncertain_cells_are_unknown(reference: Model, mapped: Model) -> None:
    table = mapped.transfer_labels("cell_type", reference)
    strict = mapped.transfer_labels("cell_type", reference, max_uncertainty=0.3)
    uncertain = table["uncertainty"] > 0.3
    assert 0 < uncertain.sum() < len(table)
    assert (strict["label"][uncertain] == "Unknown").all()
    assert strict["label"][~uncertain].tolist() == table["label"][~uncertain].tolist()
    assert (strict["uncertainty"] == table["uncertainty"]).all()
    types = small_data().obs["cell_type"].astype(str).to_numpy()
    types[:20] = "unknown"
    strict = mapped.transfer_labels(types, reference, max_uncertainty=0.0)
    assert "Unknown" not in set(strict["label"])
    assert "unknown" in set(strict["label"])


@pytest.mark.parametrize("absent", ["Unknown", "unassigned", "unlabeled", "nan", None, np.nan])
@pytest.mark.parametrize("categorical", [False, True])
def test_cells_that_are_said_to_have_no_label_have_no_vote(
    reference: Model, mapped: Model, absent: object, categorical: bool
) -> None:
    """As if these cells were not in the reference."""
    adata = small_data()
    adata.obsm["X_fastvae"] = reference.get_latent_representation()
    labels = adata.obs["cell_type"].astype(object)
    labels[::3] = absent
    labelled = np.arange(adata.n_obs) % 3 > 0
    expected = mapped.transfer_labels("cell_type", adata[labelled].copy())
    adata.obs["cell_type"] = labels.astype("category") if categorical else labels
    found = mapped.transfer_labels("cell_type", adata)
    assert found["label"].tolist() == expected["label"].tolist()
    np.testing.assert_array_equal(found["uncertainty"], expected["uncertainty"])
    assert list(found["label"].cat.categories) == list(expected["label"].cat.categories)
    strict = mapped.transfer_labels("cell_type", adata, max_uncertainty=0.0)
    assert "Unknown" in set(strict["label"])
    adata.obs["cell_type"] = "unknown" if absent is None else absent
    with pytest.raises(InputError, match="no cell of the reference has a label"):
        mapped.transfer_labels("cell_type", adata)


def test_what_has_no_latent_space_in_common_is_refused(
    reference: Model, mapped: Model, tmp_path: Path
) -> None:
    free = Model.load_query(query_cells(), reference, freeze=False)
    free.fit(1, seed=0, progress=False)
    adata = small_data()
    adata.obsm["X_fastvae"] = reference.get_latent_representation()
    for known in (reference, adata):
        with pytest.raises(InputError, match="freeze=False trained all weights"):
            free.transfer_labels("cell_type", known)
    other = Model(small_data(), **SMALL).fit(1, seed=1, progress=False)
    with pytest.raises(InputError, match="come from other weights"):
        mapped.transfer_labels("cell_type", other)
    reference.save(tmp_path / "bare")
    with pytest.raises(InputError, match=r"latent\.h5ad is missing; write it with fastvae embed"):
        mapped.transfer_labels("cell_type", tmp_path / "bare")
    adata.obsm["X_fastvae"] = np.zeros((120, 5))
    with pytest.raises(InputError, match=r"shape \(120, 5\); expected \(cells, 3\)"):
        mapped.transfer_labels("cell_type", adata)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": "celltype"}, "obs has no column 'celltype' .*did you mean 'cell_type'"),
        ({"labels": None}, "labels must name a column of obs"),
        ({"labels": np.zeros(7)}, "labels must have one value for each of the 120 cells"),
        ({"reference": 3}, "reference must be a trained fastvae.Model, the folder of a run"),
        ({"reference": small_data()}, r'reference has no obsm\["X_fastvae"\]'),
        ({"reference": None}, "own cells cannot be labelled by themselves"),
        ({"n_neighbors": 0}, "n_neighbors must be a whole number of at least 1"),
        ({"max_uncertainty": 1.5}, "max_uncertainty must be at most 1"),
    ],
)
def test_wrong_arguments(
    reference: Model, mapped: Model, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        mapped.transfer_labels(**{"labels": "cell_type", "reference": reference, **arguments})


def test_the_joint_file(reference: Model, mapped: Model, tmp_path: Path) -> None:
    path = tmp_path / "joint.h5ad"
    table = mapped.write_joint_latent(path, reference, "cell_type", max_uncertainty=0.3)
    pd.testing.assert_frame_equal(
        table, mapped.transfer_labels("cell_type", reference, max_uncertainty=0.3)
    )
    joint = anndata.read_h5ad(path)
    assert joint.X is None
    assert joint.obs["origin"].tolist() == ["reference"] * 120 + ["query"] * 50
    assert list(joint.obs_names[120:]) == list(table.index)
    own = small_data().obs["cell_type"].astype(str).tolist()
    assert joint.obs["transferred_label"].tolist() == own + table["label"].tolist()
    assert joint.obs["transfer_uncertainty"][:120].isna().all()
    np.testing.assert_array_equal(joint.obs["transfer_uncertainty"][120:], table["uncertainty"])
    latent = joint.obsm["X_fastvae"]
    np.testing.assert_array_equal(latent[:120], reference.get_latent_representation())
    np.testing.assert_array_equal(latent[120:], mapped.get_latent_representation())
    np.testing.assert_array_equal(joint.obsm["X_umap"], umap_of(latent).astype(np.float32))
    with pytest.raises(InputError, match="already exists"):
        mapped.write_joint_latent(path, reference)
    assert mapped.write_joint_latent(path, reference, umap=False, overwrite=True) is None
    bare = anndata.read_h5ad(path)
    assert "X_umap" not in bare.obsm
    assert "transferred_label" not in bare.obs


def test_names_and_columns_that_are_taken(reference: Model, tmp_path: Path) -> None:
    query = small_data(seed=7)[:50].copy()  # cells have the names of the reference's
    query.obs["batch"] = "new"
    query.obs["origin"] = "lung"
    model = Model.load_query(query, reference)
    model.write_joint_latent(tmp_path / "joint.h5ad", reference, "cell_type")
    joint = anndata.read_h5ad(tmp_path / "joint.h5ad")
    assert joint.obs_names.is_unique
    assert joint.obs_names[0] == f"{small_data().obs_names[0]}-reference"
    assert joint.obs_names[-1] == f"{query.obs_names[-1]}-query"
    assert joint.obs["origin"].tolist() == ["reference"] * 120 + ["query"] * 50
    assert joint.obs["own_origin"][:120].isna().all()
    assert (joint.obs["own_origin"][120:] == "lung").all()
