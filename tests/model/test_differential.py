"""Differential expression against float64 Monte Carlo, a closed form and scvi-tools."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import recorded_answers
import torch
from small_models import small_data

from fastvae import LDVAE, VAE, Model
from fastvae.model.posterior import decode

DATA = small_data()
TYPES = DATA.obs["cell_type"].astype(str).to_numpy()
RECORDED = recorded_answers.arrays()


def fitted(data: Any = DATA, **options: Any) -> Model:
    model = Model(data, batch_key="batch", n_latent=3, n_hidden=16, **options)
    return model.fit(25, batch_size=32, seed=0, progress=False, learning_rate=1e-2, device="cpu")


@pytest.fixture(scope="module")
def model() -> Model:
    return fitted()


def by_hand(model: Model, cells: np.ndarray, batch: int | None, draws: int) -> np.ndarray:
    """Frequencies (cells * draws, G) in float64, by the network's own modules."""
    module, store = model.module, model._store
    x = torch.from_numpy(DATA.X[cells].toarray()).double()
    codes = torch.from_numpy(store.batch_codes[cells]).unsqueeze(1)
    codes = codes if batch is None else torch.full_like(codes, batch)
    generator = torch.Generator().manual_seed(len(cells))
    module.double()
    try:
        with torch.no_grad():
            mean, var, _ = module.z_encoder(torch.log1p(x))
            scales = []
            for _ in range(draws):
                noise = torch.randn(mean.shape, dtype=torch.float64, generator=generator)
                z = module.z_encoder.z_transformation(mean + torch.sqrt(var) * noise)
                scales.append(module.decoder("gene", z, torch.zeros(len(z), 1), codes)[0].numpy())
    finally:
        module.float()
    return np.concatenate(scales)


def all_pairs(one: np.ndarray, two: np.ndarray, offset: float) -> np.ndarray:
    """Log-fold changes of random pairs, (pairs, G)."""
    rng = np.random.default_rng(5)
    pairs = rng.integers(len(one), size=200_000), rng.integers(len(two), size=200_000)
    return np.log2(one[pairs[0]] + offset) - np.log2(two[pairs[1]] + offset)


@pytest.mark.parametrize("latent", ["normal", "ln"])
@pytest.mark.parametrize("corrected", [False, True])
def test_change_against_monte_carlo(latent: str, corrected: bool, model: Model) -> None:
    model = model if latent == "normal" else fitted(latent_distribution="ln")
    cells = [np.flatnonzero(name == TYPES) for name in ("type_0", "type_2")]
    offset = 2e-3
    if corrected:  # draws are paired within a batch
        effects = [
            all_pairs(*(by_hand(model, rows, batch, 600) for rows in cells), offset)
            for batch in (0, 1)
        ]
        effect = np.concatenate(effects)
    else:
        effect = all_pairs(*(by_hand(model, rows, None, 600) for rows in cells), offset)
    found = model.differential_expression(
        groupby="cell_type",
        group1="type_0",
        group2="type_2",
        delta=0.4,
        pseudocounts=offset,
        n_samples_overall=100_000,
        batch_correction=corrected,
        cred_interval_lvls=[0.8],
    ).loc[DATA.var_names]
    up, down = (effect >= 0.4).mean(0), (effect < -0.4).mean(0)
    expected = np.maximum(up, down)
    assert np.ptp(expected) > 0.2, "the test needs genes that differ and genes that do not"
    np.testing.assert_allclose(found["proba_de"], expected, atol=0.01)
    np.testing.assert_allclose(found["proba_not_de"], 1 - found["proba_de"], atol=1e-12)
    odds = np.log((found["proba_de"] + 1e-8) / (found["proba_not_de"] + 1e-8))
    np.testing.assert_allclose(found["bayes_factor"], odds, atol=1e-6)

    def close(name: str, values: np.ndarray, sharpness: float) -> None:
        error = np.abs(found[name] - values) / found["lfc_std"]
        assert error.max() < sharpness, name

    # Described are changes with a thousandth of the pseudocount, as good as none here.
    if not corrected:
        exact = all_pairs(*(by_hand(model, rows, None, 600) for rows in cells), 1e-3 * offset)
        close("lfc_mean", exact.mean(0), 0.03)
        close("lfc_median", np.median(exact, axis=0), 0.04)
        np.testing.assert_allclose(found["lfc_std"], exact.std(0), rtol=0.04)
        inside = (exact >= found["lfc_confidence_interval_0.8_min"].to_numpy()) & (
            exact <= found["lfc_confidence_interval_0.8_max"].to_numpy()
        )
        np.testing.assert_allclose(inside.mean(0), 0.8, atol=0.015)
        for number, rows in enumerate(cells, start=1):
            scale = by_hand(model, rows, None, 600).mean(0)
            np.testing.assert_allclose(found[f"scale{number}"], scale, rtol=0.03)


