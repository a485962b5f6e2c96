"""fastvae's own loop through the scvi-tools door, beside Lightning's.

With the same cells in the same order and the same noise the two do the same steps; what they leave
behind has the same names and shapes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch

scvi = pytest.importorskip("scvi")
from scvi_native import (  # noqa: E402
    MODELS,
    QUIET,
    adata,
    made,
    our_draws,
    same_history,
    same_weights,
    train,
)

from fastvae.integrations import scvi_tools as door  # noqa: E402
from fastvae.integrations.scvi_tools import _written_loss  # noqa: E402
from fastvae.train import run as training  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
__all__ = ["adata", "our_draws"]  # fixtures


RUNS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "validation": {"check_val_every_n_epoch": 2, "epochs": 5},
    "early stopping": {
        "early_stopping": True,
        "early_stopping_patience": 2,
        "early_stopping_min_delta": 1e3,
        "epochs": 9,
    },
    "another monitor": {
        "early_stopping": True,
        "early_stopping_monitor": "kl_local_validation",
        "early_stopping_mode": "max",
        "early_stopping_patience": 1,
        "early_stopping_warmup_epochs": 1,
        "epochs": 9,
    },
    "test set": {"train_size": 0.6, "validation_size": 0.2, "check_val_every_n_epoch": 1},
    "not shuffled": {"shuffle_set_split": False, "check_val_every_n_epoch": 1},
    "warm-up by steps": {
        "plan_kwargs": {"n_epochs_kl_warmup": None, "n_steps_kl_warmup": 17},
        "log_every_n_steps": 2,
    },
    "warm-up by epochs": {"plan_kwargs": {"n_epochs_kl_warmup": 2, "n_steps_kl_warmup": 5}},
    "no warm-up": {"plan_kwargs": {"n_epochs_kl_warmup": None}},
    "plateau": {
        "plan_kwargs": {
            "reduce_lr_on_plateau": True,
            "lr": 0.5,
            "lr_patience": 0,
            "lr_factor": 0.5,
            "lr_min": 0.3,
        },
        "epochs": 8,
    },
    "Adam": {"plan_kwargs": {"lr": 3e-3, "eps": 1e-4, "weight_decay": 0.1}},
    "clipping": {"gradient_clip_val": 0.5},
    "last minibatch dropped": {"datasplitter_kwargs": {"drop_last": True}},
    "configs": {"plan_config": {"lr": 2e-3}, "trainer_config": {"check_val_every_n_epoch": 1}},
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_lightnings(
    our_draws: None, adata: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step for step: same losses, rates and weights, and the same is left behind."""
    if name == "configs" and not hasattr(scvi.train, "TrainerConfig"):
        pytest.skip("this scvi-tools has no such options")
    options = RUNS[name]
    if name == "plateau":  # rounding decides when this rate falls: both by autograd
        monkeypatch.setattr(training, "without_autograd", lambda *_: None)
        monkeypatch.setattr(_written_loss, "why_autograd", lambda *_: "asked for")
    own = train(made(adata), **options)
    other = train(made(adata.copy()), "lightning", **options)
    assert (own.trainer.chosen, other.trainer.chosen) == ("fastvae", "lightning")
    rates = own.history.get("lr-Adam")
    if rates is None:
        same_history(own, other)
        same_weights(own, other)
    else:  # at this rate rounding grows fast
        same_history(own, other, rtol=2e-3)
        assert rates.iloc[-1, 0] == 0.3
    for part in ("train_indices", "validation_indices", "test_indices"):
        np.testing.assert_array_equal(getattr(own, part), getattr(other, part))
    for trainer in ("current_epoch", "global_step", "should_stop"):
        assert getattr(own.trainer, trainer) == getattr(other.trainer, trainer)
    assert own.is_trained
    assert not own.module.training
    if "stopping" in name or "monitor" in name:
        assert len(own.history["elbo_train"]) < options["epochs"]


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_lightnings(our_draws: None, adata: Any, name: str) -> None:
    own, other = (
        train(made(adata.copy(), **MODELS[name]), loop, 2, check_val_every_n_epoch=1)
        for loop in ("fastvae", "lightning")
    )
    same_history(own, other)
    same_weights(own, other)


