"""Draws over populations, and their importance weights, against integrals and plain numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from small_models import small_data

from fastvae import Model
from fastvae._torch import evaluating
from fastvae.data import Minibatches
from fastvae.errors import InputError
from fastvae.model.posterior.importance import Anchors, Weighting

DATA = small_data(60, 8)
X = DATA.X.toarray().astype(np.float64)
TYPES = DATA.obs["cell_type"].astype(str).to_numpy()


def fitted(**options: Any) -> Model:
    model = Model(DATA, **{"batch_key": "batch", "n_latent": 1, "n_hidden": 8, **options})
    return model.fit(
        40, batch_size=20, seed=0, progress=False, learning_rate=1e-2, n_epochs_kl_warmup=None
    )


@pytest.fixture(scope="module")
def wide() -> Model:
    """A model whose approximate posterior is 4 times as wide as it should be, and off."""
    model = fitted()
    with torch.no_grad():
        model.module.z_encoder.var_encoder.bias += 2 * np.log(4.0)
        model.module.z_encoder.mean_encoder.bias += 0.3
    return model


def decoded_by_hand(model: Model, z: np.ndarray, code: int) -> tuple[np.ndarray, ...]:
    """Frequencies, theta and zero-inflation logits of z (M, L) from the weights, in float64."""
    state = {name: value.double().numpy() for name, value in model.module.state_dict().items()}
    layer, names = "decoder.px_decoder.fc_layers.Layer 0", ("weight", "bias")
    one_hot = np.eye(2)[np.full(len(z), code)]
    weight, bias = (state[f"{layer}.0.{name}"] for name in names)
    hidden = np.concatenate([z, one_hot], 1) @ weight.T + bias
    mean, var = state[f"{layer}.1.running_mean"], state[f"{layer}.1.running_var"]
    hidden = (hidden - mean) / np.sqrt(var + 1e-3)
    hidden = np.maximum(hidden * state[f"{layer}.1.weight"] + state[f"{layer}.1.bias"], 0.0)
    logits, zi = (
        hidden @ state[f"decoder.{head}.weight"].T + state[f"decoder.{head}.bias"]
        for head in ("px_scale_decoder.0", "px_dropout_decoder")
    )
    scale = np.exp(logits - logits.max(1, keepdims=True))
    return scale / scale.sum(1, keepdims=True), np.exp(state["px_r"]), zi


def log_p_by_hand(model: Model, z: np.ndarray, code: int, cell: int) -> np.ndarray:
    """log p(x | z) of one cell at each z (M,), with scipy's negative binomial."""
    scale, theta, zi_logits = decoded_by_hand(model, z, code)
    mu = scale * max(X[cell].sum(), 1.0)
    extra = 1 / (1 + np.exp(-zi_logits))
    p = (1 - extra) * scipy.stats.nbinom.pmf(X[cell], theta, theta / (theta + mu))
    return np.log(p + extra * (X[cell] == 0)).sum(1)


def moments(model: Model) -> tuple[np.ndarray, np.ndarray]:
    mean, variance = model.get_latent_representation(return_dist=True)
    return mean.astype(np.float64), variance.astype(np.float64)


def test_log_weights_are_the_formula(wide: Model) -> None:
    model = fitted(n_latent=2)
    cells, rng = np.array([3, 8, 20, 41, 50]), np.random.default_rng(0)
    u = rng.normal(size=(30, 2)).astype(np.float32)
    codes = rng.integers(2, size=30)
    with evaluating(model.module, 0):
        anchors = Anchors(model.module, Minibatches(model._store, cells, batch_size=64), 5, 200, 7)
        found = anchors.log_weights(
            torch.from_numpy(u), torch.from_numpy(codes), torch.zeros(30, dtype=torch.int64)
        )
    log_p_x = model.get_marginal_ll(cells=cells, n_mc_samples=200, return_mean=False, seed=7)
    mean, variance = (part[cells] for part in moments(model))
    above, below = np.zeros(30), np.zeros(30)
    for m, z in enumerate(u.astype(np.float64)):
        for a, cell in enumerate(cells):
            log_p = log_p_by_hand(model, z[None], codes[m], cell)[0]
            prior = scipy.stats.norm.pdf(z).prod()
            above[m] += prior * np.exp(log_p - log_p_x[a])
            below[m] += scipy.stats.norm.pdf(z, mean[a], np.sqrt(variance[a])).prod()
    np.testing.assert_allclose(found, np.log(above / below), atol=2e-4)


