"""Importance-weighted draws and outlier filtering beside scvi-tools with the same weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from small_models import small_data

from fastvae import Model

scvi = pytest.importorskip("scvi")

from fastvae.integrations.convert import to_scvi_tools  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

DATA = small_data(150, 12)
# Of 31 cells one lies exactly on the threshold of scikit-learn's filter: in float32, which
# scvi-tools hands it, rounding decides whether that cell stays, and it moves every answer.
DATA = DATA[np.arange(150) != np.flatnonzero(DATA.obs["cell_type"] == "type_0")[-1]].copy()
TYPES = DATA.obs["cell_type"].astype(str).to_numpy()


@pytest.fixture(scope="module", params=["zinb", "nb"])
def pair(request: pytest.FixtureRequest) -> tuple[Model, Any]:
    model = Model(
        DATA, batch_key="batch", n_latent=2, n_hidden=8, reconstruction_loss=request.param
    ).fit(60, batch_size=25, seed=0, progress=False, learning_rate=1e-2, n_epochs_kl_warmup=None)
    with torch.no_grad():  # too wide, so that weights have something to correct
        model.module.z_encoder.var_encoder.bias += 2 * np.log(2.0)
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - what scvi-tools draws from
    return model, to_scvi_tools(model, DATA.copy())


@pytest.mark.parametrize("batch", [None, "batch_1"])
def test_weighted_expression(pair: tuple[Model, Any], batch: str | None) -> None:
    model, theirs = pair
    cells = np.flatnonzero(TYPES == "type_0")
    ask = {"transform_batch": batch, "n_samples_overall": 3000, "return_numpy": True}
    found, want = [], []
    for seed in range(6):
        found.append(
            model.get_normalized_expression(cells=cells, weights="importance", seed=seed, **ask)
        )
        want.append(theirs.get_normalized_expression(indices=cells, weights="importance", **ask))
    means = [np.stack([part.mean(0) for part in parts]) for parts in (found, want)]
    error = np.sqrt((means[0].var(0, ddof=1) + means[1].var(0, ddof=1)) / 6)
    z = (means[0].mean(0) - means[1].mean(0)) / error
    assert np.sqrt((z**2).mean()) < 2.0
    uniform = model.get_normalized_expression(cells=cells, **ask).mean(0)
    assert np.abs((uniform - means[1].mean(0)) / error).max() > 8
    spreads = [np.concatenate(parts).std(0) for parts in (found, want)]
    np.testing.assert_allclose(*spreads, rtol=0.12)


@pytest.mark.parametrize("correction", [False, True])
def test_differential_expression(pair: tuple[Model, Any], correction: bool) -> None:
    model, theirs = pair
    ask: dict[str, Any] = {
        "groupby": "cell_type",
        "group1": "type_0",
        "group2": "type_1",
        "mode": "change",
        "batch_correction": correction,
        "weights": "importance",
        "filter_outlier_cells": True,
        "pseudocounts": 1e-4,
    }
    names = list(DATA.var_names)
    found = model.differential_expression(**ask, n_samples_overall=20_000).loc[names]
    # which cells their filter leaves out depends on numpy's generator, now and then badly
    columns = ["scale1", "scale2", "lfc_median", "proba_de"]
    answers = [
        theirs.differential_expression(**ask, n_samples_overall=20_000, silent=True).loc[
            names, columns
        ]
        for _ in range(3)
    ]
    want = dict(zip(columns, np.median(answers, axis=0).T, strict=True))
    np.testing.assert_allclose(found["scale1"], want["scale1"], rtol=0.06)
    np.testing.assert_allclose(found["scale2"], want["scale2"], rtol=0.06)
    np.testing.assert_allclose(found["lfc_median"], want["lfc_median"], atol=0.1)
    np.testing.assert_allclose(found["proba_de"], want["proba_de"], atol=0.05)