@pytest.mark.parametrize("form", ["dense", "many nonzeros", "layer"])
def test_counts_in_any_form(our_draws: None, adata: Any, form: str) -> None:
    other = made(adata.copy())
    setup = {}
    if form == "dense":
        adata.X = adata.X.toarray()
    elif form == "layer":
        adata.layers["raw"] = adata.X.tocsc()
        adata.X = None
        setup = {"layer": "raw"}
    else:
        adata.X = adata.X.toarray() + 1.0
        other = made(adata.copy())
        other.adata.X = sp.csr_matrix(other.adata.X, dtype=np.float32)
    same_history(train(made(adata, setup)), train(other, "lightning"))


def test_the_whole_run_of_scvi_tools_is_matched_in_distribution(adata: Any) -> None:
    """Beside unpatched scvi-tools, with other orders and noise: the same split, a like ELBO."""
    own = train(made(adata), epochs=40, check_val_every_n_epoch=1)
    scvi.settings.seed = 0
    scvi.model.SCVI.setup_anndata(adata, batch_key="batch")
    other = scvi.model.SCVI(adata, n_hidden=16, n_latent=4)
    other.train(40, **QUIET, check_val_every_n_epoch=1)
    np.testing.assert_array_equal(own.train_indices, other.train_indices)
    assert list(own.history) == list(other.history)
    first, last = (own.history["elbo_validation"].iloc[i, 0] for i in (0, -1))
    theirs = other.history["elbo_validation"].iloc[-1, 0]
    assert abs(last - theirs) < 0.05 * (first - theirs)


def test_training_goes_on(our_draws: None, adata: Any) -> None:
    own, other = made(adata.copy()), made(adata)
    for _ in range(2):
        train(own, epochs=2)
        train(other, "lightning", epochs=2)
    assert list(own.history["elbo_train"].index) == [0, 1, 2, 3]
    same_history(own, other)


def test_the_seed_of_scvi_tools_decides(adata: Any) -> None:
    found = []
    for seed in (0, 0, 1):
        model = made(adata.copy())
        scvi.settings.seed = seed
        model.train(2, **QUIET, loop="fastvae")
        found.append((model.history["elbo_train"].to_numpy(float), model.train_indices))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    assert not np.array_equal(found[0][0], found[2][0])
    assert not np.array_equal(found[0][1], found[2][1])


def test_external_indexing(our_draws: None, adata: Any) -> None:
    order = np.random.default_rng(3).permutation(430)

    def parts() -> Any:
        return {"external_indexing": [order[:300], order[300:400], order[400:]]}

    own, other = (
        train(made(adata.copy()), loop, datasplitter_kwargs=parts(), early_stopping=True)
        for loop in ("fastvae", "lightning")
    )
    same_history(own, other)
    np.testing.assert_array_equal(own.test_indices, order[400:])


def test_an_accelerated_model(our_draws: None, adata: Any) -> None:
    scvi.settings.seed = 0
    scvi.model.SCVI.setup_anndata(adata, batch_key="batch")
    model = door.accelerate(scvi.model.SCVI(adata, n_hidden=16, n_latent=4))
    train(model)
    assert type(model) is scvi.model.SCVI
    same_history(model, train(made(adata.copy()), "lightning"))


def test_what_people_do_afterwards(adata: Any, tmp_path: Any) -> None:
    adata.obs["label"] = adata.obs["label"].replace({"c": "unknown"})
    model = train(made(adata, {"labels_key": "label"}), early_stopping=True)
    model.save(tmp_path / "model", save_anndata=True)
    loaded = door.SCVI.load(tmp_path / "model")
    same_weights(loaded, model, atol=0.0)
    latent = model.get_latent_representation()
    np.testing.assert_array_equal(loaded.get_latent_representation(), latent)
    assert np.isfinite(model.get_elbo())
    table = model.differential_expression(groupby="label", group1="a")
    assert len(table) == 50
    labelled = scvi.model.SCANVI.from_scvi_model(model, unlabeled_category="unknown")
    labelled.train(1, **QUIET)
    query = adata[:100].copy()
    query.obs["batch"] = "new"
    mapped = [_mapped(query.copy(), model) for _ in range(2)]
    before = {name: value.clone() for name, value in mapped[0].module.state_dict().items()}
    moved = []
    for one, loop in zip(mapped, ("fastvae", "lightning"), strict=True):
        train(one, loop, plan_kwargs={"weight_decay": 0.0})
        state = one.module.state_dict()
        moved.append(
            {name for name, value in state.items() if not torch.equal(value, before[name])}
        )
    assert moved[0] == moved[1]
    assert 0 < len(moved[0]) < len(before)


def _mapped(query: Any, model: Any) -> Any:
    torch.manual_seed(0)
    return door.SCVI.load_query_data(query, model)