@pytest.mark.parametrize("library_size", [1.0, "latent"])
def test_importance_gives_the_expectation_under_the_true_posterior(
    wide: Model, library_size: float | str
) -> None:
    """For one cell the posterior over one latent dimension is an integral on a grid."""
    cell = 4
    grid = np.linspace(-8, 8, 4001)[:, None]
    code = int(wide._store.batch_codes[cell])
    log_joint = log_p_by_hand(wide, grid, code, cell) + scipy.stats.norm.logpdf(grid[:, 0])
    weight = np.exp(log_joint - log_joint.max())
    scale = decoded_by_hand(wide, grid, code)[0]
    if library_size == "latent":
        scale = scale * X[cell].sum()
    truth = weight @ scale / weight.sum()
    spread = np.sqrt(weight @ (scale - truth) ** 2 / weight.sum())
    found = {
        weights: wide.get_normalized_expression(
            cells=[cell], n_samples_overall=20_000, weights=weights, library_size=library_size
        )
        for weights in ("uniform", "importance")
    }
    error = {name: np.abs(table.mean(axis=0) - truth) / spread for name, table in found.items()}
    assert found["importance"].shape == (20_000, 8)
    assert set(found["importance"].index) == {DATA.obs_names[cell]}
    assert error["importance"].max() < 0.05
    assert error["uniform"].max() > 0.3


def test_uniform_draws_are_those_of_the_cells(wide: Model) -> None:
    cells, names = np.flatnonzero(TYPES == "type_1"), wide.batch_categories
    ask = {"cells": cells, "transform_batch": names, "library_size": 1e3}
    found = wide.get_normalized_expression(n_samples_overall=20_000, **ask)
    assert found.shape == (20_000, 8)
    share = found.index.value_counts() / len(found)
    assert set(share.index) == set(DATA.obs_names[cells])
    assert abs(share * len(cells) - 1).max() < 0.2
    np.testing.assert_allclose(found.sum(axis=1), 1e3, rtol=1e-5)
    expected = wide.get_normalized_expression(n_samples=600, return_mean=False, **ask)
    expected = expected.reshape(-1, 8)
    error = (found.mean(axis=0) - expected.mean(0)) / (expected.std(0) / np.sqrt(20_000))
    assert np.abs(error).max() < 4.5
    np.testing.assert_allclose(found.std(axis=0), expected.std(0), rtol=0.06)
    genes = [DATA.var_names[5], DATA.var_names[2]]
    part = wide.get_normalized_expression(
        n_samples_overall=20_000, genes=genes, return_numpy=True, batch_size=7, **ask
    )
    np.testing.assert_allclose(part, found[genes].to_numpy(), rtol=1e-4)


def test_learned_library_size_is_drawn() -> None:
    model = fitted(use_observed_lib_size=False)
    found = model.get_normalized_expression(
        n_samples_overall=20_000, library_size="latent", return_numpy=True, cells=[2, 3, 4]
    )
    expected = model.get_normalized_expression(
        n_samples=7000, library_size="latent", return_mean=False, cells=[2, 3, 4]
    ).reshape(-1, 8)
    np.testing.assert_allclose(found.sum(1).mean(), expected.sum(1).mean(), rtol=0.03)
    np.testing.assert_allclose(found.sum(1).std(), expected.sum(1).std(), rtol=0.08)


def test_weights_may_be_cut_off() -> None:
    log_weights = np.log(np.array([1.0, 1.0, 1.0, 97.0])) - 1000
    plain, cut = (
        Weighting.checked("importance", {"truncation": flag}).probabilities(log_weights)
        for flag in (False, True)
    )
    np.testing.assert_allclose(plain, [0.01, 0.01, 0.01, 0.97])
    np.testing.assert_allclose(cut, np.array([1, 1, 1, 50]) / 53)  # sqrt(4) times the mean of 25


def test_differential_expression_by_hand(wide: Model) -> None:
    """The test's probability against the weighted share of pairs, over pairs of batches told."""
    options: dict[str, Any] = {"importance_weighting_kwargs": {"n_mc_samples": 100}}
    for correction in (False, True):
        table = wide.differential_expression(
            groupby="cell_type",
            group1="type_0",
            group2="type_1",
            weights="importance",
            batch_correction=correction,
            n_samples_overall=8000,
            **options,
        ).loc[DATA.var_names]
        draws = []
        for number, group in enumerate(("type_0", "type_1")):
            cells = np.flatnonzero(group == TYPES)
            told = [None] if not correction else wide.batch_categories
            parts = [
                wide.get_normalized_expression(
                    cells=cells,
                    n_samples_overall=8000 // len(told),
                    weights="importance",
                    transform_batch=name,
                    return_numpy=True,
                    seed=5 + number,
                    **options,
                )
                for name in told
            ]
            draws.append(np.concatenate(parts))
        np.testing.assert_allclose(table["scale1"], draws[0].mean(0), rtol=0.06)
        np.testing.assert_allclose(table["scale2"], draws[1].mean(0), rtol=0.06)
        offset = table["pseudocounts"].iloc[0]
        change = np.log2(draws[0] + offset) - np.log2(draws[1] + offset)
        up, down = (change >= 0.25).mean(0), (change < -0.25).mean(0)
        np.testing.assert_allclose(table["proba_de"], np.maximum(up, down), atol=0.04)
    uniform = wide.differential_expression(groupby="cell_type", group1="type_0", group2="type_1")
    assert np.abs(uniform["scale1"].loc[DATA.var_names] / draws[0].mean(0) - 1).max() > 0.1


