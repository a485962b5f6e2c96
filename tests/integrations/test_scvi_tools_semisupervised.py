"""SCANVI's training through the scvi-tools door: with the same seed, the run of scvi-tools."""

from __future__ import annotations

from inspect import signature
from typing import Any

import numpy as np
import pytest
import torch

scvi = pytest.importorskip("scvi")
from scvi_native import QUIET, adata, made, same_history, same_weights  # noqa: E402

from fastvae.integrations import scvi_tools as door  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
__all__ = ["adata"]  # a fixture

LABELS = {"labels_key": "label", "unlabeled_category": "c"}


@pytest.fixture
def layouts(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Layouts of the counts in all minibatches that the door trained on."""
    seen = []
    plan = door._semisupervised_plan.SemiSupervisedPlan
    plain = plan.training_step

    def step(self: Any, batch: Any, batch_idx: int) -> Any:
        parts = [batch] if isinstance(batch, dict) else batch
        seen.extend(part["X"].layout for part in parts)
        return plain(self, batch, batch_idx)

    monkeypatch.setattr(plan, "training_step", step)
    return seen


def fitted(cls: Any, data: Any, setup: Any = None, model: Any = None, **train: Any) -> Any:
    one = made(data.copy(), {**LABELS, **(setup or {})}, cls=cls, **(model or {}))
    scvi.settings.seed = 0
    one.train(**{"max_epochs": 3, **QUIET, **train})
    return one


def same_run(data: Any, **options: Any) -> list[Any]:
    """Train both; return ours and theirs."""
    own, other = (fitted(cls, data, **options) for cls in (door.SCANVI, scvi.model.SCANVI))
    same_history(own, other, rtol=2e-4)
    same_weights(own, other, atol=5e-4)
    for part in ("train_indices", "validation_indices", "test_indices"):
        np.testing.assert_array_equal(getattr(own, part), getattr(other, part))
    np.testing.assert_allclose(
        own.predict(soft=True).to_numpy(), other.predict(soft=True).to_numpy(), atol=2e-3
    )
    return [own, other]


RUNS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "validation": {"check_val_every_n_epoch": 1, "early_stopping": True},
    "some cells of each label": {"n_samples_per_label": 30},
    "steps logged": {"plan_kwargs": {"on_step": True}, "log_every_n_steps": 1},
    "classifier": {"plan_kwargs": {"classification_ratio": 5, "n_epochs_kl_warmup": 2}},
    "stopped within an epoch": {"max_steps": 9},
    "few minibatches": {"limit_train_batches": 3},
    "last minibatch dropped": {"datasplitter_kwargs": {"drop_last": True}},
    "test set": {"train_size": 0.6, "validation_size": 0.2},
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_theirs(adata: Any, layouts: list[Any], name: str) -> None:
    if name == "steps logged" and "on_step" not in signature(scvi.train.TrainingPlan).parameters:
        pytest.skip("scvi-tools 1.3 has no such option")
    own, _ = same_run(adata, **RUNS[name])
    assert set(layouts) == {torch.sparse_csr}
    logged = {key.removesuffix("_epoch") for key in own.history}
    assert {"train_accuracy", "train_classification_loss"} <= logged


MODELS: dict[str, dict[str, Any]] = {
    "nb": {"model": {"gene_likelihood": "nb"}},
    "learned library": {"model": {"use_observed_lib_size": False}},
    "linear classifier": {"model": {"linear_classifier": True}},
    "covariates": {
        "setup": {"categorical_covariate_keys": ["donor"], "continuous_covariate_keys": ["age"]},
        "model": {"encode_covariates": True, "n_layers": 2},
    },
    "size factors": {"setup": {"size_factor_key": "size"}},
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_theirs(adata: Any, layouts: list[Any], name: str) -> None:
    same_run(adata, **MODELS[name])
    assert set(layouts) == {torch.sparse_csr}


def test_all_cells_may_have_labels(adata: Any, layouts: list[Any]) -> None:
    same_run(adata, setup={"unlabeled_category": "nobody"})
    assert set(layouts) == {torch.sparse_csr}


def test_their_minibatches_where_the_counts_are_no_sparse_ones(
    adata: Any, layouts: list[Any]
) -> None:
    adata.X = adata.X.toarray() + 1
    same_run(adata)
    assert set(layouts) == {torch.strided}


def test_a_query_without_labels_is_mapped_as_theirs(adata: Any, layouts: list[Any]) -> None:
    query = adata[:200].copy()
    query.obs["batch"], query.obs["label"] = "new", "c"
    found = []
    for cls in (door.SCANVI, scvi.model.SCANVI):
        reference = fitted(cls, adata, max_epochs=1)
        scvi.settings.seed = 1
        model = cls.load_query_data(query.copy(), reference)
        model.train(3, plan_kwargs={"weight_decay": 0.0}, **QUIET)
        found.append(model)
    assert set(layouts) == {torch.sparse_csr}
    same_history(*found, rtol=2e-4)
    same_weights(*found, atol=5e-4)


def test_a_loss_of_ones_own_is_logged_as_theirs(
    adata: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = door._module.SCANVAE.loss
    monkeypatch.setattr(door._module.SCANVAE, "loss", lambda self, *a, **k: plain(self, *a, **k))
    plans = []
    step = scvi.train.SemiSupervisedTrainingPlan.training_step
    monkeypatch.setattr(
        scvi.train.SemiSupervisedTrainingPlan,
        "training_step",
        lambda self, *a: plans.append(self) or step(self, *a),
    )
    own = fitted(door.SCANVI, adata, max_epochs=1)
    assert plans
    assert plans[0].why_not_lean() == "the module's loss or forward was replaced"
    assert np.isfinite(own.history["train_loss"].to_numpy(float)).all()


def test_gradients_by_the_counts_are_those_of_the_plain_network(adata: Any) -> None:
    """Attributions of ``predict`` take them."""
    found = []
    for cls in (door.SCANVI, scvi.model.SCANVI):
        model = made(adata.copy(), LABELS, cls=cls)
        model.module.eval()
        x = torch.tensor(adata.X[:5].toarray(), requires_grad=True)
        scores = model.module.classify(x, torch.zeros(5, 1))
        found.append((scores, *torch.autograd.grad(scores.square().sum(), x)))
    for own, other in zip(*found, strict=True):
        torch.testing.assert_close(own, other)
