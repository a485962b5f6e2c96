"""Draws from the posterior against dense computation and scvi-tools' answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import recorded_answers
import scipy.sparse as sp
import scipy.stats
import torch
from small_models import small_data

from fastvae import Model, _memory
from fastvae.errors import InputError
from fastvae.model import predictive as posterior
from fastvae.model.correlation import pearson, spearman

DATA = small_data()
X = torch.from_numpy(DATA.X.toarray().astype(np.float32))
RECORDED = recorded_answers.arrays()


def fitted(**options: Any) -> Model:
    model = Model(DATA, batch_key="batch", n_latent=3, n_hidden=16, **options)
    return model.fit(15, batch_size=32, seed=0, progress=False, learning_rate=1e-2, device="cpu")


@pytest.fixture(scope="module")
def model() -> Model:
    return fitted()


@pytest.mark.parametrize("loss", ["zinb", "nb", "poisson"])
def test_drawn_counts_have_the_moments_of_the_model(loss: str) -> None:
    """Means and variances against the law of total variance over draws of the parameters."""
    made = fitted(reconstruction_loss=loss, dispersion="gene-batch")
    draws = made.posterior_predictive_sample(n_samples=3000, cells=np.arange(12))
    assert all(isinstance(part, sp.csr_matrix) for part in draws)
    drawn = np.stack([part.toarray() for part in draws])
    assert np.array_equal(drawn, np.rint(drawn))
    assert drawn.min() == 0
    given = made.get_likelihood_parameters(n_samples=3000, cells=np.arange(12), seed=9)
    mu = given["mean"].astype(np.float64)
    theta = given["dispersions"].astype(np.float64) if loss != "poisson" else np.inf
    extra = given["dropout"].astype(np.float64) if loss == "zinb" else np.zeros(())
    mean = (1 - extra) * mu
    variance = (1 - extra) * (mu + mu**2 / theta + extra * mu**2)
    total = variance.mean(0) + mean.var(0)
    error = (drawn.mean(0) - mean.mean(0)) / np.sqrt((total + mean.var(0)) / 3000)
    assert abs(error.std() - 1) < 0.15
    assert np.abs(error).max() < 5
    ratio = drawn.var(0).sum(0) / total.sum(0)
    np.testing.assert_allclose(ratio, 1.0, atol=0.25)
    assert abs(ratio.mean() - 1) < 0.03


def test_drawn_counts_of_genes_and_batches(model: Model) -> None:
    genes = [DATA.var_names[7], DATA.var_names[2]]
    names = model.batch_categories
    for batch in (None, *names):
        found = model.posterior_predictive_sample(
            genes=genes, transform_batch=batch, n_samples=400, seed=1
        )
        assert found[0].shape == (120, 2)
        mean = np.mean([part.toarray() for part in found], axis=0)
        rate = model.get_normalized_expression(
            genes=genes, transform_batch=batch, library_size="latent", n_samples=50
        ).to_numpy()
        keep = 1 - model.get_likelihood_parameters(n_samples=50, give_mean=True)["dropout"]
        if batch is None:
            np.testing.assert_allclose(mean.mean(0), (keep[:, [7, 2]] * rate).mean(0), rtol=0.06)
        else:
            own = model.posterior_predictive_sample(genes=genes, n_samples=400, seed=1)
            mine = (DATA.obs["batch"] == batch).to_numpy()
            same = np.mean([part.toarray() for part in own], axis=0)
            np.testing.assert_allclose(mean[mine].mean(0), same[mine].mean(0), rtol=0.08)
    with pytest.raises(InputError, match="transform_batch must be one batch, not 2"):
        model.posterior_predictive_sample(transform_batch=names)


@pytest.mark.parametrize("dispersion", ["gene", "gene-batch", "gene-label", "gene-cell"])
def test_parameters_are_the_networks(dispersion: str) -> None:
    made = Model(
        DATA,
        batch_key="batch",
        labels_key="cell_type",
        n_latent=3,
        n_hidden=8,
        dispersion=dispersion,
        use_observed_lib_size=False,
    )
    made.is_trained = True
    with torch.no_grad():  # then every draw is the mean, and the network can be asked for it
        for encoder in (made.module.z_encoder, made.module.l_encoder):
            encoder.var_encoder.weight.zero_()
            encoder.var_encoder.bias.fill_(-60.0)
            encoder.mean_encoder.bias += 1.0
        store = made._store
        batch, label = (
            torch.from_numpy(codes).unsqueeze(1) for codes in (store.batch_codes, store.label_codes)
        )
        z = made.module.z_encoder(torch.log1p(X))[0]
        library = made.module.l_encoder(torch.log1p(X))[0]
        _, head, rate, logits = made.module.decoder(dispersion, z, library, batch, label)
        log_theta = {
            "gene": lambda: made.module.px_r.expand(120, 30),
            "gene-batch": lambda: made.module.px_r.T[batch.ravel()],
            "gene-label": lambda: made.module.px_r.T[label.ravel()],
            "gene-cell": lambda: head,
        }[dispersion]()
    found = made.get_likelihood_parameters(n_samples=40, give_mean=True)
    assert set(found) == {"mean", "dropout", "dispersions"}
    # The floor of the variance, 1e-4, is a deviation of 0.01.
    np.testing.assert_allclose(found["mean"], rate.numpy(), rtol=0.02)
    np.testing.assert_allclose(found["dropout"], torch.sigmoid(logits).numpy(), rtol=0.02)
    np.testing.assert_allclose(
        found["dispersions"], torch.exp(log_theta).detach().numpy(), rtol=0.02
    )
    genes = [DATA.var_names[4], DATA.var_names[1]]
    part = made.get_likelihood_parameters(n_samples=40, genes=genes, cells=[5, 6])
    assert part["mean"].shape == part["dispersions"].shape == (40, 2, 2)
    np.testing.assert_allclose(part["mean"].mean(0), rate[5:7, [4, 1]].numpy(), rtol=0.02)
    sizes = made.get_latent_library_size(cells=[3, 1])
    np.testing.assert_allclose(sizes, np.exp(library[[3, 1]].numpy() + 5e-5), rtol=1e-5)
    drawn = made.get_latent_library_size(cells=[3, 1], give_mean=False)
    assert (np.abs(np.log(drawn / sizes)) < 0.06).all()
    assert (drawn != sizes).all()


def test_observed_library_is_the_total(model: Model) -> None:
    np.testing.assert_allclose(model.get_latent_library_size(), X.sum(1, keepdim=True), rtol=1e-6)


def test_latent_uncertainty(model: Model) -> None:
    mean, variance = model.get_latent_representation(return_dist=True)
    with torch.no_grad():
        q_m, q_v, _ = model.module.z_encoder(torch.log1p(X))
    np.testing.assert_allclose(mean, q_m.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(variance, q_v.numpy(), rtol=1e-4)
    simplex = fitted(latent_distribution="ln")
    many = simplex.get_latent_representation(mc_samples=4000, cells=[1, 2], seed=1)
    few = [
        simplex.get_latent_representation(mc_samples=4, cells=[1, 2], seed=s) for s in range(300)
    ]
    np.testing.assert_allclose(np.mean(few, axis=0), many, atol=0.03)
    assert np.std(few, axis=0).max() > 3 * np.abs(np.mean(few, axis=0) - many).max()


def test_as_scvi_tools_on_the_same_weights() -> None:
    made, _ = recorded_answers.model()
    mean, variance = made.get_latent_representation(return_dist=True)
    np.testing.assert_allclose(mean, RECORDED["latent_mean"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(variance, RECORDED["latent_variance"], rtol=1e-4)
    found = made.get_likelihood_parameters(n_samples=500, give_mean=True)
    for name in ("mean", "dropout"):
        theirs = RECORDED[f"parameters/{name}"]
        np.testing.assert_allclose(found[name], theirs, rtol=0.35, atol=1e-3)
        assert abs((found[name] / theirs).mean() - 1) < 3e-3
    theirs = np.broadcast_to(RECORDED["parameters/dispersions"], found["dispersions"].shape)
    np.testing.assert_allclose(found["dispersions"], theirs, rtol=1e-5)
    for kind in ("pearson", "spearman"):
        matrix = made.get_feature_correlation_matrix(n_samples=200, correlation_type=kind)
        error = np.abs(matrix.to_numpy() - RECORDED[f"correlation/{kind}"])
        assert error.max() < 0.04
        assert error.mean() < 0.01


def dense_draws(model: Model, monkeypatch: pytest.MonkeyPatch, **question: Any) -> np.ndarray:
    """All rows that the correlation is of, caught on their way in, (rows, G)."""
    caught: list[np.ndarray] = []

    def catch(values: Any, n_genes: int) -> np.ndarray:
        caught.append(torch.cat(list(values())).numpy())
        return np.eye(n_genes)

    with monkeypatch.context() as patch:
        patch.setattr(posterior, "pearson", catch)
        model.get_feature_correlation_matrix(correlation_type="pearson", **question)
    return np.concatenate(caught)


def test_correlation_is_the_dense_one(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    question = {"n_samples": 4, "seed": 2}
    rows = dense_draws(model, monkeypatch, **question)
    assert rows.shape == (480, 30)
    exact = model.get_feature_correlation_matrix(**question)
    assert list(exact.index) == list(exact.columns) == list(DATA.var_names)
    np.testing.assert_allclose(exact, scipy.stats.spearmanr(rows)[0], atol=1e-9)
    found = model.get_feature_correlation_matrix(correlation_type="pearson", **question)
    np.testing.assert_allclose(found, np.corrcoef(rows, rowvar=False), atol=1e-7)
    for size in (7, 500):  # other minibatches
        again = model.get_feature_correlation_matrix(batch_size=size, **question)
        np.testing.assert_allclose(again, exact, atol=1e-3)
    monkeypatch.setattr(posterior, "KNOTS", 100)  # ranks between knots, as with more draws
    binned = model.get_feature_correlation_matrix(**question)
    assert 1e-6 < np.abs(binned - exact).to_numpy().max() < 0.01


def test_denoised_draws_have_the_mean_and_variance_of_the_gamma(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = dense_draws(model, monkeypatch, n_samples=4000, cells=[3, 8], rna_size_factor=500)
    drawn = rows.reshape(4000, 2, 30).astype(np.float64)
    own = model.get_normalized_expression(
        cells=[3, 8], n_samples=4000, return_mean=False, library_size=500, seed=4
    ).astype(np.float64)
    theta = np.exp(model.module.px_r.detach().double().numpy())
    np.testing.assert_allclose(drawn.mean(0), own.mean(0), rtol=0.1)
    total = (own**2 / theta).mean(0) + own.var(0)
    np.testing.assert_allclose(drawn.var(0) / total, 1.0, atol=0.35)
    assert abs((drawn.var(0) / total).mean() - 1) < 0.03


def test_correlation_over_batches_is_the_mean(model: Model) -> None:
    names = model.batch_categories
    each = [model.get_feature_correlation_matrix(transform_batch=name) for name in names]
    both = model.get_feature_correlation_matrix(transform_batch=names)
    np.testing.assert_allclose(both, (each[0] + each[1]) / 2, atol=1e-9)
    assert np.abs(each[0] - each[1]).to_numpy().max() > 0.01
    genes = [DATA.var_names[3], DATA.var_names[0]]
    assert model.get_feature_correlation_matrix(genes=genes).shape == (2, 2)


@pytest.mark.parametrize("ties", [False, True])
def test_ranks_between_knots(ties: bool) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(20_000, 5)) @ rng.normal(size=(5, 6)) + rng.normal(size=(20_000, 6))
    rows = np.floor(rows) if ties else np.exp(rows)
    parts = [torch.from_numpy(part) for part in np.array_split(rows, 7)]
    found = spearman(lambda: parts, lambda: [torch.from_numpy(rows[::10])], 6)
    np.testing.assert_allclose(found, scipy.stats.spearmanr(rows)[0], atol=1e-4)
    found = pearson(lambda: parts, 6)
    np.testing.assert_allclose(found, np.corrcoef(rows, rowvar=False), atol=1e-12)


def test_gene_that_does_not_vary_has_no_correlation() -> None:
    rows = torch.randn(50, 3, dtype=torch.float64)
    rows[:, 1] = 4.0
    for found in (pearson(lambda: [rows], 3), spearman(lambda: [rows], lambda: [rows], 3)):
        assert np.isnan(found[1]).all()
        assert np.isnan(found[:, 1]).all()
        assert np.isfinite(found[[0, 0, 2], [0, 2, 2]]).all()


def ask_everything(of: Model, **more: Any) -> dict[str, np.ndarray]:
    found = {
        f"parameters {name}": values
        for name, values in of.get_likelihood_parameters(n_samples=3, **more).items()
    }
    found["counts"] = of.posterior_predictive_sample(**more).toarray()
    found["pearson"] = of.get_feature_correlation_matrix(
        correlation_type="pearson", **more
    ).to_numpy()
    return found


def test_same_on_disk_and_in_other_minibatches(model: Model, tmp_path: Path) -> None:
    expected = ask_everything(model)
    DATA.write_h5ad(tmp_path / "cells.h5ad")
    model.save(tmp_path / "run")
    disk = Model.load(
        tmp_path / "run", tmp_path / "cells.h5ad", residence="disk", memory_limit="1GB"
    )
    assert disk._store.residence == "disk"
    for found in (ask_everything(model, batch_size=9), ask_everything(disk, batch_size=100)):
        for name, values in expected.items():
            if name == "counts":  # rounding of the rate can move a draw by one, now and then
                assert (found[name] != values).mean() < 0.01
            else:
                np.testing.assert_allclose(found[name], values, rtol=1e-3, atol=2e-3, err_msg=name)
    other = ask_everything(model, seed=1)
    assert (other["counts"] != expected["counts"]).mean() > 0.1


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (
            lambda m: m.get_feature_correlation_matrix(correlation_type="kendall"),
            "'kendall' is not known; choose one of 'spearman', 'pearson'",
        ),
        (lambda m: m.get_feature_correlation_matrix(rna_size_factor=0), "rna_size_factor must be"),
        (lambda m: m.get_likelihood_parameters(n_samples=0), "n_samples must be a whole number"),
        (lambda m: m.get_likelihood_parameters(batch_size=0), "batch_size must be a whole number"),
        (lambda m: m.posterior_predictive_sample(transform_batch="b"), "'b' is not a category"),
        (lambda m: m.get_latent_representation(mc_samples=0), "mc_samples must be"),
    ],
)
def test_bad_questions(model: Model, question: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        question(model)


def test_results_that_do_not_fit_are_refused(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_memory, "available_memory", lambda: 4 * 2 * 120 * 30 - 1)
    with pytest.raises(InputError, match=r"likelihood parameters of 120 x 30 values.*fewer genes"):
        model.get_likelihood_parameters()
    assert model.get_likelihood_parameters(cells=[1])["mean"].shape == (1, 30)
    with pytest.raises(InputError, match=r"the correlation of 30 genes.*name fewer"):
        model.get_feature_correlation_matrix()
    assert isinstance(
        model.get_feature_correlation_matrix(correlation_type="pearson"), pd.DataFrame
    )