def test_few_effective_draws_are_warned_of(wide: Model) -> None:
    far = wide.module.z_encoder.mean_encoder.bias.data
    far += 40.0  # nothing that is drawn explains the cells
    try:
        with pytest.warns(UserWarning, match="weights of the cells leave .* draws of 200"):
            wide.get_normalized_expression(n_samples_overall=200, weights="importance")
    finally:
        far -= 40.0


def test_outliers_are_not_drawn(wide: Model) -> None:
    pytest.importorskip("sklearn")
    model = fitted(n_latent=2)
    latent = model.get_latent_representation()
    first = np.flatnonzero(TYPES == "type_0")
    strange = first[np.argsort(((latent[first] - np.median(latent[first], 0)) ** 2).sum(1))[-1]]
    counts = DATA.copy()
    far = counts.X.toarray()
    far[strange] = 0
    far[strange, 3] = 400  # a cell like no other
    counts.X = type(counts.X)(far)
    ask = {
        "groupby": "cell_type",
        "group1": "type_0",
        "group2": "type_1",
        "n_samples_overall": 4000,
    }
    plain = model.differential_expression(counts, **ask).loc[DATA.var_names]
    found = model.differential_expression(counts, filter_outlier_cells=True, **ask)
    found = found.loc[DATA.var_names]
    np.testing.assert_array_equal(found["raw_mean1"], plain["raw_mean1"])
    from sklearn.covariance import MinCovDet

    sides = []
    for group in ("type_0", "type_1"):
        cells = np.flatnonzero(group == TYPES)
        where = model.get_latent_representation(counts, cells=cells)
        distance = MinCovDet(random_state=0).fit(where).mahalanobis(where)
        sides.append(cells[distance <= np.percentile(distance, 90)])
    assert strange not in sides[0]
    expected = model.differential_expression(
        counts,
        idx1=sides[0],
        idx2=sides[1],
        **{"n_samples_overall": 4000, "pseudocounts": float(found["pseudocounts"].iloc[0])},
    ).loc[DATA.var_names]
    np.testing.assert_array_equal(found["lfc_mean"], expected["lfc_mean"])
    assert np.abs(found["scale1"] / plain["scale1"] - 1).max() > 0.01


def test_a_population_without_covariance_is_kept(wide: Model) -> None:
    pytest.importorskip("sklearn")
    cells = np.flatnonzero(TYPES == "type_0")[:2]
    with pytest.warns(UserWarning, match="2 cells has no covariance in 1 latent"):
        wide.differential_expression(
            idx1=cells, idx2=np.flatnonzero(TYPES == "type_1"), filter_outlier_cells=True
        )


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"weights": "even"}, "weights='even' is not known; choose one of 'uniform', 'importance'"),
        ({"weights": "importance"}, "give n_samples_overall"),
        ({"n_samples_overall": 5, "n_samples": 2}, "give one of them"),
        ({"n_samples_overall": 0}, "n_samples_overall must be"),
        (
            {
                "n_samples_overall": 5,
                "weights": "importance",
                "transform_batch": ["batch_0", "batch_1"],
            },
            "needs one transform_batch, not 2",
        ),
        ({"importance_weighting_kwargs": {"max_cells": 3}}, "weights are uniform"),
        (
            {
                "n_samples_overall": 5,
                "weights": "importance",
                "importance_weighting_kwargs": {"cells": 3},
            },
            "has 'cells'; there are max_cells, truncation, n_mc_samples",
        ),
        (
            {
                "n_samples_overall": 5,
                "weights": "importance",
                "importance_weighting_kwargs": {"max_cells": 0},
            },
            "max_cells must be",
        ),
    ],
)
def test_bad_questions(wide: Model, question: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        wide.get_normalized_expression(**question)
