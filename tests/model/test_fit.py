"""`Model`: how it is made, and that training is what it says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from small_models import small_data

import fastvae
from fastvae import VAE, Model
from fastvae._torch import evaluating
from fastvae.data import Minibatches
from fastvae.errors import InputError
from fastvae.train import NonFiniteError
from fastvae.train.step import evaluate_sums

DATA = small_data()
SMALL = {"n_latent": 3, "n_hidden": 16}


def trained(max_epochs: int = 2, seed: int | None = 0, **fit: Any) -> Model:
    model = Model(DATA, batch_key="batch", **SMALL)
    return model.fit(max_epochs, batch_size=32, seed=seed, progress=False, device="cpu", **fit)


def validated(model: Model) -> tuple[float, float]:
    """Mean losses of the validation cells, as training computes them after an epoch."""
    cells, sums = model.validation_cells, torch.zeros(2, dtype=torch.float64)
    with evaluating(model.module, 0):
        evaluate_sums(model.module, Minibatches(model._store, cells, batch_size=32), sums)
    reconstruction, kl = (sums / len(cells)).tolist()
    return reconstruction, kl


def without_times(model: Model) -> dict[str, list[float]]:
    return {
        name: values
        for name, values in model.history.to_dict("list").items()
        if "second" not in name
    }


def test_network_is_the_vae_that_was_asked_for() -> None:
    model = Model(
        DATA,
        batch_key="batch",
        labels_key="cell_type",
        n_latent=4,
        n_hidden=8,
        n_layers=2,
        dropout_rate=0.3,
        dispersion="gene-label",
        reconstruction_loss="nb",
        latent_distribution="ln",
        use_observed_lib_size=False,
    )
    torch.manual_seed(11)
    module = model.module
    torch.manual_seed(11)
    expected = VAE(
        30,
        n_batch=2,
        n_labels=3,
        n_hidden=8,
        n_latent=4,
        n_layers=2,
        dropout_rate=0.3,
        dispersion="gene-label",
        reconstruction_loss="nb",
        latent_distribution="ln",
    )
    state = module.state_dict()
    assert list(state) == list(expected.state_dict())
    assert all(torch.equal(value, state[name]) for name, value in expected.state_dict().items())
    assert not module.use_observed_lib_size
    assert module.z_encoder.encoder.fc_layers[0][3].p == 0.3


def test_seed_decides_everything_from_the_first_weights_on() -> None:
    torch.manual_seed(1)
    first = trained(seed=7)
    torch.manual_seed(2)
    again, other = trained(seed=7), trained(seed=8)
    assert without_times(first) == without_times(again)
    assert without_times(first) != without_times(other)
    np.testing.assert_array_equal(
        first.get_latent_representation(), again.get_latent_representation()
    )


def test_without_a_seed_torch_decides() -> None:
    found = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        found.append(trained(max_epochs=1, seed=None).history["train_loss"].tolist())
    assert found[0] == found[1] != found[2]


def test_weights_touched_before_fit_are_trained_on() -> None:
    models = []
    for value in (0.0, 3.0):
        model = Model(DATA, batch_key="batch", **SMALL)
        with torch.no_grad():
            model.module.px_r.fill_(value)
        models.append(model.fit(1, seed=0, progress=False, learning_rate=1e-9))
    for model, value in zip(models, (0.0, 3.0), strict=True):
        torch.testing.assert_close(model.module.px_r, torch.full((30,), value))


def test_validation_cells_are_those_of_the_history() -> None:
    model = trained(3, train_size=0.8)
    assert len(model.train_cells) == 96
    assert sorted([*model.train_cells, *model.validation_cells]) == list(range(120))
    reconstruction, kl = validated(model)
    last = {name: values[-1] for name, values in model.history.to_dict("list").items()}
    assert reconstruction + kl == pytest.approx(last["validation_elbo"], rel=1e-12)
    assert reconstruction == pytest.approx(last["validation_reconstruction_loss"], rel=1e-12)


def test_early_stopping_leaves_the_model_at_its_best() -> None:
    model = trained(80, early_stopping=True, early_stopping_patience=4, learning_rate=0.1)
    best = model.history["validation_elbo"].min()
    assert model.training["ending"] == "early stopping"
    assert sum(validated(model)) == pytest.approx(best, rel=1e-12)
    assert model.history["validation_elbo"].iloc[-1] > best
    assert model.training["validation_elbo"] == best
    assert model.history["validation_elbo"].tolist()[model.training["best_epoch"] - 1] == best
    assert len(model.history) == model.training["best_epoch"] + 4


def test_fit_again_goes_on_with_the_same_validation_cells() -> None:
    model = trained(2, seed=None)
    cells, last = model.validation_cells, model.history["train_loss"].iloc[-1]
    model.fit(2, batch_size=32, progress=False, n_epochs_kl_warmup=None)
    np.testing.assert_array_equal(model.validation_cells, cells)
    assert model.history["epoch"].tolist() == [1, 2, 3, 4]
    assert model.history["train_reconstruction_loss"].tolist()[2] < last
    assert model.training["epochs"] == 4
    assert model.training["steps"] == 4 * 4  # 108 cells in minibatches of 32


def test_default_number_of_epochs_is_by_the_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def note(*args: Any, **_: Any) -> None:
        asked.append(args[3].max_epochs)
        raise RuntimeError("enough")

    monkeypatch.setattr("fastvae.model.training.train_vae", note)
    monkeypatch.setattr("fastvae.train.schedules.default_max_epochs", lambda n_cells: n_cells // 10)
    with pytest.raises(RuntimeError, match="enough"):
        Model(DATA, **SMALL).fit(progress=False)
    assert asked == [12]


def test_options_of_fit_reach_the_loop() -> None:
    model = trained(
        1,
        learning_rate=2e-3,
        eps=0.1,
        weight_decay=0.5,
        n_steps_kl_warmup=9,
        max_grad_norm=7.0,
        early_stopping_min_delta=0.25,
    )
    settings = model.training["settings"]
    expected = {
        "learning_rate": 2e-3,
        "eps": 0.1,
        "weight_decay": 0.5,
        "n_steps_kl_warmup": 9,
        "max_grad_norm": 7.0,
        "early_stopping_min_delta": 0.25,
        "batch_size": 32,
        "train_size": 0.9,
        "max_epochs": 1,
    }
    assert {name: settings[name] for name in expected} == expected
    assert model.history["kl_weight"].tolist() == [3 / 9]  # the last of four minibatches


@pytest.mark.parametrize("dispersion", ["gene", "gene-batch", "gene-label", "gene-cell"])
@pytest.mark.parametrize("reconstruction_loss", ["zinb", "nb", "poisson"])
def test_every_likelihood_and_dispersion_learns(dispersion: str, reconstruction_loss: str) -> None:
    observed = dispersion != "gene-cell"
    model = Model(
        DATA,
        batch_key="batch",
        labels_key="cell_type",
        dispersion=dispersion,
        reconstruction_loss=reconstruction_loss,
        use_observed_lib_size=observed,
        **SMALL,
    )
    model.fit(6, batch_size=32, seed=0, progress=False, learning_rate=5e-3)
    loss = model.history["train_elbo"].tolist()
    assert loss[-1] < loss[0]
    marginal = model.get_marginal_ll(n_mc_samples=30)
    assert model.get_elbo() < marginal < 0


def test_diverged_model_keeps_usable_weights() -> None:
    model = Model(DATA, batch_key="batch", **SMALL)
    with pytest.raises(NonFiniteError, match=r"training stopped in epoch \d+"):
        model.fit(50, batch_size=32, seed=0, progress=False, learning_rate=1e15)
    assert all(bool(value.isfinite().all()) for value in model.module.state_dict().values())
    assert model.training["ending"] == "non-finite"


def test_too_few_cells_and_untrained_questions() -> None:
    with pytest.raises(InputError, match="needs at least 2 cells and has 1"):
        Model(DATA[:5].copy(), **SMALL).fit(1, train_size=0.2)
    model = Model(DATA, **SMALL)
    with pytest.raises(InputError, match="has not been trained yet; call fit"):
        model.get_latent_representation()
    with pytest.raises(InputError, match="has not been trained yet"):
        _ = model.train_cells
    model.is_trained = True
    assert np.isfinite(model.get_latent_representation()).all()


def test_repr_says_what_it_is() -> None:
    model = Model(DATA, batch_key="batch", labels_key="cell_type", n_layers=2, **SMALL)
    assert repr(model).splitlines() == [
        "fastvae.Model of 120 cells x 30 genes",
        "  zinb, dispersion gene, 3 latent dimensions (normal), 2 hidden layers of 16, "
        "observed library size",
        "  2 batches in obs['batch']",
        "  3 labels in obs['cell_type']",
        "  not trained: call fit()",
    ]
    model.fit(1, seed=0, progress=False)
    line = repr(model).splitlines()[-1]
    elbo = model.history["validation_elbo"].iloc[0]
    assert line.startswith("  trained for 1 epochs (finished), training -ELBO ")
    assert line.endswith(f", validation -ELBO {elbo:.2f}")


def test_public_names() -> None:
    assert fastvae.Model is Model
    assert Model(DATA, **SMALL).gene_names == list(DATA.var_names)
    assert Model(DATA, batch_key="batch", **SMALL).batch_categories == ["batch_0", "batch_1"]