def test_vanilla_against_the_closed_form() -> None:
    """With two genes and no unit switched off, h1 > h2 is a comparison of normals."""
    data = small_data()[:, [3, 4]].copy()
    model = Model(data, n_latent=2, n_hidden=5, use_observed_lib_size=True)
    model.is_trained = True
    decoder = model.module.decoder
    with torch.no_grad():
        decoder.px_decoder.fc_layers[0][0].bias += 20.0  # no ReLU is ever zero
        model.module.z_encoder.mean_encoder.weight *= 10.0
        mean, var, _ = model.module.z_encoder(torch.log1p(torch.from_numpy(data.X.toarray())))
        layer, norm = decoder.px_decoder.fc_layers[0][0], decoder.px_decoder.fc_layers[0][1]
        head = decoder.px_scale_decoder[0]
        weight = (head.weight[0] - head.weight[1]) / torch.sqrt(norm.running_var + norm.eps)
        slope = (weight @ layer.weight).double().numpy()
        # Where the frequencies are far apart, float32 rounds the larger one to 1: centre them.
        head.bias[0] -= (decoder.logits("gene", mean, None)[0] @ torch.tensor([1.0, -1.0])).mean()
    means, variances = mean.double().numpy() @ slope, var.double().numpy() @ slope**2
    one, two = np.argsort(means)[40:47], np.argsort(means)[70:81]
    score = (means[one][:, None] - means[two]) / np.sqrt(variances[one][:, None] + variances[two])
    expected = np.vectorize(lambda s: 0.5 * math.erfc(-s / math.sqrt(2)))(score).mean()
    assert 0.55 < expected < 0.95 or 0.05 < expected < 0.45
    found = model.differential_expression(
        idx1=one, idx2=two, mode="vanilla", n_samples_overall=200_000
    )
    gene = data.var_names[0]
    assert found.loc[gene, "proba_m1"] == pytest.approx(expected, abs=0.006)
    assert found["proba_m1"].sum() == pytest.approx(1.0, abs=1e-4)  # but for ties of float32
    assert list(found["bayes_factor"]) == sorted(found["bayes_factor"], reverse=True)


@pytest.mark.parametrize("name", recorded_answers.QUESTIONS)
def test_as_scvi_tools_on_the_same_weights(name: str) -> None:
    model, genes = recorded_answers.model()
    question = recorded_answers.QUESTIONS[name]
    theirs = {
        key.rpartition("/")[2]: values
        for key, values in RECORDED.items()
        if key.startswith(f"de/{name}/")
    }
    settings = dict(recorded_answers.SETTINGS)
    chosen = model.differential_expression(groupby="cell_type", **question, **settings)
    assert list(chosen.columns) == list(theirs["columns"])
    if "pseudocounts" in theirs:  # from the highest of all draws, so it varies a little
        np.testing.assert_allclose(chosen["pseudocounts"], theirs["pseudocounts"][0], rtol=0.2)
        settings["pseudocounts"] = float(theirs["pseudocounts"][0])
    found = model.differential_expression(groupby="cell_type", **question, **settings).loc[genes]
    for column, values in theirs.items():
        if column == "columns" or column in ("lfc_min", "lfc_max"):  # of which extremes have none
            continue
        own = found[column].to_numpy()
        if column.startswith(("raw", "non_zeros")):
            np.testing.assert_allclose(own, values, rtol=1e-5, err_msg=column)
        elif column.startswith("proba"):
            np.testing.assert_allclose(own, values, atol=0.015, err_msg=column)
        elif column.startswith("lfc_m"):
            np.testing.assert_array_less(np.abs(own - values), 0.03 * theirs["lfc_std"], column)
        elif column in ("lfc_std", "scale1", "scale2"):
            np.testing.assert_allclose(own, values, rtol=0.04, err_msg=column)
        elif column in ("delta", "is_de_fdr_0.05"):
            np.testing.assert_array_equal(own, values, column)


def test_batches_decoded_as(model: Model) -> None:
    def question(one: Any, two: Any) -> pd.DataFrame:
        table = model.differential_expression(
            groupby="cell_type",
            group1="type_0",
            group2="type_1",
            batch_correction=True,
            batchid1=one,
            batchid2=two,
            n_samples_overall=20_000,
        )
        return table.loc[DATA.var_names]

    cells = [np.flatnonzero(name == TYPES) for name in ("type_0", "type_1")]
    found = question("batch_1", ["batch_0"])
    for number, (rows, batch) in enumerate(zip(cells, (1, 0), strict=True), start=1):
        expected = by_hand(model, rows, batch, 100).mean(0)
        np.testing.assert_allclose(found[f"scale{number}"], expected, rtol=0.04)


@pytest.mark.parametrize("network", [VAE, LDVAE])
@pytest.mark.parametrize("n_batch", [0, 2])
def test_genes_in_parts_are_the_decoders(
    network: Any, n_batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = network(30, n_batch=n_batch, n_latent=3).eval()
    z, codes = torch.randn(11, 3), torch.arange(11) % 2
    monkeypatch.setattr(decode, "CHUNK_VALUES", 50)
    with torch.no_grad():
        draws = decode.ScaleDraws(module, z, codes)
        found = torch.cat([draws.scale(slice(0, 13)), draws.scale(slice(13, 30))])
        expected = module.decoder("gene", z, torch.zeros(11, 1), codes.unsqueeze(1))[0]
    torch.testing.assert_close(found.T, expected, rtol=1e-5, atol=1e-8)
