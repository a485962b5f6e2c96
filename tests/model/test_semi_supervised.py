"""Semi-supervised training: labels of some cells learned, and given to the others."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from small_models import small_store

from fastvae import InputError, Model
from fastvae._torch import evaluating
from fastvae.data.labelled_minibatches import LabelledMinibatches
from fastvae.datasets import simulate
from fastvae.train.step import loss_terms

SMALL: dict[str, Any] = {"n_hidden": 16, "n_latent": 4, "batch_key": "batch"}
LABELS: dict[str, Any] = {"labels_key": "known", "unlabeled_category": "?"}
FIT: dict[str, Any] = {"batch_size": 32, "learning_rate": 5e-3, "seed": 0, "progress": False}


def partly_labelled(cells: slice) -> Any:
    """Some of 300 cells, of which one in three has its type in obs["known"]."""
    adata = simulate(300, 60, n_batches=2, n_types=3, density=0.6, seed=0)
    types = adata.obs["cell_type"].astype(str).to_numpy()
    adata.obs["known"] = np.where(np.arange(300) % 3 == 0, types, "?")
    return adata[cells].copy()


@pytest.fixture(scope="module")
def data() -> Any:
    return partly_labelled(slice(240))


@pytest.fixture
def new() -> Any:
    """Cells that no model has seen."""
    return partly_labelled(slice(240, None))


@pytest.fixture(scope="module")
def trained(data: Any) -> Model:
    return Model(data, **SMALL, **LABELS).fit(10, **FIT)


def test_unknown_labels_are_found(data: Any, trained: Model) -> None:
    types = data.obs["cell_type"].astype(str).to_numpy()
    hidden = (data.obs["known"] == "?").to_numpy()
    assert trained.label_categories == sorted(set(types))
    predicted = trained.predict()
    assert (predicted == types)[hidden].mean() > 0.7
    cells = trained.validation_cells[~hidden[trained.validation_cells]]
    assert trained.training["validation_accuracy"] == (predicted == types)[cells].mean()
    assert "learned and predicted" in repr(trained)


def test_probabilities_are_a_table(data: Any, trained: Model) -> None:
    cells = [5, 3, 100]
    table = trained.predict(cells=cells, soft=True)
    assert list(table.index) == list(data.obs_names[cells])
    assert list(table.columns) == trained.label_categories
    np.testing.assert_allclose(table.sum(axis=1), 1.0, rtol=1e-6)
    assert list(table.idxmax(axis=1)) == list(trained.predict(cells=cells))
    drawn = trained.predict(cells=cells, soft=True, use_posterior_mean=False)
    assert not np.array_equal(drawn, table)
    wide = trained.predict(cells=cells, soft=True, use_posterior_mean=False, batch_size=1)
    np.testing.assert_allclose(drawn, wide, rtol=1e-5)


def test_new_cells_need_no_labels(trained: Model, new: Any) -> None:
    types = new.obs["cell_type"].astype(str).to_numpy()
    del new.obs["known"], new.obs["batch"]
    assert (trained.predict(new[:, ::-1]) == types).mean() > 0.8


def test_a_saved_model_predicts_the_same(data: Any, trained: Model, tmp_path: Any) -> None:
    trained.save(tmp_path / "run")
    probabilities = trained.predict(soft=True)
    for loaded in (Model.load(tmp_path / "run", data), Model.load(tmp_path / "run")):
        assert loaded.predict(data, soft=True).equals(probabilities)
        assert loaded.label_categories == trained.label_categories
    further = Model.load(tmp_path / "run", data).fit(1, **FIT)
    assert further.training["epochs"] == 11


def test_a_resumed_run_is_the_straight_one(data: Any, tmp_path: Any) -> None:
    straight = Model(data, **SMALL, **LABELS).fit(3, **FIT)
    Model(data, **SMALL, **LABELS).fit(2, checkpoint_dir=tmp_path, **FIT)
    resumed = Model(data, **SMALL, **LABELS)
    resumed.fit(3, checkpoint_dir=tmp_path, resume=True, **FIT)
    for name, value in straight.module.state_dict().items():
        assert torch.equal(value, resumed.module.state_dict()[name]), name


def test_labelled_cells_go_round_from_any_position() -> None:
    store = small_store(100)
    store.label_codes[:] = np.where(np.arange(100) % 4 == 0, 1, -1)
    known = np.arange(0, 100, 4)

    def seen(epoch: int, position: int) -> list[list[int]]:
        batches = LabelledMinibatches(store, np.arange(100), batch_size=10, shuffle=True, seed=3)
        batches.load_state_dict({"epoch": epoch, "position": position})
        assert all(batch.labelled is not None for batch in batches)
        batches.load_state_dict({"epoch": epoch, "position": position})
        return [batch.labelled.cells.tolist() for batch in batches if batch.labelled]

    rounds = [*seen(0, 0), *seen(1, 0)]
    for start in range(0, 18, 3):  # 10, 10 and 5 of 25 cells
        assert sorted(itertools.chain(*rounds[start : start + 3])) == known.tolist()
    assert rounds[:3] != rounds[3:6]
    assert seen(1, 4) == rounds[14:]


def test_a_trained_model_is_told_labels(data: Any) -> None:
    start = Model(data, **SMALL).fit(10, **FIT)
    before = {name: value.clone() for name, value in start.module.state_dict().items()}
    model = start.with_labels("?", "known", seed=0)
    for name, value in before.items():
        assert torch.equal(model.module.state_dict()[name], value), name
    with pytest.raises(InputError, match="not been trained"):
        model.predict()
    model.fit(batch_size=32, learning_rate=1e-2, progress=False)
    assert model.training["epochs"] == 10  # of 400 usual ones
    np.testing.assert_array_equal(model.validation_cells, start.validation_cells)
    types = data.obs["cell_type"].astype(str).to_numpy()
    assert (model.predict() == types).mean() > 0.7
    for name, value in start.module.state_dict().items():
        assert torch.equal(before[name], value), name
    assert "without labels" in repr(model)


@pytest.mark.parametrize("encode_covariates", [False, True])
def test_a_query_gets_labels(data: Any, new: Any, encode_covariates: bool) -> None:
    options = {**SMALL, "encode_covariates": encode_covariates, "linear_classifier": True}
    reference = Model(data, **options, **LABELS).fit(3, **FIT)
    new.obs["batch"] = "new"
    del new.obs["known"]
    mapped = reference.map_query(new, max_epochs=2, **FIT)
    ours, theirs = mapped.module.state_dict(), reference.module.state_dict()
    frozen = ("classifier", "encoder_z2_z1", "decoder_z1_z2", "y_prior")
    for name in ours:
        if name.startswith(frozen):
            assert torch.equal(ours[name], theirs[name]), name
    assert mapped.label_categories == reference.label_categories
    if not encode_covariates:
        assert mapped.predict(soft=True).equals(reference.predict(new, soft=True))
    assert len(mapped.predict()) == 60


def test_counts_on_disk(data: Any, tmp_path: Any) -> None:
    data.write_h5ad(tmp_path / "cells.h5ad")
    model = Model(tmp_path / "cells.h5ad", residence="disk", **SMALL, **LABELS).fit(2, **FIT)
    assert 0.0 <= model.training["validation_accuracy"] <= 1.0
    assert len(model.predict()) == data.n_obs


def test_the_bound_is_that_of_training(trained: Model) -> None:
    """On average over draws; and no draw of it depends on the size of minibatches."""
    store = trained._own_store()
    batches = trained._minibatches(store, np.arange(store.n_cells), 512)
    of_training = []
    for seed in range(10):
        with evaluating(trained.module, seed):
            terms = [loss_terms(trained.module, batch)[:2] for batch in batches]
        of_training.append(-torch.cat([first + kl for first, kl in terms]).mean().item())
    bounds = [trained.get_elbo(seed=seed) for seed in range(10)]
    error = np.sqrt((np.var(of_training) + np.var(bounds)) / 10)
    assert abs(np.mean(of_training) - np.mean(bounds)) < 4 * error
    each = trained.get_elbo(return_mean=False)
    np.testing.assert_allclose(each, trained.get_elbo(return_mean=False, batch_size=64), rtol=1e-5)


def test_given_noise_is_used_as_drawn_noise(trained: Model) -> None:
    z, q_m = torch.randn(2, 7, 4).unbind(0)
    q_v = torch.rand(7, 4) + 0.1
    with evaluating(trained.module, 3):
        drawn = trained.module.prior_terms(z, q_m, q_v)
    with evaluating(trained.module, 3):
        noise = torch.randn(3, 7, 4).transpose(0, 1)
    with evaluating(trained.module, None):
        given = trained.module.prior_terms(z, q_m, q_v, noise)
    torch.testing.assert_close(given, drawn)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no column": ({"unlabeled_category": "?"}, "needs labels_key"),
    "no category": ({"labels_key": "known", "linear_classifier": True}, "needs unlabeled_category"),
    "one label": ({"labels_key": "one", "unlabeled_category": "?"}, "at least two"),
    "a list": ({"labels_key": "known", "unlabeled_category": ["?"]}, "must be a name"),
    "dispersion": ({**LABELS, "dispersion": "gene-label"}, "leave out one"),
    "simplex": ({**LABELS, "latent_distribution": "ln"}, "leave out one"),
    "missing": ({"labels_key": "holes", "unlabeled_category": "?"}, "is missing for 2"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, data: Any) -> None:
    options, message = REFUSED[name]
    data = data.copy()
    data.obs["one"] = np.where(np.arange(data.n_obs) % 2, "?", "a")
    data.obs["holes"] = data.obs["known"].where(np.arange(data.n_obs) > 1)
    with pytest.raises(InputError, match=message):
        Model(data, **SMALL, **options)


def test_labels_are_read_when_training_begins(data: Any) -> None:
    data = data.copy()
    model = Model(data, **SMALL, **LABELS)
    data.obs["known"] = "?"
    with pytest.raises(InputError, match=r"0 of 216 cells to train on have a label"):
        model.fit(1, **FIT)
    data.obs["known"] = np.where(np.arange(data.n_obs) % 2, "new type", "?")
    with pytest.raises(InputError, match="label categories that the model was not trained with"):
        model.fit(1, **FIT)


def test_what_such_models_cannot_do(data: Any, trained: Model) -> None:
    with pytest.raises(InputError, match="no closed form"):
        trained.get_marginal_ll(n_mc_samples=1)
    with pytest.raises(InputError, match="learns labels already"):
        trained.with_labels("?", "known")
    plain = Model(data, **SMALL).fit(1, **FIT)
    assert plain.label_categories == []
    with pytest.raises(InputError, match="learned no labels"):
        plain.predict()
    with pytest.raises(InputError, match="needs labels_key"):
        plain.with_labels("?")
